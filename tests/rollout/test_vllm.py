"""VLLM without vLLM: settings, messages, stop strings, and the server's protocol around an engine of another make."""

from __future__ import annotations

import copy
import importlib.util
import json
import math
import socket
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any
from urllib.request import urlopen

import pytest
import torch
from peft import LoraConfig
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from repirl.data.codec import ChatCodec
from repirl.models.policy import Policy
from repirl.rollout import vllm_client
from repirl.rollout.transformers import InProcess, row_seed
from repirl.rollout.vllm import VLLM
from repirl.rollout.vllm_engine import Sampled, Sampling
from repirl.rollout.vllm_server import EngineServer
from repirl.structs import Generator, Response
from tests.models.tiny import EOS, LLAMA, PAD, TOKENS, alone, tiny_policy
from tests.modules.tiny import make_module

PROMPTS, SEEDS = [[2, 3], [4, 5, 6, 7, 8], [5]], [11, 12, 13]
no_vllm = pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is installed")


def attached(policy: Policy, limit: int = 12, **settings: Any) -> VLLM:
    made = VLLM(**settings)
    decode = ChatCodec(policy.tokenizer).decode
    made.attach(policy.model, decode=decode, pad_id=PAD, eos_ids=(EOS,), max_response_tokens=limit)
    return made


# --- settings


@pytest.mark.parametrize("settings", [{"top_p": 0.0}, {"top_p": 1.5}, {"top_k": -1}, {"min_p": 2.0}])
def test_impossible_settings_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"rollout: expected top_p in \(0, 1\]"):
        VLLM(**settings)


@pytest.mark.parametrize("name", ["dtype", "enable_lora", "load_format", "tensor_parallel_size"])
def test_what_repirl_decides_cannot_be_set(name: str) -> None:
    with pytest.raises(ValueError, match=rf"rollout.engine: {name} cannot be set"):
        VLLM(engine={name: 1, "max_model_len": 64})


@pytest.mark.parametrize("settings", [{"top_p": 0.9}, {"top_k": 50}, {"min_p": 0.1}])
def test_training_refuses_truncated_sampling(settings: dict[str, Any]) -> None:
    assert VLLM(**settings).truncated
    with pytest.raises(ValueError, match=r"rollout samples from a part of the distribution only .* leave top_p at 1"):
        make_module(rollout=VLLM(**settings))
    assert not VLLM().truncated
    make_module(rollout=VLLM())


@no_vllm
def test_a_missing_vllm_is_said_when_the_first_response_is_asked_for() -> None:
    made = attached(tiny_policy())
    with pytest.raises(ValueError, match=r"vLLM is not installed.*pip install repirl\[vllm\]"):
        made.generate(PROMPTS, samples=1, seeds=SEEDS)


def test_no_server_is_said_with_its_address() -> None:
    made = attached(tiny_policy(), server="http://127.0.0.1:9")
    with pytest.raises(ValueError, match=r"127.0.0.1:9: no answer to 'start' .*vllm_server` running there"):
        made.generate(PROMPTS, samples=1, seeds=SEEDS)
    for address in ("127.0.0.1:8000", "https://127.0.0.1", "ftp://x"):
        with pytest.raises(ValueError, match="give an address such as"):
            attached(tiny_policy(), server=address).generate(PROMPTS, samples=1, seeds=SEEDS)
    with pytest.raises(ValueError, match="names 2 servers for 1 processes"):
        attached(tiny_policy(), server=["http://a:1", "http://b:1"]).generate(PROMPTS, samples=1, seeds=SEEDS)


# --- the protocol, around an engine that is this project's own decoding loop


class Loop:
    """Another engine of the same interface: a model of the config, with the weights that were sent, and `InProcess`."""

    def __init__(
        self, config: dict[str, Any], *, dtype: str, sleeps: bool, options: dict[str, Any], lora_rank: int
    ) -> None:
        if options.get("fails"):
            raise RuntimeError("out of memory")
        if options.get("refuses"):
            raise ValueError("not on this machine")
        self.base = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config)).to(getattr(torch, dtype))
        self.model, self.lora_rank = self.base, lora_rank
        self.max_model_len = int(options.get("max_model_len", 128))
        self.asleep, self.loads, self.adaptations, self.closed = True, 0, 0, False

    def load(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        self.base.load_state_dict(dict(weights))
        self.model = self.base
        self.asleep, self.loads = False, self.loads + 1

    def adapt(self, config: dict[str, Any], weights: Mapping[str, Tensor]) -> None:
        self.model = copy.deepcopy(self.base)
        self.model.load_adapter(peft_config=LoraConfig(**config), adapter_state_dict=dict(weights))
        self.adaptations += 1

    def sample(self, prompts: Sequence[Sequence[int]], seeds: Sequence[int], sampling: Sampling) -> list[Sampled]:
        assert not self.asleep
        loop = InProcess()
        loop.attach(
            self.model,
            decode=lambda ids: "",
            pad_id=PAD,
            eos_ids=sampling.end_ids,
            max_response_tokens=sampling.max_tokens,
        )
        rows = loop.generate(prompts, samples=1, seeds=seeds, temperature=sampling.temperature)
        return [(list(r.token_ids), self.log_probs(p, r)) for p, (r,) in zip(prompts, rows, strict=True)]

    @torch.no_grad()
    def log_probs(self, prompt: Sequence[int], response: Response) -> list[float]:
        logits = self.model(torch.tensor([[*prompt, *response.token_ids]])).logits[0, len(prompt) - 1 : -1]
        chosen = torch.tensor(response.token_ids)[:, None]
        return logits.log_softmax(-1).gather(-1, chosen)[:, 0].tolist()

    def sleep(self) -> None:
        self.asleep = True

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def server() -> Iterator[EngineServer]:
    made = EngineServer(("127.0.0.1", 0), make_engine=Loop)
    thread = threading.Thread(target=made.serve_forever)
    thread.start()
    yield made
    made.shutdown()
    thread.join()
    made.end_engine()
    made.server_close()


def address(of: EngineServer) -> str:
    return f"http://127.0.0.1:{of.server_address[1]}"


def expected(policy: Policy, samples: int = 4) -> list[list[tuple[int, ...]]]:
    """What the decoding loop samples with a seed for each row."""
    loop = InProcess()
    decode = ChatCodec(policy.tokenizer).decode
    loop.attach(policy.model, decode=decode, pad_id=PAD, eos_ids=(EOS,), max_response_tokens=12)
    rows = [(p, row_seed(s, k)) for p, s in zip(PROMPTS, SEEDS, strict=True) for k in range(samples)]
    flat = loop.generate([p for p, _ in rows], samples=1, seeds=[s for _, s in rows])
    ids = [response.token_ids for (response,) in flat]
    return [ids[first : first + samples] for first in range(0, len(ids), samples)]


def ids(responses: list[list[Response]]) -> list[list[tuple[int, ...]]]:
    return [[response.token_ids for response in group] for group in responses]


def test_weights_and_responses_cross_http_exactly(server: EngineServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm_client, "BUCKET_BYTES", 5000)  # the weights need several pieces
    policy = tiny_policy(seed=3)
    made = attached(policy, server=address(server))
    assert isinstance(made, Generator)
    got = made.generate(PROMPTS, samples=4, seeds=SEEDS)
    assert ids(got) == expected(policy)
    for prompt, group in zip(PROMPTS, got, strict=True):
        for response in group:
            plain = alone(policy, prompt, response.token_ids)
            chosen = plain.gather(-1, torch.tensor(response.token_ids)[:, None])[:, 0].detach()
            torch.testing.assert_close(torch.tensor(response.log_probs), chosen, atol=1e-5, rtol=0)
            assert response.finished == (response.token_ids[-1] == EOS)
    assert made.generate([], samples=4, seeds=[]) == []


def test_weights_are_sent_when_they_changed_and_not_otherwise(server: EngineServer) -> None:
    policy = tiny_policy(seed=3)
    made = attached(policy, server=address(server))
    first = made.generate(PROMPTS, samples=4, seeds=SEEDS)
    assert made.generate(PROMPTS, samples=4, seeds=SEEDS) == first
    assert made.generate(PROMPTS, samples=1, seeds=SEEDS, temperature=0.0) != first
    assert server._engine.loads == 1
    with torch.no_grad():
        policy.head_weight.neg_()
    assert ids(made.generate(PROMPTS, samples=4, seeds=SEEDS)) == expected(policy) != ids(first)
    assert server._engine.loads == 2


def test_a_sleeping_engine_gets_its_weights_again(server: EngineServer) -> None:
    policy = tiny_policy(seed=3)
    made = attached(policy, server=address(server), sleep=True)
    assert ids(made.generate(PROMPTS, samples=4, seeds=SEEDS)) == expected(policy)
    assert server._engine.asleep
    assert ids(made.generate(PROMPTS, samples=4, seeds=SEEDS)) == expected(policy)
    assert server._engine.loads == 2


def test_another_trainer_is_told_apart(server: EngineServer) -> None:
    first, second = (attached(tiny_policy(seed=s), server=address(server)) for s in (3, 4))
    first.generate(PROMPTS, samples=1, seeds=SEEDS)
    engine = server._engine
    second.generate(PROMPTS, samples=1, seeds=SEEDS)
    assert server._engine is engine  # of the same config: only the weights differ
    with pytest.raises(ValueError, match="another trainer has taken this server"):
        first.generate(PROMPTS, samples=1, seeds=SEEDS)
    wider = attached(tiny_policy(seed=3, hidden_size=48), server=address(server))
    wider.generate(PROMPTS, samples=1, seeds=SEEDS)
    assert engine.closed
    assert server._engine is not engine


@pytest.mark.parametrize(("option", "error"), [("fails", RuntimeError), ("refuses", ValueError)])
def test_what_goes_wrong_there_is_said_here(server: EngineServer, option: str, error: type[Exception]) -> None:
    policy = tiny_policy(seed=3)
    with pytest.raises(error, match=r"out of memory|not on this machine"):
        attached(policy, server=address(server), engine={option: True}).generate(PROMPTS, samples=1, seeds=SEEDS)
    assert ids(attached(policy, server=address(server)).generate(PROMPTS, samples=4, seeds=SEEDS)) == expected(policy)


def test_the_server_says_that_it_is_there(server: EngineServer) -> None:
    with urlopen(address(server), timeout=30) as reply:
        assert json.load(reply) == {"ready": True}


def test_a_response_without_room_is_refused(server: EngineServer) -> None:
    made = attached(tiny_policy(seed=3), server=address(server), engine={"max_model_len": 16})
    with pytest.raises(ValueError, match="prompt of 5 tokens and a response of 12 exceed vLLM's max_model_len 16"):
        made.generate(PROMPTS, samples=1, seeds=SEEDS)


def test_each_prompt_may_have_a_limit_of_its_own(server: EngineServer) -> None:
    policy, limits = tiny_policy(seed=3), [2, 11, 12]
    made = attached(policy, server=address(server), engine={"max_model_len": 16})
    responses = made.generate(PROMPTS, samples=4, seeds=SEEDS, limits=limits)
    cut = [[row[:limit] for row in group] for group, limit in zip(expected(policy), limits, strict=True)]
    assert ids(responses) == cut
    assert all(len(r.log_probs or ()) == len(r.token_ids) for group in responses for r in group)
    assert all(r.finished == (r.token_ids[-1] == EOS) for group in responses for r in group)


def test_a_server_that_takes_too_long_is_left() -> None:
    with socket.create_server(("127.0.0.1", 0)) as deaf:  # connections wait there and get no answer
        made = attached(tiny_policy(), server=f"http://127.0.0.1:{deaf.getsockname()[1]}", timeout_s=0.2)
        with pytest.raises(ValueError, match=r"no answer to 'start' \(TimeoutError: timed out\)"):
            made.generate(PROMPTS, samples=1, seeds=SEEDS)
    for settings in ({"timeout_s": 5.0}, {"timeout_s": 0.0, "server": "http://127.0.0.1:1"}):
        with pytest.raises(ValueError, match=r"timeout_s .*: give seconds above 0, and beside a rollout.server"):
            VLLM(**settings)  # type: ignore[arg-type]


def test_responses_end_with_the_token_that_completes_a_stop_string(server: EngineServer) -> None:
    policy = tiny_policy(seed=3)
    decode, stops = ChatCodec(policy.tokenizer).decode, ["c", "gg"]
    whole = attached(policy, server=address(server)).generate(PROMPTS, samples=8, seeds=SEEDS)
    stopping = attached(policy, server=address(server), stop_strings=stops)
    cut = 0
    for before, after in zip(whole, stopping.generate(PROMPTS, samples=8, seeds=SEEDS), strict=True):
        for response, shorter in zip(before, after, strict=True):
            length = len(response.token_ids)
            texts = [decode(response.token_ids[:n]) for n in range(1, length + 1)]
            ends = [n for n, text in enumerate(texts, start=1) if any(stop in text for stop in stops)]
            count = min(ends, default=length)
            assert shorter.token_ids == response.token_ids[:count]
            assert shorter.log_probs == (response.log_probs or ())[:count]
            assert shorter.text == texts[count - 1]
            assert shorter.finished == bool(ends or response.finished)
            cut += count < length
    assert cut > 3


def test_prompts_and_seeds_must_pair() -> None:
    with pytest.raises(ValueError, match="3 prompts but 2 seeds"):
        attached(tiny_policy()).generate(PROMPTS, samples=1, seeds=SEEDS[:2])


# --- the probe after each transfer


class Forgetful(Loop):
    """Leaves one kind of weights as it was."""

    kind = "embed_tokens"

    def load(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        own = self.model.state_dict()
        super().load((name, own[name] if self.kind in name else value) for name, value in weights)


class Stuck(Loop):
    """Takes weights once."""

    def load(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        given = list(weights)
        if self.loads == 0:
            super().load(given)
        self.loads += 1


class Colder(Loop):
    """Samples at another temperature than it is asked for."""

    def log_probs(self, prompt: Sequence[int], response: Response) -> list[float]:
        return [value * 1.2 for value in super().log_probs(prompt, response)]


class Silent(Loop):
    """Gives no numbers."""

    def log_probs(self, prompt: Sequence[int], response: Response) -> list[float]:
        return [float("nan") for _ in response.token_ids]


def serving(make_engine: Any) -> EngineServer:
    made = EngineServer(("127.0.0.1", 0), make_engine=make_engine)
    threading.Thread(target=made.serve_forever, daemon=True).start()
    return made


@pytest.mark.parametrize("kind", ["embed_tokens", "q_proj", "down_proj", "lm_head", "model.layers.1"])
def test_weights_that_did_not_arrive_are_noticed(kind: str) -> None:
    of = serving(type("Forgetting", (Forgetful,), {"kind": kind}))
    with pytest.raises(
        ValueError, match=r"vLLM does not sample from the policy .* by [\d.e+]+ nats a token, where float32"
    ):
        attached(tiny_policy(seed=3), server=address(of)).generate(PROMPTS, samples=1, seeds=SEEDS)
    of.shutdown()


@pytest.mark.parametrize("engine", [Colder, Silent])
def test_other_probabilities_are_noticed(engine: Any) -> None:
    of = serving(engine)
    with pytest.raises(ValueError, match="vLLM does not sample from the policy"):
        attached(tiny_policy(seed=3), server=address(of)).generate(PROMPTS, samples=1, seeds=SEEDS)
    of.shutdown()


def test_a_later_transfer_is_probed_too() -> None:
    of, policy = serving(Stuck), tiny_policy(seed=3)
    made = attached(policy, server=address(of))
    made.generate(PROMPTS, samples=1, seeds=SEEDS)
    with torch.no_grad():
        policy.head_weight.neg_()
    for _ in range(2):  # and again, until it holds
        with pytest.raises(ValueError, match="vLLM does not sample from the policy"):
            made.generate(PROMPTS, samples=1, seeds=SEEDS)
    of.shutdown()


# --- adapters on one base


def lora_policy(**fields: Any) -> Policy:
    """A policy whose adapters change what it says."""
    lora = {"r": 4, "lora_alpha": 12, "target_modules": "all-linear", "init_lora_weights": False}
    return Policy(config=LLAMA, tokens=TOKENS, lora=lora | fields).load()


def move_adapters(policy: Policy) -> None:
    with torch.no_grad():
        for parameter in policy.parameters():
            if parameter.requires_grad:
                parameter.mul_(-1.5)


@pytest.mark.parametrize("fields", [{}, {"use_rslora": True}, {"rank_pattern": {"q_proj": 7}}])
def test_adapters_alone_are_sent(server: EngineServer, fields: dict[str, Any]) -> None:
    policy = lora_policy(**fields)
    made = attached(policy, server=address(server))
    first = ids(made.generate(PROMPTS, samples=4, seeds=SEEDS))
    assert first == expected(policy)
    move_adapters(policy)
    assert ids(made.generate(PROMPTS, samples=4, seeds=SEEDS)) == expected(policy) != first
    engine = server._engine
    assert (engine.loads, engine.adaptations, engine.lora_rank) == (1, 2, 7 if "rank_pattern" in fields else 4)
    with torch.no_grad():
        policy.head_weight.neg_()  # a base that moves after all is sent again, its adapters with it
    assert ids(made.generate(PROMPTS, samples=4, seeds=SEEDS)) == expected(policy)
    assert (engine.loads, engine.adaptations) == (2, 3)


@pytest.mark.parametrize(
    ("fields", "settings"),
    [
        ({}, {"merge_adapters": True}),
        ({"use_dora": True}, {}),
        ({"bias": "lora_only"}, {}),
        ({"r": 600}, {}),  # more than vLLM makes room for
    ],
)
def test_what_an_engine_cannot_adapt_is_merged(
    server: EngineServer, fields: dict[str, Any], settings: dict[str, Any]
) -> None:
    policy = lora_policy(**fields)
    made = attached(policy, server=address(server), **settings)
    for loads in (1, 2):
        assert ids(made.generate(PROMPTS, samples=4, seeds=SEEDS)) == expected(policy)
        assert (server._engine.loads, server._engine.adaptations, server._engine.lora_rank) == (loads, 0, 0)
        move_adapters(policy)


def test_a_view_on_a_shared_base_sends_the_base_once(server: EngineServer) -> None:
    base = Policy(config=LLAMA, tokens=TOKENS, lora={"r": 2, "target_modules": "all-linear"}).load()
    policy = base.view({"r": 4, "target_modules": ["q_proj", "down_proj"]})
    made = attached(policy, server=address(server))
    for _ in range(2):
        assert ids(made.generate(PROMPTS, samples=4, seeds=SEEDS)) == expected(policy)
        with torch.no_grad():
            for parameter in policy.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.3)
    assert (server._engine.loads, server._engine.adaptations) == (1, 2)


def test_a_sleeping_engine_gets_base_and_adapters_again(server: EngineServer) -> None:
    policy = lora_policy()
    made = attached(policy, server=address(server), sleep=True)
    for _ in range(2):
        assert ids(made.generate(PROMPTS, samples=4, seeds=SEEDS)) == expected(policy)
    assert (server._engine.loads, server._engine.adaptations) == (2, 2)


class Unadapted(Loop):
    """Takes adapters and samples without them."""

    def adapt(self, config: dict[str, Any], weights: Mapping[str, Tensor]) -> None:
        self.adaptations += 1


class Scaled(Loop):
    """Forgets how adapters are scaled."""

    def adapt(self, config: dict[str, Any], weights: Mapping[str, Tensor]) -> None:
        super().adapt(config | {"lora_alpha": config["r"]}, weights)


class FirstAdapters(Loop):
    """Keeps the adapters that came first."""

    def adapt(self, config: dict[str, Any], weights: Mapping[str, Tensor]) -> None:
        if not self.adaptations:
            super().adapt(config, weights)


@pytest.mark.parametrize("engine", [Unadapted, Scaled])
def test_adapters_that_are_not_sampled_with_are_noticed(engine: Any) -> None:
    of = serving(engine)
    with pytest.raises(ValueError, match="vLLM does not sample from the policy"):
        attached(lora_policy(), server=address(of)).generate(PROMPTS, samples=1, seeds=SEEDS)
    of.shutdown()


def test_stale_adapters_are_noticed() -> None:
    of, policy = serving(FirstAdapters), lora_policy()
    made = attached(policy, server=address(of))
    made.generate(PROMPTS, samples=1, seeds=SEEDS)
    move_adapters(policy)
    with pytest.raises(ValueError, match="vLLM does not sample from the policy"):
        made.generate(PROMPTS, samples=1, seeds=SEEDS)
    of.shutdown()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("lora", [None, {"r": 4, "target_modules": "all-linear", "init_lora_weights": False}])
def test_right_transfers_pass_in_every_precision(server: EngineServer, dtype: Any, lora: Any) -> None:
    policy = Policy(config=LLAMA, tokens=TOKENS, dtype=dtype, lora=lora).load()
    assert len(attached(policy, server=address(server)).generate(PROMPTS, samples=2, seeds=SEEDS)) == 3


def test_the_probe_ignores_autocast(server: EngineServer) -> None:
    policy = tiny_policy(seed=3)
    made, same = attached(policy, server=address(server)), expected(policy)
    with torch.autocast("cpu", dtype=torch.bfloat16):  # as in a training step of bf16-mixed
        assert ids(made.generate(PROMPTS, samples=4, seeds=SEEDS)) == same


def test_a_temperature_that_vllm_lacks_is_refused_before_an_engine_starts() -> None:
    for temperature in (2.5, -0.1, math.nan):
        with pytest.raises(ValueError, match=r"vLLM samples at 0 to 2 alone"):
            VLLM().generate([[1]], samples=1, seeds=[0], temperature=temperature)


def test_the_engine_goes_on_where_only_the_ends_of_responses_change() -> None:
    made, engine = VLLM(), Closing()
    policy, other = tiny_policy(1), tiny_policy(2)
    made.attach(policy.model, decode=str, pad_id=0, eos_ids=(1,), max_response_tokens=4)
    made._engine = engine  # type: ignore[assignment]
    made.attach(policy.model, decode=str, pad_id=0, eos_ids=(1, 7), max_response_tokens=4)
    assert (made._engine, made.eos_ids, engine.closed) == (engine, (1, 7), 0)
    made.attach(other.model, decode=str, pad_id=0, eos_ids=(1,), max_response_tokens=4)
    assert (made._engine, engine.closed) == (None, 1)


class Closing:
    closed = 0

    def close(self) -> None:
        self.closed += 1

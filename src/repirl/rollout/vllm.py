"""Rollouts by vLLM: an engine in this process, or in a server of its own, which gets the policy's weights as they change.

vLLM is imported when the first response is asked for, so that configurations build where it is not installed.
"""

from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedModel

from repirl.equality import PROMPT, RESPONSE, log_probs_of, probe_rows, require_same
from repirl.rollout.transformers import limits_of, row_seed
from repirl.rollout.vllm_client import RemoteEngine
from repirl.rollout.vllm_engine import LORA_RANKS, RESERVED, Engine, Sampled, Sampling
from repirl.structs import Generator, Response
from repirl.weights import (
    Adapters,
    adapter_names,
    base_weights,
    dtype_name,
    plain_adapters,
    plain_config,
    plain_weights,
    stamp_of,
)


class Stamps(NamedTuple):
    """Of the weights and of the adapters that an engine has; None where it has none."""

    weights: list[float] | None
    adapters: list[float] | None


NOTHING = Stamps(None, None)
HOTTEST = 2  # temperature of vLLM


class VLLM(Generator):
    """Samples by vLLM, and gives its log-probabilities.

    Args:
        top_p, top_k, min_p: truncated sampling, for evaluation alone; training refuses it.
        stop_strings: a response ends when its text contains one (besides EOS).
        server: address of a `python -m repirl.rollout.vllm_server`, or one for each process in the order of ranks; None =
            an engine in this process.
        timeout_s: seconds that the server has for one answer, its start and a whole batch of responses among them; None
            waits for as long as it takes.
        sleep: the engine frees its GPU memory between calls.
        merge_adapters: send the whole policy with its LoRA adapters merged each time, instead of the adapters alone; what
            vLLM has no adapters for, such as DoRA, is merged in any case.
        engine: arguments of `vllm.LLM`, such as {gpu_memory_utilization: 0.4, max_model_len: 4096}.
    """

    gives_log_probs = True

    def __init__(
        self,
        top_p: float = 1.0,
        top_k: int = 0,
        min_p: float = 0.0,
        stop_strings: list[str] | None = None,
        server: str | list[str] | None = None,
        sleep: bool = False,
        merge_adapters: bool = False,
        engine: dict[str, Any] | None = None,
        timeout_s: float | None = None,
    ) -> None:
        if timeout_s is not None and (server is None or not timeout_s > 0):
            raise ValueError(f"rollout.timeout_s {timeout_s}: give seconds above 0, and beside a rollout.server alone")
        if not 0 < top_p <= 1 or top_k < 0 or not 0 <= min_p <= 1:
            raise ValueError(
                "rollout: expected top_p in (0, 1], top_k of 0 (all tokens) or more and min_p in [0, 1], not "
                f"{top_p}, {top_k} and {min_p}"
            )
        if taken := sorted(RESERVED & (engine or {}).keys()):
            raise ValueError(f"rollout.engine: {', '.join(taken)} cannot be set, repirl decides it: remove it")
        self.top_p, self.top_k, self.min_p = top_p, top_k, min_p
        self.truncated = top_p < 1 or top_k > 0 or min_p > 0
        self.stop_strings, self.server, self.sleep, self.engine = stop_strings or [], server, sleep, engine or {}
        self.merge_adapters, self.timeout_s = merge_adapters, timeout_s
        self._engine: Engine | RemoteEngine | None = None
        self._sent = NOTHING

    def attach(
        self,
        model: PreTrainedModel,
        *,
        decode: Callable[[Sequence[int]], str],
        pad_id: int,
        eos_ids: Sequence[int],
        max_response_tokens: int,
    ) -> None:
        """Says whose weights to use and when a response ends; weights that changed are sent at the next call.

        The engine of the same model goes on, as where a search ends responses at steps: it is told the ends with each call.
        """
        if model is not getattr(self, "model", None):
            self.close()
        self.model, self.decode = model, decode
        self.eos_ids, self.max_response_tokens = tuple(eos_ids), max_response_tokens

    @torch.no_grad()
    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        samples: int,
        seeds: Sequence[int],
        temperature: float = 1.0,
        limits: Sequence[int] | None = None,
    ) -> list[list[Response]]:
        """`samples` responses to each prompt, of at most max_response_tokens tokens; `temperature` 0 is greedy.

        Each row has a seed of its own. Equal seeds give equal rows as far as logits are equal, which in vLLM may depend on
        the batch by a rounding.

        Raises:
            ValueError: vLLM is missing, it has no such temperature, or a prompt leaves no room for a whole response.
        """
        if not 0 <= temperature <= HOTTEST:
            raise ValueError(
                f"temperature {temperature}: vLLM samples at 0 to {HOTTEST} alone; lower it, or give the rollout "
                "repirl.rollout.transformers.InProcess"
            )
        most = limits_of(prompts, seeds, limits, self.max_response_tokens)
        if not prompts:
            return []
        engine = self._ready()
        length, limit = max(((len(prompt), limit) for prompt, limit in zip(prompts, most, strict=True)), key=sum)
        if length + limit > engine.max_model_len:
            raise ValueError(
                f"a prompt of {length} tokens and a response of {limit} exceed vLLM's max_model_len "
                f"{engine.max_model_len}: raise rollout.engine.max_model_len, or lower text.max_response_tokens"
            )
        rows = engine.sample(
            [list(prompt) for prompt in prompts for _ in range(samples)],
            [row_seed(seed, row) for seed in seeds for row in range(samples)],
            Sampling(
                temperature=temperature,
                top_p=self.top_p,
                top_k=self.top_k,
                min_p=self.min_p,
                max_tokens=max(most),
                end_ids=self.eos_ids,
            ),
        )
        if self.sleep:
            engine.sleep()
            self._sent = NOTHING  # asleep it has none
        # The engine has one limit for all, and ends at its max_model_len: what is beyond a prompt's own is cut off.
        cut = [(ids[: most[i // samples]], log_probs[: most[i // samples]]) for i, (ids, log_probs) in enumerate(rows)]
        found = [self._response(row) for row in cut]
        return [found[first : first + samples] for first in range(0, len(found), samples)]

    def _ready(self) -> Engine | RemoteEngine:
        """The engine, started, with the weights as they are now."""
        adapters = self._adapters()
        if self._engine is None:
            options: dict[str, Any] = {"dtype": dtype_name(self.model), "sleeps": self.sleep, "options": self.engine}
            options["lora_rank"] = 0 if adapters is None else adapters.rank
            config = plain_config(self.model)
            if self.server is None:
                self._engine = Engine(config, **options)
            else:
                self._engine = RemoteEngine(_own(self.server), config, timeout_s=self.timeout_s, **options)
        now = self._stamps(apart=adapters is not None)
        if self._sent != now:
            self._deliver(self._engine, adapters, all_weights=self._sent.weights != now.weights)
            self._require_same(self._engine)
            self._sent = now
        return self._engine

    def _adapters(self) -> Adapters | None:
        """The policy's adapters; None where it has none, or they go merged."""
        adapters = None if self.merge_adapters else plain_adapters(self.model)
        return None if adapters is None or adapters.rank > LORA_RANKS[-1] else adapters

    def _stamps(self, *, apart: bool) -> Stamps:
        factors = adapter_names(self.model) if apart else set()
        named = list(self.model.named_parameters())
        return Stamps(
            weights=stamp_of(value for name, value in named if name not in factors),
            adapters=stamp_of(value for name, value in named if name in factors),
        )

    def _deliver(self, engine: Engine | RemoteEngine, adapters: Adapters | None, *, all_weights: bool) -> None:
        """Sends what changed: all weights, in the model's order, or the adapters alone."""
        if all_weights:
            engine.load(plain_weights(self.model) if adapters is None else base_weights(self.model))
        if adapters is not None:
            engine.adapt(adapters.config, adapters.weights)

    def _require_same(self, engine: Engine | RemoteEngine) -> None:
        """Raises ValueError where the engine gives what it samples other log-probabilities than the policy does."""
        prompts = [row[:PROMPT] for row in probe_rows(self.model.config.get_text_config().vocab_size)]
        tokens = min(RESPONSE, engine.max_model_len - PROMPT)
        everything = Sampling(temperature=1.0, top_p=1.0, top_k=0, min_p=0.0, max_tokens=tokens, end_ids=self.eos_ids)
        sampled = engine.sample(prompts, list(range(len(prompts))), everything)
        found = torch.tensor([value for _, log_probs in sampled for value in log_probs])
        expected = log_probs_of(self.model, prompts, [ids for ids, _ in sampled])
        what = "rollout: vLLM does not sample from the policy whose weights it was sent"
        require_same(expected, found, dtype_name(self.model), what)

    def _response(self, row: Sampled) -> Response:
        """Cut after the token that completes a stop string: what the engine wrote after it has no influence on it."""
        ids, log_probs = row
        text = self.decode(ids)
        stopped = self._contains_stop(text)
        if stopped:
            count = bisect_left(range(1, len(ids)), True, key=lambda n: self._contains_stop(self.decode(ids[:n]))) + 1
            ids, log_probs = ids[:count], log_probs[:count]
            text = self.decode(ids)
        finished = stopped or ids[-1] in self.eos_ids
        return Response(token_ids=tuple(ids), text=text, finished=finished, log_probs=tuple(log_probs))

    def _contains_stop(self, text: str) -> bool:
        return any(stop in text for stop in self.stop_strings)

    def close(self) -> None:
        """Ends the engine in this process, or leaves the server; safe to call twice, and `generate` may follow."""
        engine, self._engine, self._sent = self._engine, None, NOTHING
        if engine is not None:
            engine.close()


def _own(server: str | list[str]) -> str:
    """This process's address."""
    addresses = [server] if isinstance(server, str) else server
    parallel = torch.distributed.is_available() and torch.distributed.is_initialized()
    ranks = torch.distributed.get_world_size() if parallel else 1
    if len(addresses) != ranks:
        raise ValueError(f"rollout.server names {len(addresses)} servers for {ranks} processes: give one for each")
    return addresses[torch.distributed.get_rank() if parallel else 0]

"""`repirl score` against vLLM's own pooling server, and the same PRMs scored in this process."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoModel, AutoModelForTokenClassification

import repirl
from repirl.applications import score as command
from repirl.applications.export import TEXT_FILE
from repirl.config import ConfigError
from repirl.learning.settings import Text
from repirl.models.export import save_prm
from repirl.models.policy import Policy
from repirl.models.prm import PRM
from repirl.structs import WrittenSolution
from tests.models.hub.test_hub import PROBLEM, STEPS, as_read, chat_tokenizer, config_of, made, with_head
from tests.models.tiny import LLAMA
from tests.modules.tiny import TOKENS
from tests.vllm.engines import HEADS, needs_vllm
from tests.vllm.servers import vllm_server

pytestmark = needs_vllm
GAP = 1e-4  # float32; rewards of ours here are sums of several tokens
OURS = [("1a2", "a3\nb4c\n"), ("3c2b1", "c5\n\nb6"), ("1a2", "a9"), ("d9", "\\boxed{d9}")]
OTHERS = [(PROBLEM, "".join(STEPS)), (PROBLEM, STEPS[0]), ("What?", "".join(STEPS[1:])), ("1 + 1?", "2\nSo 2.")]
WIDE = HEADS | {"intermediate_size": 96}
LENGTH = 256


def exported(folder: Path) -> None:
    """A tiny PRM of ours with a linear head, weights and bias drawn."""
    prm = PRM(kind="linear").build(Policy(config=LLAMA | HEADS, tokens=TOKENS, init_seed=3).load())
    with torch.no_grad():
        prm.head.score.weight.normal_(generator=torch.Generator().manual_seed(0))
        prm.head.score.bias.fill_(0.7)
    save_prm(prm, folder)
    (folder / TEXT_FILE).write_text(json.dumps(asdict(Text())))


def trl(folder: Path) -> None:
    """As TRL's PRMTrainer saves it."""
    tokenizer = chat_tokenizer()
    made(AutoModelForTokenClassification, config_of("qwen2", tokenizer, num_labels=2, **WIDE)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def qwen_math(folder: Path) -> None:
    """As Qwen2.5-Math-PRM is published, without code."""
    tokenizer = chat_tokenizer()
    decoder = made(AutoModel, config_of("qwen2", tokenizer, **WIDE))
    torch.manual_seed(1)
    head = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2))
    with_head(folder, decoder, {f"score.{k}": v for k, v in head.state_dict().items()}, "Qwen2ForProcessRewardModel")
    as_read(tokenizer, folder)


def scored(folder: Path, rows: Sequence[tuple[str, str]], output: Path, *words: str) -> list[list[float]]:
    table = output.with_suffix(".in.jsonl")
    table.write_text("".join(json.dumps({"problem": problem, "solution": text}) + "\n" for problem, text in rows))
    command.main(["--prm", str(folder), "--input", str(table), "--output", str(output), *words])
    return [json.loads(line)["step_rewards"] for line in output.read_text().splitlines()]


def largest_gap(one: list[list[float]], other: list[list[float]]) -> float:
    pairs = [pair for a, b in zip(one, other, strict=True) for pair in zip(a, b, strict=True)]
    return max(abs(a - b) for a, b in pairs)


def pooler(**settings: object) -> list[str]:
    return ["--pooler-config", json.dumps(settings)]


@pytest.mark.parametrize(
    ("make", "rows", "kind", "more"),
    [
        (exported, OURS, None, []),
        (trl, OTHERS, None, []),
        (trl, OTHERS, "pure", []),
        (qwen_math, OTHERS, None, pooler(tok_pooling_type="ALL")),
        (qwen_math, OTHERS, None, ["its tag"]),
    ],
    ids=["exported", "trl", "pure", "qwen_math", "qwen_math by steps"],
)
def test_a_served_prm_gives_the_rewards_of_the_folder(
    make: object, rows: list[tuple[str, str]], kind: str | None, more: list[str], tmp_path: Path
) -> None:
    folder = tmp_path / make.__name__  # type: ignore[attr-defined]
    make(folder)  # type: ignore[operator]
    of_kind = [] if kind is None else ["--kind", kind]
    here = scored(folder, rows, tmp_path / "here.jsonl", *of_kind)
    if more == ["its tag"]:  # vLLM's own way with this class; 151651 is the separator of the published tokenizer
        tag = as_read(chat_tokenizer(), tmp_path / "t").convert_tokens_to_ids("<extra_0>")
        more = pooler(step_tag_id=tag)
    length = 64 if make is exported else LENGTH
    with vllm_server(folder, tmp_path / "log", "--runner", "pooling", "--max-model-len", str(length), *more) as url:
        served = scored(folder, rows, tmp_path / "served.jsonl", *of_kind, "--server", url, "--batch-tokens", "40")
        gap = largest_gap(here, served)
        print(f"\n{make.__name__} {kind} {more}: gap {gap:.2e} of {here}")  # type: ignore[attr-defined]
        assert gap <= GAP
        assert len({round(value, 3) for values in here for value in values}) > 3, "equal rewards would show nothing"
        if make is exported:
            _limits(folder, url, tmp_path)


def _limits(folder: Path, url: str, tmp_path: Path) -> None:
    """The server's context, which is shorter than the folder's; names; kinds of its own."""
    here, there = repirl.load_prm(folder), repirl.load_prm(folder, server=f"{url}/v1/", concurrency=1)
    assert (here.context, there.context) == (128, 64)
    assert there.parameters == here.parameters
    (most,) = [n for n in range(64) if here.lengths([_solution(n)]) == [64]]
    assert there.scores([_solution(most)])[0].token_rewards == pytest.approx(
        here.scores([_solution(most)])[0].token_rewards, abs=GAP
    )
    with pytest.raises(ConfigError, match=r"line 1: 65 tokens with the problem, and the PRM reads 64"):
        scored(folder, [("a1", "a" * (most + 1))], tmp_path / "long.jsonl", "--server", url)
    with pytest.raises(ValueError, match=r"serves no model 'other' but '.*/exported': give server_model"):
        repirl.load_prm(folder, server=url, server_model="other")


def _solution(letters: int) -> WrittenSolution:
    return WrittenSolution("a1", ("a" * max(letters, 1),))


def test_servers_of_other_models_are_told(tmp_path: Path) -> None:
    """One that generates has no pooling; one with two labels is not a PRM with one."""
    folder = tmp_path / "exported"
    exported(folder)
    policy = Policy(config=LLAMA | HEADS, tokens=TOKENS, init_seed=1).load()
    policy.model.save_pretrained(tmp_path / "policy")
    policy.tokenizer.save_pretrained(tmp_path / "policy")
    key = ["--api-key", "sk-of-the-server"]
    with vllm_server(tmp_path / "policy", tmp_path / "log", "--max-model-len", "64") as url:
        with pytest.raises(ConfigError) as raised:
            scored(folder, OURS, tmp_path / "a.jsonl", "--server", url)
        print("\n", raised.value)
        assert "HTTP 404" in str(raised.value)
        assert "--runner pooling" in str(raised.value)
    trl(tmp_path / "trl")
    with vllm_server(tmp_path / "trl", tmp_path / "log", "--runner", "pooling", *key) as url:
        with pytest.raises(ConfigError, match=r"HTTP 401.*VLLM_API_KEY is not set"):
            scored(folder, OURS, tmp_path / "b.jsonl", "--server", url)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("VLLM_API_KEY", "sk-of-the-server")
            with pytest.raises(ConfigError, match="gives 2 numbers a token, and the folder's has 1: another model"):
                scored(folder, OURS, tmp_path / "c.jsonl", "--server", url)

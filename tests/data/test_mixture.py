"""Mixtures of sources and of prompts with and without experts: shares, ranks, resume, errors."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from repirl import config
from repirl.config import ConfigError
from repirl.data.arithmetic import ARITHMETIC_TOKENS, RunningSums
from repirl.data.codec import ChatCodec
from repirl.data.expert import ExpertData
from repirl.data.mixture import Mixture, MixturePart
from repirl.data.prompts import CurriculumSampler, UniformSampler
from repirl.models.tokenizers import character_tokenizer
from repirl.structs import Problem, Prompt
from tests.data.attaching import Given, Recorder, attached, ids, trainer
from tests.test_configs import ONE_CPU, Build

LONG = RunningSums(9, 1, min_steps=7, max_steps=8)
SHORT = RunningSums(6, 0, min_steps=5, max_steps=6)


def sums(count: int, without_experts: int = 0, seed: int = 0) -> list[Problem]:
    """Running sums, of which the last `without_experts` have no solution."""
    found = RunningSums(count, seed).load()
    first = count - without_experts
    return [*found[:first], *(replace(problem, solutions=()) for problem in found[first:])]


def two(**of_long: Any) -> Mixture:
    """Long sums three times as often as short ones, unless `of_long` says otherwise."""
    return Mixture({"short": MixturePart(SHORT), "long": MixturePart(**({"source": LONG, "weight": 3} | of_long))})


def kinds(batch: Sequence[Prompt]) -> Counter[tuple[str, bool]]:
    """How many prompts of a batch are of each source, with and without experts."""
    return Counter((prompt.dataset, bool(prompt.experts)) for prompt in batch)


def batches(data: ExpertData, count: int, rank: int = 0, world: int = 1, **module: Any) -> list[list[Prompt]]:
    """The first batches of a fit."""
    attached(data, "fit", rank, world, **module)
    found: list[list[Prompt]] = []
    while len(found) < count:
        found += [list(batch) for batch in data.train_dataloader()]
    return found[:count]


# --- shares


def test_batches_have_each_source_s_share_and_each_source_its_own_passes() -> None:
    found = batches(ExpertData(two(), batch_prompts=4), 12)
    assert all(kinds(batch) == {("short", True): 1, ("long", True): 3} for batch in found)
    # 12 of 6 short sums, two passes; 36 of 9 long ones, four passes.
    counts = Counter(prompt.problem.id for batch in found for prompt in batch)
    assert sorted(counts.values()) == [2] * 6 + [4] * 9
    assert {name.partition("/")[0] for name in counts} == {"short", "long"}


def test_a_share_that_no_batch_can_have_is_held_over_batches() -> None:
    found = batches(ExpertData(two(weight=4), batch_prompts=4), 5)
    # A fifth of 4 is 0.8: after 1 to 5 batches 0.8, 1.6, 2.4, 3.2 and 4 prompts, of which none is ever a whole one away.
    short = [sum(prompt.dataset == "short" for prompt in batch) for batch in found]
    assert sum(short) == 4
    assert all(abs(sum(short[: n + 1]) - 0.8 * (n + 1)) < 1 for n in range(5))


def test_each_source_has_its_instruction() -> None:
    codec = ChatCodec(character_tokenizer(ARITHMETIC_TOKENS), instruction="k1")
    parts = {
        "told": MixturePart(SHORT, instruction="k2"),
        "bare": MixturePart(SHORT, instruction=""),
        "usual": MixturePart(SHORT),
    }
    (batch,) = batches(ExpertData(Mixture(parts), batch_prompts=9), 1, codec=codec, max_prompt_tokens=30)
    after = {"told": "k2", "bare": "", "usual": "k1"}
    assert kinds(batch) == {(name, True): 3 for name in after}
    for prompt in batch:
        assert codec.decode(prompt.token_ids) == f"{prompt.problem.text}{after[prompt.dataset]}\n"


def test_prompts_with_experts_come_beside_those_without_in_the_stated_share() -> None:
    data = ExpertData(Given(sums(20, without_experts=15)), batch_prompts=8, expert_share=0.25)
    found = batches(data, 10)
    assert all(kinds(batch) == {("", True): 2, ("", False): 6} for batch in found)
    # 20 of the 5 with experts, four passes; 60 of the 15 without, four passes.
    assert set(Counter(name for batch in found for name in ids(batch)).values()) == {4}


def test_a_source_of_a_mixture_has_its_share_of_experts() -> None:
    parts = {
        "mixed": MixturePart(Given(sums(12, without_experts=6)), weight=3, expert_share=1 / 3),
        "bare": MixturePart(Given(sums(8, without_experts=6, seed=1)), expert_share=0),
    }
    found = batches(ExpertData(Mixture(parts), batch_prompts=8), 3)
    # 3/4 of 8 are 6 mixed ones, a third of them with an expert. The float 1/3 is 0.333...3, so that no share is exact.
    assert [kinds(batch) for batch in found] == [{("mixed", True): 2, ("mixed", False): 4, ("bare", False): 2}] * 3
    assert len({name for batch in found for name in ids(batch) if name.startswith("bare/")}) == 6


@pytest.mark.parametrize(("share", "experts", "count"), [(1.0, True, 12), (0.0, False, 8), (None, True, 12)])
def test_a_share_of_all_or_none_leaves_the_others_out(share: float | None, experts: bool, count: int) -> None:
    data = ExpertData(Given(sums(20, without_experts=8)), batch_prompts=4, expert_share=share)
    found = batches(data, 5)
    assert all(bool(prompt.experts) is experts for batch in found for prompt in batch)
    assert len({name for batch in found for name in ids(batch)}) == count


def test_without_a_share_prompts_come_as_they_are() -> None:
    data = ExpertData(Given(sums(20, without_experts=8)), batch_prompts=20, require_experts=False)
    assert kinds(batches(data, 1)[0]) == {("", True): 12, ("", False): 8}


def test_a_single_source_keeps_its_order_whether_or_not_it_has_a_name() -> None:
    alone = batches(ExpertData(SHORT, batch_prompts=2), 6)
    named = batches(ExpertData(Mixture({"s": MixturePart(SHORT, weight=0.1)}), batch_prompts=2), 6)
    assert [[f"s/{name}" for name in ids(batch)] for batch in alone] == [ids(batch) for batch in named]


# --- ranks, resume


def make(sampler: Any = None, **options: Any) -> ExpertData:
    parts = {
        "mixed": MixturePart(Given(sums(10, without_experts=6)), weight=2, expert_share=0.5),
        "plain": MixturePart(Given(sums(7, seed=1)), weight=1.5),
    }
    return ExpertData(Mixture(parts), batch_prompts=4, sampler=sampler, seed=3, **options)


@pytest.mark.parametrize("world", [2, 4])
def test_ranks_share_the_global_batch(world: int) -> None:
    whole = batches(make(), 9)
    assert len({tuple(ids(batch)) for batch in whole}) == 9
    for rank in range(world):
        assert [ids(batch) for batch in batches(make(), 9, rank, world)] == [ids(b)[rank::world] for b in whole]


@pytest.mark.parametrize("sampler", [UniformSampler, CurriculumSampler])
def test_resume_is_exact_at_every_position(sampler: type) -> None:
    """Stops after each of 12 batches, three epochs of four."""

    def step(data: ExpertData, batch: Any) -> list[str]:
        data.sampler.update(ids(batch), [len(prompt.problem.text) % 4 / 3 for prompt in batch])
        return ids(batch)

    whole = attached(make(sampler()), "fit")
    expected, states = [], []
    for _ in range(3):
        for batch in whole.train_dataloader():
            expected.append(step(whole, batch))
            states.append(json.loads(json.dumps(whole.state_dict())))
    assert len(expected) == 12
    for position, state in enumerate(states):
        resumed = attached(make(sampler()), "fit")
        next(iter(resumed.train_dataloader()))
        resumed.load_state_dict(state)
        found: list[list[str]] = []
        while len(found) < 11 - position:
            found += [step(resumed, batch) for batch in resumed.train_dataloader()]
        assert found[: 11 - position] == expected[position + 1 :]


def test_lightning_resumes_exactly(tmp_path: Path) -> None:
    def run(steps: int, checkpoint: str | None = None) -> tuple[list[list[str]], Any]:
        module, data = Recorder(accuracies=True), make(CurriculumSampler())
        fit = trainer(tmp_path, max_steps=steps, max_epochs=-1)
        fit.fit(module, datamodule=data, ckpt_path=checkpoint)
        return module.seen["train"], fit

    expected, _ = run(9)
    first, stopped = run(5)
    stopped.save_checkpoint(tmp_path / "stop.ckpt")
    rest, _ = run(9, str(tmp_path / "stop.ckpt"))
    assert first + rest == expected


def set_up(mixture: Any, **options: Any) -> Any:
    return attached(ExpertData(mixture, batch_prompts=2, **options), "fit", max_prompt_tokens=30)


def mixed_state(mixture: Any, **options: Any) -> Any:
    return set_up(mixture, **options).state_dict()


@pytest.mark.parametrize(
    ("other", "what"),
    [
        (two(weight=4), "shares differ"),
        (two(instruction="k2"), "tokens, instructions differ"),
        (Mixture(dict(reversed(two().parts.items()))), "order, shares, instructions differ"),
        (
            two(source=RunningSums(9, 2, min_steps=7, max_steps=8)),
            "ids, problem texts, answers, solutions, tokens, order",
        ),
    ],
)
def test_a_run_is_not_resumed_over_another_mixture(other: Mixture, what: str) -> None:
    data = set_up(other)
    with pytest.raises(ValueError, match=rf"other training data: {what}"):
        data.load_state_dict(mixed_state(two()))


def test_weights_are_relative() -> None:
    same = Mixture({"short": MixturePart(SHORT, weight=0.1), "long": MixturePart(LONG, weight=0.3)})
    set_up(same).load_state_dict(mixed_state(two()))


def test_states_from_before_there_were_mixtures_are_of_single_sources() -> None:
    source = Given(sums(12, without_experts=6))
    state = mixed_state(source, require_experts=False)
    for name in ("shares", "instructions"):
        del state["training_set"][name]
    set_up(source, require_experts=False).load_state_dict(state)
    with pytest.raises(ValueError, match="other training data: shares differ"):
        set_up(source, expert_share=0.5).load_state_dict(state)


# --- curriculum, reports


def test_a_curriculum_knows_sources_apart_that_use_the_same_ids() -> None:
    parts = {
        name: MixturePart(Given([replace(p, id=str(n)) for n, p in enumerate(sums(8, seed=seed))]))
        for name, seed in (("a", 0), ("b", 1))
    }
    data = attached(ExpertData(Mixture(parts), batch_prompts=8, sampler=CurriculumSampler(temperature=0.02)), "fit")
    for _ in range(2):  # all eight of each; those of a at the target are the even ones, those of b the odd ones
        for batch in data.train_dataloader():
            numbers = [(p.dataset, p.problem.id, int(p.problem.id.rpartition("/")[2])) for p in batch]
            data.sampler.update(
                [i for _, i, _ in numbers], [0.5 if (n % 2 == 0) == (d == "a") else 1.0 for d, _, n in numbers]
            )
    (first, *_) = data.train_dataloader()
    # Weights are 1 : e^-25, so that of four wanted of each the four at the target come.
    assert sorted(ids(first)) == ["a/0", "a/2", "a/4", "a/6", "b/1", "b/3", "b/5", "b/7"]


def test_each_source_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    parts = {
        "a": MixturePart(Given(sums(6, without_experts=2))),
        "b": MixturePart(Given(sums(6, 2, 1)), expert_share=0),
    }
    test = Given([Problem("leaked", sums(6, 2, 1)[5].text)])
    with caplog.at_level(logging.INFO, "repirl.data"):
        data = attached(ExpertData(Mixture(parts), test=test, batch_prompts=2), "fit")
    assert [record.getMessage() for record in caplog.records[:2]] == [
        "train a: kept 4, without_expert 2 of 6 problems",
        "train b: kept 2, with_expert 4 of 6 problems",
    ]
    assert data.overlaps["test"].equal == ("leaked",)


# --- errors


@pytest.mark.parametrize("weight", [0, -1, float("nan"), float("inf")])
def test_a_weight_that_is_none_is_refused(weight: float) -> None:
    with pytest.raises(ValueError, match=r"mixture part 'long': weight must be above 0, not .*; write `long: null`"):
        two(weight=weight)


@pytest.mark.parametrize("share", [-0.1, 1.5, float("nan")])
def test_a_share_that_is_none_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match=r"mixture part 'long': expert_share is a share of prompts, from 0 to 1"):
        two(expert_share=share)
    with pytest.raises(ValueError, match=r"ExpertData: expert_share is a share of prompts, from 0 to 1"):
        ExpertData(SHORT, expert_share=share)


def test_mixtures_that_are_none_are_refused() -> None:
    with pytest.raises(ValueError, match="a mixture needs at least one part"):
        Mixture({"gone": None})
    with pytest.raises(ValueError, match="a data set is named 'a/b'"):
        Mixture({"a/b": MixturePart(SHORT)})
    with pytest.raises(ValueError, match="mixture part 'inner' is a mixture itself, whose shares would be lost"):
        Mixture({"inner": MixturePart(two())})
    with pytest.raises(ValueError, match="a mixture is for training: evaluation takes several sets by name"):
        ExpertData(SHORT, val=two())
    with pytest.raises(
        ValueError, match="expert_share is for a single source, and train is a mixture: give it to the parts"
    ):
        ExpertData(two(), expert_share=0.5)


@pytest.mark.parametrize(
    ("without", "share", "message"),
    [
        (
            0,
            0.5,
            r"train p: expert_share is 0\.5, but none of its 6 usable prompts is without experts; set expert_share to 1",
        ),
        (
            6,
            0.5,
            r"train p: expert_share is 0\.5, but none of its 6 usable prompts is with experts; set expert_share to 0",
        ),
        (0, 0.0, r"train p: none of 6 problems is usable \(with_expert 6\).*; expert_share is 0, which leaves out"),
        (6, 1.0, r"train p: none of 6 problems is usable \(without_expert 6\).*; .* set expert_share to 0"),
    ],
)
def test_an_empty_stratum_is_refused(without: int, share: float, message: str) -> None:
    parts = {"p": MixturePart(Given(sums(6, without)), expert_share=share), "other": MixturePart(SHORT)}
    with pytest.raises(ValueError, match=message):
        attached(ExpertData(Mixture(parts), batch_prompts=2), "fit")


def test_a_source_that_is_too_small_for_its_share_is_refused() -> None:
    data = attached(ExpertData(two(weight=1), batch_prompts=14), "fit")
    with pytest.raises(ValueError, match="train short: 6 usable prompts, but a batch of 14 may need 7"):
        data.train_dataloader()


# --- YAML

BASE = """
model: {class_path: tests.toy_cli.ToyModel, init_args: {baseline: tests.toy_cli.Baseline}}
data:
  class_path: repirl.data.expert.ExpertData
  init_args:
    train: {class_path: repirl.data.arithmetic.RunningSums, init_args: {count: 9, seed: 1}}
"""
OVERLAY = """
data:
  init_args:
    train:
      class_path: repirl.data.mixture.Mixture
      init_args:
        parts:
          short:
            source: {class_path: repirl.data.arithmetic.RunningSums, init_args: {count: 9, seed: 1}}
            weight: 2
            instruction: k
          long:
            source: {class_path: repirl.data.sources.Sample}
            expert_share: 0.5
          gone: null
"""
VAL = """
data:
  init_args:
    val:
      a: {class_path: repirl.data.sources.Sample, init_args: {limit: 3}}
      b: {source: {class_path: repirl.data.sources.Sample}, instruction: k}
"""


def build(tmp_path: Path, overlay: str, *more: str) -> ExpertData:
    for name, text in (("base", BASE), ("overlay", overlay)):
        (tmp_path / f"{name}.yaml").write_text(text)
    files = [f"--config={tmp_path / name}.yaml" for name in ("base", "overlay")]
    cli = Build(["fit", *files, *more, *ONE_CPU, f"--trainer.default_root_dir={tmp_path}"])
    assert isinstance(cli.datamodule, ExpertData)
    return cli.datamodule


def test_a_mixture_replaces_a_source_in_an_overlay_and_on_the_command_line(tmp_path: Path) -> None:
    parts = build(tmp_path, OVERLAY, "--data.train.parts.long.weight=0.25").parts
    assert list(parts) == ["short", "long"]
    assert [(p.weight, p.instruction, p.expert_share) for p in parts.values()] == [(2, "k", None), (0.25, None, 0.5)]
    merged = config.load([tmp_path / "overlay.yaml", tmp_path / "base.yaml"])  # and the other way round
    assert merged["data"]["init_args"]["train"]["init_args"] == {"count": 9, "seed": 1}


TRAIN = r"data\.init_args\.train\.init_args"


@pytest.mark.parametrize(
    ("overlay", "more", "message"),
    [
        (OVERLAY.replace("weight: 2", "wieght: 2"), (), rf"'{TRAIN}\.parts\.short\.wieght'.*\ndid you mean 'weight'\?"),
        (OVERLAY, ("--data.train.parts.long.wieght=2",), r"long\.wieght' \(command line\).*\ndid you mean 'weight'\?"),
        (
            OVERLAY.replace("weight: 2", "weight: much"),
            (),
            rf"'{TRAIN}\.parts\.short\.weight' is much.*\nexpected float",
        ),
        (OVERLAY.replace("weight: 2", "weight: 0"), (), r"mixture part 'short': weight must be above 0, not 0"),
        (
            OVERLAY,
            ("--data.train.parts.lnog.weight=2",),
            rf"missing '{TRAIN}\.parts\.lnog\.source'.*MixturePart needs it",
        ),
        (OVERLAY.replace("parts:", "prats:"), (), rf"'{TRAIN}\.prats'.*\ndid you mean 'parts'\?"),
        (OVERLAY.replace("seed: 1", "sed: 1"), (), r"short\.source\.init_args\.sed'.*\ndid you mean 'seed'"),
        (VAL.replace("instruction", "instrution"), (), r"val\.b\.instrution'.*\ndid you mean 'instruction'\?"),
        (VAL.replace("instruction", "weight"), (), r"val\.b\.weight'.*\nvalid keys: instruction, source"),
        (
            VAL.replace("source: {class_path: repirl.data.sources.Sample}, ", ""),
            (),
            r"missing 'data\.init_args\.val\.b\.source'",
        ),
        (VAL.replace("limit", "limt"), (), r"val\.a\.init_args\.limt'.*\ndid you mean 'limit'\?"),
    ],
)
def test_mistakes_in_a_mixture_are_named(tmp_path: Path, overlay: str, more: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(tmp_path, overlay, *more)

"""Many solutions scored at once have the rewards that training gives each alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import repirl
from repirl.applications.export import TEXT_FILE, export
from repirl.applications.scoring import Score, TokenScorer
from repirl.data.steps import split_steps
from repirl.models.policy import Policy
from repirl.models.prm import PRM
from repirl.structs import Problem, Prompt, Response, WrittenSolution
from tests.modules.tiny import ADAM, TOKENS, make_module, run

GPT2 = {"model_type": "gpt2", "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 64, "initializer_range": 0.3}
SOLUTIONS = [
    ("1a2", "a3\nb4c\n"),
    ("3c2b1", "c5\n\nb6"),
    ("1a2", "a9"),
    ("1a2", "\\boxed{a3}\n"),
    ("3c2b1", "b1c2d3a4\nb5\nc6"),
]


def trained(path: Path, **options: Any) -> Any:
    """The module of a short run, its checkpoint at `path`."""
    done = run(make_module(**{"policy_optimizer": ADAM, "prm_optimizer": ADAM} | options), steps=2)
    done.trainer.save_checkpoint(path)
    return done.module


def written(by: str = "newline") -> list[WrittenSolution]:
    return [WrittenSolution(problem, split_steps(text, by)) for problem, text in SOLUTIONS]  # type: ignore[arg-type]


def rewards_of(module: Any, problem: str, text: str) -> list[float]:
    """As predictions of the module have them, one at a time."""
    prompt = Prompt(Problem("one", problem), module.codec.encode_prompt(problem))
    return module.token_rewards([prompt], [Response(module.codec.encode_response(text), text, finished=True)])[0]


@pytest.mark.parametrize("batch_tokens", [1, 24, 4096])
@pytest.mark.parametrize("granularity", ["token", "step"])
@pytest.mark.parametrize("kind", ["q_head", "implicit"])
def test_rewards_are_those_of_training_whatever_the_batches(
    kind: Any, granularity: Any, batch_tokens: int, tmp_path: Path
) -> None:
    module = trained(tmp_path / "run.ckpt", prm=PRM(kind, granularity=granularity))
    scorer = repirl.load_prm(tmp_path / "run.ckpt", batch_tokens=batch_tokens)
    assert isinstance(scorer, TokenScorer)
    assert scorer.packs
    scores = scorer.scores(written())
    for (problem, text), score in zip(SOLUTIONS, scores, strict=True):
        expected = rewards_of(module, problem, text)
        assert score.token_rewards == pytest.approx(expected, abs=1e-5)
        assert sum(score.step_rewards) == pytest.approx(sum(expected), abs=1e-5)
        assert max(map(abs, expected)) > 1e-4
    # "c", "5", "\n", "\n", "b", "6", the end token
    r = rewards_of(module, *SOLUTIONS[1])
    assert scores[1].step_rewards == pytest.approx((sum(r[:4]), sum(r[4:])), abs=1e-5)
    assert scores[1].tokens == ("c", "5", "\n", "\n", "b", "6", "<eos>")


def test_steps_that_are_given_are_kept(tmp_path: Path) -> None:
    module = trained(tmp_path / "run.ckpt", prm=PRM("head", granularity="step"))
    scorer = repirl.PRM.load(tmp_path / "run.ckpt")
    steps = ("a3", "\nb4", "c\n")
    score = scorer.score("1a2", steps)
    module.prm.granularity = "token"
    r = rewards_of(module, "1a2", "a3\nb4c\n")
    # "a" "3" | newline, white space: in the step where it begins; "b" "4" | "c" newline end
    expected = (sum(r[:2]), sum(r[2:5]), sum(r[5:]))
    assert score.steps == steps
    assert score.step_rewards == pytest.approx(expected, abs=1e-5)
    assert scorer.step_rewards([WrittenSolution("1a2", steps)]) == [score.step_rewards]
    assert score.token_rewards == pytest.approx((0, expected[0], 0, 0, expected[1], 0, 0, expected[2]), abs=1e-5)
    # A token over two steps belongs to the first: the whole of "\boxed{" here.
    two = scorer.score("1a2", ("\\bo", "xed{a3"))
    assert two.tokens[:3] == ("\\boxed{", "a", "3")
    assert two.step_rewards[0] == pytest.approx(two.token_rewards[0])
    with pytest.raises(ValueError, match=r"step 2 of a solution of '1a2', 'xed\{', has no token of its own"):
        scorer.score("1a2", ("\\bo", "xed{", "a3"))


def test_a_solution_that_goes_on_has_no_end_token(tmp_path: Path) -> None:
    """A prefix has the rewards of its tokens in the whole: the model looks back alone."""
    module = trained(tmp_path / "run.ckpt", prm=PRM("q_head"))
    scorer = repirl.load_prm(tmp_path / "run.ckpt")
    prefix = WrittenSolution("3c2b1", ("c5\n\n",), ended=False)
    score, whole = scorer.scores([prefix, WrittenSolution("3c2b1", ("c5\n\n", "b6"))])
    assert score.tokens == ("c", "5", "\n", "\n")
    assert score.token_rewards == pytest.approx(whole.token_rewards[:4], abs=1e-5)
    assert score.step_rewards[0] == pytest.approx(whole.step_rewards[0], abs=1e-5)
    assert scorer.lengths([prefix]) == [len(module.codec.encode_prompt("3c2b1")) + 4] == scorer.tokens_read([prefix])
    assert scorer.parameters == sum(p.numel() for p in module.prm.parameters())


def test_the_reward_of_the_whole() -> None:
    score = Score(("a", "b", "c"), (0.5, -1.0, 2.0), tuple("abcde"), (0.25, 0.25, -1.0, 1.0, 1.0))
    # mean (.5 - 1 + 2) / 3 = .5; sum 1.5; tokens 1.5 / 5 = .3
    assert [score.reward(by) for by in ("mean", "sum", "min", "last")] == [0.5, 1.5, -1.0, 2.0]  # type: ignore[arg-type]
    assert score.token_mean == pytest.approx(0.3)
    assert Score(("a",), (0.5,)).token_mean is None
    with pytest.raises(ValueError, match="'prod': give mean, sum, min, last"):
        score.reward("prod")  # type: ignore[arg-type]


def test_rewards_that_are_no_finite_numbers_are_refused(tmp_path: Path) -> None:
    """Of a PRM that has diverged: its solutions would be ranked by nothing."""
    trained(tmp_path / "run.ckpt", prm=PRM("q_head"))
    scorer = repirl.load_prm(tmp_path / "run.ckpt")
    assert isinstance(scorer, TokenScorer)
    rewards, nine = scorer.rewards, scorer.codec.encode_response("9")[0]
    scorer.rewards = lambda rows: rewards(rows).masked_fill(rows.response_ids == nine, float("nan"))
    assert scorer.scores(written()[:2])
    with pytest.raises(ValueError, match=r"solution 3 of 5, of problem '1a2', has step rewards that are no finite"):
        scorer.scores(written())


def test_what_is_longer_than_the_context_is_named(tmp_path: Path) -> None:
    trained(tmp_path / "run.ckpt", prm=PRM("q_head"))
    scorer = repirl.load_prm(tmp_path / "run.ckpt")
    assert scorer.context == 64
    # 4 prompt tokens, and as many of the solution as fit: 59 and the end token
    fits, long = WrittenSolution("1a2", ("a" * 59,)), WrittenSolution("1a2", ("a" * 60,))
    assert scorer.lengths([fits, long]) == [64, 65]
    assert len(scorer.scores([fits])[0].token_rewards) == 60
    assert scorer.too_long([fits, long, fits]) == [1]
    with pytest.raises(ValueError, match=r"solution 2 of 3, of problem '1a2', has 65 tokens .* reads 64"):
        scorer.scores([fits, long, fits])
    assert scorer.scores([]) == []


@pytest.mark.parametrize(
    ("options", "packs"),
    [
        ({"prm": PRM("linear")}, True),
        ({"prm": PRM("q_head", rank=3)}, True),
        ({"prm": PRM("head")}, True),
        ({"prm": PRM("implicit", beta=0.7, granularity="step")}, False),
        ({"prm": PRM("q_head"), "policy": Policy(config=GPT2, tokens=TOKENS)}, None),
    ],
    ids=["a class of transformers", "low rank", "after the token", "relative", "positions in a table"],
)
def test_an_exported_folder_says_what_the_checkpoint_says(
    options: dict[str, Any], packs: bool | None, tmp_path: Path
) -> None:
    """packs: whether the folder's model reads prompts once, without padding; None = as the checkpoint's."""
    trained(tmp_path / "run.ckpt", **options)
    export(tmp_path / "run.ckpt", tmp_path / "folder", part="prm")
    first, second = (repirl.load_prm(tmp_path / name, batch_tokens=30) for name in ("run.ckpt", "folder"))
    assert second.context == first.context == 64
    assert second.packs == (first.packs if packs is None else packs)
    for one, other in zip(first.scores(written()), second.scores(written()), strict=True):
        assert (other.steps, other.tokens) == (one.steps, one.tokens)
        assert other.step_rewards == pytest.approx(one.step_rewards, abs=1e-5)
        assert other.token_rewards == pytest.approx(one.token_rewards, abs=1e-5)
    (tmp_path / "folder" / TEXT_FILE).unlink()
    with pytest.raises(ValueError, match=f"does not say how problems become prompts, in {TEXT_FILE}"):
        repirl.load_prm(tmp_path / "folder")


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no such checkpoint, and no folder with a config\.json"):
        repirl.load_prm(tmp_path / "none")

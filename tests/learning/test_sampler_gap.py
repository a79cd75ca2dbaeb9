"""A sampler that reports other log-probabilities than the policy: seen, masked, corrected, apart from the IRL weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from repirl.learning.sampler_gap import SamplerGap
from repirl.rollout.transformers import InProcess
from repirl.structs import Response
from tests.modules.tiny import EvenDigits, Run, distance, make_module, run, start_weights

LN2 = math.log(2)


def plain_log_probs(model: PreTrainedModel, prompt: Sequence[int], response: Sequence[int]) -> Tensor:
    """By one forward pass without padding."""
    ids = torch.tensor([[*prompt, *response]])
    log_probs = model(ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
    return log_probs.gather(-1, torch.tensor(response)[:, None])[:, 0]


class Reporting(InProcess):
    """Samples as ever, and reports log mu = log pi - d, where `d(row)` is chosen for the n-th response of each prompt."""

    gives_log_probs = True

    def __init__(self, d: Callable[[int], float] = lambda row: 0.0, rows: int | None = None) -> None:
        super().__init__()
        self.d, self.rows = d, rows

    @torch.no_grad()
    def generate(self, prompts: Any, **settings: Any) -> list[list[Response]]:
        return [
            [self.report(prompt, row, response) for row, response in enumerate(responses[: self.rows])]
            for prompt, responses in zip(prompts, super().generate(prompts, **settings), strict=True)
        ]

    def report(self, prompt: Sequence[int], row: int, response: Response) -> Response:
        values = plain_log_probs(self.model, prompt, response.token_ids) - self.d(row)
        return Response(response.token_ids, response.text, response.finished, tuple(values.tolist()))


def trained(rollout: InProcess, steps: int = 1, **options: Any) -> Run:
    settings: dict[str, Any] = {
        "verifier": EvenDigits(),
        "policy_clip_norm": 1e9,
        "prm_clip_norm": 1e9,
    }
    return run(make_module(rollout=rollout, **(settings | options)), steps=steps)


def moved(found: Run, part: str) -> Tensor:
    start = start_weights(make_module())
    return torch.cat([(v - start[n]).flatten() for n, v in found.weights.items() if n.startswith(part)])


PLAIN = trained(InProcess())


def test_the_reference_run_moves_both() -> None:
    assert moved(PLAIN, "policy.").abs().max() > 1e-3
    assert moved(PLAIN, "prm.").abs().max() > 1e-3
    assert not any(name.startswith("sampler/") for name in PLAIN.figures[0])


def test_an_honest_sampler_has_no_gap_and_changes_nothing() -> None:
    found = trained(Reporting(), sampler_gap=SamplerGap(mask_above=0.01, max_ratio=2.0))
    (figures,) = found.figures
    assert figures["sampler/gap_max"] < 1e-4
    assert figures["sampler/kl"] == pytest.approx(0, abs=1e-7)
    assert figures["sampler/masked"] == 0
    assert figures["sampler/ratio_mean"] == pytest.approx(1, abs=1e-4)
    assert figures["sampler/ratio_truncated"] == 0
    assert distance(found.weights, PLAIN.weights) < 1e-4


def test_by_default_a_gap_is_logged_and_nothing_else() -> None:
    found = trained(Reporting(lambda row: LN2))
    (figures,) = found.figures
    assert figures["sampler/gap_mean"] == pytest.approx(LN2, abs=1e-4)
    assert figures["sampler/gap_max"] == pytest.approx(LN2, abs=1e-4)
    assert figures["sampler/kl"] == pytest.approx(2 - 1 - LN2, abs=1e-4)
    assert distance(found.weights, PLAIN.weights) == 0


@pytest.mark.parametrize("steps", [1, 2])
def test_masked_rollouts_are_as_never_sampled(steps: int) -> None:
    far = Reporting(lambda row: 0.5 if row == 2 else 0.0)
    masked = trained(far, steps, sampler_gap=SamplerGap(mask_above=0.25))
    fewer = trained(Reporting(rows=2), steps)
    assert all(figures["sampler/masked"] == pytest.approx(1 / 3) for figures in masked.figures)
    assert distance(masked.weights, fewer.weights) < 1e-5
    assert distance(masked.weights, trained(InProcess(), steps).weights, "policy.") > 1e-3
    assert distance(masked.weights, trained(InProcess(), steps).weights, "prm.") > 1e-3


def test_a_threshold_above_the_gap_masks_nothing() -> None:
    found = trained(Reporting(lambda row: 0.5 if row == 2 else 0.0), sampler_gap=SamplerGap(mask_above=0.6))
    assert found.figures[0]["sampler/masked"] == 0
    assert distance(found.weights, PLAIN.weights) == 0


def test_an_iteration_whose_rollouts_are_all_masked_updates_nothing() -> None:
    found = trained(Reporting(lambda row: 0.5), sampler_gap=SamplerGap(mask_above=0.25))
    assert found.figures[0]["sampler/masked"] == 1
    assert distance(found.weights, start_weights(make_module())) == 0


def test_ratios_scale_the_policy_gradient_and_leave_the_prm_alone() -> None:
    found = trained(Reporting(lambda row: LN2), sampler_gap=SamplerGap(max_ratio=4.0))
    assert found.figures[0]["sampler/ratio_mean"] == pytest.approx(2, abs=1e-3)
    assert found.figures[0]["sampler/ratio_truncated"] == 0
    torch.testing.assert_close(moved(found, "policy."), 2 * moved(PLAIN, "policy."), atol=1e-4, rtol=1e-3)
    assert distance(found.weights, PLAIN.weights, "prm.") == 0


def test_ratios_are_truncated() -> None:
    found = trained(Reporting(lambda row: LN2), sampler_gap=SamplerGap(max_ratio=1.5))
    assert found.figures[0]["sampler/ratio_truncated"] == 1
    torch.testing.assert_close(moved(found, "policy."), 1.5 * moved(PLAIN, "policy."), atol=1e-4, rtol=1e-3)
    unlikely = trained(Reporting(lambda row: -50.0), sampler_gap=SamplerGap(max_ratio=1.5))
    assert moved(unlikely, "policy.").abs().max() == 0


def test_the_ratio_of_a_sequence_is_the_product_of_its_tokens() -> None:
    token, sequence = (
        trained(Reporting(lambda row: -0.3), sampler_gap=SamplerGap(max_ratio=2.0, ratio=ratio))  # type: ignore[arg-type]
        for ratio in ("token", "sequence")
    )
    assert token.figures[0]["sampler/ratio_mean"] == pytest.approx(math.exp(-0.3), abs=1e-3)
    assert sequence.figures[0]["sampler/ratio_mean"] < math.exp(-0.6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mask_above": 0.0}, "sampler_gap.mask_above must be > 0"),
        ({"mask_above": float("nan")}, "sampler_gap.mask_above must be > 0"),
        ({"max_ratio": 0.5}, "sampler_gap.max_ratio must be >= 1"),
    ],
)
def test_senseless_settings_are_refused(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SamplerGap(**settings)


@pytest.mark.parametrize("settings", [SamplerGap(mask_above=0.1), SamplerGap(max_ratio=2.0)])
def test_a_correction_needs_a_sampler_that_reports(settings: SamplerGap) -> None:
    with pytest.raises(ValueError, match=r"InProcess samples by the policy's own forward pass .* remove sampler_gap"):
        make_module(sampler_gap=settings)

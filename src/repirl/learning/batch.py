"""One iteration's rollouts and experts on this rank, and their tensors."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from repirl.data.collate import collate_rows
from repirl.distributed import gather_rows
from repirl.learning.prm_objectives import Evidence
from repirl.learning.schedule import parts
from repirl.structs import Expert, Prompt, Response, Rows


@dataclass(frozen=True)
class Experience:
    """Rows of this rank: the rollouts of each prompt, then the experts.

    prompts: of this rank. positions: their places in the global batch.
    group: [N], each row's prompt as its position in the global batch. is_expert, finished: [N].
    outcome: [N], 1 right, 0 wrong, NaN unknown. format_reward: [N], 0 or -1.
    sampler_log_probs: [N, T], of the sampler itself; 0 for experts, and where it gives none.
    log_probs: [N, T], of the behaviour policy by the training forward; None until computed.
    reference_log_probs: [N, T], of the policy at the start; None where no term needs them.
    advantages: [N, T], of rollouts; None until computed.
    """

    prompts: list[Prompt]
    positions: list[int]
    rows: Rows
    group: Tensor
    is_expert: Tensor
    finished: Tensor
    outcome: Tensor
    format_reward: Tensor
    sampler_log_probs: Tensor
    log_probs: Tensor | None = None
    reference_log_probs: Tensor | None = None
    advantages: Tensor | None = None

    def select(self, index: Tensor) -> "Experience":
        """The rows at `index`; prompts and columns stay as they are."""
        columns = {f.name: getattr(self, f.name) for f in fields(self) if isinstance(getattr(self, f.name), Tensor)}
        rows = Rows(*(getattr(self.rows, f.name)[index] for f in fields(self.rows)))
        return replace(self, rows=rows, **{name: value[index] for name, value in columns.items()})

    def of_policy(self) -> "Experience":
        """The rollouts alone."""
        return self.select((~self.is_expert).nonzero()[:, 0])

    def of_groups(self, groups: Tensor) -> "Experience":
        """The rows whose prompt is one of `groups`."""
        return self.select(torch.isin(self.group, groups).nonzero()[:, 0])

    def gathered(self, rewards: Tensor, step_ends: Tensor) -> Evidence:
        """The rows of all ranks as a PRM objective reads them. rewards, step_ends: [N, T]."""
        return Evidence(
            rewards=gather_rows(rewards),
            response_mask=gather_rows(self.rows.response_mask),
            step_ends=gather_rows(step_ends),
            group=gather_rows(self.group),
            is_expert=gather_rows(self.is_expert),
            outcome=gather_rows(self.outcome),
            log_probs=None if self.log_probs is None else gather_rows(self.log_probs),
            reference_log_probs=None if self.reference_log_probs is None else gather_rows(self.reference_log_probs),
        )

    def prompt_ids_of(self, rows: Tensor) -> list[str]:
        """Ids of the prompts of the rows that are True in `rows`, [N]."""
        wanted = set(self.group[rows].tolist())
        return [p.problem.id for g, p in zip(self.positions, self.prompts, strict=True) if g in wanted]

    def parts(self, mini_batches: int) -> list["Experience"]:
        """The rows in `mini_batches` parts of whole prompts of all ranks; a rank's share of a part may be empty."""
        if mini_batches == 1:
            return [self]
        groups = gather_rows(self.group).unique()
        return [self.of_groups(groups[part.start : part.stop]) for part in parts(len(groups), mini_batches)]


def build_experience(
    *,
    prompts: Sequence[Prompt],
    positions: Sequence[int],
    rollouts: Sequence[Sequence[Response]],
    experts: Sequence[Sequence[Expert]],
    rollout_outcomes: Sequence[Sequence[float]],
    format_rewards: Sequence[Sequence[float]],
    pad_id: int,
    device: torch.device,
) -> Experience:
    """Tensors from records, one entry a prompt in each argument."""
    rolled = [(p, g, r) for p, g, row in zip(prompts, positions, rollouts, strict=True) for r in row]
    written = [(p, g, e) for p, g, row in zip(prompts, positions, experts, strict=True) for e in row]
    judged = [float("nan") if e.correct is None else float(e.correct) for *_, e in written]
    both: list[tuple[Prompt, int, Response | Expert]] = [*rolled, *written]
    rows = collate_rows([p.token_ids for p, *_ in both], [r.token_ids for *_, r in both], pad_id, device)
    return Experience(
        prompts=list(prompts),
        positions=list(positions),
        rows=rows,
        group=torch.tensor([g for _, g, _ in both], dtype=torch.long, device=device),
        is_expert=torch.tensor([False] * len(rolled) + [True] * len(written), device=device),
        finished=torch.tensor([r.finished for *_, r in rolled] + [True] * len(written), device=device),
        outcome=torch.tensor([o for row in rollout_outcomes for o in row] + judged, device=device),
        format_reward=torch.tensor([f for row in format_rewards for f in row] + [0.0] * len(written), device=device),
        sampler_log_probs=_padded([r.log_probs or () for *_, r in rolled], rows.response_ids.shape, device),
    )


def _padded(values: Sequence[Sequence[float]], shape: Sequence[int], device: torch.device) -> Tensor:
    """The values row by row in a tensor of zeros."""
    out = torch.zeros(*shape)
    for row, own in zip(out, values, strict=False):  # the experts' rows come last and stay 0
        if own:
            row[: len(own)] = torch.tensor(own)
    return out.to(device)

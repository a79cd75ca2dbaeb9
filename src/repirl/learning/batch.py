"""The global batch: one iteration's rollouts and experts of all ranks, as objectives read them, and a way back."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor
from torch.nn.functional import pad

from repirl.data.collate import collate_rows
from repirl.distributed import gather_objects, gather_rows, rank, world_size
from repirl.learning.schedule import parts
from repirl.objectives.reduce import last_token
from repirl.structs import Expert, Prompt, Response, Rows


@dataclass(frozen=True)
class Shard:
    """This rank's part of a global batch: what no other rank needs.

    prompts: of this rank, also those whose rows were left out. positions: their places in the global batch.
    rows: the tokens of this rank's rows, n rows of t response tokens.
    """

    prompts: tuple[Prompt, ...]
    positions: tuple[int, ...]
    rows: Rows


@dataclass(frozen=True, kw_only=True)
class GlobalBatch:
    """N rows of T response tokens, on every rank the same, in rank order; of each prompt the rollouts before the experts.

    Gathered once an iteration. `gather` brings a value of this rank's rows to all, `local` takes this rank's share back.

    Whose log-probability a tensor holds is in its name; 0 outside the response. They are the same numbers only where the
    policy has not moved since it sampled, and the sampler computes as the training forward does.

    response_mask: True = counts. group: each row's prompt, as its position in the batch. is_expert: not sampled.
    outcome: what training takes for right: 1 right, 0 wrong, NaN unknown (learning/outcomes.py).
    gold_outcome: the verifier's word, likewise: for figures alone, no gradient may read it.
    format_reward: 0 or -1. finished: ended by itself, not at the limit.
    policy_version: the iteration, counted from 0, whose weights sampled the row; of experts the present one.
    step_ends: the last token of each step; without a PRM a response is one step.
    sampler_log_probs: the sampling engine's own; None where it gives none. Of experts 0.
    old_log_probs: the policy's at the start of the iteration, by the training forward: those of the clipped ratio.
    behaviour_log_probs: of the policy that sampled the row: q of the IRL weights.
    reference_log_probs: of the policy at the start of training; None where no term needs them.
    entropies: of the policy at the start of the iteration at each response token, in nats; None where no reward reads them.
    prm_rewards: as scored after the PRM's update; None until then, and without a PRM. advantages: of rollouts; None until
        computed.
    source: of each row's prompt, an index into `sources`, the names of the data's parts; one without a name is "".
    owner: the rank of each row. shard: None in a batch made of tensors alone.
    """

    response_mask: Bool[Tensor, "rows time"]
    group: Int[Tensor, " rows"]
    is_expert: Bool[Tensor, " rows"]
    outcome: Float[Tensor, " rows"]
    gold_outcome: Float[Tensor, " rows"]
    step_ends: Bool[Tensor, "rows time"]
    format_reward: Float[Tensor, " rows"]
    finished: Bool[Tensor, " rows"]
    policy_version: Int[Tensor, " rows"]
    owner: Int[Tensor, " rows"]
    source: Int[Tensor, " rows"]
    sources: tuple[str, ...] = ("",)
    shard: Shard | None = None
    sampler_log_probs: Float[Tensor, "rows time"] | None = None
    old_log_probs: Float[Tensor, "rows time"] | None = None
    behaviour_log_probs: Float[Tensor, "rows time"] | None = None
    reference_log_probs: Float[Tensor, "rows time"] | None = None
    entropies: Float[Tensor, "rows time"] | None = None
    prm_rewards: Float[Tensor, "rows time"] | None = None
    advantages: Float[Tensor, "rows time"] | None = None

    # ---- between this rank and all ----

    @property
    def rows(self) -> Rows:
        """The tokens of this rank's rows."""
        assert self.shard is not None, "a batch of tensors alone has no tokens"
        return self.shard.rows

    def gather(self, values: Shaped[Tensor, "n *k t"]) -> Shaped[Tensor, "rows *k time"]:
        """A value of each response token of this rank's rows, brought to all ranks."""
        time = self.response_mask.shape[1]
        return gather_rows(pad(values, (0, time - values.shape[-1])), self._counts)

    def local(self, values: Float[Tensor, "rows time"]) -> Float[Tensor, "n t"]:
        """This rank's share of a tensor of all rows, with as many columns as its own rows have."""
        return values[self.owner == rank()][:, : self.rows.response_mask.shape[1]]

    def gather_of_rows(self, values: Float[Tensor, " n"]) -> Float[Tensor, " rows"]:
        """A value of each of this rank's rows, brought to all ranks."""
        return gather_rows(values, self._counts)

    @property
    def _counts(self) -> list[int]:
        counts: list[int] = self.owner.bincount(minlength=world_size()).tolist()
        return counts

    # ---- subsets, the same on every rank ----

    def select(self, keep: Bool[Tensor, " rows"]) -> "GlobalBatch":
        """The rows that are True in `keep`; the order of rows, and the columns, stay as they are."""
        tensors: dict[str, Any] = {
            f.name: value for f in fields(self) if isinstance(value := getattr(self, f.name), Tensor)
        }
        shard = self.shard
        if shard is not None:
            mine = keep[self.owner == rank()]
            shard = replace(shard, rows=Rows(*(getattr(shard.rows, f.name)[mine] for f in fields(Rows))))
        return replace(self, shard=shard, **{name: value[keep] for name, value in tensors.items()})

    def of_policy(self) -> "GlobalBatch":
        """The rollouts alone."""
        return self.select(~self.is_expert)

    def of_groups(self, groups: Int[Tensor, " prompts"]) -> "GlobalBatch":
        """The rows whose prompt is one of `groups`."""
        return self.select(torch.isin(self.group, groups))

    def mini_batches(self, count: int) -> list["GlobalBatch"]:
        """The rows in `count` parts of whole prompts; a rank's share of a part may be empty."""
        if count == 1:
            return [self]
        groups = self.group.unique()
        return [self.of_groups(groups[part.start : part.stop]) for part in parts(len(groups), count)]

    # ---- trouble ----

    def require_finite(self, values: Float[Tensor, "rows time"], what: str) -> None:
        """Raises FloatingPointError on all ranks, naming the prompts, where a value of any row is not finite."""
        bad = (~values.isfinite()).any(-1)
        if not bool(bad.any()):
            return
        if bool(bad.all()):  # no prompt's fault
            where = "all prompts"
            advice = "lower the learning rate, or give policy.dtype more range: float32 or bfloat16"
        else:
            named = ", ".join(map(repr, self._prompt_ids_of(bad)))
            where, advice = f"prompt {named or 'on another rank'}", "lower the learning rate, or remove the prompt"
        raise FloatingPointError(f"{what} is NaN or infinite for {where}; nothing was updated by it: {advice}")

    def _prompt_ids_of(self, rows: Bool[Tensor, " rows"]) -> list[str]:
        """Ids of this rank's prompts that have a row in `rows`."""
        wanted = set(self.group[rows].tolist())
        pairs = () if self.shard is None else zip(self.shard.positions, self.shard.prompts, strict=True)
        return [prompt.problem.id for position, prompt in pairs if position in wanted]


def batch_of(
    *,
    response_mask: Bool[Tensor, "rows time"],
    group: Int[Tensor, " rows"],
    is_expert: Bool[Tensor, " rows"],
    outcome: Float[Tensor, " rows"] | None = None,
    step_ends: Bool[Tensor, "rows time"] | None = None,
    **others: Tensor | None,
) -> GlobalBatch:
    """A batch of tensors alone, without tokens, on one process: for objectives, advantages and diagnostics.

    outcome: None = unknown; the gold outcome is the same unless given. step_ends: None = a response is one step.
    others: further tensors, by their names.
    """
    zeros = torch.zeros_like(group)
    known = torch.full(group.shape, torch.nan) if outcome is None else outcome
    given: dict[str, Tensor | None] = {
        "format_reward": zeros.float(),
        "finished": torch.ones_like(is_expert),
        "policy_version": zeros,
        "owner": zeros,
        "source": zeros,
        "gold_outcome": known,
        **others,
    }
    return GlobalBatch(
        response_mask=response_mask,
        group=group,
        is_expert=is_expert,
        outcome=known,
        step_ends=last_token(response_mask) if step_ends is None else step_ends,
        **given,  # type: ignore[arg-type]
    )


def gathered_batch(
    *,
    prompts: Sequence[Prompt],
    positions: Sequence[int],
    rollouts: Sequence[Sequence[Response]],
    experts: Sequence[Sequence[Expert]],
    outcomes: Sequence[Sequence[float]],
    gold_outcomes: Sequence[Sequence[float]],
    format_rewards: Sequence[Sequence[float]],
    policy_version: int,
    step_ends: Callable[[Rows], Bool[Tensor, "n t"]] | None,
    with_sampler_log_probs: bool,
    pad_id: int,
    device: torch.device,
) -> GlobalBatch:
    """The batch of all ranks from this rank's records, one entry a prompt in each sequence; every rank must call it.

    outcomes, gold_outcomes, format_rewards: of the rollouts. policy_version: of the policy now; a rollout without one has it.
    step_ends: of this rank's rows, [n, t]; None = a response is one step.
    """
    sampled = [(p, g, r) for p, g, row in zip(prompts, positions, rollouts, strict=True) for r in row]
    written = [(p, g, e) for p, g, row in zip(prompts, positions, experts, strict=True) for e in row]
    both: list[tuple[Prompt, int, Response | Expert]] = [*sampled, *written]
    rows = collate_rows([p.token_ids for p, *_ in both], [r.token_ids for *_, r in both], pad_id, device)
    judged = [float("nan") if e.correct is None else float(e.correct) for *_, e in written]
    versions = [policy_version if r.policy_version is None else r.policy_version for *_, r in sampled]
    sources = _sources(prompts)
    columns = {
        "group": [float(g) for _, g, _ in both],
        "is_expert": [0.0] * len(sampled) + [1.0] * len(written),
        "outcome": [o for row in outcomes for o in row] + judged,
        "gold_outcome": [o for row in gold_outcomes for o in row] + judged,
        "format_reward": [f for row in format_rewards for f in row] + [0.0] * len(written),
        "finished": [float(r.finished) for *_, r in sampled] + [1.0] * len(written),
        "policy_version": [float(v) for v in versions] + [float(policy_version)] * len(written),
        "owner": [float(rank())] * len(both),
        "source": [float(sources.index(p.dataset)) for p, *_ in both],
        "length": [float(len(r.token_ids)) for *_, r in both],
    }
    of_row = _gathered_columns(columns, device)
    mask = torch.arange(int(of_row["length"].max()), device=device) < of_row["length"][:, None]
    batch = GlobalBatch(
        response_mask=mask,
        group=of_row["group"].long(),
        is_expert=of_row["is_expert"].bool(),
        outcome=of_row["outcome"].float(),
        gold_outcome=of_row["gold_outcome"].float(),
        step_ends=last_token(mask),
        format_reward=of_row["format_reward"].float(),
        finished=of_row["finished"].bool(),
        policy_version=of_row["policy_version"].long(),
        owner=of_row["owner"].long(),
        source=of_row["source"].long(),
        sources=sources,
        shard=Shard(tuple(prompts), tuple(positions), rows),
    )
    if step_ends is not None:
        batch = replace(batch, step_ends=batch.gather(step_ends(rows)))
    if with_sampler_log_probs:
        log_probs = [r.log_probs or () for *_, r in sampled]
        batch = replace(batch, sampler_log_probs=batch.gather(_padded(log_probs, rows, device)))
    return batch


def _gathered_columns(columns: dict[str, list[float]], device: torch.device) -> dict[str, Float[Tensor, " rows"]]:
    """One value a row under each name, of the rows of all ranks: one gather for all columns."""
    per_row = gather_rows(torch.tensor(list(columns.values()), device=device).T)
    return dict(zip(columns, per_row.unbind(-1), strict=True))


def _sources(prompts: Sequence[Prompt]) -> tuple[str, ...]:
    """Names of the parts from which the prompts of all ranks come, in alphabetical order."""
    if not any(prompt.dataset for prompt in prompts):  # on every rank alike: parts of a mixture have names
        return ("",)
    return tuple(sorted(set(gather_objects([prompt.dataset for prompt in prompts]))))


def _padded(values: Sequence[Sequence[float]], rows: Rows, device: torch.device) -> Tensor:
    """The values row by row in a tensor of zeros, [n, t]; rows beyond the last value stay 0."""
    padded = torch.zeros(rows.response_ids.shape)
    for row, of_row in zip(padded, values, strict=False):
        row[: len(of_row)] = torch.tensor(of_row)
    return padded.to(device)

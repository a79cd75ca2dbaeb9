"""The policy's part of an iteration: log-probabilities by their owners, and steps on the clipped surrogate."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from repirl.distributed import sum_over_ranks
from repirl.learning.batch import GlobalBatch
from repirl.learning.learner import Learner, run
from repirl.learning.recorder import Recorder
from repirl.learning.settings import Surrogate
from repirl.models.policy import Policy
from repirl.objectives.policy import loss_denominator, policy_objective, row_weights
from repirl.structs import Rows

LogProbs = Callable[[Rows], tuple[Tensor, Tensor]]


class PolicyLearner(Learner):
    """Learns a policy from the advantages of a global batch.

    Args: as in `Learner`; surrogate: its objective. max_response_tokens: the loss's constant length where none is given.

    reference: log-probabilities by the policy at the start of training; None where no term needs them.
    """

    model: Policy

    def __init__(
        self,
        policy: Policy,
        surrogate: Surrogate,
        *,
        max_response_tokens: int,
        micro_batch_tokens: int,
        clip_norm: float,
        recorder: Recorder,
    ) -> None:
        super().__init__(
            "policy", policy, micro_batch_tokens=micro_batch_tokens, clip_norm=clip_norm, recorder=recorder
        )
        self.surrogate = surrogate
        self.loss_length = float(surrogate.loss_length or max_response_tokens)
        self.reference: LogProbs | None = None

    def with_log_probs(self, batch: GlobalBatch, *, keeps_entropies: bool = False) -> GlobalBatch:
        """The batch with old, behaviour and, where a term needs them, reference log-probabilities.

        keeps_entropies: the policy's entropies too, which the same pass gives.

        Rows of an earlier version of the policy keep their sampler's: the weights that sampled them are gone.
        """
        of_token = 2 if keeps_entropies else 1
        parts = [(self.values(batch.rows, _both(self.model) if keeps_entropies else _first(self.model)), of_token)]
        if self.reference is not None:
            parts.append((self.values(batch.rows, _first(self.reference)), 1))
        # The numbers are given, since of no rows at all they cannot be inferred.
        of_rows = torch.cat([values.view(len(values), n, values.shape[-1]) for values, n in parts], dim=1)
        old, *others = batch.gather(of_rows).unbind(1)
        entropies = others.pop(0) if keeps_entropies else None
        batch.require_finite(old, f"iteration {self.recorder.iteration}: the policy's log-probability")
        behaviour, stale = old, ~batch.is_expert & (batch.policy_version < self.recorder.iteration)
        if stale.any():
            assert batch.sampler_log_probs is not None, "rollouts of an earlier policy need their log-probabilities"
            behaviour = torch.where(stale[:, None], batch.sampler_log_probs, old)
        return replace(
            batch,
            old_log_probs=old,
            behaviour_log_probs=behaviour,
            reference_log_probs=others[0] if others else None,
            entropies=entropies,
        )

    def update(self, batch: GlobalBatch) -> None:
        """One optimiser step on -(clipped surrogate + entropy bonus - KL), aggregated over all ranks."""
        assert batch.advantages is not None
        aggregation = self.surrogate.loss_aggregation
        tokens, count = batch.response_mask.sum().float(), batch.response_mask.any(-1).sum().float()
        if not tokens:
            return
        denominator = loss_denominator(aggregation, tokens=tokens, rows=count, length=self.loss_length)
        advantages, mask = batch.local(batch.advantages), batch.rows.response_mask
        old, reference = (
            None if of_all is None else batch.local(of_all)
            for of_all in (batch.old_log_probs, batch.reference_log_probs)
        )
        totals = torch.zeros(5, device=tokens.device)
        finite = torch.ones(len(mask), device=tokens.device)
        indices = self.micro_batches(batch.rows)
        for number, index in enumerate(indices, start=1):
            log_probs, entropy = run(self.model, batch.rows, index)
            at = index, slice(log_probs.shape[1])
            terms = policy_objective(
                log_probs=log_probs,
                entropy=entropy,
                old_log_probs=log_probs.detach() if old is None else old[at],
                advantages=advantages[at],
                reference_log_probs=None if reference is None else reference[at],
                **self.surrogate.per_token,
            )
            loss = -terms.value * row_weights(mask[at], aggregation)
            self.backward((loss * mask[at]).sum() / denominator, last=number == len(indices))
            seen = [loss, entropy, terms.clipped.float(), terms.old_gap, terms.kl]
            totals += (torch.stack(seen).detach() * mask[at]).sum((1, 2))
            finite[index] = torch.where(terms.value.detach().isfinite().all(-1), 1.0, float("nan"))
        batch.require_finite(
            batch.gather_of_rows(finite)[:, None], f"iteration {self.recorder.iteration}: the policy's loss"
        )
        names = ["loss", "entropy", "clipped", "old_gap", *(["kl"] if self.surrogate.kl_coef else [])]
        counts = torch.stack([denominator, tokens, tokens, tokens, tokens])
        self.recorder.add("policy", dict(zip(names, sum_over_ranks(totals) / counts, strict=False)))
        self.engine.step()


def _both(log_probs: LogProbs) -> Callable[[Rows], Tensor]:
    return lambda rows: torch.stack(log_probs(rows), dim=1)


def _first(log_probs: LogProbs) -> Callable[[Rows], Tensor]:
    return lambda rows: log_probs(rows)[0]

"""The PRM's part of an iteration: scores, and steps along the coefficients of an objective."""

from jaxtyping import Float
from torch import Tensor

from repirl.learning.batch import GlobalBatch
from repirl.learning.learner import Learner, over_micro_batches, run
from repirl.learning.prm_objectives import PRMObjective
from repirl.learning.recorder import Recorder
from repirl.metrics import prm_diagnostics, saturated_share
from repirl.models.prm import PRM
from repirl.objectives.reduce import response_means


class PRMLearner(Learner):
    """Learns a PRM by the gradient of sum_jt c_jt r_jt, c the objective's coefficients of the global batch.

    Args: as in `Learner`; objective: learning/prm_objectives.py.
    """

    model: PRM

    def __init__(
        self, prm: PRM, objective: PRMObjective, *, micro_batch_tokens: int, clip_norm: float, recorder: Recorder
    ) -> None:
        super().__init__("prm", prm, micro_batch_tokens=micro_batch_tokens, clip_norm=clip_norm, recorder=recorder)
        self.objective = objective

    def score(self, batch: GlobalBatch) -> Float[Tensor, "rows time"]:
        """r_phi of every response token of all ranks, without gradient. Raises FloatingPointError where one is not finite."""
        return self._of_all(batch, self.values(batch.rows, self.model))

    def update(self, batch: GlobalBatch) -> None:
        """One optimiser step; none where the objective finds nothing to learn from."""
        indices = self.micro_batches(batch.rows)
        # A single micro-batch needs no second forward: its rewards serve the coefficients and the gradient.
        kept = self._single(batch) if len(indices) == 1 else None
        of_rows = over_micro_batches(batch.rows, indices, self.model) if kept is None else kept.detach()
        rewards = self._of_all(batch, of_rows)
        coefficients = self.objective.coefficients(batch, rewards)
        self.recorder.add("prm", self.diagnostics(batch, rewards))
        self.recorder.add("prm", coefficients.to_report)
        if not coefficients.cells:
            return
        local = batch.local(coefficients.token)
        for number, index in enumerate(indices, start=1):
            values = run(self.model, batch.rows, index) if kept is None else kept
            of_part = local[index, : values.shape[1]] if kept is None else local
            self.backward((of_part * values).sum(), last=number == len(indices))
        self.engine.step()

    def diagnostics(self, batch: GlobalBatch, rewards: Float[Tensor, "rows time"]) -> dict[str, Tensor]:
        """How the rewards separate experts, right and failed rollouts (metrics/prm.py)."""
        figures = prm_diagnostics(
            mean_rewards=response_means(rewards, batch.response_mask),
            lengths=batch.response_mask.sum(-1).float(),
            is_expert=batch.is_expert,
            outcome=batch.gold_outcome,
        )
        bound = self.model.bound
        if bound is None or not len(rewards):
            return figures
        return figures | {"saturated": saturated_share(rewards, batch.response_mask, bound)}

    def _of_all(self, batch: GlobalBatch, rewards: Float[Tensor, "n t"]) -> Float[Tensor, "rows time"]:
        everyone = batch.gather(rewards)
        batch.require_finite(everyone, f"iteration {self.recorder.iteration}: the PRM's reward")
        return everyone

    def _single(self, batch: GlobalBatch) -> Float[Tensor, "n t"]:
        values: Tensor = self.model(batch.rows) if len(batch.rows.prompt_ids) else run(self.model, batch.rows, [])
        return values

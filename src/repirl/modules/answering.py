"""What modules with a policy have in common: they answer problems in validation, test and prediction."""

from typing import Any

from repirl.data.codec import ChatCodec
from repirl.learning.actor import Actor
from repirl.learning.evaluation import Evaluation, predict
from repirl.modules.base import RunModule
from repirl.structs import Prompt, Response, Verifier


class Answering(RunModule):
    """Validates, tests and predicts by its `actor`; training is the subclass's own.

    Args:
        actor: the policy with its codec, generator and verifier.
        eval_samples: sampled responses a problem, beside the greedy one.
        seed: seed of the samples.
        eval_temperature: temperature of the samples; 1 samples from the policy itself.
    """

    def __init__(self, actor: Actor, eval_samples: int, seed: int, eval_temperature: float) -> None:
        super().__init__(actor.text)
        if not eval_temperature >= 0:
            raise ValueError(f"eval_temperature must not be negative, not {eval_temperature}")
        self.eval_temperature = eval_temperature
        self.actor, self.eval_samples, self.seed = actor, eval_samples, seed
        self.policy = actor.policy
        self.evaluation = Evaluation()
        self.figures = self.evaluation.figures  # a module's metrics must be among its modules

    @property
    def codec(self) -> ChatCodec:
        """How problems become prompts; the data module asks for it."""
        return self.actor.codec

    @property
    def can_validate(self) -> bool:
        """Whether a verifier can judge answers."""
        return self.verifier is not None

    @property
    def verifier(self) -> Verifier | None:  # the data module asks it which gold answers it can read
        return self.actor.verifier

    def token_rewards(self, prompts: list[Prompt], responses: list[Response]) -> list[list[float]] | None:
        """A reward for each token of each response; None where there is no reward model."""
        return None

    def mean_rewards(self, prompts: list[Prompt], responses: list[Response]) -> list[float] | None:
        """The mean of each response's token rewards."""
        rewards = self.token_rewards(prompts, responses)
        return None if rewards is None else [sum(row) / len(row) for row in rewards]

    def on_validation_epoch_start(self) -> None:
        self.evaluation.start()

    def validation_step(self, batch: list[Prompt], batch_idx: int) -> None:
        """Answers greedily and by sampling; a reward model scores the sampled answers."""
        self.evaluation.add(
            self.actor, batch, batch_idx, self.eval_samples, self.seed, self.eval_temperature, self.mean_rewards
        )

    def on_validation_epoch_end(self) -> None:
        self._log_results("val")

    def on_test_epoch_start(self) -> None:
        self.evaluation.start()

    def test_step(self, batch: list[Prompt], batch_idx: int) -> None:
        """As validation."""
        self.validation_step(batch, batch_idx)

    def on_test_epoch_end(self) -> None:
        self._log_results("test")

    def _log_results(self, prefix: str) -> None:
        """Logs the figures as metric objects, accuracies in the progress bar.

        A figure of nothing is left out, and intervals and averages are not metrics of their own: hence their values are
        looked at here, and those two are logged as numbers.
        """
        computed = self.figures.computed()
        for name, (key, metric, _) in computed.items():
            self.log(
                f"{prefix}/{name}",
                metric,
                prog_bar=name.endswith("_accuracy"),
                metric_attribute=f"figures.metrics.{key}",
            )
        for name, value in self.figures.derived(computed).items():
            self.log(f"{prefix}/{name}", value, prog_bar=name.endswith("_accuracy"))

    def predict_step(self, batch: list[Prompt], batch_idx: int) -> list[dict[str, Any]]:
        """One record a problem: the greedy response, its verdict where a gold answer is known, its token rewards."""
        return predict(self.actor, batch, self.token_rewards)

    def teardown(self, stage: str) -> None:
        """Ends the worker processes of verifier and generator."""
        self.actor.close()

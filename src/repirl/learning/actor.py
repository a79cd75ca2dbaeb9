"""The policy as something that answers problems: rollouts and verdicts. Shared by all modules."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property

from transformers import PreTrainedTokenizerBase

from repirl.data.codec import ChatCodec
from repirl.learning.settings import Text
from repirl.models.policy import Policy
from repirl.rollout.transformers import row_seed
from repirl.structs import Expert, Generator, Problem, Prompt, Response, Verdict, Verifier


class Actor:
    """A policy with its codec, its generator and, where given, a verifier.

    sampled_tokens: number of response tokens that this process has sampled so far.
    """

    def __init__(self, policy: Policy, text: Text, rollout: Generator, verifier: Verifier | None) -> None:
        self.policy, self.text, self.rollout, self.verifier = policy, text, rollout, verifier
        self.sampled_tokens = 0

    @cached_property
    def codec(self) -> ChatCodec:
        """How this policy's tokenizer writes problems and reads responses."""
        return codec_of(self.policy.tokenizer, self.text)

    @property
    def gives_log_probs(self) -> bool:
        """Whether rollouts carry log-probabilities of what sampled them."""
        return self.rollout.gives_log_probs

    def load(self) -> None:
        """Loads the policy's weights and lets the generator sample from them.

        Raises:
            ValueError: prompts and responses of the lengths allowed do not fit into the model's context.
        """
        policy = self.policy.load()
        require_context(policy, self.text)
        self._attach(policy)

    def _attach(self, policy: Policy) -> None:
        self.rollout.attach(
            policy.model,
            decode=self.codec.decode,
            pad_id=self.codec.pad_id,
            eos_ids=self.codec.eos_ids,
            max_response_tokens=self.text.max_response_tokens,
        )

    def sample(
        self,
        prompts: Sequence[Prompt],
        positions: Sequence[int],
        *,
        samples: int,
        key: Sequence[int],
        temperature: float,
    ) -> list[list[Response]]:
        """`samples` responses a prompt; the randomness of each comes from (key, its position in the global batch)."""
        seeds = [row_seed(*key, position) for position in positions]
        rows = self.rollout.generate(
            [p.token_ids for p in prompts], samples=samples, seeds=seeds, temperature=temperature
        )
        self.sampled_tokens += sum(len(response.token_ids) for row in rows for response in row)
        return rows

    def close(self) -> None:
        """Ends the worker processes of generator and verifier; safe to call twice."""
        self.rollout.close()
        if self.verifier is not None:
            self.verifier.close()

    def verify(self, problems: Sequence[Problem], texts: Sequence[Sequence[str]]) -> list[list[Verdict | None]]:
        """A verdict for each text of each problem; None everywhere without a verifier."""
        if self.verifier is None:
            return [[None] * len(row) for row in texts]
        flat = [(problem, text) for problem, row in zip(problems, texts, strict=True) for text in row]
        verdicts = iter(self.verifier.verify([p for p, _ in flat], [t for _, t in flat]))
        return [[next(verdicts) for _ in row] for row in texts]


def codec_of(tokenizer: PreTrainedTokenizerBase, text: Text) -> ChatCodec:
    """How this tokenizer writes problems and reads responses."""
    return ChatCodec(
        tokenizer,
        instruction=text.instruction,
        template=text.template,
        prompt_format=text.prompt_format,
        template_options=text.template_options,
    )


def require_context(model: Policy, text: Text) -> None:
    """Raises ValueError where prompts and responses of the lengths allowed do not fit into a loaded model's context."""
    context = getattr(model.model.config, "max_position_embeddings", None)
    if context is not None and text.max_prompt_tokens + text.max_response_tokens > context:
        raise ValueError(
            f"text: max_prompt_tokens {text.max_prompt_tokens} and max_response_tokens {text.max_response_tokens} together "
            f"exceed the model's context of {context} tokens; lower one of them"
        )


class UsableExperts:
    """Experts with the verifier's word on each, asked once; those it rejects are left out with `drop_wrong`.

    judged: False = nobody is asked, as where gold answers must not reach training.

    Flawed solutions (Prompt.flawed) come after a prompt's experts, wrong without asking. With `drop_wrong` they would come in
    vain, and are refused.
    """

    def __init__(self, actor: Actor, *, drop_wrong: bool, judged: bool = True) -> None:
        self.actor, self.drop_wrong, self.judged = actor, drop_wrong, judged
        self._known: dict[tuple[str, str], bool | None] = {}

    def of(self, prompts: Sequence[Prompt]) -> list[list[Expert]]:
        """Each prompt's; the verifier gets all that it has not judged yet at once. Raises ValueError for flawed ones."""
        flawed = next((prompt.problem.id for prompt in prompts if prompt.flawed), None)
        if flawed is not None and self.drop_wrong:
            raise ValueError(
                f"problem {flawed!r} has flawed solutions, and the PRM's objective leaves wrong ones out: set "
                "model.objective to IRL or Discriminator with wrong_experts: background, or give data.train without them"
            )
        if not self.judged:
            return [[*prompt.experts, *prompt.flawed] for prompt in prompts]
        unknown = [[e.text for e in p.experts if (p.problem.id, e.text) not in self._known] for p in prompts]
        verdicts = self.actor.verify([prompt.problem for prompt in prompts], unknown)
        for prompt, texts, row in zip(prompts, unknown, verdicts, strict=True):
            for text, verdict in zip(texts, row, strict=True):
                self._known[prompt.problem.id, text] = None if verdict is None else verdict.correct
        return [self._usable(prompt) for prompt in prompts]

    def _usable(self, prompt: Prompt) -> list[Expert]:
        judged = [replace(e, correct=self._known[prompt.problem.id, e.text]) for e in prompt.experts]
        return [e for e in judged if e.correct is not False or not self.drop_wrong] + list(prompt.flawed)


def outcome_of(verdict: Verdict | None) -> float:
    """1 right, 0 wrong, NaN where nothing is known."""
    return float("nan") if verdict is None or verdict.correct is None else float(verdict.correct)

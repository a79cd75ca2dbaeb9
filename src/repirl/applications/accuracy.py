"""How often a policy answers right."""

from collections.abc import Sequence

from repirl.data.preparation import encode_problems
from repirl.learning.actor import Actor
from repirl.learning.evaluation import Evaluation
from repirl.learning.settings import Text
from repirl.models.policy import Policy
from repirl.rollout.transformers import InProcess
from repirl.structs import Problem, Prompt, Verifier
from repirl.verifiers.exact import ExactVerifier


def accuracy(
    policy: Policy,
    text: Text,
    problems: Sequence[Problem],
    verifier: Verifier | None = None,
    samples: int = 1,
    seed: int = 0,
) -> dict[str, float]:
    """Greedy and sampled (temperature 1) accuracy on the problems; by exact match unless a verifier is given."""
    actor = Actor(policy, text, InProcess(max_batch_rows=512), verifier or ExactVerifier())
    actor.load()
    prompts = fitting(problems, actor)
    evaluation = Evaluation()
    evaluation.start()
    evaluation.add(actor, prompts, 0, samples, seed, temperature=1.0)
    results = evaluation.figures.results()
    return {kind: results[f"{kind}_accuracy"] for kind in ("greedy", "sampled")}


def fitting(problems: Sequence[Problem], actor: Actor) -> list[Prompt]:
    """The problems whose prompts are not too long. Raises ValueError where none is left."""
    text = actor.text
    prompts, _ = encode_problems(
        problems,
        actor.codec,
        max_prompt_tokens=text.max_prompt_tokens,
        max_response_tokens=text.max_response_tokens,
        max_experts=0,
        experts="optional",
    )
    if not prompts:
        raise ValueError(f"all {len(problems)} problems are longer than text.max_prompt_tokens: raise it")
    return prompts

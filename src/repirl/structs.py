"""Records that cross layers, and the Protocols by which layers meet. No behaviour beyond validation.

Shapes: N rows (one response each), P prompt columns (left-padded), T response columns (right-padded).
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

VerdictStatus = Literal[
    "equal",  # the answer was read and equals the gold answer
    "passed",  # the program passed all tests
    "not_equal",  # the answer was read and differs
    "no_answer",  # no answer, or no program, found in the response
    "answer_timeout",  # the answer could not be judged in time: reward 0, counted
    "failed",  # a test of the program does not hold
    "error",  # the program does not compile, raises or ends early
    "timeout",  # the program ran out of time
    "memory",  # the program ran out of memory
    "output_limit",  # the program returned or printed too much
    "disk_limit",  # the program wrote too much
    "gold_unparsed",  # the gold answer is unreadable, a fault of the data set: masked
    "infra_error",  # the verifier itself failed: masked, never a 0
]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a verifier says of one response.

    correct: True or False; None where nothing can be said (`gold_unparsed`, `infra_error`): such a row is masked.
    status: why.
    """

    correct: bool | None
    status: VerdictStatus

    def __post_init__(self) -> None:
        unknown = self.status in ("gold_unparsed", "infra_error")
        if (self.correct is None) != unknown or (self.correct is True) != (self.status in ("equal", "passed")):
            raise ValueError(f"verdict {self.status!r} cannot have correct={self.correct}")


@dataclass(frozen=True, slots=True)
class CodeTests:
    """What a program must pass.

    kind: `asserts`: `code` is a script, with the program's names in scope, that raises where the program is wrong.
        `calls`: `pairs` are (arguments, expected value) of `entry_point`, the first a JSON array of positional arguments,
        the second JSON. `stdio`: `pairs` are (standard input, expected standard output).
    setup: code that runs before program and before tests, in a process of its own for each; the program can read it.
    entry_point: the function that is asked for; `Solution.name` for a method of a class that takes no arguments.
    prefix: code that the response continues or follows, such as HumanEval's signature and docstring.
    """

    kind: Literal["asserts", "calls", "stdio"]
    code: str = ""
    pairs: tuple[tuple[str, str], ...] = ()
    setup: str = ""
    entry_point: str | None = None
    prefix: str = ""

    def __post_init__(self) -> None:
        if self.kind not in ("asserts", "calls", "stdio"):
            raise ValueError(f"tests of kind {self.kind!r}: use 'asserts', 'calls' or 'stdio'")
        if self.kind == "asserts" and (not self.code.strip() or self.pairs):
            raise ValueError("tests of kind 'asserts' need `code`, and have no `pairs`")
        if self.kind != "asserts" and (self.code or not self.pairs):
            raise ValueError(f"tests of kind {self.kind!r} need `pairs`, and have no `code`")
        if self.kind == "calls" and not self.entry_point:
            raise ValueError("tests of kind 'calls' need an `entry_point`, the function to call")


@dataclass(frozen=True, slots=True)
class Problem:
    """One problem in words.

    id: unique in its data set. text: the problem statement, without any template.
    prompt: what the policy reads, where that is more than the text: a benchmark's usual prompt around it.
    answer: the gold answer, None where unknown. solutions: expert solutions, without any template.
    flawed: solutions that are wrong by how they were made, whatever their final answer (data/twins.py).
    tests: what a program must pass, where the problem asks for one.
    """

    id: str
    text: str
    answer: str | None = None
    solutions: tuple[str, ...] = ()
    tests: CodeTests | None = None
    prompt: str | None = None
    flawed: tuple[str, ...] = ()

    @property
    def asked(self) -> str:
        """What the policy reads: the prompt where there is one, else the text."""
        return self.prompt or self.text

    def __post_init__(self) -> None:
        if not self.id or not self.text.strip():
            raise ValueError(f"problem {self.id!r}: id and text must not be empty")


@dataclass(frozen=True, slots=True)
class WrittenSolution:
    """A solution in words, cut into steps.

    problem: the problem statement, without any template. steps: joined as they are they give the solution: what
    separates two steps, a newline or a blank line, belongs to the first.
    ended: nothing follows; False for the first steps of a solution that goes on, after which no end token stands.
    prompt: what the policy read, where that is more than the problem, as in `Problem`. A PRM trained here reads it too;
    another's reads the problem.
    """

    problem: str
    steps: tuple[str, ...]
    ended: bool = True
    prompt: str | None = None

    @property
    def asked(self) -> str:
        """What a PRM that reads the policy's prompt reads: the prompt where there is one, else the problem."""
        return self.prompt or self.problem

    def __post_init__(self) -> None:
        if not self.steps or not all(step.strip() for step in self.steps):
            raise ValueError(f"the solution of problem {self.problem[:60]!r} has an empty step: leave it out")

    @property
    def text(self) -> str:
        """The whole solution."""
        return "".join(self.steps)


class StepScorer(Protocol):
    """A PRM, whoever trained it, seen from outside: words in, one reward a step out."""

    def step_rewards(self, solutions: Sequence[WrittenSolution]) -> list[tuple[float, ...]]:
        """The reward of every step of every solution, in order; higher is better.

        Raises:
            ValueError: a solution cannot be scored, such as one longer than the model's context; it is named.
        """
        ...


@dataclass(frozen=True, slots=True)
class Expert:
    """One expert trajectory in tokens: the response part only, EOS included.

    correct: the verifier's word on it; None where it was not verified. False without asking for a flawed one.
    """

    text: str
    token_ids: tuple[int, ...]
    correct: bool | None = None

    def __post_init__(self) -> None:
        if not self.token_ids:
            raise ValueError("an expert trajectory needs at least one token")


@dataclass(frozen=True, slots=True)
class Prompt:
    """One problem in tokens: what the policy reads, and the expert trajectories that answer it.

    dataset: the name of the set, or of the part of a mixture, that it belongs to; empty where there is one alone.
    flawed: wrong trajectories, which are no experts: a PRM may learn to rank them below.
    """

    problem: Problem
    token_ids: tuple[int, ...]
    experts: tuple[Expert, ...] = ()
    dataset: str = ""
    flawed: tuple[Expert, ...] = ()

    def __post_init__(self) -> None:
        if any(one.correct is not False for one in self.flawed):
            raise ValueError(f"problem {self.problem.id!r}: a flawed trajectory must have correct=False")
        if not self.token_ids:
            raise ValueError(f"problem {self.problem.id!r}: the prompt has no tokens")


@dataclass(frozen=True, slots=True)
class Response:
    """One sampled response.

    finished: it ended by EOS or a stop string, not at the length limit.
    log_probs: of its tokens under the sampler, in nats; None where the sampler is the policy's own forward pass.
    policy_version: the iteration, counted from 0, whose weights sampled it; None = the present one.
    """

    token_ids: tuple[int, ...]
    text: str
    finished: bool
    log_probs: tuple[float, ...] | None = None
    policy_version: int | None = None

    def __post_init__(self) -> None:
        if self.log_probs is not None and len(self.log_probs) != len(self.token_ids):
            raise ValueError(f"{len(self.token_ids)} tokens but {len(self.log_probs)} log-probabilities")


@dataclass(frozen=True, slots=True)
class Rows:
    """Responses after their prompts, as tensors.

    prompt_ids, prompt_mask: [N, P], left-padded. response_ids, response_mask: [N, T], right-padded; True = counts.
    Every row has at least one prompt token and one response token.
    """

    prompt_ids: "Tensor"
    prompt_mask: "Tensor"
    response_ids: "Tensor"
    response_mask: "Tensor"

    def __post_init__(self) -> None:
        if self.prompt_ids.shape != self.prompt_mask.shape or self.response_ids.shape != self.response_mask.shape:
            raise ValueError("ids and masks must have equal shapes")
        if len(self.prompt_ids) != len(self.response_ids):
            raise ValueError(f"{len(self.prompt_ids)} prompts but {len(self.response_ids)} responses")


# The name in transformers of the attention that reads rows with a common prompt (models/packing.py).
SHARED_PREFIX = "shared_prefix"


@runtime_checkable
class Codec(Protocol):
    """Words to tokens and back: the only place where templates are applied, to rollouts and experts alike."""

    def encode_prompt(self, problem: str) -> tuple[int, ...]:
        """The prompt's tokens, up to and including the header after which the response starts."""

    def encode_prompts(self, problems: Sequence[str]) -> list[tuple[int, ...]]:
        """`encode_prompt` of each, at a fraction of the time."""

    def encode_response(self, text: str) -> tuple[int, ...]:
        """A response's tokens, the final EOS included."""

    def encode_responses(self, texts: Sequence[str]) -> list[tuple[int, ...]]:
        """`encode_response` of each, at a fraction of the time."""

    def decode(self, token_ids: Sequence[int]) -> str:
        """A response's text, special tokens removed."""


class Generator(ABC):
    """Samples responses from a policy. A base class and not a Protocol, because configurations name its implementations.

    truncated: samples come from a part of the distribution only (top-p, top-k, min-p): training refuses it.
    gives_log_probs: responses carry the sampler's own log-probabilities.
    """

    truncated: bool = False
    gives_log_probs: bool = False

    @abstractmethod
    def attach(
        self,
        model: "PreTrainedModel",
        *,
        decode: Callable[[Sequence[int]], str],
        pad_id: int,
        eos_ids: Sequence[int],
        max_response_tokens: int,
    ) -> None:
        """Says whose weights to use and when a response ends; responses come from the weights as they are at each call."""

    @abstractmethod
    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        samples: int,
        seeds: Sequence[int],
        temperature: float = 1.0,
        limits: Sequence[int] | None = None,
    ) -> list[list[Response]]:
        """`samples` responses to each prompt; `seeds[i]` alone decides the randomness of prompt i.

        temperature: 1 samples from the policy itself; 0 takes the likeliest token.
        limits: most tokens of each prompt's responses, where that is less than `max_response_tokens`.
        """

    def close(self) -> None:  # noqa: B027
        """Gives back what the generator holds beside the policy; safe to call twice, and `generate` may follow."""


class Verifier(ABC):
    """Judges answers and programs. A base class and not a Protocol, because configurations name its implementations."""

    @abstractmethod
    def verify(self, problems: Sequence[Problem], responses: Sequence[str]) -> list[Verdict]:
        """One verdict for each (problem, response) pair, in order. Never raises for a bad response."""

    def check_golds(self, problems: Sequence[Problem]) -> list[tuple[str, str]]:
        """(id, gold answer) of each problem whose gold answer cannot be read, in order; here none.

        Asked once, when a data set is prepared.

        Raises:
            ValueError: the verifier needs gold answers, and problems have none.
        """
        return []

    @abstractmethod
    def close(self) -> None:
        """Ends worker processes; safe to call twice."""

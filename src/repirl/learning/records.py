"""What an evaluation found of each problem."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Answer:
    """One response to a problem.

    answer: its final answer in normal form, None where there is none, and for programs. correct, status: the verdict,
    None without a verifier. finished: ended by itself, not at the limit. prm_mean_reward: None without a PRM.
    """

    response: str
    answer: str | None
    correct: bool | None
    status: str | None
    tokens: int
    finished: bool
    readable: bool
    prm_mean_reward: float | None = None


@dataclass(frozen=True, slots=True)
class ProblemRecord:
    """The responses to one problem.

    place: its position in the evaluation. dataset: empty for a set without a name. problem: its text. gold: the answer;
    None where unknown, as where tests decide. votes: its answers can be voted on; programs cannot.
    """

    place: tuple[int, int]
    dataset: str
    id: str
    problem: str
    gold: str | None
    votes: bool
    greedy: Answer | None
    samples: tuple[Answer, ...]

"""PRM heads: the value of each response token by a language model's hidden states, one class a kind.

A new kind is a class here with its name in `HEADS` and in `Kind`, or anybody's class given by its import path.
"""

from importlib import import_module
from typing import ClassVar, Literal

from jaxtyping import Float, Int
from torch import Tensor, nn

from repirl.models.log_probs import token_log_probs
from repirl.models.policy import Policy

Kind = Literal["q_head", "logit_difference", "implicit", "head", "linear"]


class Head(nn.Module):
    """Value of a token by the hidden state before it, or after it.

    Args: backbone: the loaded language model whose states it reads. rank: of the head's matrix; None = full.

    reads_after: whether it reads the state after the token, which has seen it.
    needs_reference: whether the reward is relative: beta times the value by the backbone less that by its start.
    has_weights: whether there is something to train beside the backbone. takes_rank: whether `rank` means something.
    bound: the largest possible |value|; None where there is none.
    """

    reads_after: ClassVar[bool] = False
    needs_reference: ClassVar[bool] = False
    has_weights: ClassVar[bool] = True
    takes_rank: ClassVar[bool] = False
    bound: ClassVar[float | None] = None

    def __init__(self, backbone: Policy, rank: int | None = None) -> None:
        super().__init__()
        self.hidden_size, self.vocabulary_size, self.rank = backbone.hidden_size, backbone.vocabulary_size, rank

    def forward(
        self, states: Float[Tensor, "actions hidden"], tokens: Int[Tensor, " actions"], model: Policy
    ) -> Float[Tensor, " actions"]:
        """The value of each token; `model` is the backbone or the reference, whichever the states are of."""
        raise NotImplementedError


class QHead(Head):
    """W[a_t] . h(s_t), W zero at the start; of low rank W = U V, U zero."""

    takes_rank = True

    def __init__(self, backbone: Policy, rank: int | None = None) -> None:
        super().__init__(backbone, rank)
        self.query = nn.Linear(self.hidden_size, rank, bias=False) if rank else nn.Identity()
        self.action = nn.Embedding(self.vocabulary_size, rank or self.hidden_size)
        nn.init.zeros_(self.action.weight)

    def forward(self, states: Tensor, tokens: Tensor, model: Policy) -> Tensor:
        """As `Head` says; in float32, whatever the backbone is."""
        values: Tensor = (self.query(states.float()) * self.action(tokens)).sum(-1)
        return values


class LogitDifference(Head):
    """z(a_t|s_t), the raw logit, against that of the start."""

    needs_reference = True
    has_weights = False

    def forward(self, states: Tensor, tokens: Tensor, model: Policy) -> Tensor:
        """As `Head` says; a logit of 20 in bfloat16 is right to .06: too little for a difference of two."""
        logits = (states.float() * nn.functional.embedding(tokens, model.head_weight).float()).sum(-1)
        return logits if model.head_bias is None else logits + model.head_bias[tokens]


class LogRatio(Head):
    """log pi(a_t|s_t) against that of the start (PRIME)."""

    needs_reference = True
    has_weights = False

    def forward(self, states: Tensor, tokens: Tensor, model: Policy) -> Tensor:
        """As `Head` says."""
        return token_log_probs(states, model.head_weight, tokens, model.head_bias)[0]


class MLPHead(Head):
    """A tanh MLP on the state after the token, in (-1, 1)."""

    reads_after = True
    bound = 1.0

    def __init__(self, backbone: Policy, rank: int | None = None) -> None:
        super().__init__(backbone, rank)
        self.score = nn.Sequential(
            nn.Linear(self.hidden_size, 1024),
            nn.ReLU(),
            nn.Linear(1024, 1024),
            nn.ReLU(),
            nn.Linear(1024, 1),
            nn.Tanh(),
        )

    def forward(self, states: Tensor, tokens: Tensor, model: Policy) -> Tensor:
        """As `Head` says."""
        values: Tensor = self.score(states.float())[:, 0].clone()  # FSDP wants no views
        return values


class LinearHead(Head):
    """One linear layer on the state after the token, zero at the start: a pretrained state is large, and so a random sum."""

    reads_after = True

    def __init__(self, backbone: Policy, rank: int | None = None) -> None:
        super().__init__(backbone, rank)
        self.score = nn.Linear(self.hidden_size, 1)
        for parameter in self.score.parameters():
            nn.init.zeros_(parameter)

    def forward(self, states: Tensor, tokens: Tensor, model: Policy) -> Tensor:
        """As `Head` says."""
        values: Tensor = self.score(states.float())[:, 0].clone()  # FSDP wants no views
        return values


HEADS: dict[str, type[Head]] = {
    "q_head": QHead,
    "logit_difference": LogitDifference,
    "implicit": LogRatio,
    "head": MLPHead,
    "linear": LinearHead,
}
"""Name in the configuration -> class."""


def head_class(kind: str) -> type[Head]:
    """The class of this name, or at this import path such as `my_head.Gated`.

    Raises:
        ValueError: there is no such class, or it is no Head.
    """
    if kind in HEADS:
        return HEADS[kind]
    module, _, name = kind.rpartition(".")
    if not module:
        raise ValueError(f"prm: kind {kind!r} is none of {', '.join(HEADS)}, and no import path of a class of your own")
    try:
        made: object = getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"prm: kind {kind!r} cannot be imported: {error}") from error
    if not (isinstance(made, type) and issubclass(made, Head)):
        raise ValueError(f"prm: kind {kind!r} is no subclass of repirl.models.heads.Head")
    return made

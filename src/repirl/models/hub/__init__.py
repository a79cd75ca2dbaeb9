"""PRMs of others by kind. A new one is a class and a line in `KINDS`."""

from repirl.models.hub.base import HubPRM
from repirl.models.hub.others import Generative, ReasonEval, RLHFlow
from repirl.models.hub.separated import MathShepherd, Pure, QwenMath, Skywork, TokenClassification

__all__ = ["KINDS", "HubPRM", "kind_of"]

KINDS: dict[str, type[HubPRM]] = {
    "qwen_math": QwenMath,
    "math_shepherd": MathShepherd,
    "skywork": Skywork,
    "rlhflow": RLHFlow,
    "reasoneval": ReasonEval,
    "trl": TokenClassification,
    "pure": Pure,
    "generative": Generative,
}
"""Name -> class."""


def kind_of(architectures: list[str]) -> str | None:
    """The kind that the architectures in a config.json tell; None where they do not, as those of causal LMs."""
    for architecture in architectures:
        for name, kind in KINDS.items():
            if kind.architecture and architecture.startswith(kind.architecture):
                return name
        if architecture.endswith("ForTokenClassification"):
            return "trl"
    return None

"""Policy and process reward model, learned from expert demonstrations by inverse reinforcement learning."""

from importlib import import_module

__version__ = "0.1.0"

LAZY = {
    "IRL": "repirl.learning.prm_objectives",
    "PRM": "repirl.models.prm",
    "Policy": "repirl.models.policy",
    "RePIRL": "repirl.modules.repirl",
    "SupervisedPRM": "repirl.modules.prm",
    "load": "repirl.applications.trained",
    "load_prm": "repirl.applications.prms",
}
"""Public name -> the module that defines it, imported on first use, so that `import repirl` stays light."""

__all__ = ["IRL", "LAZY", "PRM", "Policy", "RePIRL", "SupervisedPRM", "__version__", "load", "load_prm"]


def __getattr__(name: str) -> object:
    """Imports a public name on first use."""
    if name not in LAZY:
        raise AttributeError(f"module 'repirl' has no attribute {name!r}; it has {', '.join(LAZY)}")
    return getattr(import_module(LAZY[name]), name)


def __dir__() -> list[str]:
    """The public names, lazy ones included."""
    return sorted({*globals(), *LAZY})

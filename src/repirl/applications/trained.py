"""`repirl.load(checkpoint)`: policy and PRM of a run, and the rewards of any solution in words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import yaml

from repirl import checkpoints
from repirl.applications.scoring import BATCH_TOKENS, Score, TokenScorer
from repirl.data.codec import ChatCodec
from repirl.data.fields import cut
from repirl.learning.actor import codec_of
from repirl.learning.settings import Text
from repirl.models.policy import Policy
from repirl.models.prm import PRM


@dataclass(frozen=True)
class Trained:
    """What a checkpoint holds. prm: None where the run had none. text: how problems become prompts."""

    policy: Policy
    prm: PRM | None
    text: Text

    @property
    def codec(self) -> ChatCodec:
        """Words to tokens and back, as in the run."""
        return codec_of(self.policy.tokenizer, self.text)

    def scorer(self, batch_tokens: int = BATCH_TOKENS) -> TokenScorer:
        """What scores many solutions at once. Raises ValueError where there is no PRM."""
        if self.prm is None:
            raise ValueError("this checkpoint holds no PRM: load that of a run which trained one")
        return TokenScorer.of(self.prm, self.codec, batch_tokens)

    def score(self, problem: str, solution: str) -> Score:
        """The rewards of a whole solution: prompt, tokens, end token and steps, its lines, are those of training.

        Raises:
            ValueError: there is no PRM, problem or solution hold the text of a special token, or are too long.
        """
        return self.scorer().score(problem, solution)


def load(checkpoint: str | Path, text: Text | Mapping[str, Any] | None = None) -> Trained:
    """Policy and PRM of a run's checkpoint, on the CPU, ready to be used; what the run started from need not be there.

    Args:
        checkpoint: the file.
        text: how problems become prompts, for checkpoints that do not say it; a mapping has some settings of it, in the
            place of the checkpoint's.

    Raises:
        ValueError: the file is missing, damaged, or does not describe itself.
    """
    path = Path(checkpoint)
    content = checkpoints.read(path)
    policy = Policy.restored(*checkpoints.part_of(content, path, "policy")).eval()
    prm = PRM.restored(*checkpoints.part_of(content, path, "prm")).eval() if _has_prm(content) else None
    if isinstance(text, Text):
        return Trained(policy, prm, text)
    known = text_of(content[checkpoints.DESCRIPTION])
    own = Text() if known is None and text else _text_or_refuse(content, path)
    return Trained(policy, prm, replace(own, **text or {}))


def opened(checkpoint: str | Path | None, policy: str | None, text: Mapping[str, Any]) -> Trained:
    """What a run's checkpoint holds, or a model folder or hub id as a policy without a PRM; on the CPU.

    text: settings in the place of the checkpoint's, or of the defaults. Raises ValueError or OSError where neither can be
    read.
    """
    if checkpoint is not None:
        return load(checkpoint, text)
    return Trained(Policy(path=policy).load().eval(), None, Text(**text))


def check_device(name: str) -> None:
    """Raises ValueError where this machine has no such device."""
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:  # the latter of a torch that was built without the device
        raise ValueError(
            f"device {name!r} is not to be had here ({cut(str(error), 100)}): give cpu, or another that torch finds"
        ) from error


def scorer_of(
    checkpoint: str | Path, text: Text | None = None, *, batch_tokens: int = BATCH_TOKENS, device: str = "cpu"
) -> TokenScorer:
    """The PRM of a run's checkpoint as what scores solutions, whether there is a policy beside it or not.

    Args: as of `load`; batch_tokens: most tokens of a forward pass; device: where the PRM goes.

    Raises:
        ValueError: as `load`, or there is no PRM.
    """
    path = Path(checkpoint)
    content = checkpoints.read(path)
    if (content.get(checkpoints.DESCRIPTION) or {}).get("policy") is not None or not _has_prm(content):
        trained = load(path, text)
        if trained.prm is not None:
            trained.prm.to(device)
        return trained.scorer(batch_tokens)
    prm = PRM.restored(*checkpoints.part_of(content, path, "prm")).eval().to(device)
    assert prm.backbone is not None
    text = text or _text_or_refuse(content, path)
    return TokenScorer.of(prm, codec_of(prm.backbone.tokenizer, text), batch_tokens)


def _has_prm(content: Mapping[str, Any]) -> bool:
    return (content.get(checkpoints.DESCRIPTION) or {}).get("prm") is not None


def _text_or_refuse(content: Mapping[str, Any], path: Path) -> Text:
    text = text_of(content[checkpoints.DESCRIPTION])
    if text is None:
        raise ValueError(
            f"checkpoint {str(path)!r} does not say how problems become prompts: give `text`, that of the run"
        )
    return text


def text_of(described: Mapping[str, Any]) -> Text | None:
    """How problems became prompts, by a checkpoint's description; None where it does not say."""
    if described.get("text") is not None:
        return Text(**described["text"])
    if described.get("configuration") is None:
        return None
    model = yaml.safe_load(described["configuration"]).get("model") or {}
    return Text(**(model.get("init_args") or {}).get("text") or {})

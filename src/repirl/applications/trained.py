"""`repirl.load(checkpoint)`: policy and PRM of a run, and the rewards of any solution in words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import PreTrainedTokenizerBase

from repirl import checkpoints
from repirl.data.codec import ChatCodec
from repirl.data.collate import collate_rows
from repirl.learning.settings import Text
from repirl.models.policy import Policy
from repirl.models.prm import PRM
from repirl.objectives.steps import sum_to_step_ends


@dataclass(frozen=True)
class Score:
    """What a PRM says of a solution.

    tokens: the text of each, the end token last. token_rewards: r(s_t, a_t) of each, as training has it.
    steps: the solution's lines; blank ones belong to the one before. step_rewards: the sum over each step's tokens.
    """

    tokens: tuple[str, ...]
    token_rewards: tuple[float, ...]
    steps: tuple[str, ...]
    step_rewards: tuple[float, ...]


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

    @torch.no_grad()
    def score(self, problem: str, solution: str) -> Score:
        """The rewards of a whole solution: prompt, tokens and end token are those of training.

        Raises:
            ValueError: there is no PRM, or problem or solution hold the text of a special token.
        """
        if self.prm is None:
            raise ValueError("this checkpoint holds no PRM: load that of a run which trained one")
        codec = self.codec
        ids = codec.encode_response(solution)
        rows = collate_rows([codec.encode_prompt(problem)], [ids], codec.pad_id, self.policy.device)
        rewards, ends = self.prm(rows), self.prm.step_ends(rows)
        sums = sum_to_step_ends(rewards=rewards, ends=ends, response_mask=rows.response_mask)
        last = [place + 1 for place in ends[0].nonzero()[:, 0].tolist()]
        return Score(
            tokens=tuple(str(self.policy.tokenizer.decode([token])) for token in ids),
            token_rewards=tuple(rewards[0].tolist()),
            steps=tuple(codec.decode(ids[first:end]) for first, end in zip([0, *last], last, strict=False)),
            step_rewards=tuple(sums[ends].tolist()),
        )


def load(checkpoint: str | Path, text: Text | None = None) -> Trained:
    """Policy and PRM of a run's checkpoint, on the CPU, ready to be used; what the run started from need not be there.

    Args:
        checkpoint: the file.
        text: how problems become prompts, for checkpoints that do not say it.

    Raises:
        ValueError: the file is missing, damaged, or does not describe itself.
    """
    path = Path(checkpoint)
    content = checkpoints.read(path)
    policy = Policy.restored(*checkpoints.part_of(content, path, "policy")).eval()
    described = content[checkpoints.DESCRIPTION]
    prm = PRM.restored(*checkpoints.part_of(content, path, "prm")).eval() if described.get("prm") else None
    text = text or text_of(described)
    if text is None:
        raise ValueError(
            f"checkpoint {str(path)!r} does not say how problems become prompts: give `text`, that of the run"
        )
    return Trained(policy, prm, text)


def text_of(described: Mapping[str, Any]) -> Text | None:
    """How problems became prompts, by a checkpoint's description; None where it does not say."""
    if described.get("text") is not None:
        return Text(**described["text"])
    if described.get("configuration") is None:
        return None
    model = yaml.safe_load(described["configuration"]).get("model") or {}
    return Text(**(model.get("init_args") or {}).get("text") or {})


def codec_of(tokenizer: PreTrainedTokenizerBase, text: Text) -> ChatCodec:
    """How this tokenizer writes problems and reads responses."""
    return ChatCodec(
        tokenizer,
        instruction=text.instruction,
        template=text.template,
        prompt_format=text.prompt_format,
        template_options=text.template_options,
    )

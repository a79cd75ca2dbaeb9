"""Can the PRM be fooled? At each validation it scores responses that say nothing, beside real ones."""

import re
from collections.abc import Sequence
from typing import Any, Literal

from lightning.pytorch import Callback, LightningModule, Trainer

from repirl.data.collate import collate_rows
from repirl.data.preparation import final_answer_appended
from repirl.distributed import rank, world_size
from repirl.metrics import saturated_share
from repirl.metrics.accumulate import MeanOfKnown, ProbeFigures
from repirl.objectives.reduce import response_means
from repirl.structs import Codec, Prompt

Kind = Literal["empty", "one_token", "prompt_copy", "repeated"]
KINDS: tuple[Kind, ...] = ("empty", "one_token", "prompt_copy", "repeated")
_SENTENCE = re.compile(r"[^\n.]*\S[^\n.]*[\n.]?")


class RewardProbes(Callback):
    """Logs `probe/...` at each validation: mean token rewards of hollow responses against a real one of the same prompt.

    `empty` is the end token alone, `one_token` the real response's first token, `prompt_copy` the problem, `repeated` the
    real response's first sentence until it is as long. Real is the problem's first written solution, else a response that
    the policy samples. `probe/<kind>` and `probe/real` are means of Rbar, `probe/<kind>_total` of R. `probe/<kind>_wins` is
    the share of prompts where the hollow response has the higher Rbar, `probe/<kind>_wins_total` the higher R: above 0 the
    policy has something to exploit. `probe/length_correlation` is of Rbar and length over real responses;
    `probe/saturated`, for bounded PRMs, the share of token rewards near the bound.

    Args:
        limit: prompts of the validation data, from its start.
        needs_prm: a module without a PRM is refused; False = nothing is probed there, as in a configuration whose overlays
            say whether there is one.
    """

    def __init__(self, limit: int = 64, needs_prm: bool = True) -> None:
        if limit < 1:
            raise ValueError(f"RewardProbes: limit must be at least 1, not {limit}")
        self.limit, self.needs_prm = limit, needs_prm
        self._prompts: list[Prompt] = []

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts anew."""
        if self.needs_prm and getattr(pl_module, "prm", None) is None:
            raise ValueError(
                f"RewardProbes: {type(pl_module).__name__} has no prm to probe; remove the callback, or set needs_prm: false"
            )
        self._prompts = []

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keeps this rank's share of the first prompts."""
        own = -(-(self.limit - rank()) // world_size())  # prompt i is with rank i mod ranks
        self._prompts += batch[: max(0, own - len(self._prompts))]

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Scores and logs, all ranks together."""
        module: Any = pl_module
        if getattr(module, "prm", None) is None:
            return
        real = self._real(module)
        rows = [
            (prompt.token_ids, response)
            for prompt, response in zip(self._prompts, real, strict=True)
            for response in (response, *hollow_responses(prompt.problem.text, response, module.codec))
        ]
        probes, saturated = ProbeFigures(KINDS).to(module.device), MeanOfKnown().to(module.device)
        if rows:
            batch = collate_rows([p for p, _ in rows], [r for _, r in rows], module.codec.pad_id, module.device)
            rewards = module.score(batch)
            kinds = 1 + len(KINDS)
            means = response_means(rewards, batch.response_mask).view(-1, kinds)
            lengths = batch.response_mask.sum(-1).float().view(-1, kinds)
            probes.update(means=means, totals=means * lengths, lengths=lengths)
            if module.prm.bound is not None:
                share = saturated_share(rewards, batch.response_mask, module.prm.bound)
                saturated.update(share, weights=batch.response_mask.sum())
        figures = probes.compute()
        if module.prm.bound is not None:
            figures["saturated"] = saturated.compute()
        pl_module.log_dict({f"probe/{name}": value for name, value in figures.items()}, rank_zero_only=True)

    def _real(self, module: Any) -> list[tuple[int, ...]]:
        written = [_first_expert(prompt, module.codec, module.max_response_tokens) for prompt in self._prompts]
        without = [i for i, expert in enumerate(written) if expert is None]
        asked = [self._prompts[i] for i in without]
        sampled = module.actor.sample(asked, without, samples=1, key=(module.seed,), temperature=1.0)
        others = iter(row[0].token_ids for row in sampled)
        return [next(others) if expert is None else expert for expert in written]


def _first_expert(prompt: Prompt, codec: Codec, limit: int) -> tuple[int, ...] | None:
    """The problem's first written solution as experts are written; None where there is none of at most `limit` tokens."""
    for solution in prompt.problem.solutions[:1]:
        tokens = codec.encode_response(final_answer_appended(solution.strip(), prompt.problem.answer))
        return tokens if len(tokens) <= limit else None
    return None


def hollow_responses(problem: str, real: Sequence[int], codec: Codec) -> list[tuple[int, ...]]:
    """Tokens of the hollow responses in the order of KINDS, each with its end token; `real` is a whole response."""
    empty = codec.encode_response("")
    text = codec.decode(real)
    found = _SENTENCE.search(text)
    sentence = found[0] if found else text
    body = codec.encode_response(sentence)[:-1] or tuple(real)
    times = max(2, -(-(len(real) - 1) // len(body)))
    end = empty[-1:]
    return [empty, (*tuple(real[:1]), *end), codec.encode_response(problem), (*(body * times), *end)]

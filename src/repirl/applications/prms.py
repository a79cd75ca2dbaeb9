"""`repirl.load_prm`: a PRM that scores words: a run's checkpoint, an exported folder, or another's."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForTokenClassification, AutoTokenizer, PreTrainedConfig, PreTrainedModel

from repirl.applications import served
from repirl.applications.export import TEXT_FILE
from repirl.applications.scoring import BATCH_TOKENS, HubScorer, Scorer, TokenScorer, context_of, count_of
from repirl.applications.served import CONCURRENCY, SERVED, TIMEOUT_S, PoolingServer, served_steps, served_tokens
from repirl.applications.trained import check_device, scorer_of
from repirl.learning.actor import codec_of
from repirl.learning.settings import Text
from repirl.models.hub import KINDS, kind_of
from repirl.models.modeling_repirl_prm import AFTER, RELATIVE, RepirlPRMConfig, RepirlPRMForTokenClassification
from repirl.models.packing import join, pack, packed_states, use_shared_prefix
from repirl.models.policy import Policy
from repirl.models.prm import PRM
from repirl.structs import Rows

IMPLICIT = "implicit"
ALL_KINDS = (*KINDS, IMPLICIT)
BETA = 1.0
OPTIONS = ("kind", "reference", "beta", "batch_tokens", "device", *served.OPTIONS)


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of a command that say which PRM `--prm` is and where it runs, by the names of `load_prm`."""
    parser.add_argument("--kind", choices=ALL_KINDS, help="of another's PRM, where its config.json does not tell")
    parser.add_argument("--reference", help="of kind implicit: the model that the PRM was trained from")
    parser.add_argument("--beta", type=float, help=f"of kind implicit: times the log-ratio ({BETA:g})")
    parser.add_argument("--batch-tokens", type=int, default=BATCH_TOKENS, help=f"of a forward pass ({BATCH_TOKENS})")
    parser.add_argument("--device", default="cpu", help="where the PRM runs (cpu)")
    served.add_options(parser)


def given_options(options: argparse.Namespace) -> dict[str, Any]:
    """What `add_options` read, for `load_prm`."""
    return {name: getattr(options, name) for name in OPTIONS}


def check_implicit(kind: str | None, reference: str | None, beta: float | None) -> None:
    """Raises ValueError where a PRM of kind implicit has no second model, or another has what belongs to that kind."""
    if (reference is not None) != (kind == IMPLICIT):
        raise ValueError(
            "a PRM of kind 'implicit' is two models, and no other is: give `reference`, the second, with it alone"
        )
    if beta is not None and kind != IMPLICIT:
        raise ValueError(f"beta {beta:g} is of a PRM of kind 'implicit', and does nothing with another: leave it out")


def load_prm(
    name: str | Path,
    kind: str | None = None,
    *,
    text: Text | None = None,
    reference: str | None = None,
    beta: float | None = None,
    batch_tokens: int = BATCH_TOKENS,
    device: str = "cpu",
    server: str | None = None,
    server_model: str | None = None,
    timeout_s: float = TIMEOUT_S,
    concurrency: int = CONCURRENCY,
) -> Scorer:
    """What scores solutions by a PRM: a run's, an exported one, or another's (models/hub).

    Args:
        name: the .ckpt file of a run, a folder, or a hub id.
        kind: of another's PRM, where its config.json does not tell: a name of `models/hub`, or `implicit`: two causal LMs,
            whose log-ratio, times `beta`, rewards each token.
        text: how problems become prompts, for a run's PRM that does not say it, and for `implicit`, where the folder's
            repirl_text.json says it too; refused for other kinds, which have a form of their own.
        reference: the second model of `implicit`, a folder or hub id.
        beta: of `implicit`; None = 1. Refused for others.
        batch_tokens: most tokens of a forward pass.
        device: where the model goes.
        server: the address of a vLLM that serves the PRM; its weights are not loaded here (served.py).
        server_model: the PRM's name there, where it serves several models.
        timeout_s: for one answer of the server.
        concurrency: most requests to the server at a time.

    Raises:
        ValueError: there is no such PRM, it is of no known kind, or it does not say how problems become prompts; vLLM cannot
            serve it, or the server does not answer; this machine has no such device.
    """
    check_implicit(kind, reference, beta)
    if kind is not None and kind not in ALL_KINDS:
        raise ValueError(f"kind {kind!r} of a PRM is none of {', '.join(ALL_KINDS)}")
    path = Path(name).expanduser()
    connect = None
    if server is not None:
        if path.is_file() or reference is not None:
            raise ValueError(f"PRM {str(name)!r} is {'a checkpoint' if path.is_file() else 'two models'}: {SERVED}")
        if device != "cpu":
            raise ValueError(f"device {device!r}: a model that is served is where the server has it; leave device out")
        asked: dict[str, Any] = {"timeout_s": timeout_s, "concurrency": concurrency, "batch_tokens": batch_tokens}
        connect = partial(PoolingServer, server, server_model, **asked)
    elif server_model is not None or (timeout_s, concurrency) != (TIMEOUT_S, CONCURRENCY):
        raise ValueError("server_model, timeout_s and concurrency are those of a server: give `server` too")
    check_device(device)
    if path.is_file():
        if kind is not None:
            raise ValueError(f"{str(path)!r} is a file, a run's checkpoint: leave kind {kind!r} out, or give a folder")
        return scorer_of(path, text, batch_tokens=batch_tokens, device=device)
    if reference is not None:
        text = text or (_text_of(path) if (path / TEXT_FILE).is_file() else Text())
        return _implicit(str(name), reference, BETA if beta is None else beta, text, batch_tokens, device)
    place = str(path) if path.is_dir() else str(name)
    try:
        kind = kind or _recognised(path, str(name))
        if kind is None:
            text = text or _text_of(path)
            return served_tokens(path, text, connect) if connect else exported(path, text, batch_tokens, device)
        if text is not None:
            raise ValueError(f"a PRM of kind {kind!r} has a form of its own for problems: leave `text` out")
        if connect is not None:
            return served_steps(place, kind, connect)
        return HubScorer(KINDS[kind].load(place, device=device, batch_tokens=batch_tokens))
    except OSError as error:  # what transformers raises where files are missing or the hub cannot be reached
        raise ValueError(f"PRM {str(name)!r} cannot be read: {error}") from error


def _recognised(path: Path, name: str) -> str | None:
    """The kind of another's PRM by its config.json; None for a folder that we exported. Raises ValueError."""
    if (path / TEXT_FILE).is_file():
        return None
    if not (path / "config.json").is_file() and (
        path.exists() or name.startswith((".", "/", "~")) or name.count("/") != 1
    ):
        raise ValueError(f"PRM {name!r}: no such checkpoint, and no folder with a config.json; check the path")
    config, _ = PreTrainedConfig.get_config_dict(str(path) if path.is_dir() else name)
    architectures = [str(one) for one in config.get("architectures") or []]
    if config.get("model_type") == RepirlPRMConfig.model_type or config.get("id2label") == {"0": "reward"}:
        return None
    kind = kind_of(architectures)
    if kind is None:
        raise ValueError(
            f"the config.json of PRM {name!r} ({', '.join(architectures) or 'no architectures'}) does not tell its kind: "
            f"give `kind`, one of {', '.join(ALL_KINDS)}"
        )
    return kind


def _implicit(name: str, reference: str, beta: float, text: Text, batch_tokens: int, device: str) -> TokenScorer:
    """Two causal LMs as a PRM of our own kind `implicit`, nothing of it trained here."""
    backbone = Policy(path=name).load()
    prm = PRM("implicit", backbone=backbone, reference=Policy(path=reference), beta=beta).build(backbone)
    return TokenScorer.of(prm.to(device).eval(), codec_of(backbone.tokenizer, text), batch_tokens)


def _text_of(folder: Path) -> Text:
    """How problems become prompts, by a folder's own file. Raises ValueError where it does not say."""
    file = folder / TEXT_FILE
    if not file.is_file():
        raise ValueError(
            f"the PRM {str(folder)!r} does not say how problems become prompts, in {TEXT_FILE}: write the run's model.text "
            "there as JSON, as `repirl export` does, or in Python give `text`"
        )
    try:
        return Text(**json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{str(file)!r} is not the JSON of settings of model.text: {error}; repair it") from error


def exported(folder: Path, text: Text, batch_tokens: int, device: str) -> TokenScorer:
    """The scorer of an exported folder. Raises ValueError as `load_prm`."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model: PreTrainedModel = AutoModelForTokenClassification.from_pretrained(folder).eval().to(device)
    granularity, read = "token", model.config
    if isinstance(model, RepirlPRMForTokenClassification):
        granularity, read = model.config.granularity, model.backbone.config
        model.config.granularity = "token"  # a scorer sums over the steps that it is given

    @torch.no_grad()
    def rewards(rows: Rows) -> Tensor:
        joined = join(rows)
        logits: Tensor = model(input_ids=joined.ids).logits  # causal: padding comes after all that counts
        return logits[..., 0].gather(1, joined.at).masked_fill(~rows.response_mask, 0)

    packed = _packed_rewards(model)
    known: dict[str, Any] = {"granularity": granularity, "device": device, "batch_tokens": batch_tokens}
    known |= {"packs": packed is not None, "context": context_of(read), "parameters": count_of(model)}
    return TokenScorer(packed or rewards, codec_of(tokenizer, text), **known)


def _packed_rewards(model: Any) -> Callable[[Rows], Tensor] | None:
    """Token rewards by a pass without padding, each prompt read once; None where the model does not permit it."""
    own = isinstance(model, RepirlPRMForTokenClassification)
    if (own and model.config.kind in RELATIVE) or not (own or isinstance(getattr(model, "score", None), nn.Module)):
        return None
    backbone = model.backbone if own else model
    if not use_shared_prefix(backbone):
        return None
    after = not own or model.config.kind in AFTER

    @torch.no_grad()
    def rewards(rows: Rows) -> Tensor:
        packed = pack(rows, with_last=after)
        states = packed_states(backbone.base_model, packed)[packed.read]
        tokens = rows.response_ids[rows.response_mask]
        values: Tensor = model.reward_head(states, tokens) if own else model.score(states)[..., 0]
        return torch.zeros(rows.response_mask.shape, device=values.device).masked_scatter(
            rows.response_mask, values.float()
        )

    return rewards

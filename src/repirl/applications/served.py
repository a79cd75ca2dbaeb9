"""A PRM that vLLM serves: texts become tokens here, as without a server, and the numbers of each token come from there."""

from __future__ import annotations

import argparse
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from http import HTTPStatus
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import AutoConfig, AutoModelForTokenClassification, AutoTokenizer

from repirl.applications.scoring import HubScorer, Score, TokenScorer, context_of, count_of
from repirl.learning.actor import codec_of
from repirl.learning.settings import Text
from repirl.models.hub import KINDS, HubPRM
from repirl.models.micro_batches import padded_batches
from repirl.models.modeling_repirl_prm import RepirlPRMConfig
from repirl.rollout.endpoint import Endpoint, NoAnswer, Passing, Refused, in_threads
from repirl.structs import Rows, WrittenSolution

TIMEOUT_S = 300.0
CONCURRENCY = 4
RETRIES, RETRIES_AT_START = 5, 2
OPTIONS = ("server", "server_model", "timeout_s", "concurrency")
LARGEST = torch.finfo(torch.float32).max
SERVED = (
    "vLLM serves exported PRMs of kind linear with granularity token, and others' of the kinds "
    + ", ".join(name for name, kind in KINDS.items() if kind.served_labels)
    + "; score this one without a server"
)


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of a command, by the names of `repirl.load_prm`."""
    group = parser.add_argument_group("a PRM that vLLM serves (docs/score.md)")
    group.add_argument("--server", metavar="ADDRESS", help="such as http://127.0.0.1:8000; no weights are loaded here")
    group.add_argument("--server-model", metavar="NAME", help="of the PRM there, where it serves several models")
    group.add_argument("--timeout-s", type=float, default=TIMEOUT_S, help=f"for one answer ({TIMEOUT_S:g})")
    group.add_argument("--concurrency", type=int, default=CONCURRENCY, help=f"requests at a time ({CONCURRENCY})")


@dataclass
class _Pooling(Endpoint):
    """The endpoint, with advice of its own."""

    setting: ClassVar[str] = "server"

    def advice(self, status: int) -> str:
        """As `Endpoint` says."""
        advised = (HTTPStatus.NOT_FOUND, HTTPStatus.BAD_REQUEST, HTTPStatus.UNPROCESSABLE_ENTITY)
        return "see that vLLM serves this PRM there, with `--runner pooling`" if status in advised else ""


class PoolingServer:
    """vLLM's pooling interface: token ids in, numbers of each token out.

    The environment variable VLLM_API_KEY, by which vLLM knows its key, is the key here too.

    Args:
        address: such as http://127.0.0.1:8000.
        model: its name there; None = the only one.
        timeout_s: for one answer.
        concurrency: most requests at a time.
        batch_tokens: most tokens of a request.

    context: tokens that it reads; None where it does not say.
    waiting: told now and then, while an answer is waited for, of the last failure; of "" where there was none.

    Raises:
        ValueError: it does not answer, or serves no such model.
    """

    def __init__(
        self, address: str, model: str | None, *, timeout_s: float, concurrency: int, batch_tokens: int
    ) -> None:
        for name, value in (("timeout_s", timeout_s), ("concurrency", concurrency), ("batch_tokens", batch_tokens)):
            if not value > 0:
                raise ValueError(f"{name} must be above 0, not {value}")
        self.concurrency, self.batch_tokens = concurrency, batch_tokens
        self.waiting: Callable[[str], None] = lambda note: None
        base = address.rstrip("/").removesuffix("/v1")
        self._endpoint = _Pooling(
            base, api_key_env="VLLM_API_KEY", timeout_s=timeout_s, retries=RETRIES_AT_START, stop=threading.Event()
        )
        self.model, self.context = _chosen(self._ask("/v1/models", None, _models_of), model, self._endpoint.host)
        self._endpoint = replace(self._endpoint, retries=RETRIES)

    def outputs(self, ids: Sequence[Sequence[int]], labels: int) -> list[Float[Tensor, "values labels"]]:
        """What is served of each text, in order, without an activation.

        labels: numbers that each value has.

        Raises:
            ValueError: an answer fails, or is of another model.
        """
        self._endpoint = replace(self._endpoint, stop=threading.Event())  # one that was stopped asks nothing more
        found: dict[int, Tensor] = {}
        failures: list[Exception] = []

        def ask(batch: list[int]) -> list[Tensor]:
            content: dict[str, Any] = {
                "model": self.model,
                "task": "token_classify",
                "input": [list(ids[i]) for i in batch],
            }
            content |= {"use_activation": False, "encoding_format": "float", "add_special_tokens": False}
            answer = self._ask("/pooling", content, lambda body: _data_of(body, len(batch)))
            return [self._tensor(data, labels) for data in answer]

        results = in_threads(
            ask,
            padded_batches([len(one) for one in ids], self.batch_tokens),
            lambda batch, answer: isinstance(answer, Exception),
            concurrent=self.concurrency,
            stop=self._endpoint.stop,
        )
        for result in results:
            self.waiting(f"last failure: {failure}" if (failure := self._endpoint.last_failure) else "")
            if result is None:
                continue
            batch, answer = result
            if isinstance(answer, Exception):
                failures.append(answer)
            else:
                found |= zip(batch, answer, strict=True)
        if failures:
            raise failures[0]
        return [found[i] for i in range(len(ids))]

    def refusal(self, what: str) -> Refused:
        """What to raise where the answers are not the PRM's."""
        return Refused(f"{self._endpoint.host}: model {self.model!r} gives {what}")

    def _ask(self, path: str, content: dict[str, Any] | None, read: Callable[[Any], Any]) -> Any:
        try:
            return self._endpoint.answer(f"{self._endpoint.base_url}{path}", content, read)[0]
        except NoAnswer as error:
            raise NoAnswer(
                f"{error}; see that vLLM runs there, and its log, or give it more time (timeout_s)"
            ) from None

    def _tensor(self, data: Any, labels: int) -> Tensor:
        rows = [row if isinstance(row, list) else [row] for row in data]
        if wrong := [row for row in rows if len(row) != labels]:
            raise self.refusal(
                f"{len(wrong[0])} numbers a token, and the folder's has {labels}: another model is served there"
            )
        if not all(isinstance(value, (int, float)) and abs(value) < LARGEST for row in rows for value in row):
            raise self.refusal("something else than finite numbers: serve it with --dtype float32 or bfloat16")
        return torch.tensor(rows, dtype=torch.float32).reshape(-1, labels)


class ServedScorer(HubScorer):
    """The scorer of another's PRM whose model is served."""

    def __init__(self, prm: HubPRM, server: PoolingServer) -> None:
        super().__init__(prm)
        self.server, self.context = server, _least(prm.context, server.context)
        server.waiting = lambda note: self.waiting(note)

    def _scores(self, solutions: Sequence[WrittenSolution]) -> list[Score]:
        readings = [reading for solution in solutions for reading in self.prm.readings(solution)]  # one each
        outputs = self.server.outputs([reading.ids for reading in readings], self.prm.served_labels)
        scores = []
        for solution, reading, values in zip(solutions, readings, outputs, strict=True):
            if len(values) == len(reading.ids):
                values = values[list(reading.places)]
            elif len(values) != len(reading.places):  # vLLM's step pooling gives those of the separators alone
                raise self.server.refusal(
                    f"{len(values)} values for {len(reading.ids)} tokens and {len(reading.places)} steps: another model "
                    """is served there, or other steps: serve it with --pooler-config '{"tok_pooling_type": "ALL"}'"""
                )
            scores.append(Score(solution.steps, tuple(self.prm.reward(values).tolist())))
        return scores


def served_steps(name: str, kind: str, connect: Callable[[], PoolingServer]) -> ServedScorer:
    """The scorer of another's PRM, a folder or hub id. Nothing is asked before it is known that vLLM can serve it.

    Raises:
        ValueError: it cannot, or the server is not as it should be.
    """
    if not (labels := KINDS[kind].served_labels):
        raise ValueError(f"PRM {name!r} is of kind {kind}, which vLLM cannot serve: {SERVED}")
    prm = KINDS[kind].unloaded(name)
    if (found := prm.decoder.config.num_labels) != labels:  # type: ignore[union-attr]
        raise ValueError(f"{name!r} has {found} classes: a PRM of this kind has {labels}, wrong and right")
    return ServedScorer(prm, connect())


def served_tokens(folder: Path, text: Text, connect: Callable[[], PoolingServer]) -> TokenScorer:
    """The scorer of an exported PRM. Raises ValueError as `served_steps`."""
    config = AutoConfig.from_pretrained(folder)
    if isinstance(config, RepirlPRMConfig):
        what = f"of kind {config.kind} with granularity {config.granularity} and a class of its own"
        raise ValueError(f"PRM {str(folder)!r} is {what}, which vLLM cannot serve: {SERVED}")
    if config.num_labels != 1:
        raise ValueError(
            f"PRM {str(folder)!r} has {config.num_labels} labels, and one that was exported has 1: {SERVED}"
        )
    with torch.device("meta"):
        parameters = count_of(AutoModelForTokenClassification.from_config(config))
    codec = codec_of(AutoTokenizer.from_pretrained(folder), text)
    server = connect()

    def rewards(rows: Rows) -> Tensor:
        prompts = [ids[mask].tolist() for ids, mask in zip(rows.prompt_ids, rows.prompt_mask, strict=True)]
        responses = [ids[mask].tolist() for ids, mask in zip(rows.response_ids, rows.response_mask, strict=True)]
        outputs = server.outputs([p + r for p, r in zip(prompts, responses, strict=True)], labels=1)
        found = torch.zeros(rows.response_mask.shape)
        for i, (prompt, response, values) in enumerate(zip(prompts, responses, outputs, strict=True)):
            if len(values) != len(prompt) + len(response):
                raise server.refusal(
                    f"{len(values)} values for {len(prompt) + len(response)} tokens: another model is served there"
                )
            found[i, : len(response)] = values[len(prompt) :, 0]
        return found

    context = _least(context_of(config), server.context)
    scorer = TokenScorer(
        rewards,
        codec,
        context=context,
        packs=False,
        granularity="token",
        batch_tokens=sys.maxsize,
        parameters=parameters,
    )
    server.waiting = lambda note: scorer.waiting(note)
    return scorer


def _chosen(models: dict[str, int | None], name: str | None, host: str) -> tuple[str, int | None]:
    """Name and context of the model that is asked. Raises ValueError."""
    known = ", ".join(map(repr, models)) or "none"
    if name is None and len(models) != 1:
        raise ValueError(f"{host} serves several models or none ({known}): give server_model, the name of the PRM")
    name = next(iter(models)) if name is None else name
    if name not in models:
        raise ValueError(f"{host} serves no model {name!r} but {known}: give server_model as it is there")
    return name, models[name]


def _models_of(body: Any) -> dict[str, int | None]:
    """Name -> context. Raises Passing."""
    cards = body.get("data") if isinstance(body, dict) else None
    if not isinstance(cards, list) or not all(isinstance(c, dict) and isinstance(c.get("id"), str) for c in cards):
        raise Passing("the answer has no list of models")
    lengths = {card["id"]: card.get("max_model_len") for card in cards}
    return {name: length if isinstance(length, int) else None for name, length in lengths.items()}


def _data_of(body: Any, count: int) -> list[Any]:
    """The values of each input, in order. Raises Passing where they are not there."""
    data = body.get("data") if isinstance(body, dict) else None
    items = [one for one in data if isinstance(one, dict)] if isinstance(data, list) else []
    known = {one["index"]: one.get("data") for one in items if isinstance(one.get("index"), int)}
    if len(known) != count or not all(isinstance(known.get(i), list) for i in range(count)):
        raise Passing(f"the answer has no values for each of {count} texts")
    return [known[i] for i in range(count)]


def _least(*contexts: int | None) -> int | None:
    return min((length for length in contexts if length is not None), default=None)

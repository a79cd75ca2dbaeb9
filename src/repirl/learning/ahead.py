"""Rollouts one iteration ahead: sampled from the weights as they were, while the weights are trained."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from repirl.data.collate import collate_rows
from repirl.distributed import gather_objects, rank, world_size
from repirl.learning.actor import Actor
from repirl.learning.collect import positions_of
from repirl.learning.learner import over_micro_batches
from repirl.models.micro_batches import micro_batches
from repirl.models.policy import Policy
from repirl.structs import CodeTests, Expert, Problem, Prompt, Response


@dataclass(frozen=True)
class Sampled:
    """Prompts of a rank and the rollouts of each."""

    prompts: list[Prompt]
    rollouts: list[list[Response]]


class AheadActor(Actor):
    """An actor that samples in a thread of its own, from a snapshot of the policy.

    The generator reads the snapshot, so that training never changes weights under it; frozen weights are the policy's own,
    trained ones are copied at each start. Rollouts carry the log-probabilities of the snapshot and its version.

    Args: as in `Actor`; micro_batch_tokens: tokens in one forward pass for log-probabilities.
    """

    gives_log_probs = True
    snapshot: Policy

    def __init__(self, *args: Any, micro_batch_tokens: int) -> None:
        super().__init__(*args)
        self._micro_batch_tokens = micro_batch_tokens
        self._thread: ThreadPoolExecutor | None = None
        self._next: Future[Sampled] | None = None

    def load(self) -> None:
        """Loads the policy's weights and lets the generator sample from a snapshot of them."""
        self.snapshot = self.policy.load().snapshot()
        self._attach(self.snapshot)

    def sample(self, prompts: Sequence[Prompt], positions: Sequence[int], **how: Any) -> list[list[Response]]:
        """As `Actor`, from the policy as it is now; after what is being sampled, since the generator does one at a time."""
        self._refresh()
        return super().sample(prompts, positions, **how)

    def start(
        self, prompts: Sequence[Prompt], positions: Sequence[int], *, samples: int, key: Sequence[int], version: int
    ) -> None:
        """Begins to sample from the policy as it is now, of this version. Whatever was started before must be taken."""
        assert self._next is None, "rollouts that were started before were not taken"
        self._refresh()
        self._thread = self._thread or ThreadPoolExecutor(max_workers=1, thread_name_prefix="rollouts")
        surroundings = _surroundings(self.policy.device)

        def work() -> Sampled:
            with surroundings(), torch.no_grad():
                drawn = Actor.sample(self, prompts, positions, samples=samples, key=key, temperature=1.0)
                return Sampled(list(prompts), self._with_log_probs(prompts, drawn, version))

        self._next = self._thread.submit(work)

    def take(self) -> Sampled | None:
        """What was started before, waited for; None where nothing was. An error of the sampler is raised here."""
        started, self._next = self._next, None
        return None if started is None else started.result()

    def look(self) -> Sampled | None:
        """As `take`, and it stays."""
        return None if self._next is None else self._next.result()

    def put(self, sampled: Sampled) -> None:
        """Takes the place of a start: rollouts of a run that is gone on with."""
        self._next = Future()
        self._next.set_result(sampled)

    def close(self) -> None:
        """Waits for the thread, then as `Actor`."""
        if self._thread is not None:
            self._thread.shutdown(wait=True, cancel_futures=True)
            self._thread = None
        super().close()

    def _refresh(self) -> None:
        if self._next is not None:
            wait([self._next])
        self.snapshot.take_weights(self.policy)

    def _with_log_probs(
        self, prompts: Sequence[Prompt], drawn: Sequence[Sequence[Response]], version: int
    ) -> list[list[Response]]:
        """The rollouts with their version and, where the generator gives none, log-probabilities by the snapshot."""
        versioned = [[replace(r, policy_version=version) for r in row] for row in drawn]
        if self.rollout.gives_log_probs:
            return versioned
        flat = [(p, r) for p, row in zip(prompts, versioned, strict=True) for r in row]
        rows = collate_rows(
            [p.token_ids for p, _ in flat], [r.token_ids for _, r in flat], self.codec.pad_id, self.policy.device
        )
        parts = micro_batches(rows, self._micro_batch_tokens, packs=self.snapshot.packs)
        values = over_micro_batches(rows, parts, lambda some: self.snapshot(some)[0])
        scored = iter(
            [
                replace(r, log_probs=tuple(of_row[: len(r.token_ids)]))
                for (_, r), of_row in zip(flat, values.tolist(), strict=True)
            ]
        )
        return [[next(scored) for _ in row] for row in versioned]


def _surroundings(device: torch.device) -> Callable[[], Any]:
    """The precision of the calling thread, and a stream beside its stream, for another thread."""
    autocast, dtype = torch.is_autocast_enabled(device.type), torch.get_autocast_dtype(device.type)
    stream = torch.cuda.Stream(device) if device.type == "cuda" else None
    if stream is not None:  # the snapshot's weights are written on the calling thread's stream
        stream.wait_stream(torch.cuda.current_stream(device))

    @contextmanager
    def entered() -> Iterator[None]:
        with torch.cuda.stream(stream), torch.autocast(device.type, dtype, enabled=autocast):
            yield
            if stream is not None:
                stream.synchronize()

    return entered


# ---- as plain values, for checkpoints ----


def to_plain(sampled: Sampled) -> list[dict[str, Any]]:
    """The prompts of all ranks with their rollouts, in the order of the global batch; every rank must call it."""
    pairs = zip(positions_of(sampled.prompts), sampled.prompts, sampled.rollouts, strict=True)
    rows = gather_objects(
        [{"position": i, "prompt": asdict(p), "rollouts": [asdict(r) for r in row]} for i, p, row in pairs]
    )
    return sorted(rows, key=lambda row: row["position"])


def from_plain(rows: Sequence[dict[str, Any]]) -> Sampled:
    """This rank's share of what `to_plain` gave, also where there were more ranks or fewer."""
    own = rows[rank() :: world_size()]
    return Sampled(
        [_prompt(row["prompt"]) for row in own],
        [[Response(**_tuples(response)) for response in row["rollouts"]] for row in own],
    )


def _prompt(values: dict[str, Any]) -> Prompt:
    problem = dict(values["problem"])
    if problem["tests"] is not None:
        problem["tests"] = CodeTests(**_tuples(problem["tests"]))
    written = {
        kind: tuple(Expert(**_tuples(expert)) for expert in values.get(kind, ())) for kind in ("experts", "flawed")
    }
    return Prompt(**_tuples(values | {"problem": Problem(**_tuples(problem))} | written))


def _tuples(values: dict[str, Any]) -> dict[str, Any]:
    """The values, with every list in them as the tuple that it was."""
    return {name: _as_tuple(value) for name, value in values.items()}


def _as_tuple(value: Any) -> Any:
    return tuple(map(_as_tuple, value)) if isinstance(value, list | tuple) else value

"""Judges final answers to mathematics problems: a response and a gold answer go in, a `Verdict` comes out.

Cheap decisions first, in this process (`quick.py`); what they leave goes to math-verify in worker processes that can be
killed (`math_pool.py`), because computer algebra on model output can hang, ignore alarms or take all memory.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

from repirl.structs import Problem, Verdict, Verifier
from repirl.verifiers.answers import EXTRACTION, extract_answer, normalise
from repirl.verifiers.math_pool import Outcome, WorkerPool
from repirl.verifiers.quick import decide, decide_gold

__all__ = ["MathVerifier", "equal", "extract_answer", "normalise"]

_CORRECT: dict[Outcome, bool | None] = {
    "equal": True,
    "not_equal": False,
    "answer_timeout": False,
    "gold_unparsed": None,
    "infra_error": None,
}

Pairs = tuple[tuple[str, str], ...]


class MathVerifier(Verifier):
    """A `Verifier` for mathematics. Its processes start with the first answer that needs them; any thread may call it.

    workers: processes. soft_timeout_s: CPU seconds for reading the gold, and again for the answer.
    hard_timeout_s: wall seconds before the process is killed, without those in which it waits for a processor.
    memory_mib: address space of a process. cache_size: verdicts kept.
    extraction: where the final answer of a response is looked for, in order: `box`, or a text that stands before it.
    Copies (pickle, deepcopy, fork) share the settings, not processes or cache.
    """

    def __init__(
        self,
        workers: int = 1,
        soft_timeout_s: float = 2.0,
        hard_timeout_s: float = 6.0,
        memory_mib: int = 2048,
        cache_size: int = 100_000,
        extraction: Sequence[str] = EXTRACTION,
    ) -> None:
        if workers < 1 or cache_size < 0:
            raise ValueError(f"workers={workers} must be at least 1, cache_size={cache_size} at least 0")
        if not 0 < soft_timeout_s < hard_timeout_s:
            raise ValueError(f"need 0 < soft_timeout_s < hard_timeout_s, got {soft_timeout_s} and {hard_timeout_s}")
        if memory_mib < 256:
            raise ValueError(f"memory_mib={memory_mib}: math-verify needs about 70 before it computes")
        if isinstance(extraction, str) or not extraction or not all(way.strip() for way in extraction):
            raise ValueError(f"extraction={extraction!r} must be a list of `box` and texts, such as [box, '####']")
        self._limits = (workers, soft_timeout_s, hard_timeout_s, memory_mib, cache_size)
        self.extraction = tuple(extraction)
        self._reset()

    def _reset(self) -> None:
        self._owner = os.getpid()
        self._lock = threading.Lock()
        self._pool: WorkerPool | None = None
        self._cache: OrderedDict[Pairs, Verdict] = OrderedDict()

    def __reduce__(self) -> tuple[type[MathVerifier], tuple[int, float, float, int, int, Sequence[str]]]:
        return MathVerifier, (*self._limits, self.extraction)

    @property
    def worker_pids(self) -> list[int]:
        """Ids of the processes that run now."""
        workers = self._pool.workers if self._pool is not None else []
        return [worker.pid for worker in workers if worker.pid is not None]

    def verify(self, problems: Sequence[Problem], responses: Sequence[str]) -> list[Verdict]:
        """One verdict for each (problem, response) pair, in order. Never raises for a bad response."""
        if len(problems) != len(responses):
            raise ValueError(f"{len(problems)} problems but {len(responses)} responses")
        golds: list[str] = []
        for problem in problems:
            if problem.answer is None:
                raise ValueError(
                    f"problem {problem.id!r} has no gold answer, so nothing can be verified against it: "
                    "drop it from the data, or use it where no verifier is needed"
                )
            golds.append(_gold_answer(problem.answer))
        return self.compare(golds, [extract_answer(response, extraction=self.extraction) for response in responses])

    def check_golds(self, problems: Sequence[Problem]) -> list[tuple[str, str]]:
        """(id, gold answer) of each problem whose gold answer cannot be read, in order.

        Raises ValueError where problems have none, RuntimeError where the verifier failed twice on a gold, which says
        nothing about the gold.
        """
        without = [problem.id for problem in problems if problem.answer is None]
        if without:
            raise ValueError(
                f"{len(without)} of {len(problems)} problems have no gold answer, the first is {without[0]!r}; name its "
                "field by columns={'answer': ...}, drop the rows, or set model.verifier to null, which needs none"
            )
        golds = {problem.id: problem.answer for problem in problems if problem.answer is not None}
        readings = {gold: decide_gold(_gold_answer(gold)) for gold in dict.fromkeys(golds.values())}
        left = [reading for reading in readings.values() if isinstance(reading, str)]
        # Beside any gold that can be read, 0 is an answer that can be judged.
        verdicts = self._judge_all(dict.fromkeys(((reading, "0"),) for reading in left))
        readable: dict[str, bool] = {}
        for gold, reading in readings.items():
            status = verdicts[((reading, "0"),)].status if isinstance(reading, str) else None
            if status == "infra_error":
                raise RuntimeError(f"the math verifier's process died twice on the gold answer {gold!r:.200}")
            readable[gold] = reading if isinstance(reading, bool) else status != "gold_unparsed"
        return [(name, gold) for name, gold in golds.items() if not readable[gold]]

    def compare(self, golds: Sequence[str], answers: Sequence[str | None]) -> list[Verdict]:
        """As `verify`, on answers already extracted (None: there was none)."""
        decisions = [decide(gold, answer) for gold, answer in zip(golds, answers, strict=True)]
        keys = [None if isinstance(decision, Verdict) else tuple(decision) for decision in decisions]
        judged = self._judge_all(dict.fromkeys(key for key in keys if key is not None))
        return [decision if isinstance(decision, Verdict) else judged[tuple(decision)] for decision in decisions]

    def _judge_all(self, distinct: dict[Pairs, None]) -> dict[Pairs, Verdict]:
        if self._owner != os.getpid():  # a forked child: the processes belong to the parent
            if self._pool is not None:
                self._pool.close()
            self._reset()
        with self._lock:
            known = {key: self._cache[key] for key in distinct if key in self._cache}
            for key in known:
                self._cache.move_to_end(key)
        fresh = [key for key in distinct if key not in known]
        if not fresh:
            return known
        pool = self._started_pool()
        threads = min(len(fresh), len(pool.workers))
        if threads == 1:
            verdicts = [_judge(pool, key) for key in fresh]
        else:
            with ThreadPoolExecutor(threads, thread_name_prefix="math-verify") as executor:
                verdicts = list(executor.map(lambda key: _judge(pool, key), fresh))
        judged = dict(zip(fresh, verdicts, strict=True))
        with self._lock:
            # A failure of the machine says nothing of the pair and is not kept.
            self._cache.update({key: verdict for key, verdict in judged.items() if verdict.status != "infra_error"})
            while len(self._cache) > self._limits[-1]:
                self._cache.popitem(last=False)
        return known | judged

    def _started_pool(self) -> WorkerPool:
        with self._lock:
            if self._pool is None:
                workers, soft_timeout_s, hard_timeout_s, memory_mib, _ = self._limits
                self._pool = WorkerPool(
                    workers, soft_timeout_s=soft_timeout_s, hard_timeout_s=hard_timeout_s, memory_mib=memory_mib
                )
                weakref.finalize(self, self._pool.close)  # at collection and at exit
            return self._pool

    def close(self) -> None:
        """Ends the worker processes; safe to call twice. A later `verify` starts new ones."""
        with self._lock:
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.close()


def _judge(pool: WorkerPool, pairs: Pairs) -> Verdict:
    """Equal if any pair is; else the first outcome that is not a plain no."""
    outcomes: list[Outcome] = []
    for gold, answer in pairs:
        outcomes.append(pool.judge(gold, answer))
        if outcomes[-1] == "equal":
            return Verdict(correct=True, status="equal")
    refusals: list[Outcome] = [outcome for outcome in outcomes if outcome != "not_equal"]
    status = refusals[0] if refusals else "not_equal"
    return Verdict(correct=_CORRECT[status], status=status)


def _gold_answer(text: str) -> str:
    """A gold may be a bare answer, a boxed one, or GSM8K's `... #### 18`."""
    return extract_answer(text) or text


def equal(gold: str, answer: str) -> Verdict:
    """Compares two answers; `answer` may be a whole response. Uses one shared verifier, closed at exit."""
    extracted = extract_answer(answer)
    if extracted is None and not any(box in answer for box in (r"\boxed", r"\fbox")):
        extracted = answer
    return _shared().compare([_gold_answer(gold)], [extracted])[0]


@lru_cache(maxsize=1)
def _shared() -> MathVerifier:
    return MathVerifier()

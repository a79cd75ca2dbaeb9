"""What a training set is, by content: a run is resumed only over the data that it began with."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from repirl.data.code import written_tests
from repirl.data.mixture import MixturePart
from repirl.data.strata import Stratum
from repirl.structs import Problem, Prompt

UNMIXED = {"shares": [["train", "1"]], "instructions": [["", None]]}
"""What a fingerprint says of a single source."""


def fingerprint(
    prompts: Sequence[Prompt], parts: Mapping[str, MixturePart], strata: Sequence[Stratum]
) -> dict[str, Any]:
    """What a training set is by content: the number of prompts, a digest of each kind of text, and how it is mixed.

    The digests of texts are taken in the order of ids, so that a difference says what differs; `order` is that of the
    prompts.
    """
    by_id = sorted(prompts, key=lambda prompt: (prompt.problem.id, prompt.problem.text))
    return {
        "prompts": len(prompts),
        "ids": _digest(p.problem.id for p in by_id),
        "problem_texts": _digest([p.problem.text, p.problem.prompt] for p in by_id),
        "answers": _digest(p.problem.answer for p in by_id),
        "tests": _digest(repr(p.problem.tests) for p in by_id),
        "solutions": _digest([*(e.text for e in p.experts), *([e.text] for e in p.flawed)] for p in by_id),
        "tokens": _digest([p.token_ids, *(e.token_ids for e in (*p.experts, *p.flawed))] for p in by_id),
        "order": _digest(p.problem.id for p in prompts),
        "shares": [[stratum.name, str(stratum.share)] for stratum in strata],
        "instructions": [[name, part.instruction] for name, part in parts.items()],
    }


def problems_digest(problems: Iterable[Problem]) -> str:
    """Of problems, all that an answer or a verdict depends on, in their order."""
    digest = hashlib.sha256()
    for one in problems:
        content = [one.id, one.text, one.prompt, one.answer, written_tests(one.tests)]
        digest.update(json.dumps(content).encode() + b"\n")
    return digest.hexdigest()


def _digest(values: Iterable[Any]) -> str:
    found = hashlib.blake2b(digest_size=16)
    for value in values:
        found.update(json.dumps(value).encode() + b"\n")
    return found.hexdigest()

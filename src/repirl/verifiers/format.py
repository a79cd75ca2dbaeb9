"""Does a response end in an answer that can be read at all?"""

from __future__ import annotations

from repirl.verifiers.answers import extract_box


def has_answer(response: str) -> bool:
    r"""Whether the end of the response holds a balanced, non-empty `\boxed{}`."""
    return extract_box(response) is not None


def format_reward(response: str) -> float:
    """0 for a response with a boxed answer, -1 for one without."""
    return 0.0 if has_answer(response) else -1.0

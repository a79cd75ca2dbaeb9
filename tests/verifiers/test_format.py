r"""The format reward: 0 for a readable boxed answer, -1 otherwise."""

import pytest

from repirl.verifiers.format import format_reward, has_answer


@pytest.mark.parametrize(
    "response",
    [
        r"The answer is \boxed{5}.",
        r"\boxed{\frac{1}{2}}",
        r"\boxed{\{1, 2)}",  # an escaped brace opens nothing
        r"\fbox{5}",
        r"\boxed {5} and then more words",
        r"first \boxed{5}, then \boxed{",  # the last one was cut off, the one before counts
        "x" * 100_000 + r"\boxed{5}",
    ],
)
def test_a_balanced_box_with_content_is_worth_nothing_lost(response: str) -> None:
    assert has_answer(response)
    assert format_reward(response) == 0.0


@pytest.mark.parametrize(
    "response",
    [
        "",
        "The answer is 5.",
        "#### 5",
        r"\boxed{}",
        r"\boxed{  }",
        r"\boxed{5",
        r"\boxed{\frac{1}{2}",
        r"\boxed 5",
        r"boxed{5}",
        r"\boxed{5}" + "x" * 20_000,  # a box that is not at the end
    ],
)
def test_anything_else_costs_one(response: str) -> None:
    assert not has_answer(response)
    assert format_reward(response) == -1.0

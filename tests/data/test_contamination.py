"""Overlap of training and evaluation problems: equal texts, near-duplicates, boilerplate."""

from __future__ import annotations

from repirl.data.contamination import contaminated, overlap
from repirl.structs import Problem

WORDS = "a train leaves the station at nine and travels at sixty miles an hour toward a town far away".split()  # noqa: SIM905


def problems(*texts: str) -> list[Problem]:
    return [Problem(f"p{n}", text) for n, text in enumerate(texts)]


def test_equal_letters_and_digits_are_equal() -> None:
    found = overlap(problems("What's  ½ of_X?"), problems("whats ½ of x", "Whats 2 of x", "other"))
    assert found.equal == ("p0",)
    assert found.near == ()
    assert found.problems == 3


def test_the_usual_prompt_hides_nothing() -> None:
    text = "What is 1+1?"
    asked = Problem("e", text, prompt=f"{text}\nPlease reason step by step.")
    assert overlap([Problem("t", text)], [asked]).equal == ("e",)


def test_near_duplicates_by_share_of_word_sequences() -> None:
    # 19 words: 15 sequences of 5. Another last word spoils one of them, another tenth word five.
    assert len(WORDS) == 19
    last = " ".join([*WORDS[:-1], "off"])
    tenth = " ".join([*WORDS[:9], "crawls", *WORDS[10:]])
    for changed, share in ((last, 14 / 15), (tenth, 10 / 15)):
        found = overlap([Problem("t", changed)], problems(" ".join(WORDS), "something else"), words=5)
        assert found.equal == ()
        assert found.near == (("p0", "t", share),)
    assert overlap([Problem("t", tenth)], problems(" ".join(WORDS)), words=5, near=0.7).near == ()
    # Two halves of it in two training problems are no near-duplicate.
    halves = problems(" ".join(WORDS[:9]), " ".join(WORDS[10:]))
    assert overlap(halves, problems(" ".join(WORDS)), words=5).near == ()


def test_the_nearest_training_problem_is_named_and_the_nearest_pair_comes_first() -> None:
    evaluation = [Problem("far", "x " * 6 + " ".join(WORDS)), Problem("close", " ".join([*WORDS, "today"]))]
    training = [Problem("worse", " ".join(WORDS[:12])), Problem("better", " ".join(WORDS))]
    found = overlap(training, evaluation, words=5)
    assert [(name, other) for name, other, _ in found.near] == [("close", "better"), ("far", "better")]
    assert found.near[0][2] == 15 / 16


def test_boilerplate_is_not_counted() -> None:
    ending = "where m and n are relatively prime positive integers find m plus n"
    training = problems(*(f"{word} different training story {ending}" for word in ("one", "two")))
    evaluation = problems(*(f"{n} own story of problem {n} {ending}" for n in range(20)))
    assert overlap(training, evaluation, words=5).near == ()
    few = evaluation[:5]  # in five of five problems: still counted
    assert len(overlap(training, few, words=5).near) == 5


def test_a_short_statement_is_one_sequence() -> None:
    found = overlap(problems("Find x, then y."), problems("find x then (y)", "find x then"))
    assert found.equal == ("p0",)
    assert found.near == ()


def test_the_report_names_the_first() -> None:
    found = overlap(problems("a", "b", "c", "d"), problems("a", "b", "c", "d", "e"))
    assert str(found) == "4 of 5 are also training problems (first: p0, p1, p2)"
    assert str(overlap(problems("a"), problems("b"))) == "no overlap with training (1 problems checked)"
    near = overlap([Problem("t", " ".join(WORDS))], problems(" ".join([*WORDS, "today"])), words=5)
    assert str(near) == "1 of 1 are near-duplicates of one (first: p0 near t (94%))"


def test_training_problems_that_evaluation_has_are_named_with_the_nearest() -> None:
    longer = "y " * 40 + " ".join(WORDS)  # all of the evaluation problem, in a longer statement
    training = [*problems("What's X?", longer, "something else"), Problem("half", " ".join(WORDS[:12]))]
    evaluation = [Problem("e0", "whats x"), Problem("e1", " ".join(WORDS)), Problem("e2", " ".join(WORDS[3:]))]
    assert contaminated(training, evaluation, words=5) == {"p0": "e0", "p1": "e1", "half": "e1"}
    # Of "half", 12 words: 8 of the 15 sequences of e1, 5 of the 12 of e2
    assert contaminated(training, evaluation, words=5, near=0.6) == {"p0": "e0", "p1": "e1"}

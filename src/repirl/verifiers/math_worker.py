"""The process in which math-verify runs: reads pairs from stdin, writes verdicts to stdout, one JSON object a line.

Started by path and by exec (`math_pool.py`); imports neither repirl nor torch. One pair at a time, in the main thread,
since math-verify and the alarm need it. Ends when stdin ends or its parent is gone.

Request: {"gold": str, "answer": str}.
Replies: {"stage": "gold"} once the gold is parsed, then {"result": "equal" | "not_equal" | "timeout" |
"gold_unparsed" | "memory"}.
"""

from __future__ import annotations

import json
import logging
import os
import resource
import select
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from decimal import Decimal
from functools import lru_cache, partial
from itertools import pairwise
from typing import Any

IDLE_CHECK_S = 5.0
EXACT_TOLERANCE = 1e-25  # relative, between exact expressions
ROUNDED_PLACES = 6  # of a decimal that may be a rounded value; a shorter one is exact
DECIMAL_TOLERANCE = 1e-4  # relative, where a decimal may be rounded; math-verify asks for six places besides
CHAIN_TOLERANCE = 1e-2  # relative, within `a = b = c`, where a rounded last member is no contradiction


class SoftTimeout(BaseException):
    """Not an Exception: sympy catches those."""


def _raise_soft_timeout(_signal: int, _frame: object) -> None:
    raise SoftTimeout


@contextmanager
def cpu_limit(seconds: float) -> Iterator[None]:
    """SoftTimeout after `seconds` of CPU time, and again every half second should something swallow it.

    CPU time, so that a busy machine does not turn right answers into time-outs.
    """
    signal.setitimer(signal.ITIMER_PROF, seconds, 0.5)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


@lru_cache(maxsize=1)
def _normalisation() -> Any:
    """math-verify's defaults but for units: it drops them, so that 5 cm would be 5 m; `quick.py` has read them."""
    from latex2sympy2_extended.latex2sympy2 import NormalizationConfig

    return NormalizationConfig(basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="none")


def parse(text: str) -> Any:
    """The sympy object, or None where math-verify reads nothing."""
    import math_verify

    _tell_letters_apart()
    found = math_verify.parse(
        f"${text}$",
        extraction_config=[math_verify.LatexExtractionConfig(normalization_config=_normalisation())],
        fallback_mode="no_fallback",
        parsing_timeout=0,
        raise_on_error=True,
    )
    if not found or isinstance(found[0], str):
        return None
    return _with_imaginary_unit(found[0])


def _with_imaginary_unit(expression: Any) -> Any:
    """With the letter i as a number, except where it is what an equation names. Lists keep what they repeat."""
    import sympy

    if (members := getattr(expression, "_unsorted_args", None)) is not None:
        return expression.func(*(_with_imaginary_unit(member) for member in members))
    if isinstance(expression, sympy.Eq):
        return sympy.Eq(expression.lhs, _with_imaginary_unit(expression.rhs), evaluate=False)
    letters = {symbol: sympy.I for symbol in getattr(expression, "free_symbols", ()) if symbol.name == "i"}
    return expression.xreplace(letters) if letters else expression


@lru_cache(maxsize=1)
def _tell_letters_apart() -> None:
    """Keeps n and N apart: math-verify writes all letters small, and passes no setting for it on."""
    import math_verify.parser
    from latex2sympy2_extended.latex2sympy2 import ConversionConfig, latex2sympy

    config = ConversionConfig(lowercase_symbols=False)
    math_verify.parser.latex2sympy = partial(latex2sympy, conversion_config=config)


@lru_cache(maxsize=128)  # the rollouts of a group share their gold
def parse_gold(text: str) -> Any:
    """As `parse`; None also where the gold has no value (1/0)."""
    import sympy

    gold = parse(text)
    return None if gold in (sympy.nan, sympy.zoo) else gold


def same(gold: Any, answer: Any) -> bool:
    """math-verify's word, after our own check of what it is lenient about."""
    import math_verify
    import sympy

    if contradictory(answer) or not numbers_agree(gold, answer):  # first, since it is cheap beside a simplification
        return False
    if _nameless_beside_value(gold, answer) or _nameless_beside_value(answer, gold):
        return False
    if members := _members(gold, answer):
        return _matched(*members)
    left, right = exactly(gold), exactly(answer)
    if left == right:
        return True
    if max(map(places_in, (gold, answer))) < ROUNDED_PLACES:  # nothing is rounded, so that decimals are fractions
        gold, answer = left, right
    if isinstance(gold, sympy.Symbol) and isinstance(answer, sympy.Expr) and answer.free_symbols == {gold}:
        return bool(sympy.simplify(answer - gold) == 0)  # math-verify compares the name alone: x is not 2x/2 to it
    # An interval and the inequality that describes it are one answer, whichever of them is the gold.
    equal = math_verify.verify(gold, answer, allow_set_relation_comp=True, timeout_seconds=0, raise_on_error=True)
    return bool(equal)


def _nameless_beside_value(equation: Any, value: Any) -> bool:
    """Whether an equation that names no value stands beside a value: `x^2 = 25` is not 25, `x = 5` and `2 + 3 = 5` are 5."""
    import sympy

    first = next(iter(_equations(equation)), None)
    if first is None or not isinstance(value, sympy.Expr):
        return False
    is_name = isinstance(first.lhs, (sympy.Symbol, sympy.core.function.AppliedUndef))
    return not is_name and any(part.free_symbols for part in _equations(equation))


def exactly(expression: Any) -> Any:
    """With decimals as the fractions that they were written as: e^{0.5t} is e^{t/2}."""
    import sympy

    if not isinstance(expression, sympy.Basic):
        return expression
    return expression.xreplace({number: sympy.Rational(_written(number)) for number in expression.atoms(sympy.Float)})


def places_in(expression: Any) -> int:
    """Digits after the point of the longest decimal anywhere in an expression."""
    import sympy

    return _places(expression) if isinstance(expression, sympy.Basic) else ROUNDED_PLACES


def _members(gold: Any, answer: Any) -> tuple[list[Any], list[Any]] | None:
    """The members of two lists or sets, as often as they were written, a lone value being a list of one.

    None where neither is a list, where a side is neither list nor value, or the names before them differ.
    """
    import sympy

    named = [isinstance(side, sympy.Eq) for side in (gold, answer)]
    values = [side.rhs if name else side for side, name in zip((gold, answer), named, strict=True)]
    lists = [isinstance(value, sympy.FiniteSet) for value in values]
    if not any(lists) or not all(isinstance(value, (sympy.FiniteSet, sympy.Expr)) for value in values):
        return None
    if all(named) and gold.lhs != answer.lhs:
        return None
    left, right = (
        list(getattr(value, "_unsorted_args", value.args)) if is_list else [value]
        for value, is_list in zip(values, lists, strict=True)
    )
    return left, right


def _matched(golds: list[Any], answers: list[Any]) -> bool:
    """Whether each gold has an answer of its own. math-verify compares in an order of its own, and each value once."""
    if len(golds) != len(answers):
        return False
    left = list(range(len(answers)))
    for gold in golds:
        partner = next((index for index in left if same(gold, answers[index])), None)
        if partner is None:
            return False
        left.remove(partner)
    return True


def _equations(expression: Any) -> list[Any]:
    """The members of `a = b = c` as equations, in order; empty for anything else."""
    import sympy
    from latex2sympy2_extended.logic import And

    parts = list(expression._unsorted_args) if isinstance(expression, And) else [expression]
    linked = all(isinstance(part, sympy.Eq) for part in parts) and all(
        left.rhs == right.lhs for left, right in pairwise(parts)
    )
    return parts if linked else []


def contradictory(expression: Any) -> bool:
    """Whether an equation chain names two different numbers: `4 = 5`, `x = 4 = 5`."""
    equations = _equations(expression)
    sides = [side for equation in equations for side in (equation.lhs, equation.rhs)]
    numbers = [value for side in sides if not side.free_symbols and (value := _value(side, {})) is not None]
    return any(not _close(numbers[0], number, CHAIN_TOLERANCE) for number in numbers[1:])


def numbers_agree(gold: Any, answer: Any) -> bool:
    """Compares value by value, relatively: to six decimal places 1e-7 and 2e-7 are one number to math-verify.

    Free symbols take fixed generic values. What has no such reading (sets of different size, relations) passes.
    """
    left_chain, right_chain = _equations(gold), _equations(answer)
    if left_chain and right_chain and left_chain[0].lhs != right_chain[0].lhs:
        return True  # two forms of one equation
    golds = _leaves(left_chain[-1].rhs if left_chain else gold)
    answers = _leaves(right_chain[-1].rhs if right_chain else answer)
    if len(golds) != len(answers):
        return True
    symbols = sorted({s for leaf in (*golds, *answers) for s in leaf.free_symbols}, key=str)
    point = {symbol: _generic(index) for index, symbol in enumerate(symbols)}
    for left, right in zip(golds, answers, strict=True):
        a, b = _value(left, point), _value(right, point)
        if a is None or b is None:
            continue
        rounded = max(_places(left), _places(right)) >= ROUNDED_PLACES
        if not _close(a, b, DECIMAL_TOLERANCE if rounded else EXACT_TOLERANCE):
            return False
    return True


def _leaves(expression: Any) -> list[Any]:
    """The values inside numbers, tuples, intervals, matrices and sets of numbers; else nothing."""
    import sympy

    if isinstance(expression, sympy.Interval):
        return [*_leaves(expression.start), *_leaves(expression.end)]
    if isinstance(expression, sympy.MatrixBase):
        return [leaf for item in expression.flat() for leaf in _leaves(item)]
    if isinstance(expression, sympy.FiniteSet):
        values = [(value, item) for item in expression.args if (value := _value(item, {})) is not None]
        if len(values) < len(expression.args) or any(not value.is_real for value, _ in values):
            return []
        return [item for _, item in sorted(values, key=lambda pair: pair[0])]
    if isinstance(expression, sympy.Tuple):
        return [leaf for item in expression.args for leaf in _leaves(item)]
    return [expression] if isinstance(expression, sympy.Expr) else []


def _generic(index: int) -> Any:
    import sympy

    return sympy.Rational(1009 + 212 * index, 997)


def _value(expression: Any, point: dict[Any, Any]) -> Any:
    """A number of 40 digits, or None."""
    import sympy

    try:
        number = sympy.N(exactly(expression).subs(point).doit(), 40)
        if number.is_Float and number._prec == 1:
            return sympy.Integer(0)  # sympy's mark for a sum that cancels to nothing
        return number if number.is_number and number.is_finite else None
    except MemoryError:
        raise
    except Exception:  # sympy's many ways to say that there is no number here
        return None


def _places(expression: Any) -> int:
    """Digits after the point of the longest decimal, without zeros at its end."""
    import sympy

    return max((len(_written(number).partition(".")[2]) for number in expression.atoms(sympy.Float)), default=0)


def _written(number: Any) -> str:
    """A decimal as it was written, without zeros at its end."""
    return f"{Decimal(str(number)):f}".rstrip("0")


def _close(a: Any, b: Any, tolerance: float) -> bool:
    return bool(abs(a - b) <= tolerance * max(abs(a), abs(b)))


def judge(gold_text: str, answer_text: str, soft_timeout_s: float, reply: Any) -> str:
    """One pair. A failure before the stage message is the gold's, after it the answer's."""
    try:
        with cpu_limit(soft_timeout_s):
            gold = parse_gold(gold_text)
    except (SoftTimeout, Exception):
        gold = None
    if gold is None:
        return "gold_unparsed"
    reply({"stage": "gold"})
    try:
        with cpu_limit(soft_timeout_s):
            answer = parse(answer_text)
            return "equal" if answer is not None and same(gold, answer) else "not_equal"
    except SoftTimeout:
        return "timeout"
    except MemoryError:
        return "memory"
    except Exception:  # math-verify cannot compare them: 1/0, an unknown function, recursion too deep
        return "not_equal"


def lines(parent: int) -> Iterator[bytes]:
    """Lines of stdin until it ends. A forked sibling may hold the pipe open, so the parent is looked for as well."""
    pending = b""
    while True:
        ready, _, _ = select.select([0], [], [], IDLE_CHECK_S)
        if os.getppid() != parent:
            return
        if ready:
            chunk = os.read(0, 1 << 16)
            if not chunk:
                return
            *complete, pending = (pending + chunk).split(b"\n")
            yield from complete


def main(arguments: list[str]) -> None:
    """Arguments: soft time-out (s), CPU guard (s), memory (MiB), the parent's process id."""
    soft_timeout_s, guard_s, memory_mib, parent = float(arguments[0]), float(arguments[1]), *map(int, arguments[2:])
    replies = os.dup(1)
    os.dup2(2, 1)  # whatever a library prints must not reach the replies

    def reply(message: dict[str, object]) -> None:
        os.write(replies, json.dumps(message).encode() + b"\n")

    limit, hard = memory_mib << 20, resource.getrlimit(resource.RLIMIT_AS)[1]
    limit = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGPROF, _raise_soft_timeout)
    logging.disable(logging.CRITICAL)  # math-verify warns of each pair
    try:
        parse("1")
    except ImportError as error:
        reply({"fatal": str(error)})
        return
    reply({"ready": True})
    for line in lines(parent):
        request = json.loads(line)
        # Inside C code no Python handler runs; this timer's default action ends the process even if the parent is gone.
        signal.setitimer(signal.ITIMER_VIRTUAL, guard_s)
        result = judge(request["gold"], request["answer"], soft_timeout_s, reply)
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        reply({"result": result})
        if result == "memory":
            return  # a process that has run out of memory once is not to be trusted


if __name__ == "__main__":
    main(sys.argv[1:])

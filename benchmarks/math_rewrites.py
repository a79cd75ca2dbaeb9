r"""Golds written differently, and golds made wrong: rules of notation and arithmetic, written without a verifier in mind.

A rewrite keeps the meaning by construction. A perturbation changes it in most cases; only those that `math_reading`
proves different are used.
"""

import random
import re
from collections.abc import Callable, Iterator
from fractions import Fraction

from math_reading import CLOSE, OPEN, Unreadable, different, read, split

INTEGER = re.compile(r"-?\d+")
FRACTION = re.compile(r"(-?)\\[dt]?frac(?:\{(\d+)\}|(\d))\s*(?:\{(\d+)\}|(\d))")
WORDS = re.compile(r"\\(?:text|mbox|mathrm|textbf)\s*\{([^{}]*)\}")
NAMED = re.compile(r"\s*([a-zA-Z](?:\([a-zA-Z]\))?)\s*=(.*)", re.DOTALL)

RESPONSES = (
    "We work step by step.\nFirst attempt: \\boxed{{{wrong}}} does not fit.\nTherefore the answer is $\\boxed{{{answer}}}$.",
    "Let $n = 17$. After some algebra,\n\\[ \\boxed{{{answer}}}. \\]\nI hope it is correct.",
    "Step 1: 3 + 4 = 7.\nStep 2: we simplify $\\frac{{14}}{{2}}$ to 7 and go on.\n\n**Final answer:** \\boxed{{{answer}}}",
    "So $\\text{{the result}}$ follows, \\fbox{{{answer}}}, which ends the proof.",
)


def response(answer: str, generator: random.Random) -> str:
    """A whole response around the answer."""
    return generator.choice(RESPONSES).format(answer=answer, wrong=generator.randrange(100, 999))


def rational(gold: str) -> Fraction | None:
    """The value of an integer, a decimal or a fraction of two integers."""
    plain = gold.replace(r"\!", "").replace(r"\$", "").replace(" ", "")
    if re.fullmatch(r"-?\d{1,3}(?:,\d{3})+", plain):
        plain = plain.replace(",", "")
    if re.fullmatch(r"-?(?:\d+\.?\d*|\.\d+)", plain):
        return Fraction(plain)
    if match := FRACTION.fullmatch(gold.strip()):
        top, bottom = int(match[2] or match[3]), int(match[4] or match[5])
        return Fraction(-top if match[1] else top, bottom) if bottom else None
    return None


def decimal(value: Fraction) -> str | None:
    """The exact decimal, where it ends within six places."""
    scaled = value * 10**6
    if scaled.denominator != 1:
        return None
    sign, digits = "-" if scaled < 0 else "", f"{abs(scaled.numerator):07d}"
    return f"{sign}{digits[:-6]}.{digits[-6:].rstrip('0') or '0'}"


def latex_fraction(value: Fraction, factor: int = 1) -> str:
    r"""As \frac, both parts multiplied by the factor."""
    return f"{'-' if value < 0 else ''}\\frac{{{abs(value.numerator) * factor}}}{{{value.denominator * factor}}}"


def terms(gold: str) -> list[str]:
    """Top-level terms of a sum, signs kept; a single one where it is no sum."""
    found, depth, start = [], 0, 0
    for at, char in enumerate(gold):
        depth += (char in OPEN) - (char in CLOSE)
        if (
            char in "+-"
            and depth == 0
            and at > start
            and not re.search(r"[-+*/^(=,]\s*$|\\[a-zA-Z]+\s*$", gold[start:at])
        ):
            if gold[start:at].strip():
                found.append(gold[start:at].strip())
            start = at
    return [*found, gold[start:].strip()]


def is_expression(gold: str) -> bool:
    """Whether it is one value: no list, tuple, relation, set, word or matrix."""
    marks = r"=|,|\\text|\\mbox|\\begin|\\cup|\\in(?![a-z])|\\\{|\\pm|\\le|\\ge|<|>|_|%|\\\$|\\circ|where"
    return not re.search(marks, gold)


def _outside_words(gold: str, change: Callable[[str], str]) -> str:
    """Changes everything but words."""
    parts = re.split(r"(\\(?:text|mbox|mathrm|begin|end)\s*\{[^{}]*\})", gold)
    return "".join(part if number % 2 else change(part) for number, part in enumerate(parts))


def rewrites(gold: str) -> Iterator[tuple[str, str]]:
    """(rule, answer) for every rule that applies and changes something."""
    for rule, answer in _rewrites(gold):
        if answer is not None and answer.strip() != gold.strip():
            yield rule, answer


def _rewrites(gold: str) -> Iterator[tuple[str, str | None]]:
    # Spacing.
    yield "spaces", _outside_words(gold, lambda part: re.sub(r"(?<!\\)([=+<>]|(?<=[0-9a-zA-Z}])-)", r" \1 ", part))
    yield (
        "no spaces",
        _outside_words(gold, lambda part: re.sub(r"(\\[a-zA-Z]+) +(?=[a-zA-Z])|(?<!\\) +", _joined, part)),
    )
    yield "thin spaces", _outside_words(gold, lambda part: re.sub(r"(?<=\d) *\\(?=sqrt|pi)", r"\\,\\", part))
    # LaTeX variants.
    yield "dollars", None if "$" in gold else f"${gold}$"
    yield "display", rf"\displaystyle {gold}"
    yield "stop", None if gold.rstrip().endswith(".") else f"{gold}."
    yield "dfrac", re.sub(r"\\frac", r"\\dfrac", gold)
    yield "tfrac", re.sub(r"\\d?frac", r"\\tfrac", gold)
    yield "short frac", re.sub(r"\\frac\{(\d)\}\{(\d)\}", r"\\frac\1\2", gold)
    yield "short sqrt", re.sub(r"\\sqrt\{(\d)\}", r"\\sqrt\1", gold)
    yield "large brackets", _large(gold)
    yield "small brackets", re.sub(r"\\(?:left|right)(?![a-z])", "", gold)
    yield "other matrix", gold.replace("pmatrix", "bmatrix")
    yield "le", re.sub(r"\\geqslant", r"\\geq", gold)
    yield "unicode", gold.replace(r"\pi", "π").replace(r"\infty", "∞").replace(r"^\circ", "°").replace(r"\cup", "∪")
    yield "unicode minus", _outside_words(gold, lambda part: part.replace("-", "−")) if "matrix" not in gold else None
    yield "cdot", re.sub(r"(?<![\d{_^])(\d+) ?\\(sqrt|pi)", r"\1 \\cdot \\\2", gold)
    if words := WORDS.fullmatch(gold.strip()):
        yield "bare word", words[1]
        yield "bold word", rf"\textbf{{{words[1]}}}"
        yield "small letters", words[1].lower() if len(words[1].strip()) > 3 else None
    # Numbers.
    if (value := rational(gold)) is not None:
        yield from _number_rewrites(gold, value)
    elif is_expression(gold):
        yield from _expression_rewrites(gold.strip().rstrip("."))
    yield from _structure_rewrites(gold)
    # Units.
    if r"^\circ" in gold and gold.count("^") == 1 and "," not in gold:
        yield "degrees in words", re.sub(r"\^\\circ|\^\{\\circ\}", r"\\text{ degrees}", gold)
        yield "no degrees", re.sub(r"\^\\circ|\^\{\\circ\}", "", gold)
    if "\\$" in gold:
        yield "no dollar sign", gold.replace("\\$", "")
    if gold.strip().endswith("%"):
        yield "percent sign escaped", re.sub(r" *\\?%$", r"\\%", gold.strip())
        yield "no percent sign", re.sub(r" *\\?%$", "", gold.strip())
    if (unit := re.fullmatch(r"(.*[\d}])\s*\\(?:text|mbox)\{[a-z ]+\}(?:\^2)?", gold)) is not None:
        yield "no unit", unit[1]


def _joined(match: re.Match[str]) -> str:
    return f"{match[1]} " if match[1] else ""


def _large(gold: str) -> str | None:
    if (
        r"\left" in gold
        or ("(" not in gold and "[" not in gold)
        or re.search(r"[a-zA-Z]\(|\\sqrt\[|\\text|\\mbox", gold)
    ):
        return None
    return re.sub(r"([(\[])", r"\\left\1", re.sub(r"([)\]])", r"\\right\1", gold))


def _number_rewrites(gold: str, value: Fraction) -> Iterator[tuple[str, str | None]]:
    if value.denominator == 1:
        whole = value.numerator
        yield "decimal", f"{whole}.0"
        yield "two places", f"{whole}.00"
        yield "fraction", rf"\frac{{{2 * whole}}}{{2}}" if whole >= 0 else rf"-\frac{{{-2 * whole}}}{{2}}"
        yield "thousands", f"{whole:,}" if abs(whole) >= 1000 else None
        yield "thousands in LaTeX", f"{whole:,}".replace(",", "{,}") if abs(whole) >= 1000 else None
        zeros = len(str(whole)) - len(str(whole).rstrip("0"))
        yield "power of ten", rf"{whole // 10**zeros} \times 10^{{{zeros}}}" if zeros >= 3 else None
    else:
        yield "decimal", decimal(value)
        yield "fraction", latex_fraction(value)
        yield "unreduced", latex_fraction(value, 3)
        yield "on one line", f"{value.numerator}/{value.denominator}"
        whole, rest = divmod(abs(value), 1)
        sign = "-" if value < 0 else ""
        yield "mixed", f"{sign}{whole}{latex_fraction(rest)}" if whole else None
        yield "sign inside", rf"\frac{{{value.numerator}}}{{{value.denominator}}}" if value < 0 else None
    yield "named", f"x = {gold}"
    yield "plus sign", f"+{gold}" if value > 0 and gold[0].isdigit() else None
    yield "braces", f"{{{gold}}}"


def _expression_rewrites(gold: str) -> Iterator[tuple[str, str | None]]:
    parts = terms(gold)
    if len(parts) > 1:
        turned = [part if part[0] in "+-" else f"+{part}" for part in reversed(parts)]
        yield "terms turned", "".join(turned).removeprefix("+")
    yield "twice the half", rf"2 \cdot \frac{{{gold}}}{{2}}"
    yield "parentheses", f"({gold})"
    if match := re.fullmatch(r"(\d+) ?\\sqrt\{?(\d+)\}?", gold):
        yield "under the root", rf"\sqrt{{{int(match[1]) ** 2 * int(match[2])}}}"
        yield "root first", rf"\sqrt{{{match[2]}}} \cdot {match[1]}"
    if match := re.fullmatch(r"\\d?frac\{([^{}+-]*(?:\{\d+\})?)\}\{(\d+)\}", gold):
        yield "on one line", f"{match[1]}/{match[2]}"
        yield "a multiple", rf"\frac{{1}}{{{match[2]}}} \cdot {match[1]}"
    if match := re.fullmatch(r"(\d+) ?\\pi", gold):
        yield "pi first", rf"\pi \cdot {match[1]}"


def _structure_rewrites(gold: str) -> Iterator[tuple[str, str | None]]:
    if named := NAMED.fullmatch(gold):
        yield "no name", named[2].strip() if "=" not in named[2] and "," not in gold else None
        turns = not re.search("=|,", named[2]) and "(" not in named[1] and len(named[2].strip()) > 1
        yield "sides exchanged", f"{named[2].strip()} = {named[1]}" if turns else None
    items = split(gold, ",")
    grouped = re.fullmatch(r"\s*-?\d{1,3}(?:,(?:\\!)?\s*\d{3})+\s*", gold.replace(r"\$", ""))
    if len(items) > 1 and not grouped and "where" not in gold and "\\{" not in gold and gold.count("$") != 1:
        yield "order", ", ".join(item.strip() for item in reversed(items))
        yield "list with spaces", ", ".join(item.strip() for item in items)
        yield "and", r" \text{ and } ".join(item.strip() for item in items) if len(items) == 2 else None
    if (gold.startswith("(") and gold.endswith((")", "]"))) or gold.startswith("["):
        inside = split(gold[1:-1], ",")
        if len(inside) > 1 and split(gold, ",") == [gold] and r"\cup" not in gold:
            inner = [_other_spelling(part.strip()) for part in inside]
            yield "values inside", f"{gold[0]}{', '.join(inner)}{gold[-1]}"
    if len(parts := split(gold, r"\cup")) > 1:
        yield "union turned", r" \cup ".join(part.strip() for part in reversed(parts))
    if match := re.fullmatch(r"([^,{}]*) ?\\pm ([^,]*)", gold):
        yield "both signs", f"{match[1]}+{match[2]}, {match[1]}-{match[2]}".replace("  ", " ")


def _other_spelling(part: str) -> str:
    value = rational(part)
    if value is None:
        return part
    return decimal(value) or latex_fraction(value, 2)


def perturbed(gold: str, generator: random.Random) -> Iterator[tuple[str, str]]:
    """(rule, wrong answer), each proven different from the gold. Nothing where the gold is not read."""
    try:
        right = read(gold)
    except Unreadable:
        return
    seen = {gold}
    for rule, answer in _perturbations(gold, generator):
        if answer is None or answer in seen:
            continue
        seen.add(answer)
        try:
            if different(right, read(answer)):
                yield rule, answer
        except Unreadable:
            continue


def _perturbations(gold: str, generator: random.Random) -> Iterator[tuple[str, str | None]]:
    digits = [match.start() for match in re.finditer(r"\d", gold)]
    for _ in range(2 if digits else 0):
        at = generator.choice(digits)
        yield "digit", gold[:at] + generator.choice("0123456789".replace(gold[at], "")) + gold[at + 1 :]
    signs = [match.start() for match in re.finditer(r"(?<=[\w)}])\s*[-+]", gold)]
    if signs:
        at = generator.choice(signs)
        at += len(gold[at:]) - len(gold[at:].lstrip())
        yield "sign within", gold[:at] + {"-": "+", "+": "-"}[gold[at]] + gold[at + 1 :]
    if numbers := list(re.finditer(r"(?<![\d.])\d+(?![\d.])", gold)):
        number = generator.choice(numbers)
        yield "a digit more", gold[: number.end()] + "0" + gold[number.end() :]
        yield "off by one", gold[: number.start()] + str(int(number[0]) + 1) + gold[number.end() :]
    yield "no root", re.sub(r"\\sqrt(?!\[)", "", gold, count=1)
    yield "no pi", re.sub(r"\\pi", "1", gold, count=1)
    yield "reciprocal", re.sub(r"\\[dt]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}", r"\\frac{\2}{\1}", gold, count=1)
    value = rational(gold)
    if value is not None:
        yield "negative", gold.removeprefix("-") if value < 0 else f"-{gold}"
        yield "rounded", f"{float(value):.3f}"
        yield "a thousandth more", decimal(value + Fraction(1, 1000)) or latex_fraction(value + Fraction(1, 1000))
        yield "a billionth more", latex_fraction(value + Fraction(1, 10**9))
        yield "double", latex_fraction(2 * value)
    elif is_expression(gold):
        yield "negative", f"-({gold})"
        yield "double", f"2({gold})"
        yield "a billionth more", rf"{gold} + \frac{{1}}{{10^{{9}}}}"
        parts = terms(gold)
        yield "a term less", " ".join(parts[:-1]).removeprefix("+") if len(parts) > 1 else None
    items = split(gold, ",")
    if len(items) > 1 and r"\{" not in gold:
        yield "an answer less", ",".join(items[:-1])
        yield "an answer more", f"{gold}, 12345"
        yield "one twice", f"{gold}, {items[0]}"
    if gold[:1] in ("(", "[") and len(items) == 1:
        inside = split(gold[1:-1], ",")
        turned = ",".join([*inside[1:2], inside[0], *inside[2:]])
        yield "values exchanged", f"{gold[0]}{turned}{gold[-1]}"
    elif len(items) == 1:
        yield "an answer more", f"{gold}, 12345"

r"""What an equation names: `x = 5`, `f(2) = 5`, `AB = 5`, `\text{Area} = 5` name a value, `x^2 = 25`, `x + y = 5` none."""

from __future__ import annotations

import re

from repirl.verifiers.reading.structure import split
from repirl.verifiers.reading.words import is_words

_EQUALS = re.compile(r"=")
_GREEK = (
    r"\\(?:alpha|beta|gamma|delta|epsilon|varepsilon|zeta|eta|theta|vartheta|iota|kappa|lambda|mu|nu|xi|rho|sigma|tau|upsilon"
    r"|phi|varphi|chi|psi|omega|ell|Gamma|Delta|Theta|Lambda|Xi|Sigma|Upsilon|Phi|Psi|Omega)(?![a-zA-Z])"
)
_ACCENTED = r"\\(?:vec|hat|bar|overline|overrightarrow|dot|tilde|mathbb) ?(?:\{[A-Za-z]{1,3}\}|[A-Za-z])"
_INDEX = r"(?:_(?:\{[^{}]*\}|\\?\w+?))?"
_LETTER = rf"(?:[A-Za-z]|{_GREEK}|{_ACCENTED}){_INDEX}"
_CAPITALS = rf"(?:[A-Z]{{1,4}}{_INDEX}|{_GREEK})"
_VALUE = rf"[+-]? ?(?:\d+(?:\.\d+)?|\\frac\{{\d+\}}\{{\d+\}}|{_LETTER}'*)"
_CALL = rf"{_LETTER}'*\({_VALUE}(?:, ?{_VALUE})*\)"
_ARGUMENTS = rf"\((?:{_CALL}|{_VALUE})(?:, ?(?:{_CALL}|{_VALUE}))*\)"
_ANGLE = r"(?:m ?)?\\(?:angle|triangle|measuredangle) ?[A-Z]{1,3}"
_NAME = "|".join((
    rf"{_LETTER}'*(?:\^(?:\{{-1\}}|\{{\(\d+\)\}}|\*))?(?:{_ARGUMENTS})?",
    r"\\?(?:P|Pr|E|Var)(?:\(.*\)|\[.*\])",
    rf"{_CAPITALS}'*",
    _ANGLE,
    rf"\|(?:{_CAPITALS}|\\vec\{{[a-z]\}})\|",
    rf"\\Delta ?{_LETTER}",
    rf"\\(?:sin|cos|tan|cot|sec|csc|deg|arg|det|dim) ?(?:{_CAPITALS}|{_ANGLE}|\({_CAPITALS}\))",
    rf"\\(?:max|min|lcm|gcd|operatorname\{{\w+\}}) ?{_ARGUMENTS}",
    rf"\({_LETTER}(?:, ?{_LETTER})+\)",
    rf"(?:{_CAPITALS}|{_LETTER})(?: ?: ?(?:{_CAPITALS}|{_LETTER}))+",
    r"\\frac\{[A-Z]{2,3}\}\{[A-Z]{2,3}\}",
))  # fmt: skip
_IS_NAME = re.compile(_NAME)
_LABEL = re.compile(rf"\\text\{{([^{{}}]*)\}}{_INDEX}|[A-Za-z][A-Za-z ]*[A-Za-z]")


def sides_of(text: str) -> list[str]:
    """The sides of an equation or chain of equations; one where there is no equals sign outside brackets."""
    return split(text, _EQUALS)


def named(sides: list[str]) -> tuple[str | None, list[str]] | None:
    """The name and the other sides, where the first side is a name, or the last of two is; None as name of a label in words.

    None where the equation names nothing.
    """
    for name, rest in ((sides[0], sides[1:]), (sides[-1], sides[:1]))[: 2 if len(sides) == 2 else 1]:
        if not all(rest):
            return None
        if _IS_NAME.fullmatch(name) and name not in ("e", "i"):
            return re.sub(r"[ {}]", "", name), rest
        if _LABEL.fullmatch(name) and (name.startswith(r"\text") or is_words(name)):
            return None, rest
    return None

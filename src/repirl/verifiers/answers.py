"""The final answer of a response, and its normal form. Pure string work; nothing here evaluates mathematics."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

EXTRACTION = ("box", "####")  # where the final answer is looked for, in order
WINDOW = 20_000  # characters: the answer stands at the end of a response

_BOX_TOKENS = re.compile(r"(?P<box>\\(?:boxed|fbox)\s*\{)|\\.|(?P<open>\{)|(?P<close>\})", re.DOTALL)

_SYMBOLS = {
    "\u2212": "-",
    "\u2013": "-",
    "\u2044": "/",
    "\u2215": "/",
    "\u00d7": r"\times ",
    "\u00f7": "/",
    "\u00b7": r"\cdot ",
    "\u22c5": r"\cdot ",
    "\u03c0": r"\pi ",
    "\u221e": r"\infty ",
    "\u2264": r"\le ",
    "\u2265": r"\ge ",
    "\u2260": r"\ne ",
    "\u222a": r"\cup ",
    "\u2229": r"\cap ",
    "\u2208": r"\in ",
    "\u00b1": r"\pm ",
    "\u2205": r"\emptyset ",
    "\u2248": r"\approx ",
    "\u00b0": r"^\circ ",
    "\u221a": r"\sqrt ",
    "\u200b": "",
    "\ufeff": "",
}


def _rules(*pairs: tuple[str, str]) -> list[tuple[re.Pattern[str], str]]:
    return [(re.compile(pattern), replacement) for pattern, replacement in pairs]


# Two passes: the second sees single spaces only, without which its patterns would take quadratic time and more.
_SPACING = _rules(
    # Explicit thousands separators: 10,\!000  10{,}000  10\,000.
    (r"(?<=\d)(?:, ?\\!|\{,\}|\\[,!]) ?(?=\d{3}(?!\d))", ""),
    # Dollars, inline maths, spacing. `\\(` and `\\[` are a line break and a bracket.
    (r"\\?\$", ""),
    (r"(?<!\\)\\[()\[\]]", " "),
    (r"\\!", ""),
    (r"(?<!\\)\\[,;:> ]|~|\\q?quad(?![a-zA-Z])|\\[hv]space\*?\{[^{}]*\}", " "),
    (r"\\(?:displaystyle|textstyle|limits|nolimits)(?![a-zA-Z])", " "),
    (r"\\text ?\{ ?\}", " "),
)
_REWRITES = _rules(
    # As programs write it: sqrt(2), 2*pi, x**2.
    (r"\*\*", "^"),
    (r"(?<![\\a-zA-Z])pi(?![a-zA-Z])", r"\\pi "),
    (r"(?<![\\a-zA-Z])inf(?:inity)?(?![a-zA-Z])", r"\\infty "),
    (r"\\?(?<![a-zA-Z])sqrt ?\(([^()]*)\)", r"\\sqrt{\1}"),
    # The upright imaginary unit and Euler's number; the name of a value in its index.
    (r"\\math(?:rm|it|bf) ?\{ ?([ie]) ?\}", r"\1"),
    (r"_ ?\{ ?\\(max|min) ?\}", r"_{\1}"),
    # 4 2/3 is a mixed number.
    (r"(?<![\d./^_{])(\d+) (\d+)/(\d+)(?![\d./])", r"\1\\frac{\2}{\3}"),
    (r"\\(?:left|right|[bB]igg?[lr]?)(?![a-zA-Z])\.?", ""),
    (r"\\(?:d|t|c)frac(?![a-zA-Z])", r"\\frac"),
    (r"\\(?:text(?:rm|bf|it|normal|sf)|mbox|mathrm|mathbf|mathit) ?\{", r"\\text{"),
    (r"\\geq?(?:slant)?(?![a-zA-Z])", r"\\ge "),
    (r"\\leq?(?:slant)?(?![a-zA-Z])", r"\\le "),
    (r"\\neq?(?![a-zA-Z])", r"\\ne "),
    (r"\\varnothing(?![a-zA-Z])", r"\\emptyset "),
    (r"\^ ?\{? ?\\(?:circ|degree)(?![a-zA-Z]) ?\}?|\\degree(?![a-zA-Z])", r"^\\circ "),
    # Percent in its spellings.
    (r"\\%| ?\\text\{ ?(?:percent|%|\\%) ?\}|(?<=\d) ?\b[Pp]ercent$", "%"),
    # "and" and "or" between values are a comma.
    (r" ?,? ?\\text\{ ?,? ?(?:and|or) ?\} ?| ?,? (?:and|or) ", ", "),
    # \frac 3 8 -> \frac{3}{8}; \frac{270}7 -> \frac{270}{7}; \sqrt2 -> \sqrt{2}.
    (r"\\frac ?([0-9a-zA-Z]) ?([0-9a-zA-Z])", r"\\frac{\1}{\2}"),
    (r"\\frac ?([0-9a-zA-Z]) ?\{", r"\\frac{\1}{"),
    (r"(\\frac ?\{[^{}]*\}) ?([0-9a-zA-Z])", r"\1{\2}"),
    (r"\\sqrt ?([0-9a-zA-Z])", r"\\sqrt{\1}"),
)

_SPACES = re.compile(r"\s+")
# A space matters between two letters or digits ("1 2" is not 12, "\pi r" is not \pir) and inside \text{}.
_IDLE_SPACE = re.compile(r"(?<![0-9A-Za-z}.]) | (?![0-9A-Za-z\\.])|(?<=[0-9})]) (?=\\(?!text))")
_THOUSANDS = re.compile(r"(?<![\d.,])\d{1,3}(?:,\d{3})+(?![\d,])")
_COMMA = re.compile(r" ?, ?")
_SHORT_SCRIPT = re.compile(r"([_^])\{([0-9A-Za-z])\}(?![0-9A-Za-z])")
_BARE_POINT = re.compile(r"(?<![0-9A-Za-z}.])\.(?=\d)")
_WHOLE_TEXT = re.compile(r"\\text\{([^{}\\]*)\}")
_WHOLE_BRACES = re.compile(r"\{([^{},]*)\}")
_WHOLE_PARENS = re.compile(r"\(([A-Za-z]|[+-]?[\d.]+)\)")


def extract_box(response: str) -> str | None:
    r"""Content of the last balanced, non-empty `\boxed{}` or `\fbox{}` of the last 20,000 characters.

    One pass with a stack, so that ten thousand unclosed boxes cost no more than one.
    """
    tail = response[-WINDOW:]
    stack: list[tuple[int, bool]] = []  # (where the content begins, is it a box)
    best_start, best = -1, None
    for token in _BOX_TOKENS.finditer(tail):
        if token.lastgroup == "close":
            if stack:
                start, is_box = stack.pop()
                content = tail[start : token.start()].strip()
                if is_box and start > best_start and content:
                    best_start, best = start, content
        elif token.lastgroup is not None:  # an escaped character, \{ among them, opens and closes nothing
            stack.append((token.end(), token.lastgroup == "box"))
    return best


def extract_answer(response: str, *, extraction: Sequence[str] = EXTRACTION) -> str | None:
    """The final answer by the first way of `extraction` that finds one in the last 20,000 characters.

    `box`: content of the last balanced box. Any other text is a marker: the rest of the line after its last occurrence.
    """
    for way in extraction:
        if found := extract_box(response) if way == "box" else _after_marker(response, way):
            return found
    return None


def _after_marker(response: str, marker: str) -> str | None:
    _, found, after = response[-WINDOW:].rpartition(marker)
    return after.strip().split("\n", 1)[0].strip() or None if found else None


def _plain_characters(text: str) -> str:
    """NFKC that keeps meaning: x2 stays apart from x^2 written with a raised 2, 31/2 from 3 and a half."""
    if text.isascii():
        return text
    out: list[str] = []
    for char in unicodedata.normalize("NFC", text):
        kind, _, points = unicodedata.decomposition(char).partition(" ")
        plain = "".join(chr(int(point, 16)) for point in points.split()) if kind.startswith("<") else char
        if char in _SYMBOLS:
            out.append(_SYMBOLS[char])
        elif kind in ("<super>", "<sub>"):
            mark = "^{" if kind == "<super>" else "_{"
            plain = plain.replace("\u2212", "-")
            if out and out[-1].startswith(mark):
                out[-1] = out[-1][:-1] + plain + "}"
            else:
                out.append(mark + plain + "}")
        elif kind == "<fraction>":
            top, _, bottom = plain.partition("\u2044")
            out.append(rf"\frac{{{top}}}{{{bottom}}}" if bottom else char)
        elif kind in ("<circle>", "<square>"):
            out.append(char)  # a circled 1 after a 5 is not 51
        else:
            out.append(unicodedata.normalize("NFKC", char))
    return "".join(out)


def _join_thousands(text: str) -> str:
    """1,234 -> 1234 outside all brackets, where a comma without a space groups digits; (1,234) stays a pair."""
    if "," not in text:
        return text
    depth, depths = 0, []
    for char in text:
        depth += (char in "([{") - (char in ")]}")
        depths.append(depth)
    return _THOUSANDS.sub(lambda m: m[0].replace(",", "") if depths[m.start()] == 0 else m[0], text)


def normalise(answer: str) -> str:
    r"""A normal form in which equal strings mean equal answers; it never joins answers that differ.

    In order: Unicode to LaTeX; `$`, spacing, `\left`/`\right`, `\dfrac`, `\mathrm` and the like; thousands commas;
    idle spaces; a lone `\text{}`, brace or parenthesis around the whole; a leading `+`, `=` or `\approx`, a final stop.
    Case, order, signs, units and percent signs stay. The result is LaTeX that math-verify reads.
    """
    text = _plain_characters(answer)
    for rules in (_SPACING, _REWRITES):
        text = _SPACES.sub(" ", text).strip()
        for pattern, replacement in rules:
            text = pattern.sub(replacement, text)
    text = _SPACES.sub(" ", text).strip()
    text = text.rstrip(".;, ").lstrip("= ").removeprefix(r"\approx").lstrip()
    text = _join_thousands(text)
    text = _IDLE_SPACE.sub("", text)
    text = _COMMA.sub(", ", text)
    text = _SHORT_SCRIPT.sub(r"\1\2", text)
    text = _BARE_POINT.sub("0.", text)
    for wrapper in (_WHOLE_TEXT, _WHOLE_BRACES, _WHOLE_PARENS):
        if whole := wrapper.fullmatch(text):
            text = whole[1].strip().rstrip(".")
    return text[1:] if text.startswith("+") else text

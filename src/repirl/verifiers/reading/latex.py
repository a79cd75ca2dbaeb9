"""The normal form of an answer: one LaTeX spelling for what is spelled in many ways. Nothing here evaluates mathematics."""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

from repirl.verifiers.reading.groups import flatten

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
    "\u2213": r"\mp ",
    "\u2205": r"\emptyset ",
    "\u2248": r"\approx ",
    "\u00b0": r"^\circ ",
    "\u221a": r"\sqrt ",
    "\u211d": r"\mathbb{R}",
    "\u2228": r"\lor ",
    "\u2227": r"\land ",
    "\u2236": ":",
    "\u2032": "'",
    "\u2033": "''",
    "\u2019": "'",
    "\u200b": "",
    "\ufeff": "",
}


def _rules(*pairs: tuple[str, str]) -> list[tuple[re.Pattern[str], str]]:
    return [(re.compile(pattern), replacement) for pattern, replacement in pairs]


_DIGITS = r"(?:\d+(?:\.\d*)?|\.\d+)"

# Two passes: the second sees single spaces only, without which its patterns would take quadratic time and more.
_SPACING = _rules(
    # Explicit thousands separators: 10,\!000  10{,}000  10\,000.
    (r"(?<=\d)(?:, ?\\!|\{,\}|\\[,!]) ?(?=\d{3}(?!\d))", ""),
    (r"\{([:.])\}", r"\1"),
    # Dollars, inline maths, spacing. `\\(` and `\\[` are a line break and a bracket.
    (r"(?<![A-Za-z\\])[A-Z]{1,3}\\\$(?= ?\d)", ""),
    (r"\\?\$", ""),
    (r"(?<!\\)\\[()\[\]]", " "),
    (r"\\!", ""),
    (r"(?<!\\)\\(?:[,;:> ]|$)|~|\\q?quad(?![a-zA-Z])|\\[hv]space\*?\{[^{}]*\}", " "),
    (r"\\text ?\{ ?\}", " "),
)
_REWRITES = _rules(
    # As programs write it: sqrt(2), sin(x), np.arctan(2), 2*pi, x**2, 4.5e33.
    (r"(?<![\\a-zA-Z])(?:np|numpy|math)\.(?=[a-z])", ""),
    (r"(?<![\\a-zA-Z])((?:arc)?(?:sin|cos|tan)|exp|log|ln)(?= ?\()", r"\\\1"),
    (r"\*\*", "^"),
    (r"<=", r"\\le "),
    (r">=", r"\\ge "),
    (r"!=", r"\\ne "),
    (r"(?<![\\a-zA-Z])pi(?![a-zA-Z])", r"\\pi "),
    (r"(?<![\\a-zA-Z])inf(?:inity)?(?![a-zA-Z])", r"\\infty "),
    (r"\\?(?<![a-zA-Z])sqrt ?\(([^()]*)\)", r"\\sqrt{\1}"),
    (rf"(^|[-=,(\[{{<>+:&] ?)({_DIGITS}) ?[eE] ?([+-]?\d+)(?![\w^!]|\.\d)", r"\1\2\\times 10^{\3}"),
    (rf"(?<![\w.\\}}])({_DIGITS}) ?[eE]([+-]?\d+)(?!\w|\.\d)", r"(\1\\times 10^{\2})"),
    (r"(?<=\d) ?[xX] ?(?=10 ?\^)", r"\\times "),
    # The name of a value in its index.
    (r"_ ?\{ ?\\(max|min) ?\}", r"_{\1}"),
    # 4 2/3 is a mixed number.
    (r"(?<![\d./^_{])(\d+) (\d+)/(\d+)(?![\d./])", r"\1\\frac{\2}{\3}"),
    (r"\\(?:left|right|[bB]igg?[lrm]?|middle)(?![a-zA-Z])\.?", ""),
    (r"\\(?:d|t|c)frac(?![a-zA-Z])", r"\\frac"),
    (r"\\[dt]binom(?![a-zA-Z])", r"\\binom"),
    (r"\\langle(?![a-zA-Z])", "("),
    (r"\\rangle(?![a-zA-Z])", ")"),
    # ^{16}C_{2} and {}_{16}C_2.
    (r"(?:\{ ?\})? ?[\^_] ?\{? ?(\d+) ?\}? ?C ?_ ?\{? ?(\d+) ?\}?(?!\w)", r"\\binom{\1}{\2}"),
    (r"\\geq?(?:slant)?(?![a-zA-Z])", r"\\ge "),
    (r"\\leq?(?:slant)?(?![a-zA-Z])", r"\\le "),
    (r"\\neq?(?![a-zA-Z])", r"\\ne "),
    (r"\\lt(?![a-zA-Z])", "<"),
    (r"\\gt(?![a-zA-Z])", ">"),
    (r"\\colon(?![a-zA-Z])", ":"),
    (r"\\(?:R|reals|Reals)(?![a-zA-Z])", r"\\mathbb{R}"),
    (r"\\(?:vee|lor)(?![a-zA-Z])", r"\\lor "),
    (r"\\(?:wedge|land)(?![a-zA-Z])", r"\\land "),
    (r"\\varnothing(?![a-zA-Z])", r"\\emptyset "),
    (r"\^ ?\{? ?\\(?:circ|degree)(?![a-zA-Z]) ?\}?|\\degree(?![a-zA-Z])", r"^\\circ "),
    (r"\^ ?\{ ?\\prime ?\\prime ?\}", "''"),
    (r"\^ ?(?:\{ ?\\prime ?\}|\\prime(?![a-zA-Z]))", "'"),
    (r"\\(?:text)?euro(?![a-zA-Z])", "€"),
    (r"\\(?:pounds|textsterling)(?![a-zA-Z])", "£"),
    (r"\\(?:text)?yen(?![a-zA-Z])", "¥"),
    (r"\\(?:text)?cent(?![a-zA-Z])", "¢"),
    # Percent in its spellings.
    (r"\\%| ?\\text\{ ?(?:per ?cent|pct|%|\\%) ?\.?\}|(?<=\d) ?\b[Pp]er ?cent$", "%"),
    # \frac 3 8 -> \frac{3}{8}; \frac{270}7 -> \frac{270}{7}; \sqrt2 -> \sqrt{2}.
    (r"\\frac ?([0-9a-zA-Z]) ?([0-9a-zA-Z])", r"\\frac{\1}{\2}"),
    (r"\\frac ?([0-9a-zA-Z]) ?\{", r"\\frac{\1}{"),
    (r"(\\frac ?\{[^{}]*\}) ?([0-9a-zA-Z])", r"\1{\2}"),
    (r"\\sqrt ?([0-9a-zA-Z])", r"\\sqrt{\1}"),
)
_RELATION = re.compile(r"[<>]|\\(?:le|ge|ne)(?![a-zA-Z])")
_AND = re.compile(r" ?,? ?\\text\{ ?,? ?and ?\} ?| ?,? and ")
_OR = re.compile(r" ?,? ?\\text\{ ?,? ?or ?\} ?| ?,? or ")

_SPACES = re.compile(r"\s+")
# A space matters between two letters or digits ("1 2" is not 12, "\pi r" is not \pir) and inside \text{}.
_IDLE_SPACE = re.compile(r"(?<![0-9A-Za-z}.]) | (?![0-9A-Za-z\\.])|(?<=[0-9})]) (?=\\(?!text))")
_THOUSANDS = re.compile(r"(?<![\d.,])(?:\d{1,3}(?:,\d{3})+|\d{1,2}(?:,\d\d)+,\d{3})(?![\d,])")
_SPACED_THOUSANDS = re.compile(r"\d{1,3}(?: \d{3})+(?![\d ])")
_COMMA = re.compile(r" ?, ?")
_SHORT_SCRIPT = re.compile(r"([_^])\{([0-9A-Za-z])\}(?![0-9A-Za-z])")
_BARE_POINT = re.compile(r"(?<![0-9A-Za-z}.])\.(?=\d)")
_WHOLE_TEXT = re.compile(r"\\text\{([^{}\\]*)\}")
_WHOLE_BRACES = re.compile(r"\{([^{},]*)\}")
_WHOLE_PARENS = re.compile(r"\(([A-Za-z]|[+-]?[\d.]+)\)")


def plain_characters(text: str) -> str:
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
    if _SPACED_THOUSANDS.fullmatch(text):
        return text.replace(" ", "")
    if "," not in text:
        return text
    depth, depths = 0, []
    for char in text:
        depth += (char in "([{") - (char in ")]}")
        depths.append(depth)
    return _THOUSANDS.sub(lambda m: m[0].replace(",", "") if depths[m.start()] == 0 else m[0], text)


@lru_cache(maxsize=512)  # asked twice of each answer, and of the gold of a group once for each rollout
def respelled(answer: str) -> str:
    r"""The answer in plain LaTeX with single spaces; words in `\text{}`, "and" and "or" still words."""
    text = flatten(plain_characters(answer))
    for rules in (_SPACING, _REWRITES):
        text = _SPACES.sub(" ", text).strip()
        for pattern, replacement in rules:
            text = pattern.sub(replacement, text)
    return _SPACES.sub(" ", text).strip()


def normalise(answer: str) -> str:
    r"""A normal form in which equal strings mean equal answers; it never joins answers that differ.

    In order: Unicode to LaTeX; fonts; `$`, spacing, `\left`/`\right`, `\dfrac` and the like; thousands commas; idle
    spaces; a lone `\text{}`, brace or parenthesis around the whole; a leading `+`, `=` or `\approx`, a final stop.
    "and" and "or" become a comma between values, `\land` and `\lor` between inequalities.
    Case, order, signs, units and percent signs stay. The result is LaTeX that math-verify reads.
    """
    return tightened(respelled(answer))


def tightened(text: str) -> str:
    """The second half of `normalise`, on what `respelled` gives."""
    between = (r"\land ", r"\lor ") if _RELATION.search(text) else (", ", ", ")
    text = _OR.sub(between[1].replace("\\", r"\\"), _AND.sub(between[0].replace("\\", r"\\"), text))
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

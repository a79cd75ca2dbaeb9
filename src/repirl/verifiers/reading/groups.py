r"""Groups of LaTeX that change how an answer looks, not what it says: fonts, colours, `{n \choose k}`. One pass."""

from __future__ import annotations

import re

from repirl.verifiers.reading.structure import listed

TEXT_FONTS = frozenset(
    listed("text textrm textbf textit textsf texttt textsl textnormal textup textmd mbox hbox emph mathrm mathop rm")
)
MATH_FONTS = frozenset(
    listed(
        "mathbf mathit mathsf mathtt mathnormal mathcal mathscr mathfrak boldsymbol bm bold pmb underline "
        "uline ensuremath"
    )
)
_DECLARED = {
    "bf": "mathbf",
    "bfseries": "mathbf",
    "it": "mathit",
    "itshape": "mathit",
    "rm": "textrm",
    "rmfamily": "textrm",
}
_DECLARATIONS = frozenset(
    listed(
        "sf tt cal boldmath tiny small normalsize large Large LARGE huge Huge displaystyle textstyle "
        "scriptstyle limits nolimits"
    )
) | set(_DECLARED)
_FUNCTIONS = frozenset(
    listed("sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh log ln exp gcd lcm max min det dim deg arg")
)
_TOKEN = re.compile(
    r"(?P<colour>\\(?:text)?color\s*\{[^{}]*\})|\\(?P<name>[a-zA-Z]+)\*?(?P<braced>\s*\{)?|\\.|(?P<open>\{)|(?P<close>\})"
    r"|[^\\{}]+|\\",
    re.DOTALL,
)
_WORDS = re.compile(r"[^\W\d_]+(?:[ .'’/&-]+[^\W\d_]+)*\.?|\([^\W\d_][^\W\d_ .'-]*\)")
_COMMAND_AT_END = re.compile(r"\\[a-zA-Z]+$")
_LONE = frozenset("eEidxyznk")  # upright letters of mathematics, not of a text


def flatten(text: str) -> str:
    r"""Fonts, colours and sizes taken off; words inside them put into `\text{}`, `{n \choose k}` into `\binom{n}{k}`.

    `\mathrm{cm^2}` becomes `\text{cm}^2`, `\boldsymbol{13}` becomes `13`. An unclosed or unopened brace stays as it is.
    """
    # Frames of (what opened it, its pieces); the lowest holds the result.
    frames: list[tuple[str, list[str]]] = [("", [])]
    for token in _TOKEN.finditer(text):
        pieces, name = frames[-1][1], token["name"]
        if token["colour"]:
            continue
        if token["close"]:
            if len(frames) == 1:
                pieces.append("}")
            else:
                opened, inner = frames.pop()
                _append(frames[-1][1], _closed(opened, "".join(inner)))
        elif token["open"]:
            frames.append(("{", []))
        elif name in _DECLARATIONS:
            if name in _DECLARED and frames[-1][0] == "{" and not "".join(pieces).strip():
                frames[-1] = (_DECLARED[name], [])
            else:
                pieces.append(" ")
            if token["braced"]:
                frames.append((_DECLARED.get(name, "{"), []))
        elif name in TEXT_FONTS | MATH_FONTS and not token["braced"]:
            pieces.append(" ")  # \mathbf 7
        elif token["braced"]:
            if not (name in TEXT_FONTS or name in MATH_FONTS or name == "operatorname"):
                pieces.append(rf"\{name}")
                name = "{"
            frames.append((name, []))
        else:
            _append(pieces, token[0])
    while len(frames) > 1:
        opened, inner = frames.pop()
        frames[-1][1].append(("{" if opened == "{" else rf"\{opened}{{") + "".join(inner))
    return _binomial("".join(frames[0][1]))


def _append(pieces: list[str], piece: str) -> None:
    r"""Keeps `\pi` and a letter after it apart, and a long exponent together."""
    before = pieces[-1] if pieces else ""
    if before[-1:] in ("^", "_") and len(piece) > 1 and not piece.startswith(("{", "\\")):
        piece = f"{{{piece}}}"
    elif piece[:1].isalpha() and _COMMAND_AT_END.search(before[-30:]):
        piece = f" {piece}"
    pieces.append(piece)


def _closed(opened: str, content: str) -> str:
    if opened == "{":
        binomial = _binomial(content)
        return binomial if binomial != content else f"{{{content}}}"
    if opened == "operatorname":
        return rf"\{content} " if content in _FUNCTIONS else rf"\operatorname{{{content}}}"
    return content if r"\text{" in content else _WORDS.sub(lambda words: _in_text(opened, words), content)


def _in_text(opened: str, words: re.Match[str]) -> str:
    is_command = words.string[words.start() - 1 : words.start()] == "\\"
    if is_command or (len(words[0]) == 1 and (opened in MATH_FONTS or words[0] in _LONE)):
        return words[0]
    return rf"\text{{{words[0]}}}"


def _binomial(content: str) -> str:
    top, _, bottom = content.partition(r"\choose")
    if not bottom or r"\choose" in bottom or re.search(r"[=,]", content):
        return content
    return rf"\binom{{{top.strip()}}}{{{bottom.strip()}}}"

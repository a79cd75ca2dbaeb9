"""Reads LaTeX answers into numbers, to prove that two of them differ. Independent of the verifier and of sympy.

Only what it is sure of is read: anything else raises `Unreadable`. Letters take fixed values, so two expressions with
different values are different; numbers have 340 digits.
"""

import re
from dataclasses import dataclass

import mpmath

mpmath.mp.dps = 340
DIFFERENT = mpmath.mpf(10) ** -320  # relative

TOKEN = re.compile(r"\\[a-zA-Z]+|\\[{}%]|\d+(?:\.\d+)?|\.\d+|[a-zA-Z]|[-+*/^!(){}\[\]|]")
FUNCTIONS = {
    r"\sin": mpmath.sin,
    r"\cos": mpmath.cos,
    r"\tan": mpmath.tan,
    r"\cot": mpmath.cot,
    r"\ln": mpmath.log,
    r"\log": mpmath.log10,
}
NAME = re.compile(r"[a-zA-Z](?:\([a-zA-Z]\))?")
OPEN, CLOSE = "([{", ")]}"


class Unreadable(ValueError):
    """The text is none of the forms that are read here."""


@dataclass(frozen=True)
class Answer:
    """kind: value, list, tuple such as `( ]`, matrix of a shape, union. parts: numbers, or answers."""

    kind: str
    parts: tuple["Answer | mpmath.mpf", ...]


def plain(text: str) -> str:
    """Without spacing commands, dollars and sizes of brackets."""
    text = text.replace(r"\$", "").replace("$", "")
    text = re.sub(r"(?<=\d),\s*\\!\s*(?=\d{3})|(?<=\d)\{,\}(?=\d{3})", "", text)
    text = re.sub(r"\\(?:left|right|displaystyle)(?![a-zA-Z])|(?<!\\)\\[,!; ]", " ", text)
    text = re.sub(r"\^\{?\\circ\}?", "", text)  # a unit
    return re.sub(r"\\[dt]frac", r"\\frac", text).strip()


def split(text: str, separator: str) -> list[str]:
    """Parts between separators outside all brackets; unequal pairs such as `(1,2]` count as brackets."""
    parts, depth, start, position = [], 0, 0, 0
    while position < len(text):
        char = text[position]
        depth += (char in OPEN) - (char in CLOSE)
        if depth == 0 and text.startswith(separator, position):
            parts.append(text[start:position])
            position += len(separator)
            start = position
            continue
        position += 2 if char == "\\" and text[position + 1 : position + 2] in {"{", "}"} and depth else 1
    return [*parts, text[start:]]


def read(text: str) -> Answer:
    """The answer in numbers. Raises Unreadable."""
    text = plain(text)
    if matrix := re.fullmatch(r"\\begin\{([pb]?)matrix\}(.*)\\end\{\1matrix\}", text, re.DOTALL):
        rows = [[_number(cell) for cell in row.split("&")] for row in matrix[2].split(r"\\") if row.strip()]
        shape = "x".join(map(str, sorted({len(row) for row in rows})))
        return Answer(f"matrix of {len(rows)} x {shape}", tuple(cell for row in rows for cell in row))
    if len(unions := split(text, r"\cup")) > 1:
        return Answer("union", tuple(read(part) for part in unions))
    if text.startswith(r"\{") and text.endswith(r"\}"):
        inner = read(text[2:-2])
        return inner if inner.kind == "list" else Answer("list", (inner,))
    if re.fullmatch(r"[+-]?\d{1,3}(,\d{3})+", text):
        return Answer("value", (mpmath.mpf(text.replace(",", "")),))
    if text.count("=") == 1 and re.fullmatch(r"[+-]?\d{1,3}(,\d{3})+", text.partition("=")[2].strip()):
        return read(text.partition("=")[2])
    if len(parts := split(text, ",")) > 1:
        return Answer("list", tuple(read(part) for part in parts))
    sides = split(text, "=")
    if len(sides) == 2 and NAME.fullmatch(sides[0].strip()):
        return read(sides[1])
    if len(sides) > 1:
        raise Unreadable(text)
    if text and text[0] in "([" and text[-1] in ")]" and len(parts := split(text[1:-1], ",")) > 1:
        return Answer(f"tuple {text[0]} {text[-1]}", tuple(_number(part) for part in parts))
    return Answer("value", (_number(text),))


def different(left: Answer, right: Answer) -> bool:
    """Whether the two are proven to differ: same form, and numbers that cannot be matched; or a list of another length."""
    if left.kind in ("list", "union") and left.kind == right.kind:
        rest = list(right.parts)
        for part in left.parts:
            match = next((other for other in rest if not _unlike(part, other)), None)
            if match is None:
                return True
            rest.remove(match)
        return bool(rest)
    if "list" in (left.kind, right.kind) and "value" in (left.kind, right.kind):
        return len(left.parts) != len(right.parts)
    if left.kind != right.kind or len(left.parts) != len(right.parts):
        return left.kind.startswith("tuple") and right.kind.startswith("tuple") and len(left.parts) != len(right.parts)
    return any(_unlike(a, b) for a, b in zip(left.parts, right.parts, strict=True))


def _unlike(left: "Answer | mpmath.mpf", right: "Answer | mpmath.mpf") -> bool:
    if isinstance(left, Answer) and isinstance(right, Answer):
        return different(left, right) or left.kind != right.kind
    if mpmath.isinf(left) or mpmath.isinf(right):
        return bool(left != right)
    return bool(abs(left - right) > DIFFERENT * max(abs(left), abs(right)))


def _number(text: str) -> mpmath.mpf:
    text = text.strip()
    if re.sub(r"\s", "", text) in (r"\infty", r"+\infty"):
        return mpmath.inf
    if re.sub(r"\s", "", text) == r"-\infty":
        return -mpmath.inf
    try:
        return _Expression(text).value()
    except (IndexError, ZeroDivisionError, ValueError, OverflowError) as error:
        raise Unreadable(text) from error


class _Expression:
    """Recursive descent: sum, product, power, atom."""

    def __init__(self, text: str) -> None:
        self.tokens = [match[0] for match in TOKEN.finditer(text)]
        if "".join(self.tokens) != re.sub(r"\s", "", text):
            raise Unreadable(text)
        # Two numbers side by side are a slip or a list, never a product; a point at the end is a stop.
        if re.search(r"\d\s+\.?\d", text):
            raise Unreadable(text)
        self.at = 0

    def value(self) -> mpmath.mpf:
        found = self.sum()
        if self.at != len(self.tokens):
            raise Unreadable(self.tokens[self.at])
        return found

    def peek(self) -> str:
        return self.tokens[self.at] if self.at < len(self.tokens) else ""

    def take(self, *allowed: str) -> str:
        token = self.tokens[self.at]
        if allowed and token not in allowed:
            raise Unreadable(token)
        self.at += 1
        return token

    def sum(self) -> mpmath.mpf:
        total = self.product()
        while self.peek() in ("+", "-"):
            total = total + self.product() if self.take() == "+" else total - self.product()
        return total

    def product(self) -> mpmath.mpf:
        if self.peek() in ("-", "+"):
            return -self.product() if self.take() == "-" else self.product()
        whole = self.tokens[self.at].isdigit() and self.tokens[self.at + 1 : self.at + 2] == [r"\frac"]
        found = self.power()
        if whole:  # a mixed number
            start = self.at
            fraction = self.power()
            if not re.fullmatch(r"\\frac(?:\{\d+\}|\d){2}|\\frac\d\d", "".join(self.tokens[start : self.at])):
                raise Unreadable("product of a number and a fraction")
            found += fraction
        while (token := self.peek()) and token not in ("+", "-", ")", "}", "]", r"\rfloor", r"\rceil", r"\}", "|"):
            if token in ("*", r"\cdot", r"\times"):
                self.take()
                found *= self.signed_power()
            elif token == "/":
                self.take()
                found /= self.power()
            else:
                found *= self.power()
        return found

    def signed_power(self) -> mpmath.mpf:
        if self.peek() == "-":
            self.take()
            return -self.power()
        return self.power()

    def power(self) -> mpmath.mpf:
        base = self.atom()
        while self.peek() == "!":
            self.take()
            if base != int(base) or not 0 <= base < 3000:
                raise Unreadable("factorial")
            base = mpmath.factorial(base)
        if self.peek() != "^":
            return base
        self.take()
        exponent = self.argument()
        if abs(exponent) > 1e5:
            raise Unreadable("exponent")
        return mpmath.power(base, exponent)

    def argument(self) -> mpmath.mpf:
        token = self.take()
        if token == "{":
            inner = self.sum()
            self.take("}")
            return inner
        if token.isdigit() and len(token) > 1:  # \frac43: one digit
            self.tokens[self.at - 1 : self.at] = [token[0], token[1:]]
            token = token[0]
        elif not (token.isdigit() or token.isalpha() or token in (r"\pi",)):
            self.at -= 1
            return self.atom()
        return _atom(token)

    def atom(self) -> mpmath.mpf:
        token = self.take()
        if token in ("(", "{", "["):
            inner = self.sum()
            self.take({"(": ")", "{": "}", "[": "]"}[token])
            return inner
        if token == "|":
            inner = self.sum()
            self.take("|")
            return abs(inner)
        if token in (r"\lfloor", r"\lceil"):
            inner = self.sum()
            self.take(token.replace("l", "r", 1))
            return mpmath.floor(inner) if token == r"\lfloor" else mpmath.ceil(inner)
        if token == r"\frac":
            top = self.argument()
            return top / self.argument()
        if token == r"\binom":
            top = self.argument()
            return mpmath.binomial(top, self.argument())
        if token == r"\sqrt":
            degree = mpmath.mpf(2)
            if self.peek() == "[":
                self.take()
                degree = self.sum()
                self.take("]")
            return mpmath.power(self.argument(), 1 / degree)
        if token in FUNCTIONS:
            return FUNCTIONS[token](self.power())
        return _atom(token)


def _atom(token: str) -> mpmath.mpf:
    if token == r"\pi":
        return +mpmath.pi
    if re.fullmatch(r"\d+(?:\.\d+)?|\.\d+", token):
        return mpmath.mpf(token)
    if token == "i":
        return mpmath.mpc(0, 1)
    if token == "e":
        return +mpmath.e
    if len(token) == 1 and token.isalpha():  # generic, and larger than 3, so that factorials and floors make sense
        return mpmath.mpf(ord(token)) * 37 % 101 / 7 + mpmath.mpf(ord(token)) / 97 + 3
    raise Unreadable(token)

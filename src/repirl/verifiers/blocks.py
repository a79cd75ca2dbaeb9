"""Fenced blocks of code in a response, as models write them: Markdown, and what comes close to it.

Nothing of a model is parsed as Python here: all of it is by the look of lines.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass

PYTHON = {"python", "python3", "py", "py3"}
_LANGUAGES = PYTHON | {
    "bash", "c", "console", "cpp", "go", "java", "javascript", "js", "json", "markdown", "md", "output", "plaintext", "rust",
    "sh", "shell", "sql", "text", "txt",
}  # fmt: skip

_LONGEST_PROSE = 1_000  # characters of a line in which a fence may stand behind words
_FENCE = r"(?P<fence>`{3,}|~{3,})"
_OPENING = re.compile(rf"(?P<indent>[ \t]*){_FENCE}(?P<info>[^`]*)")
# Glued to the words before it: only with a language or at the end of the line, else it is a word about fences.
_GLUED = re.compile(r".*?[^`\s].*?(?P<fence>`{3,})[ \t]*(?P<info>\w[\w+#.-]*)?[ \t]*")
_WITHIN = re.compile(r"(?:.*[^`])?(?P<fence>`{3,})(?P<info>\w+)[ \t]+(?P<code>[^`]+)(?P=fence)(?!`).*")
_LANGUAGE = re.compile(r"[{.\s]*([\w+#-]*)")
_CODE = re.compile(
    r"^\s*(?:import \w|from \S+ import |(?:async )?def \w|class \w|(?:for|while|if|with|elif|try|else)\b.*:\s*(?:#.*)?$"
    r"|print\(|return\b|@\w|\w[\w, .\[\]]* [-+*/%|&^]?= )",
    re.MULTILINE,
)


@dataclass(frozen=True, slots=True)
class Block:
    """language: in lower case, empty where the fence names none."""

    language: str
    code: str


def blocks(response: str) -> list[Block]:
    """The blocks in order. One that the response does not close ends with it.

    A fence is three or more backticks or tildes, at any indentation, which its block loses; one of more characters holds
    those of fewer. It may be glued to words before it, and its end to code before and to words after it.
    """
    lines = response.replace("\r\n", "\n").split("\n")
    found: list[Block] = []
    position = 0
    while position < len(lines):
        line = lines[position]
        position += 1
        glued = len(line) <= _LONGEST_PROSE and "```" in line
        if glued and (within := _WITHIN.fullmatch(line)):
            found.append(Block(_language(within["info"]), within["code"].strip()))
        elif opening := _OPENING.fullmatch(line) or (glued and _GLUED.fullmatch(line)):
            indent = len(opening.groupdict().get("indent") or "")
            content, position = _content(lines, position, opening["fence"], indent)
            found.append(Block(_language(opening["info"] or ""), "\n".join(_dedented(content, indent))))
    return found


def _language(info: str) -> str:
    match = _LANGUAGE.match(info)
    return match[1].lower() if match else ""


def _content(lines: list[str], start: int, fence: str, indent: int) -> tuple[list[str], int]:
    """The lines of a block, and where to read on.

    Fences far to the right of the opening one are those of a docstring, two by two. The last of an odd number is the end.
    """
    deep: list[int] = []
    end, rest = len(lines), len(lines)
    for position in range(start, len(lines)):
        kind = _ending(lines[position], fence)
        if kind == "glued":
            return [*lines[start:position], _before(lines[position], fence) or ""], position + 1
        if kind and _depth(lines[position]) >= indent + 4:
            deep.append(position)
        elif kind:
            end, rest = position, position + (kind == "end")
            break
    if len(deep) % 2:
        end, rest = deep[-1], deep[-1] + 1
    return lines[start:end], rest


def _ending(line: str, fence: str) -> str:
    """What a line within a block is: `end` of it, `glued` to its last line of code, `opening` of another one; or empty."""
    mark, text = fence[0], line.strip()
    run = len(text) - len(text.lstrip(mark))
    if run >= len(fence):
        word = _LANGUAGE.fullmatch(text[run:])
        return "opening" if word and word[1].lower() in _LANGUAGES else "end"
    return "glued" if mark == "`" and _before(line, fence) is not None else ""  # `~` is an operator


def _before(line: str, fence: str) -> str | None:
    """The code before the fence that ends it on the same line, words after it aside; None where there is none."""
    found = re.fullmatch(rf"(?P<code>[^`]*[^`\s]){fence}(?:\s+\w[^`'\"]*|\s*)", line)
    return found["code"] if found else None


def _depth(line: str) -> int:
    return len(line.expandtabs(4)) - len(line.expandtabs(4).lstrip())


def _dedented(lines: list[str], indent: int) -> list[str]:
    """Without the fence's indentation, or what all lines share of it."""
    shared = min([indent, *(len(line) - len(line.lstrip(" \t")) for line in lines if line.strip())])
    return [line[shared:] if line.strip() else line for line in lines]


def program_block(found: Collection[Block], names: Collection[str]) -> str | None:
    """The program among the blocks; None where none of them is Python.

    It is the last block that defines the most of these names; without names, or where no block defines any, the last one
    tagged as Python; without tags, the last one that looks like a program, or else the last.
    """
    tagged = [block.code for block in found if block.language in PYTHON and block.code.strip()]
    untagged = [block.code for block in found if not block.language and block.code.strip()]
    either = [block.code for block in found if block.code.strip() and (block.language in PYTHON or not block.language)]
    counts = [sum(defines(code, name) for name in names) for code in either]
    if any(counts):
        return either[len(counts) - 1 - counts[::-1].index(max(counts))]
    for candidates in (tagged, [code for code in untagged if _CODE.search(code)], untagged):
        if candidates:
            return candidates[-1]
    return None


def defines(code: str, name: str) -> bool:
    """Whether the code gives a global of this name, by the look of it."""
    name = re.escape(name)
    definition = (
        rf"^(?:(?:async +)?def +{name}\b|class +{name}\b|{name} *(?::.*)?=(?!=)|from\b.*\bimport\b.*\bas +{name}\b)"
    )
    return re.search(definition, code, re.MULTILINE) is not None

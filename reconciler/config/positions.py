"""The line of every key of a TOML file. ``tomllib`` gives values without their places.

Only for text that ``tomllib`` accepts. Keys inside an inline table or an array stand, for this
index, where the value begins. Built only when a place is asked for: a good config costs nothing.
"""

from __future__ import annotations

import re
import tomllib
from functools import cached_property

KeyPath = tuple[str, ...]

_KEY = r"""(?:[A-Za-z0-9_-]+|"(?:[^"\\\n]|\\.)*"|'[^'\n]*')"""
_DOTTED = rf"{_KEY}(?:[ \t]*\.[ \t]*{_KEY})*"
_STATEMENT = re.compile(
    rf"[ \t]*(?:\[\[?[ \t]*(?P<header>{_DOTTED})[ \t]*\]\]?|(?P<key>{_DOTTED})[ \t]*=)"
)
_BARE = re.compile(r"[A-Za-z0-9_.-]+\Z")
_IN_VALUE = re.compile(
    r'"""(?:\\.|[^\\])*?"{3,5}'  # strings first: what stands in them is no syntax
    r"|'''.*?'{3,5}"
    r'|"(?:[^"\\\n]|\\.)*"'
    r"|'[^'\n]*'"
    r"|\#[^\n]*"
    r"|[\[{]|[\]}]|\n",
    re.DOTALL,
)


class LineIndex:
    """Lines of the keys and headers of one file's text."""

    def __init__(self, text: str) -> None:
        self._text = text

    def line(self, path: KeyPath) -> int:
        """The line of ``path``, else of the nearest table around it; 1 when nothing is."""
        while path:
            if (line := self._lines.get(path)) is not None:
                return line
            path = path[:-1]
        return 1

    @cached_property
    def _lines(self) -> dict[KeyPath, int]:
        text = self._text
        lines: dict[KeyPath, int] = {}
        table: KeyPath = ()
        at, number = 0, 1
        while at < len(text):
            found = _STATEMENT.match(text, at)
            if found is None:
                pass
            elif found["header"] is not None:
                table = _split(found["header"])
                _enter(lines, (), table, number)
                lines[table] = number
            else:
                _enter(lines, table, _split(found["key"]), number)
            end = _end_of_statement(text, at if found is None else found.end())
            number += text.count("\n", at, end)
            at = end
        return lines


def _enter(lines: dict[KeyPath, int], table: KeyPath, key: KeyPath, number: int) -> None:
    for length in range(1, len(key) + 1):
        lines.setdefault(table + key[:length], number)


def _end_of_statement(text: str, at: int) -> int:
    """Just past the newline that ends the statement: not one in a string or in brackets."""
    depth = 0
    for token in _IN_VALUE.finditer(text, at):
        match token[0]:
            case "[" | "{":
                depth += 1
            case "]" | "}":
                depth -= 1
            case "\n" if depth <= 0:
                return token.end()
    return len(text)


def _split(dotted: str) -> KeyPath:
    if _BARE.match(dotted):
        return tuple(dotted.split("."))
    # Quotes and escapes are TOML's own business: let it read the key.
    value: object = tomllib.loads(f"{dotted} = 0")
    path: list[str] = []
    while isinstance(value, dict):
        name, value = next(iter(value.items()))
        path.append(name)
    return tuple(path)


def dotted(path: KeyPath) -> str:
    """``path`` as TOML would write it: parts are quoted where they have to be."""
    return ".".join(p if re.fullmatch(r"[A-Za-z0-9_-]+", p) else _quoted(p) for p in path)


def _quoted(part: str) -> str:
    escaped = part.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in escaped) + '"'

"""CSV line by line, for what a block parser gives up on: no bad line takes others with it.

It splits as pyarrow does: a quote means something only where a value begins, two of them within it
stand for one, and what follows the closing one belongs to the value.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

MAX_RECORD_LINES = 1_000
"""A quote that is open for longer was never meant to be one."""


@dataclass(frozen=True, slots=True)
class Line:
    """One record, or one line that is none."""

    number: int
    """Of its first line in the file."""
    values: list[str]
    quoted: list[bool]
    raw: str
    problem: str = ""


def lines(text: IO[str], delimiter: str, quote: str) -> Iterator[Line]:
    """The records of a text, empty lines left out. Where a quote is never closed, the line that
    opened it is a problem, and reading goes on with the line after it.
    """
    source = _Pushback(text)
    waiting: list[str] = []
    number = 0
    for raw in source:
        number += 1
        if not waiting and not raw.strip("\r\n"):
            continue
        waiting.append(raw)
        start = number - len(waiting) + 1
        body = "".join(waiting).rstrip("\r\n")
        split = _split(body, delimiter, quote)
        if split is not None:
            yield Line(start, *split, body)
            waiting = []
        elif len(waiting) == MAX_RECORD_LINES or source.at_end():
            problem = "a quote is opened and never closed"
            yield Line(start, [], [], waiting[0].rstrip("\r\n"), problem)
            source.push(waiting[1:])
            number, waiting = start, []


def is_open(record: str, delimiter: str, quote: str) -> bool:
    """Whether a quote in it is opened and never closed."""
    return _split(record, delimiter, quote) is None


def _split(body: str, delimiter: str, quote: str) -> tuple[list[str], list[bool]] | None:
    """Values, and which were quoted. None: a quote is still open."""
    values: list[str] = []
    quoted: list[bool] = []
    at = 0
    while True:
        begin = ""
        is_quoted = bool(quote) and body.startswith(quote, at)
        if is_quoted:
            inside = _inside(body, at + 1, quote)
            if inside is None:
                return None
            begin, at = inside
        end = body.find(delimiter, at)
        values.append(begin + (body[at:] if end < 0 else body[at:end]))
        quoted.append(is_quoted)
        if end < 0:
            return values, quoted
        at = end + len(delimiter)


def _inside(body: str, at: int, quote: str) -> tuple[str, int] | None:
    """The text up to the closing quote, and where it goes on after it."""
    parts: list[str] = []
    while True:
        end = body.find(quote, at)
        if end < 0:
            return None
        parts.append(body[at:end])
        if not body.startswith(quote, end + 1):
            return "".join(parts), end + 1
        parts.append(quote)
        at = end + 2


class _Pushback:
    """Lines, some of which may be given back."""

    def __init__(self, text: IO[str]) -> None:
        self._text = text
        self._back: list[str] = []

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        return self._back.pop() if self._back else next(self._text)

    def push(self, rows: list[str]) -> None:
        self._back.extend(reversed(rows))

    def at_end(self) -> bool:
        if self._back:
            return False
        following = next(self._text, "")
        self._back += [following] if following else []
        return not following

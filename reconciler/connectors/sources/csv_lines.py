"""CSV line by line, for what a block parser gives up on: no bad line takes others with it.

It splits as pyarrow does: a quote means something only where a value begins, two of them within it
stand for one, and what follows the closing one belongs to the value.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

from reconciler.connectors.sources.file_format import LINE_LIMIT, TOO_LONG

MAX_RECORD = 8 * 1024 * 1024
"""A quote that is open for so many characters was never meant to be one. Not less than the two
blocks that pyarrow takes: what it gave is counted here again."""


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
    record, size, number = _Record(delimiter, quote), 0, 0
    for raw in source:
        number += 1
        if not waiting and not raw.strip("\r\n"):
            continue
        waiting.append(raw)
        size += len(raw)
        start = number - len(waiting) + 1
        if len(raw) > LINE_LIMIT and len(waiting) == 1:
            yield Line(start, [], [], raw, TOO_LONG)
        elif record.add(raw):
            yield Line(start, record.values, record.quoted, "".join(waiting).rstrip("\r\n"))
        elif size > MAX_RECORD or source.at_end():
            problem = "a quote is opened and never closed"
            yield Line(start, [], [], waiting[0].rstrip("\r\n"), problem)
            source.push(waiting[1:])
            number = start
        else:
            continue
        record, size, waiting = _Record(delimiter, quote), 0, []


def is_open(record: str, delimiter: str, quote: str) -> bool:
    """Whether a quote in it is opened and never closed."""
    return not _Record(delimiter, quote).add(record)


class _Record:
    """Values, and which were quoted, of the lines added so far."""

    def __init__(self, delimiter: str, quote: str) -> None:
        self.values: list[str] = []
        self.quoted: list[bool] = []
        self._delimiter, self._quote = delimiter, quote
        self._inside: list[str] | None = None
        """The parts of the value whose quote is still open."""

    def add(self, raw: str) -> bool:
        """Take one more line; whether no quote is open at its end."""
        line = raw.rstrip("\r\n")
        at = 0
        while True:
            if self._inside is None and self._quote and line.startswith(self._quote, at):
                self._inside, at = [], at + 1
            begin, is_quoted = "", self._inside is not None
            if self._inside is not None:
                at = self._read_quoted(raw, at, self._inside)
                if at < 0:
                    return False
                begin, self._inside = "".join(self._inside), None
            end = line.find(self._delimiter, at)
            self.values.append(begin + (line[at:] if end < 0 else line[at:end]))
            self.quoted.append(is_quoted)
            if end < 0:
                return True
            at = end + 1

    def _read_quoted(self, raw: str, at: int, parts: list[str]) -> int:
        """Where it goes on after the closing quote; less than zero: there is none yet."""
        while (end := raw.find(self._quote, at)) >= 0:
            parts.append(raw[at:end])
            if not raw.startswith(self._quote, end + 1):
                return end + 1
            parts.append(self._quote)
            at = end + 2
        parts.append(raw[at:])
        return -1


class _Pushback:
    """Lines, without the byte order mark before the first; some of them may be given back. Of one
    that is too long, so much that it shows.
    """

    def __init__(self, text: IO[str]) -> None:
        self._text = text
        self._back = [first.removeprefix("\ufeff")] if (first := self._line()) else []

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        if line := self._back.pop() if self._back else self._line():
            return line
        raise StopIteration

    def push(self, rows: list[str]) -> None:
        self._back.extend(reversed(rows))

    def at_end(self) -> bool:
        if self._back:
            return False
        following = self._line()
        self._back += [following] if following else []
        return not following

    def _line(self) -> str:
        """The next one, with its end unless it is too long; empty: there is none."""
        line = more = self._text.readline(LINE_LIMIT + 1)
        while len(more) > LINE_LIMIT and not more.endswith(("\r", "\n")):
            more = self._text.readline(LINE_LIMIT + 1)
        return line

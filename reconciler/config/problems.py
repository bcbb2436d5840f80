"""What is wrong with a config, as records that know their place, and as text for a terminal."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

_LISTED = 30


@dataclass(frozen=True, slots=True)
class Place:
    """Where a value was written: a line of a file, or an environment variable."""

    file: Path | None = None
    line: int = 0
    variable: str = ""

    def __str__(self) -> str:
        if self.variable:
            return f"environment variable {self.variable}"
        if self.file is None:
            return "config"
        return f"{self.file}:{self.line}" if self.line else str(self.file)


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong. Never holds a secret: ``found`` is empty where one might stand."""

    place: Place
    key: str
    """Dotted, as TOML would write it; empty for a whole file."""
    message: str
    """What is wrong, as the rest of a sentence."""
    found: str = ""
    allowed: str = ""
    hint: str = ""

    @property
    def file(self) -> Path | None:
        """The file it stands in; None: it came from the environment."""
        return self.place.file

    @property
    def line(self) -> int:
        """Counted from 1; 0: no single line is at fault."""
        return self.place.line

    def __str__(self) -> str:
        subject = f'key "{self.key}": ' if self.key else ""
        text = f"{self.place}: {subject}{self.message}"
        if self.found:
            text += f"; found {self.found}"
        if self.allowed:
            text += f"; allowed: {self.allowed}"
        if self.hint:
            text += f"; {self.hint}"
        return text


class ConfigError(Exception):
    """The config cannot be used. Holds every problem at once; ``str()`` has one line for each."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(str(p) for p in self.problems))


def nearest(word: str, known: Iterable[str]) -> str:
    """A hint naming the known word that looks most like ``word``; empty when none does."""
    import difflib

    folded = {k.casefold(): k for k in known}
    close = difflib.get_close_matches(word.casefold(), folded, n=1, cutoff=0.6)
    return f'did you mean "{folded[close[0]]}"?' if close else ""


def listed(words: Iterable[str]) -> str:
    """Words for ``allowed``, cut when there are too many to be of use."""
    words = sorted(words)
    rest = len(words) - _LISTED
    return ", ".join(words[:_LISTED]) + (f" and {rest} more" if rest > 0 else "")

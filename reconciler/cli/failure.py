"""How a command ends: exit codes, and the one exception that carries a sentence to a person."""

from __future__ import annotations

import sys
from enum import IntEnum
from pathlib import Path


class Exit(IntEnum):
    """Exit codes of every command; nothing else is returned, but for 130 after Ctrl-C."""

    GOOD = 0
    FAILED = 1
    USAGE = 2
    HELD = 3
    LEASED = 4
    NOTHING = 5


class Failure(Exception):
    """Ends a command with ``code``. ``str()`` is a sentence; ``hint`` says what to do."""

    def __init__(self, text: str, code: Exit = Exit.FAILED, hint: str = "") -> None:
        super().__init__(text)
        self.code = code
        self.hint = hint


def describe(error: BaseException) -> Failure | None:
    """What a foreseen error means to a person; None for one that nobody foresaw.

    Only modules that are loaded can have raised: nothing is imported here, so that the way of a
    good command does not pay for those of bad ones.
    """
    if isinstance(error, Failure):
        return error
    if isinstance(error, BaseExceptionGroup):
        leaves = [describe(e) for e in error.exceptions]
        return leaves[0] if all(leaves) else None
    return _of_others(error)


def _of_others(error: BaseException) -> Failure | None:
    if _is(error, "catalog.errors", "CatalogError"):
        return _of_catalog(error)
    if _is(error, "reconciler.config.problems", "ConfigError"):
        return Failure(str(error), Exit.USAGE)
    if _is(error, "reconciler.run.pool", "WorkerGone"):
        return Failure(f"The worker process broke: {error}")
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else "Input or output failed: "
        owner = _owner(error.filename) if isinstance(error, PermissionError) else ""
        hint = f"It belongs to {owner}: type this as that user." if owner else ""
        return Failure(f"{where}{error.strerror.lower()}.", hint=hint)
    return None


def _owner(path: object) -> str:
    """Whose the file is, or the nearest folder above it that can be looked at; empty: unknown."""
    here = Path(str(path))
    for place in (here, *here.parents):
        try:
            return place.owner()
        except (OSError, KeyError):
            continue
    return ""


def _is(error: BaseException, module: str, name: str) -> bool:
    loaded = sys.modules.get(module)
    return loaded is not None and isinstance(error, getattr(loaded, name))


def _of_catalog(error: BaseException) -> Failure:
    code = str(getattr(error, "code", ""))
    text = _sentence(str(error))
    if code in ("leased", "fenced"):
        return Failure(text, Exit.LEASED)
    if code == "not_found":
        return Failure(text, Exit.NOTHING)
    if code == "unknown":
        return Failure(
            text, hint="It may have happened and it may not have: look before trying again."
        )
    return Failure(text)


def _sentence(text: str) -> str:
    if text.split(" ", 1)[0].isalpha():  # a name such as `shop.orders:` stays as it is
        text = text[:1].upper() + text[1:]
    return text if text.endswith((".", "!", "?")) else f"{text}."


_CONTROLS = {
    code: chr(code).encode("unicode_escape").decode()
    for code in (*range(32), *range(127, 160))
    if chr(code) not in "\n\t"
}


def tame(text: str) -> str:
    """``text`` unable to steer the terminal, whoever's words are in it: a server's, a file's."""
    return text.translate(_CONTROLS)

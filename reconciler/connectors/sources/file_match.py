"""Which names below a folder match a pattern: as ``glob`` has it, but that nothing is left out
without a word, and that links which lead round in circles come to an end.
"""

from __future__ import annotations

import errno
import fnmatch
import glob
import os
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

_NOT_THERE = (FileNotFoundError, NotADirectoryError, PermissionError)


def matching(root: Path, pattern: str) -> Iterator[str]:
    """The names that match, relative, some maybe several times where ``**`` is there twice. What
    lies in a folder that may not be listed is not among them (``unlisted``).

    Raises ``OSError`` where a listing fails or breaks off: taken for whole, it were files gone.
    """
    parts, last = _parts(pattern)
    for folder in _folders(root, parts):
        for name, _ in _named(root / folder, last):
            yield os.path.join(folder, name)  # noqa: PTH118


def unlisted(root: Path, pattern: str) -> list[str]:
    """The folders in which files might match, and that may not be listed."""
    parts, _ = _parts(pattern)
    folders = {
        folder for depth in range(len(parts) + 1) for folder in _folders(root, parts[:depth])
    }
    return sorted(f or "." for f in folders if not os.access(root / f, os.R_OK | os.X_OK))


def _parts(pattern: str) -> tuple[list[str], str]:
    """A pattern of folders, part by part, and that of the files in them."""
    *folders, name = filter(None, pattern.split("/"))
    return ([*folders, name], "*") if name == "**" else (folders, name)


def _folders(root: Path, parts: Sequence[str]) -> Iterator[str]:
    """The folders that match, relative; ``root`` is empty."""
    if not parts:
        yield ""
        return
    for above in _folders(root, parts[:-1]):
        if parts[-1] == "**":
            yield from _below(root, above)
            continue
        for name, is_folder in _named(root / above, parts[-1]):
            if is_folder:
                yield os.path.join(above, name)  # noqa: PTH118


def _below(root: Path, top: str) -> Iterator[str]:
    """A folder and those below it, each once: where links lead round in circles, ``glob`` follows
    them 40 deep, by every way there is. Of several ways to a folder, that without a link is taken.
    """
    seen = set()
    straight, linked = deque([top]), deque[str]()
    while straight or linked:
        folder = straight.popleft() if straight else linked.popleft()
        with suppress(*_NOT_THERE):
            info = os.stat(root / folder)  # noqa: PTH116
            if (info.st_dev, info.st_ino) in seen:
                continue
            seen.add((info.st_dev, info.st_ino))
        yield folder
        for entry in _entries(root / folder):
            if not entry.name.startswith(".") and _is_folder(entry):
                below = os.path.join(folder, entry.name)  # noqa: PTH118
                (linked if entry.is_symlink() else straight).append(below)


def _named(folder: Path, part: str) -> Iterator[tuple[str, bool]]:
    """The names in a folder that match one part of a pattern, and whether each is a folder."""
    if not glob.has_magic(part):
        yield part, os.path.isdir(folder / part)  # noqa: PTH112
        return
    for entry in _entries(folder):
        hidden = entry.name.startswith(".") and not part.startswith(".")
        if not hidden and fnmatch.fnmatchcase(entry.name, part):
            yield entry.name, _is_folder(entry)


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """In order; none where there is no such folder, or where it may not be listed."""
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except _NOT_THERE:
        return []


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError as error:  # of a link: to where we may not look, or to itself
        if isinstance(error, _NOT_THERE) or error.errno == errno.ELOOP:
            return False
        raise

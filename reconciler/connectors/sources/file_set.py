"""Which files a stream reads now: what is there against the ledger of what was read (C6)."""

from __future__ import annotations

import os
import stat as stat_module
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from catalog.records import ErrorClass, FileEntry
from reconciler.connectors.ports import ConnectorError
from reconciler.connectors.sources.file_match import matching

SETTLE = 2.0
_MOST = 2**63 - 1
_TICK_NS = 1_000_000_000
"""By how much clocks may differ without a word."""


@dataclass(frozen=True, slots=True)
class Found:
    """A file as it lay there when it was listed."""

    path: str
    """Relative to the connection's folder: its name in the ledger."""
    full: Path
    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int

    @property
    def standing(self) -> tuple[int, int, int, int]:
        """What tells whether it is another file, or was written to."""
        return self.inode, self.size, self.mtime_ns, self.ctime_ns

    def entry(self, content: str, before: FileEntry | None = None) -> FileEntry:
        """Its line in the ledger. ``before``: of this content as it came; None: it comes now."""
        brought = (before.seq, before.epoch) if before else ()
        return FileEntry(self.path, *self.standing, content, *brought)

    def is_still(self, now: os.stat_result) -> bool:
        """Whether ``now`` is the same file, untouched."""
        return self.standing == _standing(now)

    def is_noted(self, entry: FileEntry) -> bool:
        """Whether the ledger has it as it lies there."""
        return self.standing == (entry.inode, entry.size, entry.mtime_ns, entry.ctime_ns)


def _standing(info: os.stat_result) -> tuple[int, int, int, int]:
    """Inode, size and times as the ledger can keep them: some file systems number with all 64 bits,
    and a time may lie beyond the year 2262.
    """
    changed, noted = (max(-_MOST, min(t, _MOST)) for t in (info.st_mtime_ns, info.st_ctime_ns))
    return info.st_ino & _MOST, info.st_size, changed, noted


@dataclass(slots=True)
class FileSet:
    """The files of one read, by what is to be done with them; each in order of mtime, then path."""

    new: list[Found] = field(default_factory=list)
    touched: list[Found] = field(default_factory=list)
    """In the ledger under this path, but not with this inode, size and times."""
    same: list[Found] = field(default_factory=list)
    gone: list[str] = field(default_factory=list)
    """Paths in the ledger that are no longer there."""
    unsettled: list[Found] = field(default_factory=list)
    """Written to so lately that they may still grow."""

    @property
    def ahead(self) -> list[Found]:
        """The unsettled files that were changed later than it is now: two clocks do not agree."""
        now = time.time_ns() + _TICK_NS
        return [file for file in self.unsettled if file.ctime_ns > now]


def must_be_there(root: Path, where: str) -> None:
    """Raises ``ConnectorError`` (transient: a mount may come back) without the folder."""
    if not os.path.isdir(root):  # noqa: PTH112 - Path's raises where a folder above is closed
        raise ConnectorError(
            ErrorClass.TRANSIENT,
            f"connection {where!r}: there is no folder {str(root)!r}, or it may not be entered",
        )


def listing(root: Path, pattern: str, where: str) -> list[Found]:
    """The files that match, oldest first. Raises ``ConnectorError`` without the folder, or where a
    listing fails or breaks off.
    """
    must_be_there(root, where)
    try:
        # A pattern with ** twice matches one file in several ways.
        names = set(matching(root, pattern))
    except OSError as error:
        raise ConnectorError(
            ErrorClass.TRANSIENT,
            f"connection {where!r}: folder {error.filename!r} cannot be listed: {error.strerror}",
        ) from None
    found = []
    for path in names:
        full = root / path
        try:
            info = full.stat()
        except FileNotFoundError:
            continue
        except OSError as error:
            raise ConnectorError(
                ErrorClass.TRANSIENT, f"connection {where!r}: {path}: {error.strerror}"
            ) from None
        if stat_module.S_ISREG(info.st_mode):
            _refuse_unwritable(path, where)
            found.append(Found(path, full, *_standing(info)))
    return sorted(found, key=lambda f: (f.mtime_ns, f.path))


def refuse_unseen(root: Path, paths: Iterable[str], where: str) -> None:
    """Raises ``ConnectorError`` (transient) where files were not found because a folder on the way
    to them cannot be listed: a glob passes over it without a word.
    """
    folders = {folder for path in paths for folder in Path(path).parents}
    for folder in sorted(folders):
        try:
            os.scandir(root / folder).close()
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            raise ConnectorError(
                ErrorClass.TRANSIENT,
                f"connection {where!r}: folder {str(folder)!r} cannot be listed "
                f"({error.strerror}), and files that were read lie in it: a read of all files "
                "cannot leave them out",
            ) from None


def _refuse_unwritable(path: str, where: str) -> None:
    """The ledger is text: a name that is none could never be noted as read."""
    try:
        path.encode()
    except UnicodeEncodeError:
        raise ConnectorError(
            ErrorClass.PERMANENT,
            f"connection {where!r}: the name of file {path!r} is no UTF-8 (each \\udc.. stands for "
            "a byte that is none); rename it",
        ) from None


def sort_out(found: Iterable[Found], ledger: Sequence[FileEntry], settle: float) -> FileSet:
    """Compare with the ledger by path, inode, size and times; no file is opened."""
    known = {entry.path: entry for entry in ledger}
    result = FileSet()
    latest = time.time_ns() - round(settle * 1e9)
    seen = set()
    for file in found:
        seen.add(file.path)
        entry = known.get(file.path)
        if entry is not None and file.is_noted(entry):
            result.same.append(file)
        elif _changed_ns(file) > latest:
            result.unsettled.append(file)
        elif entry is None:
            result.new.append(file)
        else:
            result.touched.append(file)
    result.gone = [path for path in known if path not in seen]
    return result


def _changed_ns(file: Found) -> int:
    """When it was last changed; a time of content that lies in the future says nothing."""
    if file.mtime_ns > time.time_ns():
        return file.ctime_ns
    return max(file.mtime_ns, file.ctime_ns)

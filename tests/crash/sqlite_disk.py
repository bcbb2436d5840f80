"""SQLite's way to the disk, with a disk that fails or loses power when a test says so.

``LossyDisk`` remembers for each file what was synced and what was only written since. An image of
it at any moment is what a machine may find after a loss of power then: all that was synced, and of
the rest some, whole or torn. ``FailingDisk`` refuses to sync.
"""

from __future__ import annotations

import itertools
import random
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import apsw

_numbers = itertools.count()
SECTOR = 512


@dataclass(eq=False)
class Shadow:
    """One file: what is durable, and the writes and cuts since then."""

    durable: bytearray = field(default_factory=bytearray)
    pending: list[tuple[int, bytes | None]] = field(default_factory=list)
    """Offset and data of a write; the new size and None of a cut."""
    exists: bool = False
    """Its name is durable: it was synced once."""

    def sync(self) -> None:
        for change in self.pending:
            _apply(self.durable, change)
        self.pending.clear()
        self.exists = True

    def image(self, rng: random.Random) -> bytes | None:
        """What may be left; None: not even the name."""
        if not self.exists and rng.random() < 0.5:
            return None
        content = bytearray(self.durable)
        kept = rng.choice((0.0, 0.5, 0.9, 1.0))
        for at, data in self.pending:
            if rng.random() >= kept:
                continue
            if data is None or rng.random() < 0.7:
                _apply(content, (at, data))
                continue
            for start in range(0, len(data), SECTOR):  # torn
                if rng.random() < 0.5:
                    _apply(content, (at + start, data[start : start + SECTOR]))
        return bytes(content)


def _apply(content: bytearray, change: tuple[int, bytes | None]) -> None:
    at, data = change
    if data is None:
        del content[at:]
        return
    if len(content) < at:
        content.extend(bytes(at - len(content)))
    content[at : at + len(data)] = data


class LossyDisk(apsw.VFS):
    """A disk on which nothing is durable before it was synced.

    ``on_event`` is called before each write, cut and sync, on whichever thread does it.
    """

    def __init__(self) -> None:
        self.name = f"lossy-{next(_numbers)}"
        self.files: dict[str, Shadow] = {}
        self.on_event: Callable[[], None] = lambda: None
        self.lock = threading.RLock()
        super().__init__(self.name, base="")

    def xOpen(self, name: Any, flags: list[int]) -> apsw.VFSFile:  # noqa: N802
        return _LossyFile(self, name, flags)

    def xDelete(self, filename: str, syncdir: bool) -> None:  # noqa: N802
        with self.lock:
            self.files.pop(filename, None)
        super().xDelete(filename, syncdir)

    def image(self, folder: Path, rng: random.Random) -> None:
        """Write what a loss of power leaves at this moment into an empty folder."""
        with self.lock:
            for name, shadow in self.files.items():
                content = shadow.image(rng)
                if content is not None:
                    (folder / Path(name).name).write_bytes(content)


class _LossyFile(apsw.VFSFile):
    def __init__(self, disk: LossyDisk, name: Any, flags: list[int]) -> None:
        super().__init__("", name, flags)
        self._disk = disk
        path = name.filename() if isinstance(name, apsw.URIFilename) else name
        self._shadow = disk.files.setdefault(str(path), Shadow())

    def xWrite(self, data: Any, offset: int) -> None:  # noqa: N802
        with self._disk.lock:
            self._disk.on_event()
            super().xWrite(data, offset)
            self._shadow.pending.append((offset, bytes(data)))

    def xTruncate(self, newsize: int) -> None:  # noqa: N802
        with self._disk.lock:
            self._disk.on_event()
            super().xTruncate(newsize)
            self._shadow.pending.append((newsize, None))

    def xSync(self, flags: int) -> None:  # noqa: N802
        with self._disk.lock:
            self._disk.on_event()
            self._shadow.sync()


class FailingDisk(apsw.VFS):
    """A disk that answers a sync with an error as long as ``fails`` says so of the file."""

    def __init__(self) -> None:
        self.name = f"failing-{next(_numbers)}"
        self.fails: Callable[[str], bool] = lambda _path: False
        self.refused = 0
        super().__init__(self.name, base="")

    def xOpen(self, name: Any, flags: list[int]) -> apsw.VFSFile:  # noqa: N802
        return _FailingFile(self, name, flags)


class _FailingFile(apsw.VFSFile):
    def __init__(self, disk: FailingDisk, name: Any, flags: list[int]) -> None:
        super().__init__("", name, flags)
        self._disk = disk
        self._path = str(name.filename() if isinstance(name, apsw.URIFilename) else name)

    def xSync(self, flags: int) -> None:  # noqa: N802
        if self._disk.fails(self._path):
            self._disk.refused += 1
            error = apsw.IOError("the disk did not take it")
            error.extendedresult = apsw.SQLITE_IOERR_FSYNC  # type: ignore[attr-defined]
            raise error
        super().xSync(flags)

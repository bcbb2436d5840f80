"""SQLite's way to the disk, with a disk that fails or loses power when a test says so.

``LossyDisk`` remembers for each file what was synced and what was only written since. An image of
it at any moment is what a machine may find after a loss of power then: all that was synced, and of
the rest some, whole or torn. ``FailingDisk`` refuses to sync; of ``FaultyDisk`` any call can fail.
"""

from __future__ import annotations

import itertools
import random
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any
from unittest import mock

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
    written: bytearray = field(default_factory=bytearray)
    """What a process that reads it finds."""

    @classmethod
    def of(cls, path: Path) -> Shadow:
        """A file that was there before, durable; or a new one."""
        if not path.exists():
            return cls()
        content = path.read_bytes()
        return cls(bytearray(content), exists=True, written=bytearray(content))

    def write(self, at: int, data: bytes | None) -> None:
        """A write; a cut to the length ``at`` with ``data`` None."""
        self.pending.append((at, data))
        _apply(self.written, (at, data))

    def forsake(self) -> None:
        """A sync failed: the system takes for written what will never be."""
        self.pending.clear()

    def sync(self) -> None:
        for change in self.pending:
            _apply(self.durable, change)
        self.pending.clear()
        self.exists = True

    def image(self, rng: random.Random, whole: float = 0.7) -> bytes | None:
        """What may be left; None: not even the name. So many of the writes that arrive are
        ``whole``, the others torn."""
        if not self.exists and rng.random() < 0.5:
            return None
        content = bytearray(self.durable)
        kept = rng.choice((0.0, 0.5, 0.9, 1.0))
        for at, data in self.pending:
            if rng.random() >= kept:
                continue
            if data is None or rng.random() < whole:
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

    ``on_event`` is called before each write, cut and sync, on whichever thread does it; a sync of
    a file that ``fails`` is an error, and the next one says that all is well: so does a kernel.
    """

    def __init__(self) -> None:
        self.name = f"lossy-{next(_numbers)}"
        self.files: dict[str, Shadow] = {}
        self.ghosts: dict[str, Shadow] = {}
        """Files that were removed: their names may come back."""
        self.on_event: Callable[[], None] = lambda: None
        self.fails: Callable[[str], bool] = lambda _path: False
        self.arrives = False
        """What a sync that fails should have made durable is durable all the same."""
        self.lock = threading.RLock()
        super().__init__(self.name, base="")

    def xOpen(self, name: Any, flags: list[int]) -> apsw.VFSFile:  # noqa: N802
        return _LossyFile(self, name, flags)

    def xDelete(self, filename: str, syncdir: bool) -> None:  # noqa: N802
        with self.lock:
            gone = self.files.pop(filename, None)
            if gone is not None and gone.exists and not syncdir:
                self.ghosts[filename] = gone
        super().xDelete(filename, syncdir)

    def image(self, folder: Path, rng: random.Random | None) -> None:
        """Write what a loss of power leaves at this moment into an empty folder; without ``rng``
        what the end of all processes leaves.
        """
        with self.lock:
            files = dict(self.files)
            for name, ghost in self.ghosts.items():
                is_free = name not in files or not files[name].exists
                if rng is not None and is_free and rng.random() < 0.5:
                    files[name] = ghost
            for name, shadow in files.items():
                content = shadow.image(rng) if rng else bytes(shadow.written)
                if content is not None:
                    (folder / Path(name).name).write_bytes(content)


class _LossyFile(apsw.VFSFile):
    def __init__(self, disk: LossyDisk, name: Any, flags: list[int]) -> None:
        self._disk = disk
        path = str(name.filename() if isinstance(name, apsw.URIFilename) else name)
        with disk.lock:
            if path not in disk.files:  # so SQLite has not opened it: reading drops no locks
                disk.files[path] = Shadow.of(Path(path))
            self._shadow = disk.files[path]
        self._path = path
        super().__init__("", name, flags)

    def xWrite(self, data: Any, offset: int) -> None:  # noqa: N802
        with self._disk.lock:
            self._disk.on_event()
            super().xWrite(data, offset)
            self._shadow.write(offset, bytes(data))

    def xTruncate(self, newsize: int) -> None:  # noqa: N802
        with self._disk.lock:
            self._disk.on_event()
            super().xTruncate(newsize)
            self._shadow.write(newsize, None)

    def xSync(self, flags: int) -> None:  # noqa: N802
        with self._disk.lock:
            self._disk.on_event()
            if self._disk.fails(self._path):
                if self._disk.arrives:
                    self._shadow.sync()
                self._shadow.forsake()
                raise struck("xSync", Fault.EIO)
            if not self._shadow.exists and self._path.endswith(("-wal", "-journal")):
                self._disk.ghosts.clear()  # SQLite syncs the folder with such a file's first sync
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


class Fault(Enum):
    """What a call to the disk comes to."""

    EIO = "EIO"
    """It fails. A failed sync also drops what it should have made durable."""
    ENOSPC = "ENOSPC"
    """What would make a file longer, or make one, fails."""
    SHORT = "short write"
    """Half of it arrives."""


_FAULTS = {"xWrite": (Fault.EIO, Fault.ENOSPC, Fault.SHORT), "xOpen": (Fault.EIO, Fault.ENOSPC)}
_CODES = {
    "xRead": apsw.SQLITE_IOERR_READ,
    "xWrite": apsw.SQLITE_IOERR_WRITE,
    "xSync": apsw.SQLITE_IOERR_FSYNC,
    "xTruncate": apsw.SQLITE_IOERR_TRUNCATE,
    "xFileSize": apsw.SQLITE_IOERR_FSTAT,
    "xLock": apsw.SQLITE_IOERR_LOCK,
    "xAccess": apsw.SQLITE_IOERR_ACCESS,
    "xDelete": apsw.SQLITE_IOERR_DELETE,
}


def faults_of(call: str) -> tuple[Fault, ...]:
    """The faults that a call (``FaultyDisk.calls``) can meet."""
    return _FAULTS.get(call.split(maxsplit=1)[0], (Fault.EIO,))


@contextmanager
def passed_over(*also: type[BaseException]) -> Iterator[None]:
    """Inside, the errors that SQLite passes over are not reported as unraisable."""
    before = sys.unraisablehook

    def hook(found: Any) -> None:
        if not isinstance(found.exc_value, (Struck, StruckFull, StruckOpen, *also)):
            before(found)

    with mock.patch.object(sys, "unraisablehook", hook):
        yield


class Struck(apsw.IOError):
    """A call that failed because a test wanted it to."""


class StruckFull(apsw.FullError):
    """The same, for want of space."""


class StruckOpen(apsw.CantOpenError):
    """The same, of a file that is being opened."""


class FaultyDisk(LossyDisk):
    """A disk of which the n-th call fails, once or with all that follow.

    While ``armed`` the calls are counted: ``calls`` names them, ``struck`` those that failed.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []
        self.struck: list[str] = []
        self._at, self._fault, self._lasting, self._thread = 0, Fault.EIO, False, ""
        self._armed = False

    def arm(self, at: int = 0, fault: Fault = Fault.EIO, *, lasting: bool, thread: str) -> None:
        """Count from now on, and let call ``at`` fail (0: none), ``lasting`` also those after it.

        Only calls made on the ``thread`` so named are counted; empty: all.
        """
        with self.lock:
            self.calls, self.struck, self._armed = [], [], True
            self._at, self._fault, self._lasting, self._thread = at, fault, lasting, thread

    def heal(self) -> None:
        """From now on all is well."""
        with self.lock:
            self._armed = False

    def call(self, name: str, path: str, *, grows: bool = True) -> Fault | None:
        """Count a call; the fault that it is to meet. Whoever asks holds the lock."""
        if not self._armed:
            return None
        mine = not self._thread or threading.current_thread().name == self._thread
        if mine:
            self.calls.append(f"{name} {Path(path).name}")
        elif not (self._lasting and self.struck):
            return None
        here = mine and len(self.calls) == self._at
        later = self._lasting and 0 < self._at < len(self.calls) + (not mine)
        if not (here or later) or self._fault not in faults_of(name):
            return None
        if self._fault is Fault.ENOSPC and not grows:
            return None
        self.struck.append(f"{name} {Path(path).name}")
        return self._fault

    def refuse(self, name: str, path: str, *, grows: bool = True) -> None:
        """Count a call, and raise if it is to fail."""
        with self.lock:
            fault = self.call(name, path, grows=grows)
        if fault is not None:
            raise struck(name, fault)

    def xOpen(self, name: Any, flags: list[int]) -> apsw.VFSFile:  # noqa: N802
        path = str(name.filename() if isinstance(name, apsw.URIFilename) else name)
        self.refuse("xOpen", path, grows=not Path(path).exists())
        return _FaultyFile(self, name, flags)

    def xDelete(self, filename: str, syncdir: bool) -> None:  # noqa: N802
        self.refuse("xDelete", filename)
        super().xDelete(filename, syncdir)

    def xAccess(self, pathname: str, flags: int) -> bool:  # noqa: N802
        self.refuse("xAccess", pathname)
        return super().xAccess(pathname, flags)


def struck(name: str, fault: Fault) -> apsw.Error:
    """The exception that SQLite takes for the failure of this call."""
    if name == "xOpen":
        return StruckOpen("the disk does not open it")
    if fault is not Fault.EIO:
        return StruckFull("the disk has no room")
    error = Struck("the disk does not answer")
    error.extendedresult = _CODES[name]  # type: ignore[attr-defined]
    return error


class _FaultyFile(_LossyFile):
    def __init__(self, disk: FaultyDisk, name: Any, flags: list[int]) -> None:
        super().__init__(disk, name, flags)
        self._faulty = disk

    def xRead(self, amount: int, offset: int) -> bytes:  # noqa: N802
        self._faulty.refuse("xRead", self._path)
        return super().xRead(amount, offset)

    def xFileSize(self) -> int:  # noqa: N802
        self._faulty.refuse("xFileSize", self._path)
        return super().xFileSize()

    def xLock(self, level: int) -> None:  # noqa: N802
        self._faulty.refuse("xLock", self._path)
        super().xLock(level)

    def xTruncate(self, newsize: int) -> None:  # noqa: N802
        self._faulty.refuse("xTruncate", self._path)
        super().xTruncate(newsize)

    def xWrite(self, data: Any, offset: int) -> None:  # noqa: N802
        disk = self._faulty
        with disk.lock:
            grows = offset + len(data) > super().xFileSize()
            fault = disk.call("xWrite", self._path, grows=grows)
            if fault is Fault.SHORT:
                super().xWrite(bytes(data)[: len(data) // 2], offset)
        if fault is not None:
            raise struck("xWrite", fault)
        super().xWrite(data, offset)

    def xSync(self, flags: int) -> None:  # noqa: N802
        disk = self._faulty
        with disk.lock:
            fault = disk.call("xSync", self._path)
            if fault is not None:
                self._shadow.forsake()
        if fault is not None:
            raise struck("xSync", fault)
        super().xSync(flags)

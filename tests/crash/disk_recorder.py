"""What a process did to one folder, and what a loss of power at any moment of it leaves.

A process that is started with ``Recorder.env`` writes down each write, cut, sync, and change of
names below the folder, in one order and whoever makes it: SQLite, DuckDB, Arrow or Python. The log
is played onto a ``RecordedDisk``, the model of ``tests.power_loss`` with files that are written
anywhere: of what was not synced any write may be there, whole, torn at a sector, or not at all.
"""

from __future__ import annotations

import ctypes
import json
import os
import random
import shutil
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path

from tests import preload
from tests.crash.sqlite_disk import Shadow
from tests.power_loss import LossyDisk, Node

_SOURCE = Path(__file__).with_name("disk_recorder.c")
_HEADER = struct.Struct("<IiqqII")
_IDENTITY = struct.Struct("<5q")


class Kind(IntEnum):
    """As in ``disk_recorder.c``."""

    OPEN = 1
    CLOSE = 2
    WRITE = 3
    TRUNCATE = 4
    ALLOCATE = 5
    PUNCH = 6
    SYNC = 7
    MKDIR = 8
    RMDIR = 9
    UNLINK = 10
    RENAME = 11
    MARK = 12
    UNSEEN = 13


@dataclass(frozen=True, slots=True)
class Event:
    """One record of the log."""

    kind: Kind
    fd: int
    a: int
    b: int
    data: bytes
    other: bytes


class Recorder:
    """What to start a process with; built once, skips the test where there is no compiler."""

    def __init__(self, folder: Path) -> None:
        self._library = preload.build(_SOURCE, folder, "what records a process's writes")

    def env(self, root: Path, log: Path) -> dict[str, str]:
        """For a process whose work below ``root`` is to be written to ``log``."""
        return {
            "LD_PRELOAD": str(self._library),
            "POWER_ROOT": str(root.resolve()),
            "POWER_LOG": str(log),
        }


def mark(data: bytes) -> None:
    """In the recorded process: a word of its own, put into the log between what it did."""
    ctypes.CDLL(None).power_mark(data, ctypes.c_size_t(len(data)))


def events(log: Path) -> Iterator[Event]:
    """The log in its order. Raises ``AssertionError`` for what could not be recorded."""
    data = log.read_bytes()
    at = 0
    while at < len(data):
        kind, fd, a, b, first, second = _HEADER.unpack_from(data, at)
        at += _HEADER.size
        one, other = data[at : at + first], data[at + first : at + first + second]
        at += first + second
        assert kind != Kind.UNSEEN, f"a change of {os.fsdecode(one)} could not be recorded"
        yield Event(Kind(kind), fd, a, b, one, other)


@dataclass(eq=False)
class Sectors(Node):
    """A file that is written anywhere in it."""

    shadow: Shadow = field(default_factory=lambda: Shadow(exists=True))
    identity: tuple[int, ...] | None = None
    """Device, inode, size and times, as ``stat`` said when it was synced last."""

    @classmethod
    def of(cls, content: bytes) -> Sectors:
        node = cls(None, shadow=Shadow(bytearray(content), exists=True))
        node.shadow.written = bytearray(content)
        return node

    def after_loss(self, rng: random.Random, share: float) -> Sectors:
        pending = self.shadow.pending
        whole = rng.choice((0.7, 0.0))
        content = self.shadow.image(rng, whole) if share < 1.0 else bytes(self.shadow.written)
        assert content is not None
        node = Sectors.of(content)
        # What was written since may be there without the inode's new times.
        if self.identity and len(content) == self.identity[2] and (not pending or share < 1.0):
            node.identity = self.identity
        return node


class RecordedDisk(LossyDisk):
    """The folder ``base`` while a log is played. ``forgets``: as ``LossyDisk``."""

    def __init__(
        self,
        base: Path,
        start: Node,
        forgets: Callable[[str, Path], bool] = lambda kind, path: False,
    ) -> None:
        """``base`` holds ``start`` at first, all of it durable."""
        self._base = base.resolve()
        root = _copied(start)
        for name in reversed(self._base.parts[1:]):
            root = Node({name: root})
        super().__init__(root, forgets=forgets)
        self._open: dict[int, tuple[Path, Node, bool]] = {}

    def play(self, event: Event) -> Path | None:
        """Do what was done; returns the path that it was done to."""
        path = Path(os.fsdecode(event.data))
        match event.kind:
            case Kind.OPEN:
                return self._opened(event, path)
            case Kind.CLOSE:
                self._open.pop(event.fd, None)
                return None
            case Kind.MKDIR:
                self.mkdir(path)
            case Kind.RMDIR:
                self.rmdir(path)
            case Kind.UNLINK:
                self.unlink(path)
            case Kind.RENAME:
                self.rename(path, Path(os.fsdecode(event.other)))
            case Kind.MARK:
                return None
            case _:
                return self._changed(event)
        return path

    def _opened(self, event: Event, path: Path) -> Path | None:
        node = self._find(path)
        made = node is None
        if node is None:
            node = Sectors(None)
            self._change([(self._directory(path.parent), path.name, node)], node)
        self._open[event.fd] = path, node, bool(event.a & os.O_DSYNC)
        if event.a & os.O_TRUNC and isinstance(node, Sectors) and node.shadow.written:
            node.shadow.write(0, None)
            made = True
        return path if made else None

    def _changed(self, event: Event) -> Path:
        path, node, at_once = self._open[event.fd]
        if event.kind is Kind.SYNC and node.entries is not None:
            self.sync_dir(path)
            return path
        assert isinstance(node, Sectors)
        shadow = node.shadow
        size = len(shadow.written)
        match event.kind:
            case Kind.WRITE:
                shadow.write(event.a, event.data)
            case Kind.TRUNCATE if event.a < size:
                shadow.write(event.a, None)
            case Kind.TRUNCATE if event.a > size:
                shadow.write(size, bytes(event.a - size))
            case Kind.ALLOCATE if event.a + event.b > size:
                shadow.write(size, bytes(event.a + event.b - size))
            case Kind.PUNCH:
                shadow.write(event.a, bytes(max(0, min(event.b, size - event.a))))
            case Kind.SYNC:
                self.sync_node(path, node)
                node.identity = _IDENTITY.unpack(event.data)
        if at_once and event.kind is not Kind.SYNC:
            self.sync_node(path, node)
        return path

    def sync_node(self, path: Path, node: Node) -> None:
        if not self._forgets("file", path):
            assert isinstance(node, Sectors)
            node.shadow.sync()

    def path_of(self, event: Event) -> Path | None:
        """The file that this event is about, if it is open."""
        return self._open[event.fd][0] if event.fd in self._open else None

    def node(self, path: Path) -> Node | None:
        """What is there now; None: nothing."""
        return self._find(path)

    def live(self) -> Node:
        """The folder as it is while there is power."""
        node = self._find(self._base)
        assert node is not None
        return node

    def lose(self, rng: random.Random) -> Node:
        """The folder as the next boot may find it."""
        found = self.after_loss(rng)._find(self._base)
        assert found is not None
        return found


def write_out(node: Node, folder: Path) -> None:
    """Make ``folder`` what ``node`` is, and nothing else."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    _write(node, folder)


def _write(node: Node, folder: Path) -> None:
    for name, child in (node.entries or {}).items():
        path = folder / name
        if isinstance(child, Sectors):
            path.write_bytes(child.shadow.written)
        else:
            path.mkdir()
            _write(child, path)


def keep_identity(node: Node, folder: Path, file: str, told_in: str) -> None:
    """A JSON file that names the identity of ``file`` goes on to name it, if it still would."""
    entry = (node.entries or {}).get(file)
    note = folder / told_in
    if not isinstance(entry, Sectors) or entry.identity is None or not note.is_file():
        return
    try:
        told = json.loads(note.read_bytes())
    except ValueError:
        return
    if tuple(told["identity"]) == entry.identity:
        found = (folder / file).stat()
        times = found.st_mtime_ns, found.st_ctime_ns
        told["identity"] = [found.st_dev, found.st_ino, found.st_size, *times]
        note.write_bytes(json.dumps(told).encode())


def differs(node: Node, folder: Path) -> list[str]:
    """Names below ``folder`` that are not as ``node`` has them; SQLite's shared memory apart."""
    entries = node.entries or {}
    wrong = [str(folder / n) for n in {*entries} ^ {path.name for path in folder.iterdir()}]
    for name, child in entries.items():
        path = folder / name
        if isinstance(child, Sectors):
            mapped = name.endswith("-shm")
            if not mapped and path.is_file() and path.read_bytes() != child.shadow.written:
                wrong.append(str(path))
        elif path.is_dir():
            wrong += differs(child, path)
    return wrong


def _copied(node: Node) -> Node:
    if isinstance(node, Sectors):
        return Sectors.of(bytes(node.shadow.written))
    return Node({name: _copied(child) for name, child in (node.entries or {}).items()})

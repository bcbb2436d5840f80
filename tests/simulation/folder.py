"""A folder of the simulated world, in which files come, grow, change, move, are copied and go.

It is read by the real source of files: what is played is the operating system alone, its names,
inodes, sizes, times and bytes. Each content that ever lay there is kept by its hash, as the
catalog's ledger names it, and its rows have numbers of their own.
"""

from __future__ import annotations

import hashlib
import io
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import msgspec

from catalog.records import ErrorClass
from reconciler.config.desired import Mode
from reconciler.connectors.ports import ConnectorError
from reconciler.connectors.sources.file_set import Found
from reconciler.connectors.sources.files import Files
from tests.simulation.source import Process, Row, Table, value

_MANY = 10
"""So many files are enough to see what may befall them, and cheap to read."""
_CUT = 3
"""So many bytes are not there yet while a file is being written: its last line does not end."""


@dataclass(slots=True, eq=False)
class File:
    """Its bytes and rows, and what ``stat`` says of it, by the names that ``stat`` has for it."""

    st_ino: int
    st_mtime_ns: int
    st_ctime_ns: int
    data: bytes = b""
    rows: tuple[Row, ...] = ()
    hash: str = ""
    """Of its bytes, as the ledger has it; empty while it is being written."""

    @property
    def st_size(self) -> int:
        return len(self.data)


@dataclass(slots=True, eq=False)
class Folder(Table):
    """The files of one stream. ``opened``: those that are being written, by number."""

    mode: Mode = Mode.APPEND
    now_ns: Callable[[], int] = lambda: 0
    files: dict[str, File] = field(default_factory=dict)
    contents: dict[str, tuple[Row, ...]] = field(default_factory=dict)
    """Whatever whole file ever lay there: its rows, by the hash of its bytes."""
    of: dict[int, set[int]] = field(default_factory=dict)
    """By id: all versions of its row, the newest the highest."""
    _growing: dict[int, tuple[str, tuple[Row, ...]]] = field(default_factory=dict)
    _inodes: int = 0
    _now: int = 0

    def write(self, path: str, rows: Sequence[Row], *, anew: bool = False) -> None:
        """A file of these rows, in place of what lies there; ``anew``: moved into its place."""
        file = self._file(path, anew=anew)
        file.data, file.rows = self._lines(rows), tuple(rows)
        file.hash = hashlib.blake2b(file.data, digest_size=32).hexdigest()
        self.contents[file.hash] = file.rows
        for row in rows:
            self.of.setdefault(row.id, set()).add(row.v)

    def begin(self, number: int, path: str, rows: Sequence[Row]) -> None:
        """As ``write``, but the end of the file comes with ``commit``."""
        file = self._file(path, anew=True)
        file.data = self._lines(rows)[:-_CUT]
        self.opened[number] = 0
        self._growing[number] = path, tuple(rows)

    def commit(self, transaction: int, rows: Sequence[Row]) -> None:
        """Write the end of a file."""
        del self.opened[transaction]
        self.write(*self._growing.pop(transaction))

    def move(self, path: str, to: str) -> None:
        file = self.files[to] = self.files.pop(path)
        file.st_ctime_ns = self._tick()

    def copy(self, path: str, to: str) -> None:
        file = self.files[path]
        copy = self._file(to, anew=True)
        copy.data, copy.rows, copy.hash = file.data, file.rows, file.hash

    def touch(self, path: str) -> None:
        self._file(path)

    def is_newest(self, path: str) -> bool:
        """No file that came later has a row of this one, so that it may be read after them all."""
        rows = self.files[path].rows
        return self.mode is not Mode.MERGE or all(max(self.of[row.id]) == row.v for row in rows)

    def _file(self, path: str, *, anew: bool = False) -> File:
        now = self._tick()
        file = self.files.get(path)
        if file is None or anew:
            self._inodes += 1
            file = self.files[path] = File(self._inodes, now, now)
        file.st_mtime_ns = file.st_ctime_ns = now
        return file

    def _tick(self) -> int:
        """No two things are done at once, so that what is newer is newer by its time."""
        self._now = max(self.now_ns(), self._now + 1)
        return self._now

    def _lines(self, rows: Sequence[Row]) -> bytes:
        lines = []
        for row in rows:
            line: dict[str, Any] = {"id": row.id, "v": row.v, "val": value(row, self.text)}
            lines.append(line | {"extra": row.v} if self.extra else line)
        return b"".join(msgspec.json.encode(line) + b"\n" for line in lines)


class _Opened(io.BytesIO):
    """An open file: its bytes as they were then, and ``fstat`` as it is by now."""

    def __init__(self, file: File) -> None:
        super().__init__(file.data)
        self._file = file

    def fileno(self) -> Any:
        return self._file


class OperatingSystem:
    """The module ``os`` as the source of files sees it."""

    @staticmethod
    def fstat(number: Any) -> File:
        return cast(File, number)


class _Path:
    """The path of one file."""

    def __init__(self, folder: Folder, path: str, process: Process) -> None:
        self._folder, self._path, self._process = folder, path, process

    def open(self, mode: str, buffering: int = -1) -> _Opened:
        if buffering == 0:  # to read it, and not to look at it alone
            self._process.step("source.rows")
        return _Opened(self.stat())

    def stat(self) -> File:
        if self._path not in self._folder.files:
            raise FileNotFoundError(self._path)
        return self._folder.files[self._path]


class Inbox:
    """The path of the folder that has a folder for each stream, as one worker sees it."""

    def __init__(
        self, folders: Mapping[str, Table], process: Process, is_down: Callable[[], bool]
    ) -> None:
        self._folders, self._process, self._is_down = folders, process, is_down

    def __str__(self) -> str:
        return "inbox"

    def source(self) -> Files:
        """The real source of files, in this folder."""
        return Files("inbox", cast(Path, self))

    def listing(self, pattern: str) -> list[Found]:
        """What ``file_set.listing`` finds."""
        self._process.step("source.read")
        if self._is_down():
            raise ConnectorError(ErrorClass.TRANSIENT, "the folder is not mounted")
        folder = cast(Folder, self._folders[pattern.partition("/")[0]])
        found = []
        for path, file in folder.files.items():
            full = cast(Path, _Path(folder, path, self._process))
            times = file.st_mtime_ns, file.st_ctime_ns
            found.append(Found(path, full, file.st_ino, file.st_size, *times))
        return sorted(found, key=lambda f: (f.mtime_ns, f.path))


def listing(root: Any, pattern: str, where: str) -> list[Found]:
    """In place of ``file_set.listing``."""
    return cast(Inbox, root).listing(pattern)


class Clerk:
    """Who works in the folders, a deed at a time."""

    def __init__(self, chance: random.Random, number: Callable[[], int]) -> None:
        self._chance, self._number = chance, number

    def deed(self, folder: Folder) -> None:
        """Files come; now and then something befalls one that is there."""
        deeds = (
            *(self._grow, self._change, self._copy, self._copy),
            *(self._move, self._move, self._move, self._touch, self._touch),
        )
        paths = [path for path, file in folder.files.items() if file.rows]
        if len(paths) < 2 or (len(paths) < _MANY and self._chance.random() < 0.6):
            for _ in range(self._chance.choice((1, 1, 1, 2, 4))):
                folder.write(self._name(folder), self._rows(folder))
        elif self._chance.random() < 0.25:
            del folder.files[self._chance.choice(paths)]
        else:
            path = self._chance.choice(paths)
            self._chance.choice(deeds if folder.is_newest(path) else deeds[:2])(folder, path)

    def begin(self, folder: Folder, number: int) -> None:
        """A file is begun; its end comes later, when others may have newer rows by known ids."""
        folder.begin(number, self._name(folder), self._rows(folder, known=0.0))

    def plain(self, folder: Folder) -> None:
        """A file whose rows fit whatever they are to fit."""
        folder.text = False
        folder.write(self._name(folder), self._rows(folder))

    def _name(self, folder: Folder) -> str:
        return f"{folder.name}/{self._number()}"

    def _rows(self, folder: Folder, known: float = 0.3) -> list[Row]:
        rows = {}
        for _ in range(self._chance.choice((1, 2, 5))):
            ids = tuple(folder.of) if folder.mode is Mode.MERGE else ()
            again = ids and self._chance.random() < known
            id_ = self._chance.choice(ids) if again else self._number()
            rows[id_] = Row(id_, 0, self._number())
        return list(rows.values())

    def _grow(self, folder: Folder, path: str) -> None:
        anew = self._chance.random() < 0.5
        folder.write(path, self._changed(folder, path) + self._rows(folder), anew=anew)

    def _change(self, folder: Folder, path: str) -> None:
        folder.write(path, self._changed(folder, path))

    def _changed(self, folder: Folder, path: str) -> list[Row]:
        return [Row(row.id, 0, self._number()) for row in folder.files[path].rows]

    def _move(self, folder: Folder, path: str) -> None:
        folder.move(path, self._name(folder))
        if self._chance.random() < 0.2:
            folder.write(path, self._rows(folder))

    def _copy(self, folder: Folder, path: str) -> None:
        folder.copy(path, self._name(folder))

    def _touch(self, folder: Folder, path: str) -> None:
        folder.touch(path)

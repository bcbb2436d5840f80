"""One DuckDB file: opened by one process at a time, for as short as can be (E2).

DuckDB lets nobody else in while a file is open for writing, and no writer in while anybody reads.
So it is opened to publish and, if it was changed behind our back, to look at its markers; who
holds it is waited for, then named. What a look found is kept in a small file beside the database
together with the database's identity on disk (device, inode, size, times), and holds for as long
as that identity does.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import duckdb
import msgspec
import pyarrow as pa

from catalog.records import ErrorClass
from reconciler.connectors.destinations.duckdb_undo import Undo
from reconciler.connectors.destinations.files import Files, make_dirs, remove_tree, write_atomic
from reconciler.connectors.destinations.staging import ENDING
from reconciler.connectors.killpoints import point
from reconciler.connectors.ports import ConnectorError, Marker

Connection: TypeAlias = duckdb.DuckDBPyConnection
Settings: TypeAlias = dict[str, str | bool | int | float | list[str]]
MEMORY_LIMITS = ("256MB", "1GB", "4GB")
"""Tried in turn: the first is enough for all but rows of megabytes, and keeps a worker small."""
THREADS = 2
LONG_LOG = "16MB"
"""DuckDB's log is brought into the file when it is so long."""
NEVER = "1TB"
_POLL = 0.05
_HELD_BY = re.compile(r"held in (.*?) \(PID (\d+)\)")


class OutOfMemory(ConnectorError):
    """DuckDB came to its limit; with a higher one it may do."""


@dataclass(frozen=True, slots=True)
class Look:
    """What was in one schema of the database when it was last looked at."""

    markers: dict[str, Marker] = field(default_factory=dict)
    """By folded table name."""
    tables: tuple[str, ...] = ()
    """Folded names of all tables and views."""


@dataclass(frozen=True, slots=True)
class Looked:
    """The looks that are true for as long as the database has this identity."""

    identity: tuple[int, ...]
    schemas: dict[str, Look]


class DuckdbFile:
    """The file, the folder of ours beside it, and the lock that keeps publishers apart."""

    def __init__(self, files: Files, path: Path, wait: float) -> None:
        self.files = files
        self.path = path
        self.beside = path.with_name(f"{path.name}.reconciler")
        self._wait = wait
        self._undo = Undo(files, path, self._log, self.beside / "undo")

    @property
    def exists(self) -> bool:
        return self.files.size(self.path) is not None

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep every other process of ours from opening the file."""
        make_dirs(self.files, self.beside)
        with self.files.lock(self.beside / "lock", self._wait):
            yield

    @contextmanager
    def open(
        self, *, read_only: bool = False, memory: str = MEMORY_LIMITS[0]
    ) -> Iterator[Connection]:
        """Open the database, made if it is not there; wait for another that holds it. Only with the
        lock held.

        Raises ``ConnectorError``: transient and ``busy`` naming the holder, permanent for a file
        that DuckDB cannot read, and for what goes wrong inside the block by its kind.
        """
        if not read_only and not self.exists:
            self._make()
        remove_tree(self.files, self._spilled)  # by a process that was killed
        with self._undo.watching():
            connection = self._connect(memory, read_only=read_only)
            try:
                if not read_only:
                    connection.execute("PRAGMA disable_checkpoint_on_shutdown")
                yield connection
            except duckdb.Error as error:
                raise translated(error, self.path) from error
            finally:
                connection.close()

    def begin(self, connection: Connection) -> None:
        """Begin a transaction, whose end may make a checkpoint when DuckDB's log is long."""
        self._undo.keep(connection)
        connection.execute(f"SET checkpoint_threshold = '{LONG_LOG}'")
        connection.begin()

    def checkpoint(self, connection: Connection) -> None:
        """Bring what was committed from DuckDB's log into the file."""
        self._undo.keep(connection)
        connection.execute("CHECKPOINT")

    def _connect(self, memory: str, *, read_only: bool) -> Connection:
        settings: Settings = {
            "memory_limit": memory,
            "threads": THREADS,
            "temp_directory": str(self._spilled),
            "checkpoint_threshold": NEVER,  # none before what it overwrites is kept
        }
        # What staging has left in Arrow's pool would stand beside what DuckDB is about to take.
        pa.default_memory_pool().release_unused()
        until = time.monotonic() + self._wait
        while True:
            cause: Exception
            try:
                return self._connect_now(settings, read_only=read_only)
            except BlockingIOError as error:
                failure, cause = _busy(self.path, "another process"), error
            except duckdb.Error as error:
                failure, cause = translated(error, self.path), error
            if not failure.busy or time.monotonic() >= until:
                raise failure from cause
            time.sleep(_POLL)

    def _connect_now(self, settings: Settings, *, read_only: bool) -> Connection:
        """What was cut short is undone first. Raises ``BlockingIOError``, ``duckdb.Error``."""
        self._undo.put_back()
        try:
            return duckdb.connect(str(self.path), read_only=read_only, config=settings)
        except duckdb.Error as error:
            if "Corrupt WAL file" not in str(error) or not self._undo.cut_log():
                raise
        return duckdb.connect(str(self.path), read_only=read_only, config=settings)

    def _make(self) -> None:
        """Make an empty database elsewhere and move it in: no half of one is ever found here."""
        make_dirs(self.files, self.beside)
        fresh = self.beside / f"new{ENDING}"
        self.files.unlink(fresh)
        duckdb.connect(str(fresh)).close()
        self.files.sync_file(fresh)
        point("duckdb.make.made")
        if self.files.size(self._log) is not None:  # of one that is gone: DuckDB refuses it here
            self.files.unlink(self._log)
            self.files.sync_dir(self.path.parent)
        self.files.rename(fresh, self.path)
        self.files.sync_dir(self.path.parent)

    def sync(self) -> None:
        """Make what was written durable: the file, its log if one is left, and their names."""
        self.files.sync_file(self.path)
        log = self._log
        if self.files.size(log) is not None:
            self.files.sync_file(log)
        self.files.sync_dir(self.path.parent)
        self._undo.drop()

    @property
    def _log(self) -> Path:
        return self.path.with_name(self.path.name + ".wal")

    @property
    def _spilled(self) -> Path:
        return self.beside / "tmp"

    # -- what is known without opening it ------------------------------------------------------

    def identity(self) -> tuple[int, ...]:
        """Of the database and its log, as they lie on disk. Empty: there is no database."""
        main = self.files.identity(self.path)
        return (*main, *(self.files.identity(self._log) or ())) if main else ()

    def known(self) -> Mapping[str, Look]:
        """What was seen by those who last looked, if the file is as they left it."""
        try:
            looked = msgspec.json.decode(self.files.read(self._looked), type=Looked)
        except (FileNotFoundError, msgspec.MsgspecError):
            return {}
        return looked.schemas if looked.identity == self.identity() else {}

    def remember(self, schemas: dict[str, Look]) -> None:
        """Keep a look for the next run. Only with the lock held and the file closed."""
        body = msgspec.json.encode(Looked(self.identity(), schemas))
        write_atomic(self.files, self._looked, body)

    @property
    def _looked(self) -> Path:
        return self.beside / "markers.json"


def _busy(path: Path, who: str) -> ConnectorError:
    return ConnectorError(
        ErrorClass.TRANSIENT,
        f"{path} is open in {who}, and DuckDB lets nobody else in meanwhile; sealed batches "
        "wait until it is closed",
        busy=True,
    )


def translated(error: duckdb.Error, path: Path) -> ConnectorError:
    """What DuckDB's error means for what happens next."""
    text = " ".join(str(error).split())
    if "Could not set lock" in text:
        held = _HELD_BY.search(text)
        who = f"process {held[2]} ({held[1]})" if held else "another process"
        return _busy(path, who)
    if "not a valid DuckDB database" in text:
        return ConnectorError(
            ErrorClass.PERMANENT, f"{path} is not a DuckDB database; name another `path`"
        )
    if text.endswith(("depends on it!", "depend on it.")):
        hint = "; drop the index that somebody made for the table, and make it anew after a run"
        return ConnectorError(ErrorClass.SCHEMA_INCOMPATIBLE, f"{path}: {text}{hint}")
    if isinstance(error, duckdb.OutOfMemoryException) or "failed to pin block" in text:
        return OutOfMemory(ErrorClass.TRANSIENT, f"{path}: {text}")
    disk = "; look at the disk: room, and its health"
    if "WAL does not match" in text:
        disk = "; the log beside it is another database's: put its own back, or move this one away"
    kinds: tuple[tuple[Any, ErrorClass, str], ...] = (
        (duckdb.ConversionException, ErrorClass.SCHEMA_INCOMPATIBLE, ""),
        (duckdb.IntegrityError, ErrorClass.SCHEMA_INCOMPATIBLE, "; drop it from the table"),
        (duckdb.IOException, ErrorClass.TRANSIENT, disk),
        (duckdb.ProgrammingError, ErrorClass.PERMANENT, ""),
        (duckdb.NotSupportedError, ErrorClass.PERMANENT, ""),
    )
    for kind, meaning, hint in kinds:
        if isinstance(error, kind):
            return ConnectorError(meaning, f"{path}: {text}{hint}")
    return ConnectorError(ErrorClass.TRANSIENT, f"{path}: {text}")

"""One ADBC connection, warm between runs, whose failures are classed and name no secret."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Generator, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
from adbc_driver_manager import Error as AdbcError

from catalog.records import ErrorClass
from reconciler.config.hiding import Hiding
from reconciler.connectors.ports import ConnectorError

_STATE = re.compile(r"SQLSTATE:? ([0-9A-Z]{5})")
_QUERY_WAS = re.compile(r"(\n*Query was|\nquery):.*", re.DOTALL)
_DRIVER = re.compile(r"^[A-Z_ ]+: \[libpq\] (Failed to connect: )?")
_IS_IT_UP = re.compile(r"\s+Is the server running")
_LINE = re.compile(r"\nLINE \d+:.*", re.DOTALL)
_URL_PASSWORD = re.compile(r"(://[^:@/\s]*):[^@/\s]*@")
_AUTH = (
    "password authentication failed",
    "no password supplied",
    "authentication failed",
    "pg_hba.conf",
    "role ",
)
_FULL = ("too many connections", "too many clients", "connection slots are reserved")
"""Some of these name a role."""
_PERMANENT_CONNECT = ("invalid connection option", "invalid URI", "invalid port")
"""No database of that name is none of these: it may just be restored or made anew."""
_PERMANENT_SQLITE = (
    "no such table",
    "no such column",
    "no such module",
    "syntax error",
    "file is not a database",
    "malformed",
    "has no column",
    "readonly database",
    "Type mismatch",
)

_DAMAGED = ("malformed", "file is not a database")


class Database(Protocol):
    """Where a session connects to."""

    def connect(self) -> Any:
        """A new ADBC connection."""

    def is_current(self, connection: Any, age: float, idle: float) -> bool:
        """Whether one that is ``age`` seconds old, and was left idle for ``idle`` of them, still
        leads there. May raise as a statement does, which means no."""


class Session:
    """Runs statements one after another. Opens at first use and again once it is broken.

    Every failure is a ``ConnectorError`` that starts with ``name`` (of the connection).
    """

    def __init__(
        self, name: str, database: Database, secrets: tuple[str, ...], file: str = ""
    ) -> None:
        """``file``: the database, where it is one; named when it is damaged."""
        self.name = name
        self._file = file
        self._database = database
        self._hiding = Hiding(secrets)
        self._connection: Any = None
        self._cursor: Any = None
        self._connected_at = 0.0
        self._idle_since: float | None = None
        self.opened = 0
        """How often it connected: what a caller remembers of one connection ends with it."""

    def ensure(self) -> None:
        """Connect unless it is connected.

        A connection that was left idle may have ended since: the server was restarted, a gateway
        forgot it, the file was replaced. No run has to fail to find that out.
        """
        if self._idle_since is not None:
            idle, self._idle_since = time.monotonic() - self._idle_since, None
            if not self._is_current(idle):
                self.close()
        if self._connection is None:
            with self._classed(connecting=True):
                self._connection = self._database.connect()
                self._cursor = self._connection.cursor()
            self._connected_at = time.monotonic()
            self.opened += 1

    def _is_current(self, idle: float) -> bool:
        age = time.monotonic() - self._connected_at
        try:
            return self._database.is_current(self._connection, age, idle)
        except (AdbcError, OSError):
            return False

    def rows(self, sql: str) -> list[tuple[Any, ...]]:
        """All rows of a small answer."""
        self.ensure()
        with self._classed():
            self._cursor.execute(sql)
            found: list[tuple[Any, ...]] = self._cursor.fetchall()
            return found

    def value(self, sql: str) -> Any:
        """The first value of the first row; None without one."""
        rows = self.rows(sql)
        return rows[0][0] if rows else None

    def run(self, sql: str) -> None:
        """A statement without an answer."""
        self.rows(sql)

    def schema(self, sql: str) -> pa.Schema:
        """What a statement would return; it is not run."""
        self.ensure()
        with self._classed():
            return self._cursor.adbc_execute_schema(sql)

    def batches(
        self, sql: str, options: Mapping[str, str]
    ) -> Generator[pa.RecordBatch, None, None]:
        """A large answer, streamed. Other statements wait until it is exhausted or closed."""
        self.ensure()
        with self._classed():
            cursor = self._connection.cursor()
            try:
                cursor.adbc_statement.set_options(**dict(options))
                cursor.execute(sql)
                reader = cursor.fetch_record_batch()
                try:
                    yield from reader
                finally:
                    reader.close()
            finally:
                cursor.close()

    def roll_back(self) -> None:
        """End the transaction, and keep the connection for the next read; a failure closes it."""
        if self._connection is None or self._idle_since is not None:
            return
        try:
            self.run("ROLLBACK")
        except ConnectorError:
            self.close()
        else:
            self.leave_idle()

    def leave_idle(self) -> None:
        """Where no transaction was begun: the next use looks first whether it still stands."""
        if self._connection is not None:
            self._idle_since = time.monotonic()

    def close(self) -> None:
        """Cursor first, then connection; never raises. Usable again afterwards."""
        cursor, connection = self._cursor, self._connection
        self._cursor = self._connection = self._idle_since = None
        for handle in (cursor, connection):
            if handle is not None:
                with contextlib.suppress(Exception):
                    handle.close()

    @contextlib.contextmanager
    def _classed(self, *, connecting: bool = False) -> Iterator[None]:
        try:
            yield
        except (AdbcError, OSError, pa.ArrowException, UnicodeDecodeError) as error:
            raise self._translate(error, connecting=connecting) from None

    def _translate(self, error: Exception, *, connecting: bool) -> ConnectorError:
        if isinstance(error, UnicodeDecodeError):
            return ConnectorError(
                ErrorClass.PERMANENT,
                f"connection {self.name!r}: a name or a cursor value is no UTF-8 "
                f"({error.object[:40]!r}): mend it there",
            )
        text = str(error)
        state = getattr(error, "sqlstate", None) or ""
        found = _STATE.search(text)
        if not state and found:
            state = found[1]
        kind = _connect_class(text) if connecting else error_class(state, text)
        if self._is_cut_off(text):
            kind = ErrorClass.TRANSIENT
        if kind in (ErrorClass.TRANSIENT, ErrorClass.AUTH_EXPIRED):
            self.close()
        return ConnectorError(kind, f"connection {self.name!r}: {self._clean(text)}")

    def _is_cut_off(self, text: str) -> bool:
        """SQLite reads no file before it is rolled back, and may not do that itself here."""
        journal = Path(f"{self._file}-journal")
        return bool(self._file) and "readonly database" in text and journal.exists()

    def _lacks_its_log(self, text: str) -> bool:
        """A file in WAL mode, as its head says, on a disk that takes no file beside it."""
        with contextlib.suppress(OSError), Path(self._file).open("rb") as file:
            return "unable to open database file" in text and file.read(20)[18:] == b"\2\2"
        return False

    def _clean(self, text: str) -> str:
        text = _DRIVER.sub("", _LINE.sub("", _QUERY_WAS.sub("", text)))
        text = _IS_IT_UP.sub("; is the server running", text)
        if "prepared statement does not exist" in text:
            text += (
                ": a pooler gives each statement another session: connect to the server itself, or "
                "have the pooler in session mode"
            )
        if "lock timeout" in text:
            text += ": another session has locked the table, as ALTER TABLE or LOCK TABLE does"
        text = self._hiding.redact(text)
        text = _URL_PASSWORD.sub(r"\1:***@", text)
        if self._is_cut_off(text):
            text = (
                f"a program was cut off while it wrote to {self._file}, and left a journal beside "
                "it: who opens the file next to write to it puts it right, as that program does "
                "itself, or sqlite3"
            )
        elif self._file and ("readonly database" in text or self._lacks_its_log(text)):
            text = (
                f"{self._file} is in WAL mode, and SQLite reads it only while another process has "
                "it open or where this user may write its folder: give that right, or keep it open"
            )
        elif self._file and any(words in text for words in _DAMAGED):
            text = f"{self._file} is damaged, or no SQLite database: {text}; restore it"
        return " ".join(text.split()).removesuffix(".")


def _connect_class(text: str) -> ErrorClass:
    fatal = text.partition("FATAL:")[2]
    if any(words in fatal for words in _FULL):
        return ErrorClass.TRANSIENT
    if any(word in fatal for word in _AUTH):
        return ErrorClass.AUTH_EXPIRED
    if any(word in text for word in _PERMANENT_CONNECT):
        return ErrorClass.PERMANENT
    return ErrorClass.TRANSIENT


def error_class(state: str, text: str) -> ErrorClass:
    """The class of a failed statement, by SQLSTATE, or by its words where there is none."""
    if state in ("28P01", "28000"):
        return ErrorClass.AUTH_EXPIRED
    # 26: the statement of a session that a pooler has given to another one.
    if state[:2] in ("08", "25", "26", "40", "53", "55", "57", "58", "72", "XX"):
        return ErrorClass.TRANSIENT
    if state:
        return ErrorClass.PERMANENT
    if any(words in text for words in _PERMANENT_SQLITE):
        return ErrorClass.PERMANENT
    return ErrorClass.TRANSIENT

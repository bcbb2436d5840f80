"""The source behind ``connector = "sql"``: PostgreSQL and SQLite, read as Arrow batches."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from catalog.records import ErrorClass
from reconciler.config.desired import Mode, StreamSettings, selected
from reconciler.connectors.ports import (
    ConnectorError,
    Finding,
    FoundStream,
    Read,
    ReadRequest,
    Secrets,
)
from reconciler.connectors.sources import postgres, sqlite
from reconciler.connectors.sources.relation import QUERY, Dialect, Relation, quote
from reconciler.connectors.sources.session import Session
from reconciler.connectors.sources.sql_plan import fitting, plan, told_apart
from reconciler.connectors.sources.sql_read import SqlRead
from reconciler.schema.model import Field, Schema

_CURSOR_NAMES = re.compile(
    r"(?i)(updated|modified|changed|last_update|mtime|inserted|created)(_?(at|on|time|date|ts))?$"
)
_CURSOR_TYPES = frozenset({"timestamp", "naive_timestamp", "int64", "int32"})


def open_sql(name: str, options: Mapping[str, Any], secrets: Secrets) -> SqlSource:
    """The source for a URL ``postgresql://…`` or ``sqlite:///path``.

    Raises ``ConnectorError`` (permanent) for any other; connects at first use.
    """
    url = str(options.get("url", ""))
    scheme = url.partition(":")[0]
    if scheme in ("postgresql", "postgres"):
        password = secrets.get("password")
        inside = unquote(urlsplit(url).password or "")
        session = Session(name, postgres.Server(url, password), (password or "", inside))
        return SqlSource(postgres.Postgres(session, url))
    if scheme == "sqlite":
        path = Path("/" + url.removeprefix("sqlite:").lstrip("/"))
        session = Session(name, sqlite.DatabaseFile(name, path), (), str(path))
        return SqlSource(sqlite.Sqlite(session, path))
    raise ConnectorError(
        ErrorClass.PERMANENT,
        f"connection {name!r}: url has the scheme {scheme!r}; "
        "allowed are postgresql://user@host/database and sqlite:///path",
    )


class SqlSource:
    """One database. Used by one thread; reads one stream at a time."""

    def __init__(self, dialect: Dialect) -> None:
        self._dialect = dialect

    def check(self, streams: Mapping[str, StreamSettings]) -> list[Finding]:
        """Connect, then look at each stream: its table, its key, its cursor and the index on it."""
        try:
            findings = self._dialect.check()
        except ConnectorError as error:
            return [Finding("problem", str(error))]
        for stream, settings in streams.items():
            try:
                findings += _check_stream(self._dialect, stream, settings)
            except ConnectorError as error:
                findings.append(Finding("problem", str(error)))
        return findings

    def discover(
        self, select: Sequence[str], named: Mapping[str, StreamSettings]
    ) -> list[FoundStream]:
        """Tables that match ``select``, and the tables, views and queries named."""
        names = dict.fromkeys((*self.streams(select), *named))
        try:
            return [
                self._found(name, named[name]) if name in named else self._selected(name)
                for name in names
            ]
        finally:
            self._dialect.session.leave_idle()

    def streams(self, select: Sequence[str]) -> list[str]:
        """The names of tables that match ``select``."""
        try:
            return [n for n in self._dialect.streams(views=False) if selected(n, select)]
        finally:  # no stream may be read after this, and the next look come in an hour
            self._dialect.session.leave_idle()

    def _selected(self, name: str) -> FoundStream:
        """One that cannot be read, as a virtual table whose module is missing, fails by itself."""
        try:
            return self._found(name, StreamSettings())
        except ConnectorError as error:
            if error.error is not ErrorClass.PERMANENT:
                raise
            return FoundStream(name, Schema((), ()))

    def _found(self, name: str, settings: StreamSettings) -> FoundStream:
        relation = self._dialect.relation(name, settings)
        candidates = sorted(
            (
                c
                for c in relation.columns
                if c.type in _CURSOR_TYPES or _CURSOR_NAMES.search(c.name)
            ),
            key=lambda c: (
                not (_CURSOR_NAMES.search(c.name) and "int" not in c.type),
                "int" in c.type,
                c.name not in relation.indexed,
                c.tag == "int" and c.name not in relation.key,
            ),
        )
        cursors = tuple(c.name for c in candidates if c.tag)
        schema = Schema(
            tuple(
                Field(c.name, _word(c.type, c.name, settings), c.nullable) for c in relation.columns
            ),
            settings.key or relation.key,
        )
        indexed = tuple(c for c in cursors if c in relation.indexed)
        return FoundStream(name, schema, cursors, indexed, relation.rows)

    def read(self, request: ReadRequest) -> Read:
        """Fix the bound, open the snapshot, and look whether there is anything (C1)."""
        try:
            return SqlRead(self._dialect, plan(self._dialect, request))
        except BaseException:
            self._dialect.end()
            raise

    def close(self) -> None:
        self._dialect.session.close()


def _index(stream: str, relation: Relation, column: str) -> str:
    """The statement, as both databases take it, that makes the index; none where it cannot."""
    if relation.identity == QUERY or not relation.indexable:
        return ""
    name = quote(f"{stream.rpartition('.')[2]}_{column}")
    # SQLite wants a name, and its schema before that one alone.
    return f"CREATE INDEX {name} ON {relation.source.removeprefix('main.')} ({quote(column)})"


def _word(native: str, name: str, settings: StreamSettings) -> str:
    return dict(settings.columns).get(name, native)


def _check_stream(dialect: Dialect, stream: str, settings: StreamSettings) -> list[Finding]:
    """Raises ``ConnectorError`` for what a run would fail with."""
    relation = dialect.relation(stream, settings)
    column, key = fitting(dialect, relation, settings)
    findings = []
    if settings.mode is Mode.MERGE and not key:
        findings.append(
            Finding(
                "problem",
                f"{stream}: the database declares no key to merge on",
                'set `key = ["column"]`, or mode = "append" or "replace"',
            )
        )
    level = "warning" if relation.key else "ok"
    findings += [Finding(level, f"{stream}: {note}") for note in told_apart(relation, settings)]
    if column is None:
        findings.append(Finding("ok", f"{stream}: the whole table is read each time"))
    elif column.name not in relation.indexed:
        findings.append(
            Finding(
                "warning",
                f"{stream}: no index leads with the cursor {column.name!r}: each run scans the "
                "table, and is one commit",
                _index(stream, relation, column.name),
            )
        )
    else:
        findings.append(Finding("ok", f"{stream}: cursor {column.name!r}, indexed"))
    if column is not None and settings.stamped_by == "application":
        findings.append(
            Finding(
                "ok",
                f"{stream}: the application stamps the rows: those that appear later than "
                "`settle` (10 s if not set) after their stamp are passed over",
            )
        )
    return findings

"""SQLite as a source: types by declaration, checked value by value, since SQLite keeps any."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import quote as url_quote

import pyarrow as pa
import pyarrow.compute as pc

from catalog.records import ErrorClass, Micros
from reconciler.config.desired import StreamSettings
from reconciler.connectors import arrow
from reconciler.connectors.arrow import Misfits
from reconciler.connectors.ports import ConnectorError, Finding
from reconciler.connectors.sources import moments, sqlite_bound
from reconciler.connectors.sources.nearest import no_such
from reconciler.connectors.sources.relation import (
    CURSOR,
    MISFIT,
    QUERY,
    Bound,
    Column,
    Query,
    Relation,
    Wanted,
    quote,
    quote_text,
)
from reconciler.connectors.sources.session import Session
from reconciler.connectors.sources.sqlite_columns import describe, driven, misfit

_BUSY_MS = 5_000
_BATCH_BYTES = 8 * 1024 * 1024


class DatabaseFile:
    """Where a session connects to, to read only."""

    def __init__(self, name: str, path: Path) -> None:
        self._name, self._path = name, path
        self._opened: tuple[int, ...] = ()

    def connect(self) -> Any:
        from adbc_driver_sqlite import dbapi

        if not self._path.is_file():
            raise ConnectorError(  # a mount may come back, a file that is made anew be there soon
                ErrorClass.TRANSIENT,
                f"connection {self._name!r}: there is no file {str(self._path)!r}; "
                "it is not made here",
            )
        self._opened = self._as_it_lies()
        connection = dbapi.connect(f"file:{url_quote(str(self._path))}?mode=ro", autocommit=True)
        with connection.cursor() as cursor:
            cursor.execute(f"PRAGMA busy_timeout = {_BUSY_MS}")
        return connection

    def is_current(self, connection: Any, age: float, idle: float) -> bool:  # noqa: ARG002 - no line
        """Not once it was written to. Where another file was moved into its place SQLite would go
        on to read the old one. Where another was copied over it SQLite trusts two counters in its
        head to tell, and those of a file that a script makes anew each night never change.
        """
        return self._opened == self._as_it_lies()

    def _as_it_lies(self) -> tuple[int, ...]:
        found = self._path.stat()
        times = (found.st_mtime_ns, found.st_ctime_ns)
        return (found.st_dev, found.st_ino, found.st_size, *times)


class Sqlite:
    """The dialect of SQLite."""

    def __init__(self, session: Session, path: Path) -> None:
        self.session = session
        self._path = path
        self._known: dict[tuple[str, str], Relation] = {}
        self._known_at: tuple[int, int] = (0, 0)
        self._form = ""
        """What every text of the cursor has to match; empty: any will do."""
        self._misdeclared: set[str] = set()
        """Tables with values that are not of their column's declared type."""

    def identity(self) -> str:
        return f"sqlite://{self._path.resolve()}"

    # -- what is there -------------------------------------------------------------------------

    def streams(self, *, views: bool) -> list[str]:
        kinds = "('table', 'view')" if views else "('table')"
        return [
            row[0]
            for row in self.session.rows(
                f"SELECT name FROM sqlite_schema WHERE type IN {kinds} "
                "AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\' ORDER BY 1"
            )
        ]

    def relation(self, stream: str, settings: StreamSettings) -> Relation:
        version = self.session.value("PRAGMA schema_version")
        state = (self.session.opened, version)
        if state != self._known_at:
            self._known, self._known_at = {}, state
        wanted = (stream, settings.query)
        if wanted not in self._known:
            self._known[wanted] = (
                self._query(settings.query) if settings.query else self._table(stream)
            )
        return self._known[wanted]

    def _query(self, query: str) -> Relation:
        text = query.strip().rstrip(";")
        view = quote("reconciler_query_" + str(len(self._known)))
        self.session.run(f"DROP VIEW IF EXISTS temp.{view}")
        self.session.run(f"CREATE TEMP VIEW {view} AS {text}")
        columns, _ = self._columns(f"temp.{view}", view, strict=False)
        return Relation(f"temp.{view}", QUERY, columns, misfit=misfit(columns))

    def _table(self, stream: str) -> Relation:
        found = self.session.rows(f"PRAGMA main.table_list({quote_text(stream)})")
        if not found:
            raise no_such("table", stream, self.streams(views=True), self.session.name)
        kind, without_rowid, strict = found[0][2], bool(found[0][4]), bool(found[0][5])
        columns, key = self._columns(f"main.{quote(stream)}", quote(stream), strict=strict)
        source = f"main.{quote(stream)}"
        leading, unique = self._indexes(stream)
        types = {c.name: c.type for c in columns}
        if kind == "table" and len(key) == 1 and types[key[0]] == "int64":
            leading.add(key[0])  # the rowid, or indexed in any case
        return Relation(
            source,
            stream,
            columns,
            key=key,
            unique=unique,
            indexed=frozenset(leading),
            indexable=kind == "table",
            rows=None if kind != "table" or without_rowid else self._about(source),
            misfit="" if strict else misfit(columns),
        )

    def _about(self, source: str) -> int | None:
        """How many rows there are about; None where a column of the table has taken the name."""
        found = self.session.value(f"SELECT max(rowid) FROM {source}") or 0
        return found if isinstance(found, int) else None

    def _columns(
        self, source: str, name: str, *, strict: bool
    ) -> tuple[tuple[Column, ...], tuple[str, ...]]:
        schema = "temp" if source.startswith("temp.") else "main"
        rows = [
            row for row in self.session.rows(f"PRAGMA {schema}.table_xinfo({name})") if row[6] != 1
        ]
        key = sorted((row[5], row[1]) for row in rows if row[5])
        columns = tuple(
            describe(row[1], row[2] or "", required=bool(row[3]), strict=strict) for row in rows
        )
        return columns, tuple(column for _, column in key)

    def _indexes(self, stream: str) -> tuple[set[str], tuple[frozenset[str], ...]]:
        """The columns that lead one, and those that a unique one is made of."""
        leading, unique = set(), []
        for index in self.session.rows(f"PRAGMA main.index_list({quote_text(stream)})"):
            if index[4]:  # partial
                continue
            parts = self.session.rows(f"PRAGMA main.index_xinfo({quote_text(index[1])})")
            if parts and parts[0][2] is not None and parts[0][4] == "BINARY":
                leading.add(parts[0][2])
            names = frozenset(part[2] for part in parts if part[5])
            if index[2] and None not in names:  # an expression has no name
                unique.append(names)
        return leading, tuple(unique)

    # -- reading -------------------------------------------------------------------------------

    def bound(self, wanted: Wanted) -> Bound:
        bound, self._form = sqlite_bound.find(self.session, wanted)
        return bound

    def begin(self) -> None:
        self.session.run("BEGIN")

    def is_as_seen(self, relation: Relation, where: str) -> bool:
        del relation, where
        return bool(self.session.value("PRAGMA schema_version") == self._known_at[1])

    def end(self) -> None:
        self.session.roll_back()

    def operand(self, column: Column) -> str:
        return sqlite_bound.operand(column)

    def closed(self, _column: Column) -> bool:
        return True

    def literal(self, column: Column, value: Any) -> str:
        if column.tag == "int":
            return str(int(value))
        # A statement ends at a NUL, be it within quotes.
        return f"CAST(x'{value.encode().hex()}' AS TEXT)" if "\0" in value else quote_text(value)

    def _options(self, relation: Relation) -> Mapping[str, str]:
        """The driver's batches are of so many rows, however wide: about 8 MiB of them."""
        lengths = [
            f"coalesce(length({quote(c.name)}), 0)"
            for c in relation.columns
            if c.type in ("text", "binary", "json")
        ]
        # In brackets of a hundred: SQLite takes no expression that is a thousand deep.
        sums = (" + ".join(lengths[i : i + 100]) for i in range(0, len(lengths), 100))
        widths = " + ".join(f"({each})" for each in sums)
        width = 0
        if widths:
            width = self.session.value(
                f"SELECT max(n) FROM (SELECT {widths} AS n FROM {relation.source} LIMIT 100)"
            )
        rows = _BATCH_BYTES // ((width or 0) + 8 * len(relation.columns))
        return {"adbc.sqlite.query.batch_rows": str(min(max(rows, 16), 16_384))}

    def batches(self, query: Query) -> Generator[tuple[pa.RecordBatch, Misfits], None, None]:
        """First as if each value were of its declared type, which is twice as fast.

        The driver says so when one is not. Then the statement is run again, in the same snapshot
        and order, with each value looked at, from the row that was next.
        """
        given = 0
        table = query.relation.source
        if table not in self._misdeclared:
            try:
                for batch in self._quick(query):
                    given += batch.num_rows
                    yield batch, {}
            except _NotAsDeclaredError:
                self._misdeclared.add(table)
            else:
                return
        for batch in self._rows(query, careful=True):
            rest = batch.slice(min(given, batch.num_rows))
            given -= batch.num_rows - rest.num_rows
            if rest.num_rows:
                yield rest, arrow.invalid(rest)

    def _quick(self, query: Query) -> Iterator[pa.RecordBatch]:
        expected = [driven(c.type)[1] for c in query.relation.columns]
        try:
            for batch in self._rows(query, careful=False):
                if batch.schema.types[: len(expected)] != expected or arrow.invalid(batch):
                    raise _NotAsDeclaredError
                yield batch
        except ConnectorError as error:
            if "Type mismatch" in str(error):
                raise _NotAsDeclaredError from None
            raise

    def _rows(self, query: Query, *, careful: bool) -> Iterator[pa.RecordBatch]:
        statement = _statement(query, careful=careful)
        skip = 1
        with closing(self.session.batches(statement, self._options(query.relation))) as batches:
            for batch in batches:
                rest = batch.slice(skip)
                skip = 0
                self._check_form(rest, query.column)
                yield rest

    def _check_form(self, batch: pa.RecordBatch, column: Column | None) -> None:
        index = batch.schema.get_field_index(CURSOR)
        if not self._form or index < 0 or column is None:
            return
        places = batch.column(index).drop_null()
        if len(places) == 0:
            return
        fits = places.type == pa.string() and pc.all(pc.match_substring_regex(places, self._form))
        if not (fits and fits.as_py()):
            raise sqlite_bound.mixed_forms(self.session, column.name)

    def behind(self, column: Column, value: Any, lookback: float) -> Any:
        if column.tag == "int":
            return value - int(lookback)
        instant = moments.micros(value)
        if instant is None:
            return value
        separator = value[10:11] or " "
        earlier = moments.iso(instant - round(lookback * moments.SECOND), separator)
        return earlier[: min(len(value), 19)]

    def data_at(self, column: Column, value: Any) -> Micros | None:
        if column.tag == "int" or not sqlite_bound.TIME_TEXT.fullmatch(value):
            return None
        return moments.micros(value)

    def check(self) -> list[Finding]:
        version = self.session.value("SELECT sqlite_version()")
        self.session.value("SELECT count(*) FROM sqlite_schema")
        return [Finding("ok", f"SQLite {version}, {self._path}")]


class _NotAsDeclaredError(Exception):
    """A value of another type than its column's."""


def _statement(query: Query, *, careful: bool) -> str:
    """The first row is of our own: the driver takes the types from it."""
    relation, column = query.relation, query.column
    selected = [f"{c.select if careful else c.plain} AS {quote(c.name)}" for c in relation.columns]
    first = [f"{driven(c.type)[0]} AS {quote(c.name)}" for c in relation.columns]
    if careful and relation.misfit:
        selected.append(f"{relation.misfit} AS {MISFIT}")
        first.append(f"'' AS {MISFIT}")
    if column is not None:
        selected.append(f"{quote(column.name)} AS {CURSOR}")
        first.append(f"NULL AS {CURSOR}")
    order = f" ORDER BY {CURSOR} COLLATE BINARY" if query.ordered else ""
    return (
        f"SELECT {', '.join(first)} UNION ALL "
        f"SELECT {', '.join(selected)} FROM {relation.source} {query.where}{order}"
    )

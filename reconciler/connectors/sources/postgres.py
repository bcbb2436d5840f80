"""PostgreSQL as a source: what its tables are, in which types they move, how a read is bounded."""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Generator
from contextlib import closing
from decimal import Decimal
from typing import Any
from urllib.parse import quote as url_quote
from urllib.parse import urlsplit, urlunsplit

import pyarrow as pa
import pyarrow.compute as pc

from catalog.records import Micros
from reconciler.config.desired import StreamSettings
from reconciler.connectors import arrow
from reconciler.connectors.arrow import Misfits
from reconciler.connectors.ports import Finding
from reconciler.connectors.sources import moments, postgres_bound
from reconciler.connectors.sources.nearest import no_such
from reconciler.connectors.sources.relation import (
    CURSOR,
    MISFIT,
    Bound,
    Column,
    Query,
    Relation,
    Wanted,
    quote,
    quote_text,
)
from reconciler.connectors.sources.session import Session
from reconciler.schema import types

_NATIVE = frozenset(
    {"bool", "int2", "int4", "int8", "float4", "float8", "text", "varchar", "bpchar", "name"}
    | {"char", "bytea", "date", "time", "timestamp", "timestamptz", "uuid", "json", "jsonb"}
)
_TAGS = {
    "int2": "int",
    "int4": "int",
    "int8": "int",
    "numeric": "decimal",
    "timestamptz": "timestamp",
    "timestamp": "naive_timestamp",
    "date": "date",
    "uuid": "uuid",
    "text": "text",
    "varchar": "text",
    "name": "text",
}
_MAX_IDLE = 60.0
"""Seconds. What lies between may drop a line that is idle for longer without a word, and who then
uses it would wait for minutes; to connect anew takes milliseconds."""
_MAX_AGE = 300.0
"""Seconds. The name may lead to another server by now, and settings of role or database hold for
new connections alone."""
_BATCHES = {"adbc.postgresql.batch_size_hint_bytes": str(8 * 1024 * 1024)}
_HIDDEN = "'pg_catalog', 'information_schema'"
_SHAPE = """
SELECT 'key' AS kind, a.attname::text, true AS usable, k.n
FROM pg_index i
CROSS JOIN LATERAL unnest(i.indkey::int2[]) WITH ORDINALITY AS k (attnum, n)
JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
WHERE i.indrelid = {oid} AND i.indisprimary
UNION ALL
SELECT 'index', a.attname::text,
       i.indcollation[0] = 0 OR co.collname IN ('C', 'POSIX')
       OR (co.collname = 'default' AND d.datcollate IN ('C', 'POSIX')), 0
FROM pg_index i
JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0]
JOIN pg_class c ON c.oid = i.indexrelid
JOIN pg_am am ON am.oid = c.relam AND am.amname = 'btree'
JOIN pg_database d ON d.datname = current_database()
LEFT JOIN pg_collation co ON co.oid = i.indcollation[0]
WHERE i.indrelid = {oid} AND i.indisvalid AND i.indpred IS NULL
UNION ALL
SELECT 'required', attname::text, true, 0
FROM pg_attribute WHERE attrelid = {oid} AND attnum > 0 AND attnotnull AND NOT attisdropped
ORDER BY 1, 4
"""
# ADBC moves Postgres' epoch to 1970 without looking: infinity, and what lies beyond the range of
# microseconds since 1970, wraps around to before any date that Postgres has.
_WRAPPED = {
    pa.int64(): (-211_813_488_000_000_000 - 1, 2**63 - 1, 946_684_800_000_000),
    pa.int32(): (-2_500_000, 2**31 - 1, 10_957),
}


class Server:
    """Where a session connects to. The password is in the driver's call and nowhere else."""

    def __init__(self, url: str, password: str | None) -> None:
        self._url, self._password = url, password

    def connect(self) -> Any:
        from adbc_driver_postgresql import dbapi

        connection = dbapi.connect(_with_password(self._url, self._password), autocommit=True)
        with connection.cursor() as cursor:
            for setting in (
                "TimeZone = 'UTC'",
                "standard_conforming_strings = on",
                "application_name = 'reconciler'",
            ):
                cursor.execute(f"SET {setting}")
        return connection

    def is_current(self, connection: Any, age: float, idle: float) -> bool:
        if idle > _MAX_IDLE or age > _MAX_AGE:
            return False
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
            cursor.fetchall()
        return True


def _with_password(url: str, password: str | None) -> str:
    if password is None:
        return url
    parts = urlsplit(url)
    user, _, host = parts.netloc.rpartition("@")
    user = user.partition(":")[0]
    return urlunsplit(parts._replace(netloc=f"{user}:{url_quote(password, safe='')}@{host}"))


class Postgres:
    """The dialect of PostgreSQL, 12 and later."""

    def __init__(self, session: Session, url: str) -> None:
        self.session = session
        parts = urlsplit(url)
        host = parts.hostname or "local"
        self._identity = f"postgresql://{host}:{parts.port or 5432}{parts.path}"
        self._nameless: set[str] = set()
        """Types that the driver does not know on a new connection either."""

    def identity(self) -> str:
        return self._identity

    # -- what is there -------------------------------------------------------------------------

    def streams(self, *, views: bool) -> list[str]:
        kinds = "'r', 'p', 'f'" + (", 'v', 'm'" if views else "")
        return [
            row[0]
            for row in self.session.rows(
                "SELECT n.nspname || '.' || c.relname FROM pg_class c "
                "JOIN pg_namespace n ON n.oid = c.relnamespace "
                f"WHERE c.relkind IN ({kinds}) AND NOT c.relispartition "
                f"AND n.nspname NOT IN ({_HIDDEN}) AND n.nspname !~ '^pg_(toast|temp)' "
                "AND has_schema_privilege(n.oid, 'USAGE') "
                "AND has_table_privilege(c.oid, 'SELECT') ORDER BY 1"
            )
        ]

    def relation(self, stream: str, settings: StreamSettings) -> Relation:
        if settings.query:
            source = f"({settings.query.strip().rstrip(';')}) AS reconciler_query"
            columns = self._columns(source, frozenset())
            return Relation(source, "the query", columns, misfit=_arrays(columns))
        found = self.session.rows(
            "SELECT c.oid::int8, n.nspname::text, c.relname::text, c.reltuples::int8 "
            "FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace "
            "WHERE c.relkind IN ('r', 'p', 'f', 'v', 'm') AND "
            f"(n.nspname || '.' || c.relname = {quote_text(stream)} "
            f"OR c.relname = {quote_text(stream)} AND pg_table_is_visible(c.oid))"
        )
        if not found:
            raise no_such("table", stream, self.streams(views=True), self.session.name)
        oid, schema, table, rows = found[0]
        shape = self.session.rows(_SHAPE.format(oid=oid))
        source = f"{quote(schema)}.{quote(table)}"
        columns = self._columns(
            source, frozenset(name for kind, name, _, _ in shape if kind == "required")
        )
        return Relation(
            source,
            f"{schema}.{table}",
            columns,
            key=tuple(name for kind, name, _, _ in shape if kind == "key"),
            indexed=self._indexed(columns, shape),
            rows=rows if rows >= 0 else None,
            misfit=_arrays(columns),
        )

    @staticmethod
    def _indexed(columns: tuple[Column, ...], shape: list[tuple[Any, ...]]) -> frozenset[str]:
        text = {c.name for c in columns if c.tag == "text"}
        return frozenset(
            name
            for kind, name, usable, _ in shape
            if kind == "index" and (usable or name not in text)
        )

    def _columns(self, source: str, required: frozenset[str]) -> tuple[Column, ...]:
        statement = f"SELECT * FROM {source}"
        schema = self.session.schema(statement)
        if not _nameless(schema) <= self._nameless:
            # The driver looks at the types once, when it connects; these were made since.
            self.session.close()
            schema = self.session.schema(statement)
            self._nameless |= _nameless(schema)
        return tuple(_column(field, field.name in required) for field in schema)

    # -- reading -------------------------------------------------------------------------------

    def bound(self, wanted: Wanted) -> Bound:
        return postgres_bound.find(self.session, self, wanted)

    def begin(self) -> None:
        self.session.run("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")

    def end(self) -> None:
        self.session.put_by()

    def operand(self, column: Column) -> str:
        collate = ' COLLATE "C"' if column.tag == "text" else ""
        return quote(column.name) + collate

    def literal(self, column: Column, value: Any) -> str:
        if column.tag == "timestamp":
            return f"'{moments.iso(value)}+00'::timestamptz"
        if column.tag == "naive_timestamp":
            return f"'{moments.iso(value)}'::timestamp"
        kind = {"int": "int8", "decimal": "numeric", "date": "date", "uuid": "uuid"}
        return f"{quote_text(str(value))}::{kind.get(column.tag, 'text')}"

    def closed(self, column: Column) -> bool:
        return column.tag not in postgres_bound.BY_CLOCK

    def batches(self, query: Query) -> Generator[tuple[pa.RecordBatch, Misfits], None, None]:
        with closing(self.session.batches(self._statement(query), _BATCHES)) as batches:
            for batch in batches:
                yield _unwrap(batch)

    def _statement(self, query: Query) -> str:
        relation, column = query.relation, query.column
        selected = [f"{c.select} AS {quote(c.name)}" for c in relation.columns]
        if column is not None and column.tag in ("text", "decimal"):
            selected.append(f"{quote(column.name)}::text AS {CURSOR}")
        if relation.misfit:
            selected.append(f"{relation.misfit} AS {MISFIT}")
        statement = f"SELECT {', '.join(selected)} FROM {relation.source} {query.where}"
        if column is None or not query.ordered:
            return statement
        return f"{statement} ORDER BY {self.operand(column)}"

    def behind(self, column: Column, value: Any, lookback: float) -> Any:
        match column.tag:
            case "timestamp" | "naive_timestamp":
                return value - round(lookback * moments.SECOND)
            case "date":
                return value - dt.timedelta(days=-(-lookback // 86_400))
            case "int":
                return value - int(lookback)
            case "decimal":
                return value - Decimal(str(lookback))
        return value

    def data_at(self, column: Column, value: Any) -> Micros | None:
        if column.tag in ("timestamp", "naive_timestamp"):
            return int(value)
        return moments.day_start(value) if column.tag == "date" else None

    def check(self) -> list[Finding]:
        version, user, replica, sees_others = self.session.rows(
            "SELECT current_setting('server_version'), current_user::text, pg_is_in_recovery(), "
            "pg_has_role('pg_read_all_stats', 'USAGE')"
        )[0]
        findings = [Finding("ok", f"PostgreSQL {version}, as {user}")]
        if replica:
            findings.append(
                Finding(
                    "warning",
                    "a replica does not show which transactions are open: rows that appear later "
                    f"than `settle` ({postgres_bound.SETTLE_BY_CLOCK_ALONE:g} s if not set) after "
                    "the time they are stamped with are passed over",
                    "read from the primary, or set a longer `settle`",
                )
            )
        elif not sees_others:
            findings.append(
                Finding(
                    "warning",
                    f"role {user!r} may not see when others' transactions began: a read by time "
                    "waits till those open at its start have ended, for at most `max_wait`",
                    f"GRANT pg_read_all_stats TO {quote(user)}",
                )
            )
        return findings


def parse_value(tag: str, text: str) -> Any:
    """The value of a position out of the database's own text for it."""
    match tag:
        case "int":
            return int(text)
        case "decimal":
            return Decimal(text)
        case "uuid":
            return uuid.UUID(text)
        case "date":
            return dt.date.fromisoformat(text)
    return text


def _nameless(schema: pa.Schema) -> set[str]:
    kinds = ((field.metadata or {}).get(b"POSTGRESQL:type", b"").decode() for field in schema)
    return {kind for kind in kinds if kind.startswith("unnamed<")}


def _column(field: pa.Field, required: bool) -> Column:  # noqa: FBT001 - one fact of a column
    metadata = {k.decode(): v.decode() for k, v in (field.metadata or {}).items()}
    kind = metadata.get("POSTGRESQL:type", "text")
    word, select, note = _mapped(field, kind, int(metadata.get("POSTGRESQL:typmod", "-1")))
    tag = _TAGS.get(kind, "")
    why_not = "" if tag else f"a {kind} has no order that a cursor could follow exactly"
    return Column(field.name, word, select, tag, why_not, not required, note)


def _mapped(field: pa.Field, kind: str, typmod: int) -> tuple[str, str, str]:
    """Canonical word, the expression to select, a note."""
    name = quote(field.name)
    if kind in _NATIVE:
        return arrow.type_word(arrow.canonical(field.type)), name, ""
    if kind == "numeric":
        word = _numeric(typmod)
        note = (
            ""
            if word != "text" or typmod >= 0
            else f"column {field.name!r} is numeric of any size and arrives as text; "
            'name a size in `columns`, such as "decimal(38,9)", to have a number'
        )
        return word, name, note
    if kind.startswith("_") and pa.types.is_list(field.type):
        inner = kind[1:]
        if inner in _NATIVE or inner == "numeric":
            return arrow.type_word(arrow.canonical(field.type)), name, ""
        return "list<text>", f"{name}::text[]", ""
    if kind == "oid":
        return "int64", f"{name}::int8", ""
    return "text", f"{name}::text", ""


def _numeric(typmod: int) -> str:
    if typmod < 0:
        return "text"
    precision = ((typmod - 4) >> 16) & 0xFFFF
    scale = (((typmod - 4) & 0x7FF) ^ 1024) - 1024
    if precision > types.MAX_PRECISION or not 0 <= scale <= precision:
        return "text"
    return f"decimal({precision},{scale})"


def _arrays(columns: tuple[Column, ...]) -> str:
    """A misfit for arrays of several dimensions, which the driver would flatten in silence."""
    cases = [
        f"WHEN array_ndims({quote(c.name)}) > 1 THEN "
        + quote_text(f"column {c.name!r} holds an array of more than one dimension")
        for c in columns
        if c.type.startswith("list<")
    ]
    return f"CASE {' '.join(cases)} END" if cases else ""


def _unwrap(batch: pa.RecordBatch) -> tuple[pa.RecordBatch, Misfits]:
    columns, misfits = batch.columns, Misfits()
    for i, field in enumerate(batch.schema):
        fixed, bad = _infinities(columns[i])
        columns[i] = fixed
        misfits.update({row: f"column {field.name!r}: {why}" for row, why in bad.items()})
    return pa.RecordBatch.from_arrays(columns, schema=batch.schema), misfits


def _infinities(array: pa.Array) -> tuple[pa.Array, Misfits]:
    """Infinity as the greatest value of the type, which is how DuckDB writes it too."""
    if pa.types.is_list(array.type) and pa.types.is_temporal(array.type.value_type):
        return _infinities_in_lists(array)
    if pa.types.is_timestamp(array.type):
        raw = array.view(pa.int64())
    elif pa.types.is_date32(array.type):
        raw = array.view(pa.int32())
    else:
        return array, {}
    lowest, greatest, shift = _WRAPPED[raw.type]
    least = pc.min(raw).as_py()
    if least is None or least > lowest:
        return array, {}
    values = raw.to_pylist()
    infinity, minus = -greatest - 2 + shift, -greatest - 1 + shift
    known = {infinity: greatest, minus: -greatest}
    fixed = pa.array([known.get(v, v) if v is not None else None for v in values], raw.type)
    misfits = {
        row: "a time beyond the year 294246 has no place in microseconds since 1970"
        for row, v in enumerate(values)
        if v is not None and v <= lowest and v not in known
    }
    return fixed.view(array.type), misfits


def _infinities_in_lists(array: pa.Array) -> tuple[pa.Array, Misfits]:
    flat = array.flatten()
    fixed, bad = _infinities(flat)
    if fixed is flat:
        return array, {}
    lengths = pc.fill_null(pc.list_value_length(array), 0)
    offsets = pa.concat_arrays([pa.array([0], pa.int32()), pc.cumulative_sum(lengths)])
    rebuilt = pa.ListArray.from_arrays(offsets, fixed, type=array.type, mask=array.is_null())
    bounds = offsets.to_pylist()
    rows = {p: next(i for i in range(len(array)) if bounds[i + 1] > p) for p in bad}
    return rebuilt, {rows[p]: why for p, why in bad.items()}

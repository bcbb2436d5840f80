"""PostgreSQL as a source: what its tables are, and how they are read."""

from __future__ import annotations

import datetime as dt
from collections.abc import Generator
from contextlib import closing
from decimal import Decimal
from typing import Any
from urllib.parse import parse_qsl, urlsplit, urlunsplit
from urllib.parse import quote as url_quote

import pyarrow as pa

from catalog.records import ErrorClass, Micros
from reconciler.config.desired import StreamSettings
from reconciler.connectors.arrow import Misfits
from reconciler.connectors.ports import ConnectorError, Finding
from reconciler.connectors.sources import moments, postgres_bound, postgres_columns
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

_MAX_IDLE = 60.0
"""Seconds. What lies between may drop a line that is idle for longer without a word, and who then
uses it would wait for minutes; to connect anew takes milliseconds."""
_MAX_AGE = 300.0
"""Seconds. The name may lead to another server by now, and settings of role or database hold for
new connections alone."""
_PATIENT = (
    "SELECT set_config('lock_timeout', '60s', false) WHERE current_setting('lock_timeout') = '0'"
)
"""So long a read waits for a table that is locked; then it fails alone, and the other streams come.
What the role has set stands."""
_QUOTED = (
    "the driver knows no type by its name where quote_all_identifiers is on: set it off for the "
    "role that reads (ALTER ROLE ... SET quote_all_identifiers = off)"
)
_WRITTEN = {
    "TimeZone": "UTC",
    "DateStyle": "ISO",
    "IntervalStyle": "postgres",
    "extra_float_digits": "1",
    "bytea_output": "hex",
}
"""What arrives as text is written so, whatever the database or the role prefers."""
_BATCHES = {"adbc.postgresql.batch_size_hint_bytes": str(8 * 1024 * 1024)}
_REWRITTEN = """
SELECT EXISTS (
  SELECT FROM pg_locks l
  JOIN pg_class c ON c.oid = l.relation
  WHERE l.locktype = 'relation' AND l.pid = pg_backend_pid()
    AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
    AND c.relkind = 'r' AND c.relfilenode <> 0  -- as of the mapped catalogs
    AND c.relfilenode IS DISTINCT FROM pg_relation_filenode(c.oid)
)
"""
"""Whether a table that we have locked was written anew after the snapshot, in which it has no rows
then: by TRUNCATE, and by each ALTER TABLE that rewrites. Catalogs are read in the snapshot, and the
function looks at what is true now."""
_HIDDEN = "'pg_catalog', 'information_schema'"
_SHAPE = """
SELECT CASE WHEN i.indisprimary THEN 'key' ELSE 'unique' END AS kind, a.attname::text,
       t.typname NOT IN ('citext', 'interval') AND (t.typname <> 'numeric' OR a.atttypmod >= 0)
       AND coalesce(co.collisdeterministic, true) AS usable, i.indexrelid::int8, k.n
FROM pg_index i
CROSS JOIN LATERAL unnest(i.indkey::int2[]) WITH ORDINALITY AS k (attnum, n)
JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
JOIN pg_type t ON t.oid = a.atttypid
LEFT JOIN pg_collation co ON co.oid = i.indcollation[k.n - 1]
WHERE i.indrelid = {oid} AND i.indisunique AND i.indisvalid AND k.n <= i.indnkeyatts
  AND i.indpred IS NULL AND i.indexprs IS NULL
  AND NOT EXISTS (SELECT FROM pg_inherits h JOIN pg_class p ON p.oid = h.inhparent
                  WHERE h.inhparent = {oid} AND p.relkind <> 'p')
UNION ALL
SELECT 'index', a.attname::text,
       i.indcollation[0] = 0 OR co.collname IN ('C', 'POSIX')
       OR (co.collname = 'default'
           AND CASE to_jsonb(d) ->> 'datlocprovider'  -- which 14 does not have
               WHEN 'i' THEN false WHEN 'b' THEN true ELSE d.datcollate IN ('C', 'POSIX') END), 0, 0
FROM pg_index i
JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0]
JOIN pg_class c ON c.oid = i.indexrelid
JOIN pg_am am ON am.oid = c.relam AND am.amname = 'btree'
JOIN pg_database d ON d.datname = current_database()
LEFT JOIN pg_collation co ON co.oid = i.indcollation[0]
WHERE i.indrelid = {oid} AND i.indisvalid AND i.indpred IS NULL
UNION ALL
SELECT 'required', attname::text, true, 0, 0
FROM pg_attribute WHERE attrelid = {oid} AND attnum > 0 AND attnotnull AND NOT attisdropped
ORDER BY 1, 4, 5
"""


def _set(settings: dict[str, str], *, local: bool = False, **more: str) -> str:
    """The statement that sets these for the session, or for its transaction alone."""
    calls = (
        f"set_config('{name}', {quote_text(value)}, {str(local).lower()})"
        for name, value in (settings | more).items()
    )
    return f"SELECT {', '.join(calls)}"


class Server:
    """Where a session connects to. The password is in the driver's call and nowhere else."""

    def __init__(self, url: str, password: str | None) -> None:
        self._url, self._password = url, password

    def connect(self) -> Any:
        from adbc_driver_postgresql import dbapi

        connection = dbapi.connect(_with_password(self._url, self._password), autocommit=True)
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1 WHERE current_setting('quote_all_identifiers') = 'on'")
            if cursor.fetchall():
                connection.close()
                raise ConnectorError(ErrorClass.PERMANENT, _QUOTED)
            cursor.execute("SET standard_conforming_strings = on")
            cursor.execute(_set(_WRITTEN, application_name="reconciler"))
            cursor.execute(_PATIENT)
            cursor.execute("SELECT getdatabaseencoding()::text")
            if cursor.fetchall() != [("SQL_ASCII",)]:  # whose texts are looked at one by one
                cursor.execute("SET client_encoding = 'UTF8'")
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


def _identity(url: str) -> str:
    """Where the database lives, and its name: what follows ``?`` goes before what stands before."""
    parts = urlsplit(url)
    said = dict(parse_qsl(parts.query))
    several = parts.netloc.rpartition("@")[2]
    host = said.get("host") or said.get("hostaddr")
    if "," in several:  # servers, each with its own port
        at = host or several
    else:
        at = f"{host or parts.hostname or 'local'}:{said.get('port') or parts.port or 5432}"
    path = "/" + url_quote(said["dbname"]) if "dbname" in said else parts.path
    service = f"?service={said['service']}" if "service" in said else ""
    return f"postgresql://{at}{path}{service}"


def _ambiguous(stream: str, tables: list[str]) -> ConnectorError:
    return ConnectorError(
        ErrorClass.PERMANENT,
        f"{stream!r} names {' and '.join(sorted(tables))}: read each by a `query` of its own",
    )


def _unseen(columns: tuple[Column, ...], *, secured: bool) -> tuple[str, ...]:
    notes = []
    if secured:
        notes.append(
            "row-level security decides which rows this role sees: what it shows later is passed "
            "over where the cursor is beyond it by then"
        )
    if not columns:
        notes.append("the table has no columns: its rows hold nothing, and none arrives")
    return tuple(notes)


def _two_writings(shape: list[tuple[Any, ...]], settings: StreamSettings) -> tuple[str, ...]:
    """Where the database takes for one key what is two at a destination: there it is compared as it
    arrives, and mostly as text."""
    sized = {name for name, _ in settings.columns}
    return tuple(
        f"key {name!r}: a row that comes with another writing of its key, which is the same to the "
        "database ('a' and 'A', 1.0 and 1.00), is another row, and the one before stays"
        for kind, name, usable, *_ in shape
        if kind == "key" and not usable and name not in sized and not settings.key
    )


class Postgres:
    """The dialect of PostgreSQL, 12 and later."""

    def __init__(self, session: Session, url: str) -> None:
        self.session = session
        self._identity = _identity(url)
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
            text = settings.query.strip().rstrip(";")
            source = f"({text}\n) AS reconciler_query"  # it may end with a comment
            columns = self._columns(source, frozenset())
            return Relation(source, QUERY, columns, misfit=postgres_columns.array_misfit(columns))
        found = self.session.rows(
            "SELECT c.oid::int8, n.nspname::text, c.relname::text, c.reltuples::int8, "
            "row_security_active(c.oid), c.relkind IN ('r', 'p', 'm'), "
            "c.oid || CASE c.relkind WHEN 'v' THEN ' ' || md5(pg_get_viewdef(c.oid)) ELSE '' END "
            "FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace "
            "WHERE c.relkind IN ('r', 'p', 'f', 'v', 'm') AND "
            f"(n.nspname || '.' || c.relname = {quote_text(stream)} "
            f"OR c.relname = {quote_text(stream)} AND pg_table_is_visible(c.oid))"
        )
        if not found:
            raise no_such("table", stream, self.streams(views=True), self.session.name)
        named = [row for row in found if f"{row[1]}.{row[2]}" == stream] or found
        if len(named) > 1:
            raise _ambiguous(stream, [f"{quote(row[1])}.{quote(row[2])}" for row in named])
        oid, schema, table, rows, secured, indexable, made = named[0]
        shape = self.session.rows(_SHAPE.format(oid=oid))
        source = f"{quote(schema)}.{quote(table)}"
        columns = self._columns(
            source, frozenset(name for kind, name, *_ in shape if kind == "required")
        )
        return Relation(
            source,
            f"{schema}.{table}",
            columns,
            key=tuple(name for kind, name, *_ in shape if kind == "key"),
            unique=self._unique(shape),
            indexed=self._indexed(columns, shape),
            indexable=indexable,
            rows=rows if rows >= 0 else None,
            made=made,
            notes=_unseen(columns, secured=secured) + _two_writings(shape, settings),
            misfit=postgres_columns.array_misfit(columns),
        )

    @staticmethod
    def _unique(shape: list[tuple[Any, ...]]) -> tuple[frozenset[str], ...]:
        found: dict[int, set[str]] = {}
        for kind, name, _, index, _ in shape:
            if kind == "unique":
                found.setdefault(index, set()).add(name)
        return tuple(map(frozenset, found.values()))

    @staticmethod
    def _indexed(columns: tuple[Column, ...], shape: list[tuple[Any, ...]]) -> frozenset[str]:
        text = {c.name for c in columns if c.tag == "text"}
        return frozenset(
            name
            for kind, name, usable, *_ in shape
            if kind == "index" and (usable or name not in text)
        )

    def _columns(self, source: str, required: frozenset[str]) -> tuple[Column, ...]:
        statement = f"SELECT * FROM {source}"
        schema = self.session.schema(statement)
        if not postgres_columns.nameless(schema) <= self._nameless:
            # The driver looks at the types once, when it connects; these were made since.
            self.session.close()
            schema = self.session.schema(statement)
            self._nameless |= postgres_columns.nameless(schema)
        return tuple(postgres_columns.column(field, field.name in required) for field in schema)

    # -- reading -------------------------------------------------------------------------------

    def bound(self, wanted: Wanted) -> Bound:
        return postgres_bound.find(self.session, wanted)

    def begin(self) -> None:
        self.session.run("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        # Within the transaction: a pooler in transaction mode may give it another session than the
        # one that was set up, and a name that outlives it to somebody who writes.
        self.session.run(_set(_WRITTEN, local=True, application_name=postgres_bound.READER))

    def is_as_seen(self, relation: Relation, where: str) -> bool:
        # To plan a statement locks each partition that it reads; what stood in the way has ended.
        self.session.run(f"SELECT 1 FROM {relation.source} {where} LIMIT 0")
        if self.session.value(_REWRITTEN):
            return False
        now = self.session.schema(f"SELECT * FROM {relation.source}")
        required = {c.name for c in relation.columns if not c.nullable}
        return relation.columns == tuple(
            postgres_columns.column(field, field.name in required) for field in now
        )

    def end(self) -> None:
        self.session.roll_back()

    def operand(self, column: Column) -> str:
        return postgres_columns.operand(column)

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
                yield postgres_columns.unwrap(batch)

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
        # By the table's column, and not by the text of its name that a number may be selected as.
        return f"{statement} ORDER BY {relation.source}.{self.operand(column)}"

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
            case "uuid" if postgres_columns.has_time(value):
                return postgres_columns.earlier(value, lookback)
        return value

    def data_at(self, column: Column, value: Any) -> Micros | None:
        if column.tag in ("timestamp", "naive_timestamp"):
            return int(value)
        return moments.day_start(value) if column.tag == "date" else None

    def check(self) -> list[Finding]:
        version, user, replica, sees_others, subscribes = self.session.rows(
            "SELECT current_setting('server_version'), current_user::text, pg_is_in_recovery(), "
            "pg_has_role('pg_read_all_stats', 'USAGE'), EXISTS (SELECT FROM pg_subscription_rel)"
        )[0]
        late = (
            f"rows that appear later than `settle` ({postgres_bound.SETTLE_BY_CLOCK_ALONE:g} s if "
            "not set) after the time they are stamped with are passed over"
        )
        findings = [Finding("ok", f"PostgreSQL {version}, as {user}")]
        if replica:
            findings.append(
                Finding(
                    "warning",
                    f"a replica does not show which transactions are open: {late}",
                    "read from the primary, or set a longer `settle`",
                )
            )
        elif subscribes:
            findings.append(
                Finding(
                    "warning",
                    f"this database takes rows from another one, which stamps them: {late}",
                    "read from that one, or set a longer `settle`",
                )
            )
        if not (replica or sees_others):
            findings.append(
                Finding(
                    "warning",
                    f"role {user!r} may not see when others' transactions began: a read by time "
                    "waits till those open at its start have ended, for at most `max_wait`",
                    f"GRANT pg_read_all_stats TO {quote(user)}",
                )
            )
        return findings

"""Tables and markers in an open DuckDB database: the statements of one publish (B4, B5, E2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from catalog.records import Cursor, ErrorClass
from reconciler.config.desired import Mode, fold
from reconciler.connectors.arrow import to_arrow
from reconciler.connectors.destinations.duckdb_file import Connection, Look
from reconciler.connectors.destinations.duckdb_types import (
    as_text,
    holds,
    is_float,
    quote_name,
    quote_text,
    sql_type,
)
from reconciler.connectors.destinations.rows import stored_schema
from reconciler.connectors.destinations.staging import REJECTED, rejected_schema
from reconciler.connectors.ports import ArrowSchema, ConnectorError, Marker, Owner, Receipt

MARKERS = "_reconciler_markers"


@dataclass(frozen=True, slots=True)
class MarkerRow:
    """One row of the marker table."""

    owner: Owner
    seq: int
    epoch: int
    cursor: Cursor | None
    schema_version: int
    has_rows: bool


class OpenSchema:
    """One schema of an open database."""

    def __init__(self, connection: Connection, schema: str) -> None:
        self._connection = connection
        self._schema = schema
        found = connection.execute("SELECT current_database()").fetchone()
        assert found is not None
        # The database is named too: a file raw.duckdb with a schema raw would be ambiguous.
        self._prefix = f"{quote_name(found[0])}.{quote_name(schema)}"

    def name(self, table: str) -> str:
        """The table's full name, quoted."""
        return f"{self._prefix}.{quote_name(table)}"

    def make(self) -> None:
        """The schema and its marker table, if they are not there."""
        self._connection.execute(f"CREATE SCHEMA IF NOT EXISTS {self._prefix}")
        self._connection.execute(
            f"CREATE TABLE IF NOT EXISTS {self.name(MARKERS)} (table_name VARCHAR, "
            "catalog VARCHAR, pipeline VARCHAR, stream VARCHAR, seq BIGINT, epoch BIGINT, "
            '"cursor" VARCHAR, schema_version BIGINT, has_rows BOOLEAN, '
            "moved_at TIMESTAMP WITH TIME ZONE)"
        )

    # -- looking -----------------------------------------------------------------------------

    def tables(self) -> tuple[str, ...]:
        """Folded names of tables and views."""
        rows = self._connection.execute(
            "SELECT table_schema, table_name FROM information_schema.tables "
            "WHERE table_catalog = current_database()"
        ).fetchall()
        # Not lower() of SQL, to which Ä is ä: to the names of tables and schemas they are two.
        return tuple(sorted(fold(t) for schema, t in rows if fold(schema) == fold(self._schema)))

    def has_rows(self, table: str) -> bool:
        sql = f"SELECT EXISTS (SELECT 1 FROM {self.name(table)})"
        found = self._connection.execute(sql).fetchone()
        return bool(found and found[0])

    def markers(self) -> dict[str, MarkerRow]:
        """All markers by folded table name."""
        rows = self._connection.execute(
            "SELECT table_name, catalog, pipeline, stream, seq, epoch, "
            f'"cursor", schema_version, has_rows FROM {self.name(MARKERS)}'
        ).fetchall()
        return {
            row[0]: MarkerRow(
                Owner(row[1], row[2], row[3]),
                row[4],
                row[5],
                None if row[6] is None else msgspec.json.decode(row[6], type=Cursor),
                row[7],
                row[8],
            )
            for row in rows
        }

    def look(self) -> Look:
        """Everything a run wants to know before it publishes."""
        tables = self.tables()
        rows = self.markers() if MARKERS in tables else {}
        return Look({table: self.seen(table, row, tables) for table, row in rows.items()}, tables)

    def seen(self, table: str, row: MarkerRow, tables: Sequence[str]) -> Marker:
        """The marker as its readers get it. Its seq is 0 where the rows that it speaks of are gone:
        a table emptied or dropped by another is to be noticed, not carried on (B4).
        """
        has_rows = table in tables and self.has_rows(table)
        emptied = row.has_rows and not has_rows
        return Marker(
            row.owner,
            0 if emptied else row.seq,
            None if emptied else row.cursor,
            row.schema_version,
            has_rows,
            0 if emptied else row.epoch,
        )

    # -- changing ----------------------------------------------------------------------------

    def set_marker(self, table: str, row: MarkerRow) -> None:
        cursor = None if row.cursor is None else msgspec.json.encode(row.cursor).decode()
        self._connection.execute(
            f"DELETE FROM {self.name(MARKERS)} WHERE table_name = ?", [fold(table)]
        )
        owner = row.owner
        self._connection.execute(
            f"INSERT INTO {self.name(MARKERS)} VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, now())",
            [fold(table), owner.catalog, owner.pipeline, owner.stream, row.seq, row.epoch,
             cursor, row.schema_version, row.has_rows],
        )  # fmt: skip

    def prepare(self, table: str, arrow: ArrowSchema, *, anew: bool = False) -> None:
        """Make the table, or add and widen its columns, as the receipt's schema wants (F)."""
        columns = {field.name: sql_type(field.type) for field in arrow}
        there = {} if anew else self._columns(table)
        if not there:
            body = ", ".join(f"{quote_name(name)} {kind}" for name, kind in columns.items())
            how = "CREATE OR REPLACE TABLE" if anew else "CREATE TABLE"
            self._connection.execute(f"{how} {self.name(table)} ({body})")
            return
        for name, kind in columns.items():
            have = there.get(fold(name))
            if have != kind and "VARCHAR" in (have, kind):  # a time becomes text, here or below
                self._connection.execute("SET TimeZone = 'UTC'")  # not this machine's
            if have is None:
                change = f"ADD COLUMN {quote_name(name)} {kind}"
            elif holds(have, kind):
                continue
            elif holds(kind, have) or kind == "VARCHAR":
                change = f"ALTER COLUMN {quote_name(name)} SET DATA TYPE {kind}"
                if kind == "VARCHAR":
                    change += f" USING {as_text(quote_name(name), have)}"
                elif is_float(kind):
                    self._refuse_rounding(table, name, have, kind)
            else:
                raise _no_common_type(table, name, have, kind)
            self._connection.execute(f"ALTER TABLE {self.name(table)} {change}")

    def _refuse_rounding(self, table: str, column: str, have: str, kind: str) -> None:
        """Raises ``ConnectorError`` where whole numbers that are there would be rounded."""
        if self._rounds(quote_name(column), have, kind, f"FROM {self.name(table)}"):
            raise ConnectorError(
                ErrorClass.SCHEMA_INCOMPATIBLE,
                f"column {column!r} of table {table!r} is {have} and holds numbers with more digits"
                f" than {kind}, which the batch brings, keeps. `refresh` the stream to set such "
                'rows aside, if need be after naming another type in `columns`, such as "text"',
            )

    def _refuse_rounded(self, table: str, arrow: ArrowSchema, rows: str) -> None:
        """Raises ``ConnectorError`` where whole numbers of the batch would be rounded: the table
        was taken over, and has floats for them."""
        there = self._columns(table)
        for i, field in enumerate(arrow):
            have, kind = there[fold(field.name)], sql_type(field.type)
            if is_float(have) and not is_float(kind) and self._rounds(f"c{i}", kind, have, rows):
                raise ConnectorError(
                    ErrorClass.SCHEMA_INCOMPATIBLE,
                    f"column {field.name!r} of table {table!r} is {have}, and the batch brings "
                    f"numbers with more digits than that keeps. `refresh` the stream to make the "
                    f"table anew, or make the column {kind}",
                )

    def _rounds(self, column: str, whole: str, floats: str, rows: str) -> bool:
        same = f"TRY_CAST(CAST({column} AS {floats}) AS {whole}) IS NOT DISTINCT FROM {column}"
        found = self._connection.execute(
            f"SELECT EXISTS (SELECT 1 {rows} WHERE NOT {same})"
        ).fetchone()
        return bool(found and found[0])

    def _columns(self, table: str) -> dict[str, str]:
        rows = self._connection.execute(
            "SELECT schema_name, table_name, column_name, data_type FROM duckdb_columns() WHERE "
            "database_name = current_database() AND lower(table_name) = lower(?)",
            [table],
        ).fetchall()
        wanted = fold(self._schema), fold(table)
        return {fold(name): kind for s, t, name, kind in rows if (fold(s), fold(t)) == wanted}

    def load(self, receipt: Receipt, paths: Sequence[Path]) -> None:
        """Bring the batch's rows into the table in the way of its mode."""
        arrow = stored_schema(to_arrow(receipt.schema))
        self.prepare(receipt.table, arrow, anew=receipt.mode is Mode.REPLACE)
        if not receipt.rows:
            return
        rows = _reading(paths)
        self._refuse_rounded(receipt.table, arrow, rows)
        if receipt.key:
            rows += self._make_way(receipt, arrow, paths)
        self._insert(receipt.table, arrow, rows)

    def _insert(self, table: str, arrow: ArrowSchema, rows: str) -> None:
        names = ", ".join(quote_name(name) for name in arrow.names)
        values = ", ".join(f"c{i}" for i in range(len(arrow.names)))
        self._connection.execute(f"INSERT INTO {self.name(table)} ({names}) SELECT {values} {rows}")

    def _make_way(self, receipt: Receipt, arrow: ArrowSchema, paths: Sequence[Path]) -> str:
        """Delete the rows that newer ones of the batch replace. Returns the clause that leaves
        the last row of each key, in order of arrival; empty: each key comes once.
        """
        run = self._connection.execute
        at = {name: f"c{arrow.names.index(name)}" for name in receipt.key}
        keys = ", ".join(at.values())
        run("DROP TABLE IF EXISTS temp.newest")
        run(
            f"CREATE TEMP TABLE newest AS SELECT {keys}, "
            "max(file_index::BIGINT << 40 | file_row_number) AS last "
            f"{_reading(paths)} GROUP BY ALL"
        )
        if self.has_rows(receipt.table):
            kinds = self._columns(receipt.table)  # the wider one: '01' is no other's 1
            same = " AND ".join(
                f"t.{quote_name(name)} = CAST(n.{c} AS {kinds[fold(name)]})"
                for name, c in at.items()
            )
            run(f"DELETE FROM {self.name(receipt.table)} t USING temp.newest n WHERE {same}")
        found = run("SELECT count(*) FROM temp.newest").fetchone()
        if found and found[0] == receipt.rows:
            return ""
        return (
            " WHERE (file_index::BIGINT << 40 | file_row_number) IN (SELECT last FROM temp.newest)"
        )

    def set_aside(self, receipt: Receipt, paths: Sequence[Path]) -> None:
        """Add the rows that the batch rejected to ``<table>__rejected`` (C6)."""
        arrow = rejected_schema(to_arrow(receipt.schema))
        table = f"{receipt.table}{REJECTED}"
        self.prepare(table, arrow)
        self._insert(table, arrow, _reading(paths))


def _reading(paths: Sequence[Path]) -> str:
    """FROM clause: the staged rows, in order of arrival, as columns c0, c1 …"""
    files = ", ".join(quote_text(str(path)) for path in paths)
    return f"FROM read_parquet([{files}])"


def _no_common_type(table: str, column: str, have: str, want: str) -> ConnectorError:
    return ConnectorError(
        ErrorClass.SCHEMA_INCOMPATIBLE,
        f"column {column!r} of table {table!r} is {have}, and the batch brings {want}: neither "
        "holds every value of the other. `refresh` the stream to make the table anew, or name "
        "one type in `columns`",
    )

"""Every type of the canonical schema comes back from both destinations as it went in."""

from __future__ import annotations

import datetime as dt
import math
import uuid
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest

from reconciler.config.desired import Mode
from reconciler.connectors.destinations.duckdb import DuckdbDestination
from reconciler.connectors.destinations.duckdb_file import DuckdbFile
from reconciler.connectors.destinations.parquet import ParquetDestination
from reconciler.connectors.ports import ConnectorError
from tests.destination_kit import OWNER, TABLE, load, request, view_rows

JSON = pa.json_(pa.string())
ID = uuid.UUID("12345678-1234-5678-1234-567812345678")
INSTANT = dt.datetime(2026, 3, 29, 1, 30, 0, 123456, tzinfo=dt.UTC)
# Arrow type, values, and the type DuckDB gives the column.
CASES: dict[str, tuple[pa.DataType, list[Any], str]] = {
    "bool": (pa.bool_(), [True, False], "BOOLEAN"),
    "int8": (pa.int8(), [-128, 127], "TINYINT"),
    "int64": (pa.int64(), [-(2**63), 2**63 - 1], "BIGINT"),
    "uint8": (pa.uint8(), [0, 255], "UTINYINT"),
    "uint64": (pa.uint64(), [0, 2**64 - 1], "UBIGINT"),
    "float32": (pa.float32(), [0.5, -math.inf], "FLOAT"),
    "float64": (pa.float64(), [math.inf, 1e308, -0.0], "DOUBLE"),
    "decimal": (pa.decimal128(18, 2), [Decimal("-1234567890123456.78")], "DECIMAL(18,2)"),
    "wide decimal": (pa.decimal128(38, 0), [Decimal("9" * 38)], "DECIMAL(38,0)"),
    "text": (pa.string(), ["", "ü 😀 'q' \"d\" \\ \n", "nul \0 inside"], "VARCHAR"),
    "long text": (pa.string(), ["x" * 1_000_000], "VARCHAR"),
    "binary": (pa.binary(), [b"", b"\x00\xff"], "BLOB"),
    "date": (pa.date32(), [dt.date(1, 1, 1), dt.date(9999, 12, 31)], "DATE"),
    "time": (pa.time64("us"), [dt.time(23, 59, 59, 999999)], "TIME"),
    "naive_timestamp": (pa.timestamp("us"), [INSTANT.replace(tzinfo=None)], "TIMESTAMP"),
    "timestamp": (pa.timestamp("us", "UTC"), [INSTANT], "TIMESTAMP WITH TIME ZONE"),
    "uuid": (pa.uuid(), [ID], "UUID"),
    "json": (JSON, ['{"a": [1, null]}', "null"], "JSON"),
    "list": (pa.list_(pa.int32()), [[1, None, 3], []], "INTEGER[]"),
    "list of text": (pa.list_(pa.string()), [["a", ""]], "VARCHAR[]"),
    "struct": (
        pa.struct([("a b", pa.int64()), ("t", pa.list_(pa.string()))]),
        [{"a b": 1, "t": ["x"]}],
        'STRUCT("a b" BIGINT, t VARCHAR[])',
    ),
}


def typed_rows(kind: pa.DataType, values: list[Any]) -> tuple[pa.Schema, list[dict[str, Any]]]:
    schema = pa.schema([("id", pa.int64()), ("v", kind)])
    stored = [v.bytes if isinstance(v, uuid.UUID) else v for v in [*values, None]]
    return schema, [{"id": i, "v": value} for i, value in enumerate(stored)]


def instant(value: Any) -> Any:
    return value.astimezone(dt.UTC) if isinstance(value, dt.datetime) and value.tzinfo else value


@pytest.mark.parametrize("name", CASES)
def test_a_type_survives_into_duckdb(tmp_path: Path, name: str) -> None:
    kind, values, sql = CASES[name]
    schema, rows = typed_rows(kind, values)
    path = tmp_path / "x.duckdb"
    load(DuckdbDestination(path), request(1, schema=schema, mode=Mode.MERGE, key=("id",)), rows)
    with duckdb.connect(str(path)) as connection:
        found = connection.execute("SELECT v, typeof(v) FROM orders ORDER BY id").fetchall()
    assert [instant(row[0]) for row in found] == [*values, None]
    assert {row[1] for row in found} == {sql}


@pytest.mark.parametrize("name", CASES)
def test_a_type_survives_into_parquet(tmp_path: Path, name: str) -> None:
    kind, values, sql = CASES[name]
    schema, rows = typed_rows(kind, values)
    load(ParquetDestination(tmp_path / "lake"), request(1, schema=schema), rows)
    with duckdb.connect() as connection:
        connection.execute((tmp_path / "lake" / TABLE / "_view.sql").read_text())
        found = connection.execute("SELECT v, typeof(v) FROM orders ORDER BY id").fetchall()
    assert [instant(row[0]) for row in found] == [*values, None]
    assert {row[1] for row in found} == {sql}


def test_nan_is_no_null(tmp_path: Path) -> None:
    schema, rows = typed_rows(pa.float64(), [math.nan])
    path = tmp_path / "x.duckdb"
    load(DuckdbDestination(path), request(1, schema=schema), rows)
    with duckdb.connect(str(path)) as connection:
        found = connection.execute("SELECT v, isnan(v) FROM orders ORDER BY id").fetchall()
    assert math.isnan(found[0][0])
    assert found[1] == (None, None)


WIDENINGS = [
    (pa.int8(), 7, pa.int64(), 2**40, "BIGINT"),
    (pa.uint32(), 7, pa.int64(), -1, "BIGINT"),
    (pa.int32(), 7, pa.float64(), 0.5, "DOUBLE"),
    (pa.float32(), 0.5, pa.float64(), 1e300, "DOUBLE"),
    (pa.int32(), 7, pa.decimal128(18, 2), Decimal("0.25"), "DECIMAL(18,2)"),
    (pa.decimal128(9, 2), Decimal("1.25"), pa.decimal128(18, 4), Decimal("0.0001"),
     "DECIMAL(18,4)"),
    (pa.int64(), 7, pa.string(), "x", "VARCHAR"),
    (pa.list_(pa.int32()), [7], pa.list_(pa.int64()), [2**40], "BIGINT[]"),
    (pa.list_(pa.null()), [None], pa.list_(pa.int64()), [7], "BIGINT[]"),
    (pa.struct([("a", pa.null())]), {"a": None}, pa.struct([("a", pa.int64())]), {"a": 7},
     "STRUCT(a BIGINT)"),
]  # fmt: skip


@pytest.mark.parametrize(("old", "first", "new", "second", "sql"), WIDENINGS)
@pytest.mark.parametrize("turned", [False, True])
def test_a_column_takes_the_wider_of_two_types_and_stays_so(
    tmp_path: Path, old: Any, first: Any, new: Any, second: Any, sql: str, *, turned: bool
) -> None:
    path = tmp_path / "x.duckdb"
    batches = [(old, first), (new, second)]
    destination = DuckdbDestination(path)
    for seq, (kind, value) in enumerate(reversed(batches) if turned else batches, start=1):
        schema, rows = typed_rows(kind, [value])
        load(destination, request(seq, schema=schema, version=seq), rows)
    with duckdb.connect(str(path)) as connection:
        found = connection.execute(
            "SELECT v, typeof(v) FROM orders WHERE v IS NOT NULL ORDER BY _batch_id"
        ).fetchall()
    wanted = [first if kind is old else second for kind, _ in batches]
    wanted = [str(v) if sql == "VARCHAR" else v for v in (reversed(wanted) if turned else wanted)]
    assert [row[0] for row in found] == wanted
    assert {row[1] for row in found} == {sql}


def test_a_struct_keeps_the_fields_that_a_later_batch_does_not_have(tmp_path: Path) -> None:
    destination = DuckdbDestination(tmp_path / "x.duckdb")
    kinds = [pa.struct([(name, pa.int64()) for name in names]) for names in ("ab", "a", "bca", "d")]
    for seq, kind in enumerate(kinds[:3], start=1):
        schema, rows = typed_rows(pa.list_(kind), [[{field.name: seq for field in kind}]])
        load(destination, request(seq, schema=schema, version=seq), rows[:1])
    with duckdb.connect(str(destination.path)) as connection:
        found = connection.execute("SELECT unnest(v, recursive := true) FROM orders").fetchall()
    assert set(found) == {(1, None, 1), (None, None, 2), (3, 3, 3)}
    schema, rows = typed_rows(pa.list_(kinds[3]), [[{"d": 4}]])
    with pytest.raises(ConnectorError, match="neither holds every value of the other"):
        load(destination, request(4, schema=schema, version=4), rows)


AS_TEXT = {
    "binary": ["", "\\x00\\xFF"],
    "list": ["[1,null,3]", "[]"],
    "list of text": ['["a",""]'],
    "struct": ['{"a b":1,"t":["x"]}'],
}


@pytest.mark.parametrize("name", CASES)
def test_a_column_of_any_type_becomes_text_with_its_rows(tmp_path: Path, name: str) -> None:
    kind, values, _ = CASES[name]
    schema, rows = typed_rows(kind, values)
    destinations = DuckdbDestination(tmp_path / "x.duckdb"), ParquetDestination(tmp_path / "lake")
    for destination in destinations:
        load(destination, request(1, schema=schema), rows)
        text, more = typed_rows(pa.string(), ["more"])
        load(destination, request(2, schema=text, version=2), more[:1])
    with duckdb.connect(str(tmp_path / "x.duckdb")) as connection:
        found = connection.execute("SELECT _batch_id, id, v FROM orders ORDER BY ALL").fetchall()
    assert found == view_rows(tmp_path / "lake" / TABLE, "_batch_id, id, v")
    *old, none, new = [row[2] for row in found]
    assert (none, new) == (None, "more")
    assert all(isinstance(value, str) for value in old)
    assert old == AS_TEXT.get(name, old)


@pytest.mark.parametrize("adopted", [False, True])
def test_a_time_that_becomes_text_is_in_no_zone_of_the_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, adopted: bool
) -> None:
    """``adopted``: a table that has text for it from the beginning."""
    connect = DuckdbFile._connect_now

    def in_new_york(self: DuckdbFile, *args: Any, **named: Any) -> duckdb.DuckDBPyConnection:
        connection = connect(self, *args, **named)
        connection.execute("SET TimeZone = 'America/New_York'")
        return connection

    monkeypatch.setattr(DuckdbFile, "_connect_now", in_new_york)
    destination = DuckdbDestination(tmp_path / "x.duckdb")
    noon = dt.datetime(2026, 1, 31, 12, tzinfo=dt.UTC)
    if adopted:
        with duckdb.connect(str(destination.path)) as connection:
            connection.execute(f"CREATE TABLE {TABLE} (v VARCHAR)")
        destination.adopt(OWNER, TABLE, 0, 1, None)
    schema, rows = typed_rows(pa.timestamp("us", "UTC"), [noon])
    load(destination, request(1, schema=schema), rows[:1])
    schema, rows = typed_rows(pa.string(), ["text"])
    load(destination, request(2, schema=schema, version=2), rows[:1])
    with duckdb.connect(str(destination.path)) as connection:
        found = connection.execute("SELECT v FROM orders ORDER BY ALL").fetchall()
    assert found == [("2026-01-31 12:00:00+00",), ("text",)]


def test_an_interval_is_refused_in_words(tmp_path: Path) -> None:
    schema = pa.schema([("v", pa.month_day_nano_interval())])
    for destination in (ParquetDestination(tmp_path / "l"), DuckdbDestination(tmp_path / "d")):
        with pytest.raises(ConnectorError, match="read it as text"):
            destination.stage(request(1, schema=schema))

"""The DuckDB destination through its port: B2-B8, E2, F."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import duckdb
import pyarrow as pa
import pytest

from catalog.records import ErrorClass, HoldKind
from reconciler.config.desired import Mode
from reconciler.connectors.destinations import duckdb as duckdb_module
from reconciler.connectors.destinations import duckdb_file
from reconciler.connectors.destinations import rows as staged_rows
from reconciler.connectors.destinations.duckdb import DuckdbDestination, open_duckdb
from reconciler.connectors.destinations.duckdb_file import DuckdbFile, OutOfMemory
from reconciler.connectors.destinations.duckdb_undo import HEADER
from reconciler.connectors.destinations.files import Files
from reconciler.connectors.ports import (
    ConnectorError,
    NeedsAnswer,
    Owner,
    Receipt,
    RejectedRow,
)
from tests.destination_kit import (
    OWNER,
    TABLE,
    batch,
    cursor,
    leftovers,
    load,
    orders,
    request,
    seal,
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "shop.duckdb"


@pytest.fixture
def destination(path: Path) -> DuckdbDestination:
    return open_duckdb({"path": str(path), "schema": "raw"})


OPENED = (
    "import duckdb, sys; c = duckdb.connect(sys.argv[1]); print('open', flush=True); "
    "sys.stdin.read()"
)


@contextmanager
def holder(path: Path, code: str = OPENED) -> Iterator[int]:
    """Another process that has the database open, or does to it what ``code`` says."""
    with subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdout.readline()
        yield process.pid
        process.stdin.close()


def rows(path: Path, columns: str = "id, name", table: str = "raw.orders") -> list[Any]:
    with duckdb.connect(str(path), read_only=True) as connection:
        found = connection.execute(f"SELECT {columns} FROM {table} ORDER BY ALL").fetchall()
    return [row[0] if len(row) == 1 else row for row in found]


def change(path: Path, *statements: str) -> None:
    with duckdb.connect(str(path)) as connection:
        for statement in statements:
            connection.execute(statement)


def test_batches_are_appended_in_order(destination: DuckdbDestination, path: Path) -> None:
    load(destination, request(1), orders(1, 2))
    load(destination, request(2), orders(2, 3))
    assert rows(path, "id") == [1, 2, 2, 3]
    assert leftovers(path.parent) == []
    assert destination.staged("cat-1", "shop") == []


def test_the_marker_moves_with_the_rows(destination: DuckdbDestination) -> None:
    assert destination.marker(TABLE) is None
    load(destination, request(1), orders(1))
    marker = destination.marker(TABLE)
    assert marker is not None
    assert (marker.owner, marker.seq, marker.cursor) == (OWNER, 1, cursor(1))
    assert (marker.schema_version, marker.has_rows) == (1, True)


def test_sealing_does_not_open_the_database(destination: DuckdbDestination, path: Path) -> None:
    seal(destination, request(1), orders(1))
    assert not path.exists()


def test_merge_keeps_the_last_row_of_each_key(destination: DuckdbDestination, path: Path) -> None:
    merge = {"mode": Mode.MERGE, "key": ("id",)}
    first = [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}, {"id": 1, "name": "c"}]
    load(destination, request(1, **merge), first)
    assert rows(path) == [(1, "c"), (2, "b")]
    second = [{"id": 2, "name": "d"}, {"id": 3, "name": "e"}, {"id": 2, "name": "f"}]
    load(destination, request(2, **merge), second)
    assert rows(path) == [(1, "c"), (2, "f"), (3, "e")]


def test_the_last_row_of_a_key_wins_across_the_files_of_a_batch(
    destination: DuckdbDestination, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(staged_rows, "GROUP_BYTES", 1)
    monkeypatch.setattr(staged_rows, "PART_BYTES", 1)
    wanted = request(1, mode=Mode.MERGE, key=("id",), table="Orders")
    stage = destination.stage(wanted)
    stage.write(batch(wanted, orders(1, 2, 3, name="old")))
    stage.write(batch(wanted, orders(3, name="new")))
    receipt = stage.seal(cursor(1))
    assert len(receipt.files) == 2
    destination.publish([receipt])
    assert rows(path) == [(1, "old1"), (2, "old2"), (3, "new3")]
    load(destination, request(2, mode=Mode.MERGE, key=("id",), table="Orders"), orders(1))
    assert rows(path, "table_name, seq", "raw._reconciler_markers") == [("orders", 2)]


def test_merge_on_several_columns_of_any_name(destination: DuckdbDestination, path: Path) -> None:
    schema = pa.schema([("Order No", pa.int64()), ('quote"d', pa.string()), ("v", pa.int64())])
    merge: dict[str, Any] = {
        "mode": Mode.MERGE, "key": ("Order No", 'quote"d'), "schema": schema
    }  # fmt: skip
    load(destination, request(1, **merge), [{"Order No": 1, 'quote"d': "x", "v": 1}])
    load(
        destination,
        request(2, **merge),
        [{"Order No": 1, 'quote"d': "x", "v": 2}, {"Order No": 1, 'quote"d': "y", "v": 3}],
    )
    assert rows(path, '"Order No", "quote""d", v') == [(1, "x", 2), (1, "y", 3)]


def test_replace_takes_the_place_of_all_rows_and_columns(
    destination: DuckdbDestination, path: Path
) -> None:
    load(destination, request(1), orders(1, 2))
    other = pa.schema([("id", pa.string())])
    load(destination, request(2, mode=Mode.REPLACE, schema=other, version=2), [{"id": "x"}])
    assert rows(path, "id") == ["x"]
    with pytest.raises(duckdb.BinderException):
        rows(path, "name")


def test_a_refresh_of_a_merged_table_keeps_the_last_row_of_each_key(
    destination: DuckdbDestination, path: Path
) -> None:
    load(destination, request(1, mode=Mode.MERGE, key=("id",)), orders(1, 2))
    again = request(2, mode=Mode.REPLACE, key=("id",), refreshed=Mode.MERGE)
    load(destination, again, [{"id": 2, "name": "a"}, {"id": 3, "name": "b"},
                              {"id": 2, "name": "c"}])  # fmt: skip
    assert rows(path) == [(2, "c"), (3, "b")]


def test_parallel_streams_into_one_file_wait_for_each_other(path: Path) -> None:
    def write(table: str) -> None:
        destination = DuckdbDestination(path, "raw")
        owner = Owner("cat-1", "shop", table)
        for seq in range(1, 4):
            load(destination, request(seq, owner=owner, table=table), orders(seq))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, ["a", "b", "c", "d"]))
    assert [rows(path, "id", f"raw.{table}") for table in "abcd"] == [[1, 2, 3]] * 4


def test_publishing_again_changes_nothing(destination: DuckdbDestination, path: Path) -> None:
    receipt = load(destination, request(1), orders(1))
    destination.publish([receipt])
    assert rows(path, "id") == [1]


def test_several_receipts_are_published_in_one_call(
    destination: DuckdbDestination, path: Path
) -> None:
    receipts = [seal(destination, request(n), orders(n)) for n in (1, 2, 3)]
    destination.publish(receipts)
    assert rows(path, "id") == [1, 2, 3]
    marker = destination.marker(TABLE)
    assert marker is not None
    assert marker.seq == 3


def test_a_batch_that_does_not_follow_is_refused(destination: DuckdbDestination) -> None:
    load(destination, request(1), orders(1))
    receipt = seal(destination, request(3), orders(1))
    with pytest.raises(ConnectorError, match="does not follow") as refused:
        destination.publish([receipt])
    assert refused.value.error is ErrorClass.PERMANENT


def test_a_replacement_by_a_later_run_follows_whatever_is_there_and_happens_once(
    destination: DuckdbDestination, path: Path
) -> None:
    for number in (1, 2, 3):
        load(destination, request(number), orders(number))
    again = load(destination, request(2, epoch=9, mode=Mode.REPLACE), orders(7))
    assert rows(path, "id") == [7]
    load(destination, request(3, epoch=9), orders(8))
    destination.publish([again])
    assert rows(path, "id") == [7, 8]
    marker = destination.marker(TABLE)
    assert marker is not None
    assert (marker.seq, marker.epoch) == (3, 9)


def test_another_owners_table_is_held(destination: DuckdbDestination, path: Path) -> None:
    load(destination, request(1), orders(1))
    other = Owner("cat-2", "shop", "public.orders")
    marker = destination.marker(TABLE)
    assert marker is not None
    assert marker.owner == OWNER
    receipt = seal(destination, request(2, owner=other), orders(9))
    with pytest.raises(NeedsAnswer) as held:
        destination.publish([receipt])
    assert held.value.kind is HoldKind.DESTINATION
    assert rows(path, "id") == [1]


def test_a_table_without_marker_is_held_until_adopted(
    destination: DuckdbDestination, path: Path
) -> None:
    change(path, "CREATE SCHEMA raw", "CREATE TABLE raw.Orders AS SELECT 5::BIGINT AS id")
    with pytest.raises(NeedsAnswer, match="cursor adopt") as held:
        destination.stage(request(1))
    assert held.value.kind is HoldKind.DESTINATION
    destination.adopt(OWNER, TABLE, 4, 1, cursor(4))
    marker = destination.marker(TABLE)
    assert marker is not None
    assert (marker.seq, marker.has_rows) == (4, True)
    load(destination, request(5), orders(6))
    assert rows(path) == [(5, None), (6, "n6")]


def test_an_adopted_marker_speaks_of_the_table_as_it_is(destination: DuckdbDestination) -> None:
    load(destination, request(1, version=3), orders(1))
    for table, version, has_rows in ((TABLE, 3, True), ("not_made_yet", 0, False)):
        destination.adopt(OWNER, table, 5, 2, cursor(5))
        marker = destination.marker(table)
        assert marker is not None
        assert (marker.seq, marker.epoch, marker.schema_version) == (5, 2, version)
        assert marker.has_rows is has_rows


def test_a_publish_leaves_the_markers_of_other_tables_known(
    destination: DuckdbDestination, path: Path
) -> None:
    other = Owner("cat-1", "shop", "other")
    load(destination, request(1, owner=other, table="other"), orders(1))
    load(destination, request(1), orders(1))
    assert destination.marker("other") is not None
    receipt = seal(destination, request(2), orders(2))
    change(path, "CREATE TABLE more AS SELECT 7 AS id")
    destination.publish([receipt])
    assert destination.marker("other") is not None


def test_a_batch_that_takes_more_memory_is_published_with_more(
    destination: DuckdbDestination, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    receipt = seal(destination, request(1), orders(*range(1000)))
    monkeypatch.setattr(duckdb_module, "MEMORY_LIMITS", ("1MB",))
    with pytest.raises(OutOfMemory):
        destination.publish([receipt])
    monkeypatch.setattr(duckdb_module, "MEMORY_LIMITS", ("1MB", "256MB"))
    destination.publish([receipt])
    assert len(rows(path, "id")) == 1000


def test_a_key_that_is_text_in_a_table_taken_over_is_compared_as_text(
    destination: DuckdbDestination, path: Path
) -> None:
    change(path, "CREATE SCHEMA raw", "CREATE TABLE raw.orders (id VARCHAR, name VARCHAR)",
           "INSERT INTO raw.orders VALUES ('01', 'a'), ('1', 'b'), ('x', 'c')")  # fmt: skip
    destination.adopt(OWNER, TABLE, 4, 1, cursor(4))
    load(destination, request(5, mode=Mode.MERGE, key=["id"]), [{"id": 1, "name": "new"}])
    assert rows(path) == [("01", "a"), ("1", "new"), ("x", "c")]


def test_whole_numbers_are_not_rounded_into_floats_of_a_table_taken_over(
    destination: DuckdbDestination, path: Path
) -> None:
    number = 2**53
    change(path, "CREATE SCHEMA raw", "CREATE TABLE raw.orders (id DOUBLE, name VARCHAR)")
    change(path, f"INSERT INTO raw.orders VALUES ({number}, 'theirs')")
    destination.adopt(OWNER, TABLE, 0, 1, None)
    wanted = request(1, mode=Mode.MERGE, key=["id"])
    with pytest.raises(ConnectorError, match="more digits") as failed:
        load(destination, wanted, orders(number + 1))
    assert failed.value.error is ErrorClass.SCHEMA_INCOMPATIBLE
    assert rows(path, "name") == ["theirs"]
    load(destination, request(1, epoch=2, mode=Mode.MERGE, key=["id"]), orders(number))
    assert rows(path, "name") == [f"n{number}"]


def test_the_table_of_markers_is_no_place_for_rows(destination: DuckdbDestination) -> None:
    with pytest.raises(NeedsAnswer, match="another `table`"):
        destination.stage(request(1, table="_Reconciler_Markers"))


def test_a_newer_run_with_an_old_number_is_held(destination: DuckdbDestination) -> None:
    load(destination, request(1, epoch=1), orders(1))
    load(destination, request(2, epoch=1), orders(2))
    receipt = seal(destination, request(2, epoch=7), orders(3))
    with pytest.raises(NeedsAnswer, match="restored") as held:
        destination.publish([receipt])
    assert held.value.choices == ("refresh",), "it is committed: no edit of the cursor is taken"


def test_lost_staged_files_are_held(path: Path, destination: DuckdbDestination) -> None:
    receipt = seal(destination, request(1), orders(1))
    (path.with_name("shop.duckdb.reconciler") / "staged" / receipt.files[0].path).unlink()
    with pytest.raises(NeedsAnswer, match="is gone") as held:
        destination.publish([receipt])
    assert held.value.kind is HoldKind.LOST_BATCH


def test_changed_staged_files_are_held_by_who_did_not_write_them(
    path: Path, destination: DuckdbDestination
) -> None:
    receipt = seal(destination, request(1), orders(1))
    file = path.with_name("shop.duckdb.reconciler") / "staged" / receipt.files[0].path
    body = bytearray(file.read_bytes())
    body[20] ^= 1
    file.write_bytes(body)
    with pytest.raises(NeedsAnswer, match="checksum"):
        DuckdbDestination(path, "raw").publish([receipt])


@pytest.mark.parametrize(
    "statement", ["DROP TABLE raw.orders", "DELETE FROM raw.orders", "DROP SCHEMA raw CASCADE"]
)
def test_an_emptied_table_is_noticed(
    destination: DuckdbDestination, path: Path, statement: str
) -> None:
    load(destination, request(1), orders(1))
    change(path, statement)
    marker = destination.marker(TABLE)
    assert marker is None or (marker.seq, marker.has_rows) == (0, False)


@pytest.mark.parametrize(
    "how",
    [
        "DELETE FROM raw.orders",
        "DROP TABLE raw.orders",
        "ALTER TABLE raw.orders RENAME TO kept",
    ],
)
def test_a_table_that_loses_its_rows_while_a_run_is_under_way_is_held(
    destination: DuckdbDestination, path: Path, how: str
) -> None:
    load(destination, request(1), orders(1))
    receipt = seal(destination, request(2), orders(2))
    change(path, how)
    with pytest.raises(NeedsAnswer, match="emptied, dropped or renamed") as held:
        destination.publish([receipt])
    assert held.value.choices == ("refresh",)
    load(destination, request(3, epoch=2, mode=Mode.REPLACE), orders(1, 2, 3))
    assert rows(path, "id") == [1, 2, 3]


def test_a_restored_database_is_noticed(destination: DuckdbDestination, path: Path) -> None:
    load(destination, request(1), orders(1))
    backup = path.read_bytes()
    load(destination, request(2), orders(2))
    path.write_bytes(backup)
    marker = destination.marker(TABLE)
    assert marker is not None
    assert marker.seq == 1


def test_rows_that_a_killed_program_took_away_are_missed(
    destination: DuckdbDestination, path: Path
) -> None:
    """That is in the log alone."""
    load(destination, request(1), orders(1))
    code = (
        "import duckdb, os, sys; c = duckdb.connect(sys.argv[1]); "
        "c.execute('DELETE FROM raw.orders'); print('gone', flush=True); "
        "sys.stdin.read(); os._exit(0)"
    )
    before = path.read_bytes()
    with holder(path, code):
        pass
    assert path.read_bytes() == before
    for _ in range(2):
        marker = destination.marker(TABLE)
        assert marker is not None
        assert (marker.seq, marker.epoch, marker.has_rows) == (0, 0, False)
        assert marker.cursor is None
        path.with_name("shop.duckdb.reconciler").joinpath("markers.json").write_bytes(b"\x00")


@pytest.mark.parametrize(
    ("error", "kind", "more"),
    [
        (duckdb.ConversionException("x"), ErrorClass.SCHEMA_INCOMPATIBLE, False),
        (duckdb.ConstraintException("x"), ErrorClass.SCHEMA_INCOMPATIBLE, False),
        (duckdb.CatalogException("it! depend on it."), ErrorClass.SCHEMA_INCOMPATIBLE, False),
        (duckdb.CatalogException("a depends on it!"), ErrorClass.SCHEMA_INCOMPATIBLE, False),
        (duckdb.CatalogException("no such table"), ErrorClass.PERMANENT, False),
        (duckdb.NotImplementedException("x"), ErrorClass.PERMANENT, False),
        (duckdb.IOException("x"), ErrorClass.TRANSIENT, False),
        (duckdb.OutOfMemoryException("x"), ErrorClass.TRANSIENT, True),
        (duckdb.Error("failed to pin block of size 3"), ErrorClass.TRANSIENT, True),
        (duckdb.InternalException("x"), ErrorClass.TRANSIENT, False),
    ],
)
def test_an_error_says_what_is_next(error: duckdb.Error, kind: ErrorClass, *, more: bool) -> None:
    """``more``: with more memory it may do."""
    found = duckdb_file.translated(error, Path("/shop.duckdb"))
    assert (found.error, isinstance(found, OutOfMemory), found.busy) == (kind, more, False)
    assert str(found).startswith("/shop.duckdb: ")


def test_an_unchanged_database_is_not_opened_for_its_markers(
    destination: DuckdbDestination, path: Path
) -> None:
    load(destination, request(1), orders(1))
    with duckdb.connect(str(path)):  # nobody else gets in now
        pass
    expected = destination.marker(TABLE)
    again = DuckdbDestination(path, "raw", wait=0.0)
    blocked = duckdb.connect
    try:
        duckdb.connect = None  # type: ignore[assignment]
        assert again.marker(TABLE) == expected
    finally:
        duckdb.connect = blocked


def test_a_database_in_use_is_named_and_is_no_failure(
    path: Path, destination: DuckdbDestination
) -> None:
    load(destination, request(1), orders(1))
    receipt = seal(destination, request(2), orders(2))
    code = OPENED.replace("print", "c.execute('CREATE TABLE theirs (id INT)'); print")
    with holder(path, code) as pid:
        seal(DuckdbDestination(path, "raw", wait=0.1), request(3), orders(3))
        with pytest.raises(ConnectorError, match=f"process {pid}") as busy:
            DuckdbDestination(path, "raw", wait=0.1).publish([receipt])
        assert busy.value.busy
        assert busy.value.error is ErrorClass.TRANSIENT
        findings = DuckdbDestination(path, "raw", wait=0.1).check()
        assert any(f.level == "warning" and str(pid) in f.text for f in findings)
    destination.publish([receipt])
    assert rows(path, "id") == [1, 2]


def test_columns_are_added_and_widened_from_the_receipt(
    destination: DuckdbDestination, path: Path
) -> None:
    narrow = pa.schema([("id", pa.int32()), ("n", pa.int32()), ("gone", pa.string())])
    load(destination, request(1, schema=narrow), [{"id": 1, "n": 2, "gone": "g"}])
    wide = pa.schema([("id", pa.int64()), ("n", pa.float64()), ("new", pa.string())])
    load(destination, request(2, schema=wide, version=2), [{"id": 2**40, "n": 0.5, "new": "x"}])
    assert rows(path, "id, n, gone, new") == [(1, 2.0, "g", None), (2**40, 0.5, None, "x")]


def test_a_column_that_had_no_value_yet_comes_with_its_type(
    destination: DuckdbDestination, path: Path
) -> None:
    load(destination, request(1, schema=pa.schema([("id", pa.int64()), ("v", pa.null())])),
         [{"id": 1, "v": None}])  # fmt: skip
    load(destination, request(2, schema=pa.schema([("id", pa.int64()), ("v", pa.string())])),
         [{"id": 2, "v": "x"}])  # fmt: skip
    assert rows(path, "id, v") == [(1, None), (2, "x")]


def test_a_type_that_neither_holds_the_other_is_refused(destination: DuckdbDestination) -> None:
    load(destination, request(1, schema=pa.schema([("id", pa.date32())])), [{"id": None}])
    receipt = seal(destination, request(2, schema=pa.schema([("id", pa.int64())])), [{"id": 1}])
    with pytest.raises(ConnectorError, match="neither holds") as refused:
        destination.publish([receipt])
    assert refused.value.error is ErrorClass.SCHEMA_INCOMPATIBLE


@pytest.mark.parametrize("nested", [False, True])
def test_whole_numbers_that_a_wider_float_would_round_are_not_touched(
    destination: DuckdbDestination, path: Path, nested: bool
) -> None:
    kinds = pa.int64(), pa.float64()
    whole, real = (pa.schema([("v", pa.list_(kind) if nested else kind)]) for kind in kinds)
    small, large = ([value] if nested else value for value in (1, 2**63 - 1))
    load(destination, request(1, schema=whole), [{"v": small}])
    load(destination, request(2, schema=real), [{"v": small}])
    load(destination, request(1, schema=whole, table="large"), [{"v": large}])
    receipt = seal(destination, request(2, schema=real, table="large"), [{"v": small}])
    with pytest.raises(ConnectorError, match="more digits than DOUBLE") as refused:
        destination.publish([receipt])
    assert refused.value.error is ErrorClass.SCHEMA_INCOMPATIBLE
    assert rows(path, "v", "raw.large") == [large]


@pytest.mark.parametrize("constraint", ["NOT NULL", "CHECK (name <> '')", "UNIQUE"])
def test_a_constraint_that_a_row_breaks_is_named_and_does_not_mend_itself(
    destination: DuckdbDestination, path: Path, constraint: str
) -> None:
    columns = f"id BIGINT, name VARCHAR {constraint}"
    change(path, "CREATE SCHEMA raw", f"CREATE TABLE raw.orders ({columns})",
           "INSERT INTO raw.orders VALUES (1, 'a')")  # fmt: skip
    destination.adopt(OWNER, TABLE, 4, 1, cursor(4))
    name = {"NOT NULL": None, "UNIQUE": "a"}.get(constraint, "")
    receipt = seal(destination, request(5), [{"id": 2, "name": name}])
    with pytest.raises(ConnectorError, match=r"onstraint.*; drop it from the table") as refused:
        destination.publish([receipt])
    assert refused.value.error is ErrorClass.SCHEMA_INCOMPATIBLE


@pytest.mark.parametrize("column", ["id", "name"])
def test_an_index_that_keeps_a_column_from_its_type_does_not_mend_itself(
    destination: DuckdbDestination, path: Path, column: str
) -> None:
    load(destination, request(1, schema=pa.schema([("id", pa.int64()), ("name", pa.int32())])), [])
    change(path, f"CREATE INDEX theirs ON raw.orders ({column})")
    receipt = seal(destination, request(2), orders(1))
    with pytest.raises(ConnectorError, match="drop the index") as refused:
        destination.publish([receipt])
    assert refused.value.error is ErrorClass.SCHEMA_INCOMPATIBLE


def test_columns_that_differ_in_case_alone_are_refused(destination: DuckdbDestination) -> None:
    with pytest.raises(ConnectorError, match="upper from lower") as refused:
        destination.stage(request(1, schema=pa.schema([("Id", pa.int64()), ("ID", pa.int64())])))
    assert refused.value.error is ErrorClass.PERMANENT


def test_a_null_in_a_key_is_held(destination: DuckdbDestination) -> None:
    wanted = request(1, mode=Mode.MERGE, key=("id",))
    stage = destination.stage(wanted)
    with pytest.raises(NeedsAnswer, match="key column 'id'") as held:
        stage.write(batch(wanted, [{"id": None, "name": "x"}]))
    assert held.value.kind is HoldKind.NULL_KEY
    stage.abort()
    assert destination.staged("cat-1", "shop") == []


def test_a_key_that_has_shown_no_value_comes_with_a_refresh_without_rows(
    destination: DuckdbDestination, path: Path
) -> None:
    schema = pa.schema([("id", pa.null()), ("name", pa.string())])
    wanted = request(1, mode=Mode.REPLACE, refreshed=Mode.MERGE, key=("id",), schema=schema)
    load(destination, wanted, [])
    load(destination, request(2, mode=Mode.MERGE, key=("id",)), orders(1))
    assert rows(path) == [(1, "n1")]


@pytest.mark.parametrize("may_empty", [True, False])
def test_replacing_rows_by_none_is_held_unless_meant(
    destination: DuckdbDestination, path: Path, *, may_empty: bool
) -> None:
    """(B7)"""
    load(destination, request(1, mode=Mode.REPLACE), orders(1))
    stage = destination.stage(request(2, mode=Mode.REPLACE, may_empty=may_empty))
    if may_empty:
        destination.publish([stage.seal(None)])
        assert rows(path, "id") == []
        marker = destination.marker(TABLE)
        assert marker is not None
        assert (marker.seq, marker.has_rows, marker.cursor) == (2, False, cursor(1))
    else:
        with pytest.raises(NeedsAnswer) as held:
            stage.seal(None)
        assert held.value.kind is HoldKind.EMPTY_REPLACE


def test_rejected_rows_go_beside_the_table_with_the_batch(
    destination: DuckdbDestination, path: Path
) -> None:
    bad = [RejectedRow("a.csv:7", "no number", "x;y")]
    receipt = load(destination, request(1, epoch=3), orders(1), bad)
    destination.publish([receipt])
    load(destination, request(2, epoch=3), [], bad)
    columns = "place, reason, raw, _run_id, _batch_id"
    assert rows(path, columns, "raw.orders__rejected") == [
        ("a.csv:7", "no number", "x;y", 3, 1),
        ("a.csv:7", "no number", "x;y", 3, 2),
    ]
    change(path, "DELETE FROM raw.orders")
    marker = destination.marker(TABLE)
    assert marker is not None
    assert marker.seq == 0, "that the last batch brought no rows does not say that there were none"


def test_a_table_named_as_rows_set_aside_of_another_is_held(destination: DuckdbDestination) -> None:
    with pytest.raises(NeedsAnswer, match="set aside would go") as held:
        destination.stage(request(1, table="orders__Rejected"))
    assert held.value.choices == ("retry",)


def test_a_file_that_is_no_database_is_refused(path: Path, destination: DuckdbDestination) -> None:
    path.write_bytes(b"not a database" * 400)
    with pytest.raises(ConnectorError, match="is not a DuckDB database") as refused:
        destination.marker(TABLE)
    assert refused.value.error is ErrorClass.PERMANENT


def test_a_schema_named_like_the_file_is_not_ambiguous(tmp_path: Path) -> None:
    path = tmp_path / "raw.duckdb"
    load(DuckdbDestination(path, "raw"), request(1), orders(1))
    assert rows(path, "id", '"raw"."raw"."orders"') == [1]


def test_two_schemas_of_one_file_do_not_see_each_other(path: Path) -> None:
    one, two = DuckdbDestination(path, "one"), DuckdbDestination(path, "two")
    load(one, request(1), orders(1))
    load(two, request(1), orders(2))
    load(one, request(2), orders(3))
    for destination, seq in ((one, 2), (two, 1)):
        marker = destination.marker(TABLE)
        assert marker is not None
        assert marker.seq == seq


def test_a_schema_and_a_file_by_another_name_are_the_same(path: Path) -> None:
    destination = DuckdbDestination(path, "raw")
    load(destination, request(1), orders(1))
    link = path.with_name("link.duckdb")
    link.symlink_to(path)
    receipt = seal(destination, request(2), orders(2))
    other = DuckdbDestination(link, "RAW")
    other.publish([receipt])
    marker = other.marker(TABLE)
    assert marker is not None
    assert marker.seq == 2


def test_names_that_differ_in_the_case_of_other_letters_are_two(path: Path) -> None:
    for schema in ("Ä", "ä"):
        destination = DuckdbDestination(path, schema)
        for table, number in (("Öl", 1), ("öl", 2)):
            columns = pa.schema([(f"c{number}", pa.int64())])
            load(destination, request(1, table=table, schema=columns), [{f"c{number}": number}])
        assert rows(path, "c1", f'"{schema}"."Öl"') == [1]
        assert rows(path, "c2", f'"{schema}"."öl"') == [2]


def test_a_receipt_of_another_destination_is_refused(path: Path) -> None:
    receipt = seal(DuckdbDestination(path, "one"), request(1), orders(1))
    with pytest.raises(NeedsAnswer, match="is sealed at"):
        DuckdbDestination(path, "two").publish([receipt])


def test_names_of_every_kind_are_kept(destination: DuckdbDestination, path: Path) -> None:
    names = ["file_row_number", "file_index", "filename", "two words", 'a"b', "Käse", "😀", "c1"]
    schema = pa.schema([(name, pa.int64()) for name in names])
    key = ("file_row_number",)
    wanted = request(1, mode=Mode.MERGE, key=key, schema=schema)
    twice: Sequence[dict[str, int]] = [{n: i for i, n in enumerate(names)}] * 2
    load(destination, wanted, twice)
    quoted = ", ".join('"' + n.replace('"', '""') + '"' for n in names)
    assert rows(path, quoted) == [tuple(range(len(names)))]


def test_a_refresh_starts_a_table_that_was_lost_at_its_own_number(
    destination: DuckdbDestination, path: Path
) -> None:
    load(destination, request(7, mode=Mode.REPLACE), orders(1))
    load(destination, request(8), orders(2))
    assert rows(path, "id") == [1, 2]


def torn(path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[bytes, Receipt]:
    """A database as the power left it in the midst of the checkpoint of batch 2, and the batch."""
    destination = DuckdbDestination(path, "raw")
    load(destination, request(1), orders(1))
    before = path.read_bytes()
    receipt = seal(destination, request(2), orders(2))
    with monkeypatch.context() as patched:
        patched.setattr(DuckdbFile, "sync", Mock(side_effect=RuntimeError))
        with pytest.raises(RuntimeError):
            destination.publish([receipt])
    after = path.read_bytes()
    assert after[:HEADER] != before[:HEADER]
    # The old header, new blocks, and of the first, which is written in place, the first sector.
    sector = HEADER + 512
    block = HEADER + 262_144
    return before[:HEADER] + after[HEADER:sector] + before[sector:block] + after[block:], receipt


def test_a_checkpoint_cut_short_is_undone(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left, receipt = torn(path, monkeypatch)
    marker = DuckdbDestination(path, "raw").marker(TABLE)
    assert marker is not None
    assert marker.seq == 2  # it came to its end: nothing is undone
    path.write_bytes(left)
    with pytest.raises(duckdb.Error, match="Corrupt"):
        duckdb.connect(path)
    destination = DuckdbDestination(path, "raw")
    marker = destination.marker(TABLE)
    assert marker is not None
    assert marker.seq == 1
    destination.publish([receipt])
    assert rows(path, "id") == [1, 2]
    assert [p.name for p in path.with_name("shop.duckdb.reconciler").glob("undo*")] == []


def test_a_checkpoint_is_not_undone_under_another(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left, receipt = torn(path, monkeypatch)
    path.write_bytes(left)
    code = (
        "import fcntl, sys; f = open(sys.argv[1], 'r+b'); fcntl.lockf(f, fcntl.LOCK_EX); "
        "print('locked', flush=True); sys.stdin.read()"
    )
    with holder(path, code), pytest.raises(ConnectorError) as refusal:
        DuckdbDestination(path, "raw", wait=0.0).publish([receipt])
    assert refusal.value.busy
    assert path.read_bytes() == left


def test_a_checkpoint_that_another_has_just_ended_is_not_undone(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left, _ = torn(path, monkeypatch)
    ended = path.read_bytes()
    path.write_bytes(left)

    class Late(Files):
        @contextmanager
        def alone(self, path: Path) -> Iterator[Any]:
            path.write_bytes(ended)  # between a look at it and the lock
            with super().alone(path) as found:
                yield found

    marker = DuckdbDestination(path, "raw", files=Late()).marker(TABLE)
    assert marker is not None
    assert marker.seq == 2
    assert path.read_bytes() == ended


def test_nothing_is_undone_in_a_state_that_another_went_on_to(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Broken as it is: what is kept is of an earlier one."""
    torn(path, monkeypatch)
    ended = path.read_bytes()
    broken = ended[: HEADER + 512] + bytes(1000) + ended[HEADER + 1512 :]
    path.write_bytes(broken)
    with pytest.raises(ConnectorError, match="Corrupt"):
        DuckdbDestination(path, "raw").marker(TABLE)
    assert path.read_bytes() == broken
    path.write_bytes(ended)
    code = (
        "import duckdb, os, sys; c = duckdb.connect(sys.argv[1]); "
        "c.execute('CREATE TABLE others AS SELECT * FROM range(500)'); "
        "c.execute('CREATE TABLE more AS SELECT * FROM range(500)'); print('made', flush=True); "
        "sys.stdin.read(); os._exit(0)"
    )
    with holder(path, code):
        pass  # gone without a checkpoint: what it wrote is in the log
    log = path.with_name("shop.duckdb.wal")
    content = log.read_bytes()[:-400] + bytes(400)
    log.write_bytes(content)
    with pytest.raises(ConnectorError, match="Corrupt WAL"):
        DuckdbDestination(path, "raw").marker(TABLE)
    assert log.read_bytes() == content


def test_a_copy_put_in_its_place_and_gone_on_from_is_not_undone(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    destination = DuckdbDestination(path, "raw")
    load(destination, request(1), orders(1))
    elsewhere = path.with_name("copy.duckdb")
    elsewhere.write_bytes(path.read_bytes())
    load(DuckdbDestination(elsewhere, "raw"), request(2), orders(77))
    load(destination, request(2), orders(2))
    receipt = seal(destination, request(3), orders(3))
    with monkeypatch.context() as patched:  # a publish that is killed: what it kept stays
        patched.setattr(DuckdbFile, "checkpoint", Mock(side_effect=RuntimeError))
        with pytest.raises(RuntimeError):
            destination.publish([receipt])
    header = path.read_bytes()[:HEADER]
    path.with_name("shop.duckdb.wal").unlink()
    gone_on = elsewhere.read_bytes()
    path.write_bytes(gone_on)
    assert gone_on[:HEADER] == header, "other states, one header: or this test shows nothing"
    DuckdbDestination(path, "raw").marker(TABLE)
    assert path.read_bytes() == gone_on
    assert rows(path, "id") == [1, 77]


def test_the_removal_of_the_log_is_durable_before_another_checkpoint(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(duckdb_file, "LONG_LOG", "1KB")  # each transaction makes a checkpoint
    synced = []

    class Watched(Files):
        def sync_dir(self, path: Path) -> None:
            if (path / "shop.duckdb").exists():
                synced.append((path / "shop.duckdb").read_bytes()[:HEADER])
            super().sync_dir(path)

    destination = DuckdbDestination(path, "raw", files=Watched())
    many = [seal(destination, request(n), orders(*range(200))) for n in (1, 2, 3)]
    destination.publish(many)
    assert len({*synced}) >= 4  # with none and with each of three


def test_what_a_killed_publish_had_spilled_goes_with_the_next(
    path: Path, destination: DuckdbDestination
) -> None:
    spilled = path.with_name("shop.duckdb.reconciler") / "tmp"
    spilled.mkdir(parents=True)
    (spilled / "duckdb_temp_1_1_owner").touch()
    (spilled / "duckdb_temp_storage_S32K-0.tmp").write_bytes(bytes(1000))
    load(destination, request(1), orders(1))
    assert [p.name for p in spilled.parent.rglob("*") if "duckdb_temp" in p.name] == []


def test_a_log_cut_short_is_cut_back_to_what_was_there(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    destination = DuckdbDestination(path, "raw")
    load(destination, request(1), orders(1))
    code = (
        "import duckdb, os, sys; c = duckdb.connect(sys.argv[1]); "
        "c.execute('CREATE TABLE others AS SELECT 7 AS id'); print('made', flush=True); "
        "sys.stdin.read(); os._exit(0)"
    )
    with holder(path, code):
        pass  # gone without a checkpoint: what it wrote is in the log
    receipt = seal(destination, request(2), orders(*range(200)))
    with monkeypatch.context() as patched:
        patched.setattr(DuckdbFile, "checkpoint", Mock(side_effect=RuntimeError))
        with pytest.raises(RuntimeError):
            destination.publish([receipt])
    log = path.with_name("shop.duckdb.wal")
    content = log.read_bytes()
    log.write_bytes(content[:-1000] + bytes(1000))
    with pytest.raises(duckdb.Error, match="Corrupt WAL"):
        duckdb.connect(path)
    destination = DuckdbDestination(path, "raw")
    marker = destination.marker(TABLE)
    assert marker is not None
    assert marker.seq == 1
    destination.publish([receipt])
    assert len(rows(path, "id")) == 201
    assert rows(path, "id", "main.others") == [7]


def test_the_log_of_another_database_is_named_and_that_of_one_that_is_gone_goes(
    path: Path,
) -> None:
    """DuckDB opens no database beside such a log, and removes one that has none beside it."""
    load(DuckdbDestination(path, "raw"), request(1), orders(1))
    code = (
        "import duckdb, os, sys; c = duckdb.connect(sys.argv[1]); "
        "c.execute('CREATE TABLE others AS SELECT 7 AS id'); print('made', flush=True); "
        "sys.stdin.read(); os._exit(0)"
    )
    with holder(path, code):
        pass  # gone without a checkpoint
    path.unlink()
    log = path.with_name("shop.duckdb.wal")
    content = log.read_bytes()
    destination = DuckdbDestination(path, "raw")
    assert destination.marker(TABLE) is None
    load(destination, request(1, epoch=2), orders(2))
    assert rows(path, "id") == [2]
    log.write_bytes(content)
    with pytest.raises(ConnectorError, match="the log beside it is another database's"):
        DuckdbDestination(path, "raw").marker(TABLE)

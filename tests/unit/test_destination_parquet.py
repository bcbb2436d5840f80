"""The Parquet destination through its port: B2-B8, E1."""

from __future__ import annotations

import datetime as dt
import errno
import os
import shutil
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from catalog.records import ErrorClass, HoldKind
from reconciler.config.desired import Mode
from reconciler.connectors.destinations import rows as rows_module
from reconciler.connectors.destinations.files import DISK, Files
from reconciler.connectors.destinations.parquet import ParquetDestination, open_parquet
from reconciler.connectors.ports import ConnectorError, NeedsAnswer, Owner, RejectedRow
from tests.destination_kit import (
    OWN,
    OWNER,
    TABLE,
    batch,
    cursor,
    glob_ids,
    leftovers,
    load,
    orders,
    request,
    seal,
    view_rows,
)


def write_foreign(path: Path, *values: int) -> None:
    """A data file that no batch brought."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"id": values}), path)


def flip(path: Path) -> None:
    body = bytearray(path.read_bytes())
    body[20] ^= 1
    path.write_bytes(body)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.fixture
def lake(tmp_path: Path) -> Path:
    return tmp_path / "lake"


@pytest.fixture
def destination(lake: Path) -> ParquetDestination:
    return open_parquet({"path": str(lake)})


def test_a_published_batch_is_seen_and_its_staging_is_gone(
    destination: ParquetDestination, lake: Path
) -> None:
    load(destination, request(1), orders(1, 2))
    load(destination, request(2), orders(3))
    assert glob_ids(lake) == [1, 2, 3]
    assert view_rows(lake / TABLE) == [1, 2, 3]
    assert leftovers(lake) == []
    assert destination.staged("cat-1", "shop") == []


def test_the_marker_moves_with_the_batch(destination: ParquetDestination) -> None:
    assert destination.marker(TABLE) is None
    load(destination, request(1), orders(1))
    marker = destination.marker(TABLE)
    assert marker is not None
    assert (marker.owner, marker.seq, marker.cursor) == (OWNER, 1, cursor(1))
    assert marker.has_rows


def test_a_sealed_batch_is_listed_unseen_and_can_be_discarded(
    destination: ParquetDestination, lake: Path
) -> None:
    receipt = seal(destination, request(1), orders(1))
    assert destination.staged("cat-1", "shop") == [receipt.name]
    assert glob_ids(lake) == []
    destination.discard(receipt.name)
    assert destination.staged("cat-1", "shop") == []
    assert leftovers(lake) == []


def test_replace_takes_the_place_of_all_rows(destination: ParquetDestination, lake: Path) -> None:
    load(destination, request(1), orders(1, 2))
    load(destination, request(2, mode=Mode.REPLACE), orders(7))
    assert glob_ids(lake) == [7]
    assert view_rows(lake / TABLE) == [7]
    load(destination, request(3), orders(8))
    assert view_rows(lake / TABLE) == [7, 8]
    assert sorted(p.name for p in lake.parent.iterdir()) == ["lake"]


@pytest.mark.parametrize("published", [0, 1])
def test_a_replacement_takes_the_place_of_an_append_that_was_cut_off(
    destination: ParquetDestination, lake: Path, published: int
) -> None:
    for seq in range(1, published + 1):
        load(destination, request(seq), orders(seq))
    number = published + 1
    write_foreign(lake / TABLE / "day=1" / f"{number:08d}-1-{number}-00000.parquet", 8)
    load(destination, request(number + 1, epoch=2, mode=Mode.REPLACE), orders(8, 9))
    assert glob_ids(lake) == view_rows(lake / TABLE) == [8, 9]


@pytest.mark.parametrize("mode", [Mode.APPEND, Mode.REPLACE])
def test_files_of_others_that_are_named_by_hours_are_not_taken_for_ours(
    destination: ParquetDestination, lake: Path, mode: Mode
) -> None:
    write_foreign(lake / TABLE / "2026-01-31-13.parquet", 1)
    with pytest.raises(NeedsAnswer, match="somebody else"):
        destination.stage(request(1, mode=mode))


@pytest.mark.parametrize("name", ["2026-01-31.parquet", "2026-01-31-13.parquet", "part-0.parquet"])
def test_files_of_any_name_that_were_adopted_are_rows_and_older_than_all_that_come(
    destination: ParquetDestination, lake: Path, name: str
) -> None:
    write_foreign(lake / TABLE / name, 1, 2)
    destination.adopt(OWNER, TABLE, 0, 1, None)
    assert view_rows(lake / TABLE) == [1, 2]
    load(destination, request(1, key=["id"]), orders(2, 3))
    assert view_rows(lake / TABLE, "id, name") == [(1, None), (2, "n2"), (3, "n3")]
    load(destination, request(2, epoch=2, mode=Mode.REPLACE), orders(4))
    assert glob_ids(lake) == view_rows(lake / TABLE) == [4]


def test_a_table_without_its_manifest_is_said_so_before_anything_is_committed(
    destination: ParquetDestination, lake: Path
) -> None:
    load(destination, request(1), orders(1))
    manifest = lake / TABLE / "_files-1.json"
    manifest.write_text("[")
    with pytest.raises(ConnectorError, match="is damaged"):
        load(destination, request(2), orders(2))
    manifest.unlink()
    with pytest.raises(ConnectorError, match="it; or remove") as failed:
        destination.stage(request(3))
    assert failed.value.error is ErrorClass.PERMANENT
    (lake / TABLE / "_reconciler.json").unlink()
    destination.adopt(OWNER, TABLE, 2, 1, None)
    assert view_rows(lake / TABLE) == [1, 2]


def test_a_table_that_loses_its_files_while_a_run_is_under_way_is_held(
    destination: ParquetDestination, lake: Path
) -> None:
    load(destination, request(1), orders(1))
    receipt = seal(destination, request(2), orders(2))
    next((lake / TABLE).glob("*.parquet")).unlink()
    with pytest.raises(NeedsAnswer, match="emptied, dropped or renamed"):
        destination.publish([receipt])
    shutil.rmtree(lake / TABLE)
    with pytest.raises(NeedsAnswer, match="emptied, dropped or renamed"):
        destination.publish([receipt])


def test_a_folder_that_is_a_link_is_not_replaced(
    destination: ParquetDestination, lake: Path, tmp_path: Path
) -> None:
    load(destination, request(1), orders(1))
    (lake / TABLE).rename(tmp_path / "elsewhere")
    (lake / TABLE).symlink_to(tmp_path / "elsewhere")
    load(destination, request(2), orders(2))
    with pytest.raises(ConnectorError, match="is a link"):
        destination.stage(request(3, mode=Mode.REPLACE))
    assert view_rows(lake / TABLE) == [1, 2]


def test_what_is_discarded_goes_with_what_was_moved_already(
    destination: ParquetDestination, lake: Path
) -> None:
    load(destination, request(1), orders(1))
    aside = [RejectedRow("a.csv:3", "no number", "x")]
    receipt = seal(destination, request(2), orders(2), aside)
    rejected = lake / f"{TABLE}__rejected"
    rejected.mkdir()
    for file, folder in (
        *((f, lake / TABLE) for f in receipt.files),
        (receipt.rejected[0], rejected),
    ):
        staged = lake / ".reconciler" / "staged" / file.path
        staged.rename(folder / f"00000002-1-2-{staged.stem}.parquet")
    destination.discard(receipt.name)
    assert glob_ids(lake) == [1]
    assert list(rejected.iterdir()) == leftovers(lake) == []
    load(destination, request(2, epoch=2), orders(2))
    assert glob_ids(lake) == view_rows(lake / TABLE) == [1, 2]


def test_what_is_left_of_a_published_batch_is_discarded_alone(
    destination: ParquetDestination, lake: Path
) -> None:
    receipt = seal(destination, request(1), orders(1))
    left = lake / ".reconciler" / "staged"
    shutil.copytree(left, lake.with_name("copy"))
    destination.publish([receipt])
    shutil.rmtree(left, ignore_errors=True)
    shutil.copytree(lake.with_name("copy"), left)
    destination.discard(receipt.name)
    assert glob_ids(lake) == view_rows(lake / TABLE) == [1]


def test_publishing_again_changes_nothing(destination: ParquetDestination, lake: Path) -> None:
    receipt = load(destination, request(1), orders(1))
    destination.publish([receipt])
    assert glob_ids(lake) == view_rows(lake / TABLE) == [1]


def test_a_batch_that_does_not_follow_is_refused(destination: ParquetDestination) -> None:
    load(destination, request(1), orders(1))
    receipt = seal(destination, request(3), orders(1))
    with pytest.raises(ConnectorError, match="does not follow") as refused:
        destination.publish([receipt])
    assert refused.value.error is ErrorClass.PERMANENT


def test_a_replacement_by_a_later_run_follows_whatever_is_there_and_happens_once(
    destination: ParquetDestination, lake: Path
) -> None:
    for number in (1, 2, 3):
        load(destination, request(number), orders(number))
    again = load(destination, request(2, epoch=9, mode=Mode.REPLACE), orders(7))
    assert view_rows(lake / TABLE) == [7]
    load(destination, request(3, epoch=9), orders(8))
    destination.publish([again])
    assert view_rows(lake / TABLE) == [7, 8]
    marker = destination.marker(TABLE)
    assert marker is not None
    assert (marker.seq, marker.epoch) == (3, 9)


def test_a_receipt_of_another_destination_is_refused(
    destination: ParquetDestination, lake: Path
) -> None:
    receipt = seal(destination, request(1), orders(1))
    with pytest.raises(NeedsAnswer, match="is sealed at") as held:
        ParquetDestination(lake.with_name("other")).publish([receipt])
    assert held.value.kind is HoldKind.DESTINATION
    destination.publish([receipt])


def test_another_owners_table_is_held(destination: ParquetDestination, lake: Path) -> None:
    load(destination, request(1), orders(1))
    receipt = seal(destination, request(2, owner=Owner("cat-2", "p", "s")), orders(9))
    with pytest.raises(NeedsAnswer) as held:
        destination.publish([receipt])
    assert held.value.kind is HoldKind.DESTINATION
    assert glob_ids(lake) == [1]


@pytest.mark.parametrize("mode", [Mode.APPEND, Mode.REPLACE])
def test_a_folder_without_marker_is_held_until_adopted(
    destination: ParquetDestination, lake: Path, mode: Mode
) -> None:
    write_foreign(lake / TABLE / "theirs.parquet", 5)
    with pytest.raises(NeedsAnswer, match=r"theirs\.parquet") as held:
        destination.stage(request(1, mode=mode))
    assert held.value.kind is HoldKind.DESTINATION
    destination.adopt(OWNER, TABLE, 4, 1, cursor(4))
    marker = destination.marker(TABLE)
    assert marker is not None
    assert (marker.seq, marker.cursor, marker.has_rows) == (4, cursor(4), True)
    assert view_rows(lake / TABLE) == [5]
    load(destination, request(5, mode=mode), orders(6))
    assert view_rows(lake / TABLE) == ([5, 6] if mode is Mode.APPEND else [6])


@pytest.mark.parametrize("mode", [Mode.APPEND, Mode.REPLACE])
def test_a_foreign_file_that_comes_before_publish_is_held(
    destination: ParquetDestination, lake: Path, mode: Mode
) -> None:
    receipt = seal(destination, request(1, mode=mode), orders(1))
    write_foreign(lake / TABLE / "theirs.parquet", 5)
    with pytest.raises(NeedsAnswer):
        destination.publish([receipt])
    assert glob_ids(lake) == [5]


def test_a_first_append_that_was_cut_off_is_no_foreign_file(
    destination: ParquetDestination, lake: Path
) -> None:
    receipt = seal(destination, request(1), orders(1))
    (lake / TABLE).mkdir()
    staged = lake / ".reconciler" / "staged" / receipt.files[0].path
    staged.rename(lake / TABLE / f"00000001-1-1-{staged.stem}.parquet")
    destination.publish([receipt])
    assert glob_ids(lake) == view_rows(lake / TABLE) == [1]


def test_replace_keeps_files_that_no_batch_brought_and_check_names_them(
    destination: ParquetDestination, lake: Path
) -> None:
    load(destination, request(1, mode=Mode.REPLACE), orders(1))
    write_foreign(lake / TABLE / "sub" / "theirs.parquet", 5)
    load(destination, request(2, mode=Mode.REPLACE), orders(2))
    assert glob_ids(lake) == [2, 5]
    assert view_rows(lake / TABLE) == [2]
    assert any("sub/theirs.parquet" in f.text for f in destination.check() if f.level == "warning")


def test_removed_files_are_named_by_check(destination: ParquetDestination, lake: Path) -> None:
    load(destination, request(1), orders(1))
    load(destination, request(2), orders(2))
    next(lake.glob("**/*.parquet")).unlink()
    assert any("lacks 1 published" in f.text for f in destination.check() if f.level == "problem")


def test_an_emptied_table_is_noticed(destination: ParquetDestination, lake: Path) -> None:
    load(destination, request(1), orders(1))
    for file in lake.glob("**/*.parquet"):
        file.unlink()
    marker = destination.marker(TABLE)
    assert marker is not None
    assert (marker.seq, marker.has_rows) == (0, False)
    destination.adopt(OWNER, TABLE, 1, 1, cursor(1))
    load(destination, request(2), orders(2))
    assert view_rows(lake / TABLE) == [2]


def test_a_batch_without_rows_is_no_reason_to_think_that_there_are_none(
    destination: ParquetDestination, lake: Path
) -> None:
    load(destination, request(1), orders(1))
    load(destination, request(2), [])
    marker = destination.marker(TABLE)
    assert marker is not None
    assert (marker.seq, marker.has_rows) == (2, True)
    next(lake.glob("**/*.parquet")).unlink()
    marker = destination.marker(TABLE)
    assert marker is not None
    assert (marker.seq, marker.has_rows) == (0, False)


def test_lost_and_changed_staged_files_are_held(
    destination: ParquetDestination, lake: Path
) -> None:
    damages = ((Path.unlink, "is gone"), (flip, "checksum"), (cut, "in place"))
    for epoch, (damage, words) in enumerate(damages, start=1):
        receipt = seal(destination, request(1, epoch=epoch), orders(1))
        damage(lake / ".reconciler" / "staged" / receipt.files[0].path)
        with pytest.raises(NeedsAnswer, match=words) as held:
            ParquetDestination(lake).publish([receipt])
        assert held.value.kind is HoldKind.LOST_BATCH


def test_abort_removes_what_was_never_sealed_and_nothing_else(
    destination: ParquetDestination, lake: Path
) -> None:
    stage = destination.stage(request(1))
    stage.write(batch(request(1), orders(1)))
    stage.abort()
    assert destination.staged("cat-1", "shop") == []
    stage = destination.stage(request(1))
    stage.write(batch(request(1), orders(1)))
    receipt = stage.seal(None)
    stage.abort()
    assert destination.staged("cat-1", "shop") == [receipt.name]
    destination.publish([receipt])
    assert glob_ids(lake) == [1]


def test_merge_is_refused_with_the_modes_that_work(destination: ParquetDestination) -> None:
    with pytest.raises(ConnectorError, match='mode = "append"'):
        destination.stage(request(1, mode=Mode.MERGE, key=("id",)))


def test_the_view_shows_the_latest_row_of_each_key(
    destination: ParquetDestination, lake: Path
) -> None:
    first = [{"id": 1, "name": "a"}, {"id": 1, "name": "b"}, {"id": 2, "name": "c"}]
    load(destination, request(1, key=("id",)), first)
    for seq in range(2, 12):
        load(destination, request(seq, epoch=seq, key=("id",)), [{"id": 2, "name": f"v{seq}"}])
    assert view_rows(lake / TABLE, "id, name") == [(1, "b"), (2, "v11")]


def test_the_view_shows_the_latest_row_of_a_key_that_changed_its_partition(
    destination: ParquetDestination, lake: Path
) -> None:
    states = [(1, "open"), (7, "closed"), (7, "open"), (1, "closed"), (1, "open"), (2, "closed")]
    wanted = request(1, key=("id",), partition_by=("name",))
    stage = destination.stage(wanted)
    for at, (number, name) in enumerate(states):
        row = {"id": number, "name": name, "_run_id": 1, "_batch_id": 1, "_loaded_at": at}
        stage.write(pa.RecordBatch.from_pylist([row], wanted.arrow))
    destination.publish([stage.seal(None)])
    assert view_rows(lake / TABLE, "id, name") == [(1, "open"), (2, "closed"), (7, "open")]
    load(destination, request(2, key=("id",), partition_by=("name",)), [{"id": 1, "name": "shut"}])
    assert view_rows(lake / TABLE, "name") == ["closed", "open", "shut"]


@pytest.mark.parametrize("name", ["_file", "_FILE", "file_row_number", "filename", "_row"])
def test_a_column_of_any_name_is_in_the_view(
    destination: ParquetDestination, lake: Path, name: str
) -> None:
    wide = pa.schema([("id", pa.int64()), (name, pa.string()), ("__file", pa.int64())])
    rows = [{"id": 1, name: value, "__file": 5} for value in ("a", "b")]
    load(destination, request(1, schema=wide, key=("id",)), rows)
    load(destination, request(2, schema=wide, key=("id",)), [{**rows[0], "id": 2}])
    assert view_rows(lake / TABLE, f"id, {name}, __file") == [(1, "b", 5), (2, "a", 5)]


def test_the_view_leaves_out_a_batch_that_is_half_published(
    destination: ParquetDestination, lake: Path
) -> None:
    load(destination, request(1), orders(1))
    write_foreign(lake / TABLE / "00000002-1-2-00000.parquet", 2)
    assert glob_ids(lake) == [1, 2]
    assert view_rows(lake / TABLE) == [1]


def test_the_view_follows_columns_that_come_and_go(
    destination: ParquetDestination, lake: Path
) -> None:
    load(destination, request(1), orders(1))
    wide = pa.schema([("id", pa.int64()), ("more", pa.float64())])
    load(destination, request(2, schema=wide), [{"id": 2, "more": 0.5}])
    assert view_rows(lake / TABLE, "id, name, more") == [(1, "n1", None), (2, None, 0.5)]


@pytest.mark.parametrize("may_empty", [True, False])
def test_replacing_rows_by_none_is_held_unless_meant(
    destination: ParquetDestination, lake: Path, *, may_empty: bool
) -> None:
    """(B7)"""
    load(destination, request(1, mode=Mode.REPLACE), orders(1))
    stage = destination.stage(request(2, mode=Mode.REPLACE, may_empty=may_empty))
    if may_empty:
        destination.publish([stage.seal(None)])
        assert view_rows(lake / TABLE) == []
        marker = destination.marker(TABLE)
        assert marker is not None
        assert (marker.seq, marker.has_rows) == (2, False)
    else:
        with pytest.raises(NeedsAnswer) as held:
            stage.seal(None)
        assert held.value.kind is HoldKind.EMPTY_REPLACE


def test_rejected_rows_go_beside_the_table_with_the_batch(
    destination: ParquetDestination, lake: Path
) -> None:
    bad = [RejectedRow("a.csv:7", "no number", "x;y")]
    receipt = load(destination, request(1, epoch=3), orders(1), bad)
    destination.publish([receipt])
    load(destination, request(2, epoch=3, mode=Mode.REPLACE), orders(2), bad)
    found = pq.read_table(lake / "orders__rejected").drop_columns("_loaded_at").to_pylist()
    assert found == [
        {"place": "a.csv:7", "reason": "no number", "raw": "x;y", "_run_id": 3, "_batch_id": n}
        for n in (1, 2)
    ]


def test_a_table_named_as_rows_set_aside_of_another_is_held(
    destination: ParquetDestination,
) -> None:
    with pytest.raises(NeedsAnswer, match="set aside would go") as held:
        destination.stage(request(1, table="orders__Rejected"))
    assert held.value.choices == ("retry",)


def test_whole_numbers_that_the_view_would_round_are_refused_before_anything_is_staged(
    destination: ParquetDestination,
) -> None:
    whole = pa.schema([("id", pa.int64()), ("n", pa.int64())])
    floats = pa.schema([("id", pa.int64()), ("n", pa.float64())])
    load(destination, request(1, schema=whole), [{"id": 1, "n": 2**53}, {"id": 2, "n": None}])
    destination.stage(request(2, schema=floats)).abort()
    load(destination, request(2, schema=whole), [{"id": 3, "n": 2**53 + 1}])

    with pytest.raises(ConnectorError, match="'n' of table 'orders' is int64") as refused:
        destination.stage(request(3, schema=floats))

    assert refused.value.error is ErrorClass.SCHEMA_INCOMPATIBLE
    load(destination, request(3, mode=Mode.REPLACE, schema=floats), [{"id": 1, "n": 0.5}])


def test_instants_that_became_text_are_in_utc_whatever_the_readers_zone(
    destination: ParquetDestination, lake: Path
) -> None:
    noon = dt.datetime(2026, 1, 1, 12, tzinfo=dt.UTC)
    for seq, kind, value in ((1, pa.timestamp("us", "UTC"), noon), (2, pa.string(), "later")):
        schema = pa.schema([("id", pa.int64()), ("seen", kind)])
        load(destination, request(seq, schema=schema), [{"id": seq, "seen": value}])
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'America/New_York'")
        connection.execute((lake / "orders" / "_view.sql").read_text())
        found = connection.execute("SELECT seen FROM orders ORDER BY id").fetchall()
    assert found == [("2026-01-01 12:00:00+00",), ("later",)]


# -- names and partitions ------------------------------------------------------------------------

NAMES = ["a/b", "..", ".", "", 'it\'s "q"', "😀", "x" * 300, "ü" * 90, "a%2Fb", "name", "~", "%~"]


def test_staged_batches_of_any_name_are_found_and_kept_apart(
    destination: ParquetDestination, lake: Path
) -> None:
    """(B3)"""
    names = [seal(destination, request(1, owner=Owner("c", "p/.", n)), orders(1)).name
             for n in NAMES]  # fmt: skip
    assert destination.staged("c", "p/.") == sorted(names, key=lambda n: n.owner.stream)
    assert {p.name for p in lake.parent.iterdir()} == {"lake"}
    for name in names:
        destination.discard(name)
    assert destination.staged("c", "p/.") == []


def test_tables_of_any_name_are_kept_apart(destination: ParquetDestination, lake: Path) -> None:
    for i, name in enumerate(NAMES):
        load(destination, request(1, table=name, owner=Owner("c", "p", name)), orders(i))
    assert glob_ids(lake, "*/*.parquet") == list(range(len(NAMES)))
    assert {p.name for p in lake.parent.iterdir()} == {"lake"}


def test_partition_values_are_safe_and_come_back(
    destination: ParquetDestination, lake: Path
) -> None:
    values = [*NAMES, None, "__HIVE_DEFAULT_PARTITION__", "a=b"]
    rows = [{"id": i, "name": value} for i, value in enumerate(values)]
    load(destination, request(1, partition_by=("name",)), rows)
    assert view_rows(lake / TABLE, "id, name") == list(enumerate(values))
    folders = sorted(p.name for p in (lake / TABLE).iterdir() if p.is_dir())
    assert len(folders) == len(values)
    assert all(folder.startswith("name=") and len(folder.encode()) < 256 for folder in folders)
    assert "name=__HIVE_DEFAULT_PARTITION__" in folders


def test_partitions_by_parts_of_a_date_and_several_columns(
    destination: ParquetDestination, lake: Path
) -> None:
    schema = pa.schema([("id", pa.int64()), ("on", pa.date32()), ("at", pa.timestamp("us", "UTC"))])
    rows = [
        {"id": 1, "on": dt.date(2026, 1, 31), "at": dt.datetime(2026, 2, 1, tzinfo=dt.UTC)},
        {"id": 2, "on": None, "at": dt.datetime(2025, 2, 1, tzinfo=dt.UTC)},
    ]
    by = ("day(on)", "month(at)")
    load(destination, request(1, schema=schema, partition_by=by), rows)
    load(destination, request(2, schema=schema, partition_by=by, mode=Mode.REPLACE), rows)
    assert sorted(str(p.parent.relative_to(lake)) for p in lake.glob("**/*.parquet")) == [
        "orders/on_day=2026-01-31/at_month=2026-02",
        "orders/on_day=__HIVE_DEFAULT_PARTITION__/at_month=2025-02",
    ]
    assert view_rows(lake / TABLE) == [1, 2]
    assert leftovers(lake) == []


@pytest.mark.parametrize("by", ["at", "day(at)", "year(at)"])
@pytest.mark.parametrize("kind", [pa.date32(), pa.timestamp("us"), pa.timestamp("us", "UTC")])
def test_infinity_is_a_partition_of_its_own(
    destination: ParquetDestination, lake: Path, kind: pa.DataType, by: str
) -> None:
    raw = pa.int32() if kind == pa.date32() else pa.int64()
    most = 2 ** (raw.bit_width - 1) - 1
    at = pa.array([most, None, -most], raw).view(kind)
    schema = pa.schema([("at", kind)])
    wanted = request(1, schema=schema, partition_by=[by])
    own = [pa.nulls(len(at), field.type) for field in OWN]
    stage = destination.stage(wanted)
    stage.write(pa.RecordBatch.from_arrays([at, *own], schema=pa.schema([*schema, *OWN])))
    destination.publish([stage.seal(cursor(1))])
    found = {path.parent.name.partition("=")[2] for path in (lake / TABLE).glob("*/*.parquet")}
    assert found == {"infinity", "-infinity", "__HIVE_DEFAULT_PARTITION__"}


def test_too_many_partitions_are_refused(destination: ParquetDestination) -> None:
    wanted = request(1, partition_by=("id",))
    stage = destination.stage(wanted)
    with pytest.raises(ConnectorError, match="more than 1000 partitions") as refused:
        stage.write(batch(wanted, orders(*range(1001))))
    assert refused.value.error is ErrorClass.PERMANENT
    stage.abort()
    assert destination.staged("cat-1", "shop") == []


@pytest.mark.parametrize(
    ("by", "words"),
    [("nope", "no column"), ("day(id)", "wants a date"), ("tags", "cannot name folders")],
)
def test_a_wrong_partition_by_says_what_is_allowed(
    destination: ParquetDestination, by: str, words: str
) -> None:
    schema = pa.schema([("id", pa.int64()), ("tags", pa.list_(pa.string()))])
    with pytest.raises(ConnectorError, match=words):
        destination.stage(request(1, schema=schema, partition_by=(by,)))


# -- sizes, errors, locks ------------------------------------------------------------------------


def test_small_batches_become_one_row_group_and_files_roll(
    destination: ParquetDestination, lake: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows_module, "GROUP_ROWS", 100)
    monkeypatch.setattr(rows_module, "PART_BYTES", 4_000)
    wanted = request(1)
    stage = destination.stage(wanted)
    for i in range(60):
        stage.write(batch(wanted, orders(*range(i * 10, i * 10 + 10))))
    destination.publish([stage.seal(None)])
    files = sorted((lake / TABLE).glob("*.parquet"))
    assert len(files) > 1
    groups = [pq.read_metadata(f).row_group(g).num_rows
              for f in files for g in range(pq.read_metadata(f).num_row_groups)]  # fmt: skip
    assert groups == [100] * 6
    assert view_rows(lake / TABLE) == list(range(600))


def test_a_failed_flush_gives_the_batch_up(
    destination: ParquetDestination, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = destination.stage(request(1))
    stage.write(batch(request(1), orders(1)))

    def broken(_: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", broken)
        with pytest.raises(ConnectorError, match="will be read again") as failed:
            stage.seal(None)
    assert failed.value.error is ErrorClass.TRANSIENT
    stage.abort()
    assert destination.staged("cat-1", "shop") == []


def test_a_publish_under_way_is_waited_for_then_named(lake: Path) -> None:
    destination = ParquetDestination(lake, lock_wait=0.05)
    receipt = seal(destination, request(1), orders(1))
    locks = lake / ".reconciler" / "locks"
    locks.mkdir()
    with DISK.lock(locks / TABLE, 0):
        with pytest.raises(ConnectorError, match=f"process {os.getpid()}") as busy:
            destination.publish([receipt])
        assert busy.value.busy
    destination.publish([receipt])
    assert glob_ids(lake) == [1]


def test_replace_works_where_nothing_can_be_made_beside_the_folder(
    destination: ParquetDestination, lake: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load(destination, request(1, mode=Mode.REPLACE), orders(1))
    lake.with_name(".lake.reconciler-swap").write_text("in the way")
    load(destination, request(2, mode=Mode.REPLACE), orders(2))
    assert glob_ids(lake) == view_rows(lake / TABLE) == [2]


def test_a_table_is_made_while_another_ones_publish_removes_the_place_where_it_was_built(
    lake: Path,
) -> None:
    class Busy(Files):
        def rename(self, source: Path, target: Path) -> None:
            super().rename(source, target)
            if target == lake / TABLE:
                self.rmdir(source.parent)

    load(ParquetDestination(lake, Busy()), request(1, mode=Mode.REPLACE), orders(1))
    assert glob_ids(lake) == view_rows(lake / TABLE) == [1]


@pytest.mark.parametrize("lost", ["", "_reconciler.json"], ids=["whole", "without its marker"])
def test_what_a_loss_of_power_brought_back_of_an_older_replacement_goes_with_the_next(
    destination: ParquetDestination, lake: Path, lost: str
) -> None:
    load(destination, request(1, mode=Mode.REPLACE), orders(1))
    back = lake.with_name(".lake.reconciler-swap") / f"{TABLE}.1.1"
    shutil.copytree(lake / TABLE, back)
    if lost:
        (back / lost).unlink()
    write_foreign(back / "theirs.parquet", 9)
    others = back.with_name("others.1.1")
    shutil.copytree(lake / TABLE, others)
    load(destination, request(2, mode=Mode.REPLACE), orders(2))
    assert not back.exists()
    assert others.exists()
    assert (glob_ids(lake), view_rows(lake / TABLE)) == ([2, 9], [2])


def test_who_publishes_an_old_batch_again_leaves_a_newer_one_that_is_built(
    destination: ParquetDestination, lake: Path
) -> None:
    """(B5) A worker that slept: the batches after its own are another's."""
    receipt = load(destination, request(1, mode=Mode.REPLACE), orders(1))
    built = lake.with_name(".lake.reconciler-swap") / f"{TABLE}.1.2" / "00000002-1-2-00000.parquet"
    write_foreign(built, 2)
    destination.publish([receipt])
    assert built.exists()


def test_a_disk_without_the_right_to_write_is_a_lasting_error(tmp_path: Path) -> None:
    (tmp_path / "lake").write_text("a file")
    destination = ParquetDestination(tmp_path / "lake")
    with pytest.raises(ConnectorError) as failed:
        destination.stage(request(1))
    assert failed.value.error is ErrorClass.PERMANENT
    assert any(f.level == "problem" for f in destination.check())


def test_a_full_disk_gives_the_batch_up(
    destination: ParquetDestination, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = destination.stage(request(1))
    stage.write(batch(request(1), orders(1)))

    def full(_: int, __: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(ConnectorError, match="No space left") as failed:
            stage.seal(None)
        stage.abort()
    assert failed.value.error is ErrorClass.TRANSIENT
    assert destination.staged("cat-1", "shop") == []


def test_a_sealed_batch_is_never_staged_over(destination: ParquetDestination) -> None:
    receipt = seal(destination, request(1), orders(1))
    with pytest.raises(ConnectorError, match="may be committed"):
        destination.stage(request(1))
    assert destination.staged("cat-1", "shop") == [receipt.name]


def test_a_damaged_marker_is_said_so(destination: ParquetDestination, lake: Path) -> None:
    load(destination, request(1), orders(1))
    (lake / "README").write_text("a file among the tables")
    assert all(finding.level == "ok" for finding in destination.check())
    (lake / TABLE / "_reconciler.json").write_text("{")
    with pytest.raises(ConnectorError, match="is damaged") as failed:
        destination.marker(TABLE)
    assert failed.value.error is ErrorClass.PERMANENT


def test_a_refresh_starts_a_table_that_was_lost_at_its_own_number(
    destination: ParquetDestination, lake: Path
) -> None:
    load(destination, request(7, mode=Mode.REPLACE), orders(1))
    load(destination, request(8), orders(2))
    assert view_rows(lake / TABLE) == [1, 2]

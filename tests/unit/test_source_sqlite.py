"""SQLite as a source, on real files: types, cursors, bounds and what is set aside."""

from __future__ import annotations

import datetime as dt
import os
import sqlite3
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import closing
from decimal import Decimal
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from catalog.records import CursorKind, ErrorClass, HoldKind
from reconciler.config.desired import Mode, StreamSettings
from reconciler.connectors.ports import ConnectorError, NeedsAnswer, Secrets, Source, Stopped
from reconciler.connectors.registry import open_source
from reconciler.connectors.sources import sqlite
from tests.replacing import replace
from tests.source_kit import Taken, take

BY_ID = StreamSettings(cursor=("id",))
BY_TIME = StreamSettings(cursor=("updated_at",))


class Shop:
    """A SQLite file, an application's connection to it, and the source under test."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.app = sqlite3.connect(path, isolation_level=None)
        self.source: Source = open_source("shop", "sql", {"url": f"sqlite://{path}"}, Secrets({}))

    def many(self, statement: str, rows: Iterable[tuple[Any, ...]]) -> None:
        """The statement for each row, in one transaction."""
        self.app.execute("BEGIN")
        self.app.executemany(statement, rows)
        self.app.execute("COMMIT")

    def take(self, stream: str, settings: StreamSettings, after: Taken | None = None) -> Taken:
        return take(self.source, stream, settings, after.cursor if after else None)


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Shop]:
    made = Shop(tmp_path / "shop.db")
    yield made
    made.source.close()
    made.app.close()


def test_declared_types_arrive_typed(shop: Shop) -> None:
    shop.app.execute(
        "CREATE TABLE t (id INTEGER PRIMARY KEY, big BIGINT, f DOUBLE, d DECIMAL(10,2), "
        "x VARCHAR(9), b BLOB, ok BOOLEAN, day DATE, at DATETIME, u UUID, j JSON, tz TIMESTAMPTZ)"
    )
    one = uuid.UUID(int=5)
    shop.app.execute(
        "INSERT INTO t VALUES (1, 9007199254740993, 1.5, 0.1 + 0.2, 'x', x'00ff', 1, '2026-01-31', "
        "'2026-01-31 10:00:00.5', ?, '{\"a\": [1]}', '2026-01-31T10:00:00+02:00')",
        (str(one),),
    )
    taken = shop.take("t", StreamSettings())
    assert taken.rows == [
        {
            "id": 1,
            "big": 9007199254740993,
            "f": 1.5,
            "d": Decimal("0.30"),
            "x": "x",
            "b": b"\x00\xff",
            "ok": True,
            "day": dt.date(2026, 1, 31),
            "at": dt.datetime(2026, 1, 31, 10, 0, 0, 500_000),  # noqa: DTZ001 - it has no zone
            "u": one,
            "j": '{"a": [1]}',
            "tz": dt.datetime(2026, 1, 31, 8, tzinfo=dt.UTC),
        }
    ]
    assert taken.rejected == []


def test_a_large_decimal_keeps_all_digits_that_sqlite_kept(shop: Shop) -> None:
    shop.app.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, d DECIMAL(18,6), m DECIMAL(18,2))")
    shop.app.execute("INSERT INTO t VALUES (1, 1234567890.123456, 12345678901234.56)")
    shop.app.execute("INSERT INTO t VALUES (2, -123456789012.12346, 1234567890123456.8)")
    shop.app.execute("INSERT INTO t VALUES (3, 0.1 + 0.2, 100.1 + 0.2), (4, 1234567890123.4567, 0)")
    taken = shop.take("t", StreamSettings())
    assert taken.column("d") == list(
        map(Decimal, ("1234567890.123456", "-123456789012.12346", "0.3"))
    )
    assert taken.column("m") == list(
        map(Decimal, ("12345678901234.56", "1234567890123456.8", "100.3"))
    )
    assert [row.place for row in taken.rejected] == ["id=4"]


def test_values_that_are_not_of_their_declared_type_are_set_aside_with_key_and_reason(
    shop: Shop,
) -> None:
    shop.app.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, n INT, at DATETIME, x TEXT)")
    shop.app.execute("INSERT INTO t VALUES (1, 'seven', NULL, NULL), (2, 7, 1767225600, NULL)")
    shop.app.execute("INSERT INTO t VALUES (3, NULL, NULL, x'ff'), (4, 1.5, NULL, NULL)")
    shop.app.execute("INSERT INTO t VALUES (5, 5, '2026-01-01', 'good')")
    taken = shop.take("t", StreamSettings())
    assert taken.column("id") == [5]
    reasons = {row.place: row.reason for row in taken.rejected}
    assert set(reasons) == {"id=1", "id=2", "id=3", "id=4"}
    assert "'seven'" in reasons["id=1"]
    assert "1767225600" in reasons["id=2"]
    assert "no UTF-8 text" in reasons["id=3"]
    assert "real" in reasons["id=4"]


def test_a_column_that_begins_with_thousands_of_nulls_keeps_its_type(shop: Shop) -> None:
    shop.app.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, x TEXT, f REAL, b BLOB)")
    shop.many("INSERT INTO t (id) VALUES (?)", ((i,) for i in range(1, 20_001)))
    shop.app.execute("INSERT INTO t VALUES (20001, 'late', 2.5, x'01')")
    taken = shop.take("t", BY_ID)
    assert len(taken.rows) == 20_001
    assert taken.rows[-1] == {"id": 20_001, "x": "late", "f": 2.5, "b": b"\x01"}


@pytest.mark.parametrize("settings", [StreamSettings(), BY_ID])
def test_a_misfit_far_into_a_table_takes_no_other_row_and_doubles_none(
    shop: Shop, settings: StreamSettings
) -> None:
    shop.app.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, n INT, x TEXT, b BLOB)")
    shop.many("INSERT INTO t (n, x) VALUES (?, 'x')", ((i,) for i in range(50_000)))
    shop.app.execute("INSERT INTO t VALUES (50001, 'none', 'x', NULL), (50002, 1, x'fffe', NULL)")
    shop.app.execute("INSERT INTO t VALUES (50003, 1, x'6162', 'cd')")
    for _ in range(2):  # the second time it is known that values have to be looked at
        taken = shop.take("t", settings)
        assert taken.column("id") == [*range(1, 50_001), 50_003]
        assert taken.rows[-1] == {"id": 50_003, "n": 1, "x": "ab", "b": b"cd"}
        assert [row.place for row in taken.rejected] == ["id=50001", "id=50002"]


def test_rows_set_aside_at_the_seam_of_two_commits_are_set_aside_once(shop: Shop) -> None:
    shop.app.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, n INT)")
    shop.many("INSERT INTO t VALUES (?, 'none')", ((i,) for i in range(17_000)))
    taken = shop.take("t", StreamSettings(cursor=("id",)))
    assert len(taken.marks) > 1
    assert (taken.rows, len(taken.rejected)) == ([], 17_000)
    assert len({row.place for row in taken.rejected}) == 17_000


def test_a_key_that_is_not_of_its_type_is_set_aside_and_not_missing(shop: Shop) -> None:
    shop.app.execute("CREATE TABLE t (k INT, v TEXT)")
    shop.app.execute("INSERT INTO t VALUES (1, 'a'), ('seven', 'b')")
    taken = shop.take("t", StreamSettings(key=("k",)))
    assert taken.column("k") == [1]
    assert len(taken.rejected) == 1


def test_odd_text_and_odd_names_survive(shop: Shop) -> None:
    texts = ["", "a\0b", "😀", "x" * 1_000_000, 'it\'s "quoted"', "line\nbreak"]
    shop.app.execute(
        'CREATE TABLE "My ""odd"" table" ("Key Col" INTEGER PRIMARY KEY, "sel ""x" TEXT)'
    )
    shop.many('INSERT INTO "My ""odd"" table" ("sel ""x") VALUES (?)', [(t,) for t in texts])
    settings = StreamSettings(cursor=("Key Col",))
    taken = shop.take('My "odd" table', settings)
    assert taken.column('sel "x') == texts
    assert shop.take('My "odd" table', settings, taken).has_news is False


def test_columns_of_the_config_override_the_declared_type(shop: Shop) -> None:
    shop.app.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, at DATETIME, free)")
    shop.app.execute("INSERT INTO t VALUES (1, 1767225600, '1.25')")
    settings = StreamSettings(columns=(("at", "int64"), ("free", "decimal(5,2)")))
    taken = shop.take("t", settings)
    assert taken.rows == [{"id": 1, "at": 1767225600, "free": Decimal("1.25")}]
    with pytest.raises(ConnectorError, match="did you mean 'free'"):
        shop.take("t", StreamSettings(columns=(("fre", "text"),)))


def test_an_integer_cursor_reads_on_from_where_it_was(shop: Shop) -> None:
    shop.app.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, x TEXT)")
    shop.app.execute("INSERT INTO t VALUES (1, 'a'), (2, 'b')")
    first = shop.take("t", BY_ID)
    assert first.cursor is not None
    assert first.cursor.kind is CursorKind.MONOTONIC
    assert first.cursor.position.text == "2"
    assert shop.take("t", BY_ID, first).has_news is False
    shop.app.execute("INSERT INTO t (x) VALUES ('c')")
    assert shop.take("t", BY_ID, first).column("id") == [3]


def test_marks_stand_only_between_values_of_the_cursor(shop: Shop) -> None:
    """(C3)"""
    shop.app.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, n INT)")
    shop.app.execute("CREATE INDEX t_n ON t (n)")
    rows = ((i // 3,) for i in range(60_000))
    shop.many("INSERT INTO t (n) VALUES (?)", rows)
    taken = shop.take("t", StreamSettings(cursor=("n",)))
    assert taken.ordered
    assert len(taken.marks) > 2
    for mark, count in zip(taken.marks, taken.rows_before_mark, strict=True):
        assert mark.cursor is not None
        at = int(mark.cursor.position.text)
        assert max(taken.column("n")[:count]) <= at
        assert min(taken.column("n")[count:], default=at + 1) > at
    second = take(shop.source, "t", StreamSettings(cursor=("n",)), taken.marks[0].cursor)
    assert second.rows == taken.rows[taken.rows_before_mark[0] :]


def test_without_an_index_on_the_cursor_one_mark_ends_the_read(shop: Shop) -> None:
    """(C3)"""
    shop.app.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, n INT)")
    shop.app.execute("CREATE INDEX nocase ON t (id, n)")
    shop.many("INSERT INTO t (n) VALUES (?)", ((i,) for i in range(40_000)))
    taken = shop.take("t", StreamSettings(cursor=("n",)))
    assert not taken.ordered
    assert len(taken.marks) == 1
    assert taken.note("no index")


def test_a_refresh_is_one_commit_also_where_an_index_gives_the_order(shop: Shop) -> None:
    """(B7)"""
    shop.app.execute("CREATE TABLE t (id INTEGER PRIMARY KEY)")
    shop.many("INSERT INTO t VALUES (?)", ((i,) for i in range(40_000)))
    settings = StreamSettings(cursor=("id",))
    assert shop.take("t", settings).ordered
    again = take(shop.source, "t", settings, refresh=True)
    assert (again.ordered, len(again.rows)) == (False, 40_000)


def test_a_refresh_of_what_is_merged_has_the_rows_beyond_the_bound_and_reads_them_again(
    shop: Shop,
) -> None:
    """It takes the place of the table, in which a row that changed just now would be missing."""
    shop.app.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, updated_at DATETIME)")
    shop.app.execute("INSERT INTO t VALUES (1, '2026-01-31 10:00:00'), (2, datetime('now'))")
    shop.app.execute("INSERT INTO t VALUES (3, '9999-12-31 00:00:00')")
    merges = StreamSettings(cursor=("updated_at",), settle=3600.0, key=("id",), mode=Mode.MERGE)
    again = take(shop.source, "t", merges, refresh=True)
    assert again.column("id") == [1, 2]
    assert again.counts == {"beyond_bound": 1}
    shop.app.execute("UPDATE t SET updated_at = datetime('now', '-2 seconds') WHERE id = 2")
    assert shop.take("t", replace(merges, settle=0.0), again).column("id") == [2]
    appends = replace(merges, mode=Mode.APPEND)
    assert take(shop.source, "t", appends, refresh=True).column("id") == [1]


def test_that_rows_of_one_key_become_one_is_told_where_the_database_does_not_say_it(
    shop: Shop,
) -> None:
    shop.app.execute("CREATE TABLE t (a INTEGER, b INTEGER, n INTEGER, PRIMARY KEY (a, b))")
    shop.app.execute("CREATE VIEW v AS SELECT * FROM t")
    told = "rows that have the same a become one: that is `key`, and"
    merges = StreamSettings(mode=Mode.MERGE, key=("a",))
    for stream, settings, level, said in (
        ("t", merges, "warning", f"{told} the primary key is a, b"),
        ("v", merges, "ok", f"{told} no primary key or unique index says that there are none"),
        ("t", replace(merges, key=("a", "b", "n")), "", ""),
        ("t", replace(merges, key=()), "", ""),
        ("t", replace(merges, mode=Mode.REPLACE), "", ""),
    ):
        notes = [note for note in shop.take(stream, settings).notes if "become one" in note]
        assert notes == ([said] if said else [])
        found = [f for f in shop.source.check({stream: settings}) if "become one" in f.text]
        assert [(f.level, f.text) for f in found] == (
            [(level, f"{stream}: {said}")] if said else []
        )


@pytest.mark.parametrize(
    ("declared", "index", "told"),
    [
        ("", "", True),
        ("", "UNIQUE INDEX u ON t (a)", False),
        ("", "UNIQUE INDEX u ON t (b, a)", False),
        ("", "UNIQUE INDEX u ON t (b COLLATE NOCASE DESC)", False),
        (", UNIQUE (a, b)", "", False),
        (", PRIMARY KEY (c), UNIQUE (b)) WITHOUT ROWID --", "", False),
        ("", "INDEX u ON t (a)", True),
        ("", "UNIQUE INDEX u ON t (a, b, c)", True),
        ("", "UNIQUE INDEX u ON t (a) WHERE b > 0", True),
        ("", "UNIQUE INDEX u ON t (a, nullif(b, 0))", True),
    ],
)
def test_a_unique_index_says_that_rows_have_not_the_same_key(
    shop: Shop, declared: str, index: str, *, told: bool
) -> None:
    shop.app.execute(f"CREATE TABLE t (a INTEGER, b TEXT, c INTEGER{declared})")
    by_both = StreamSettings(mode=Mode.MERGE, key=("a", "b"))
    if index:
        assert said_of_the_key(shop, by_both)  # and the index is seen once it is there
        shop.app.execute(f"CREATE {index}")
    assert said_of_the_key(shop, by_both) == told


def said_of_the_key(shop: Shop, settings: StreamSettings) -> bool:
    """Whether rows that share it are told to become one: by a run, and as much by ``check``."""
    said = any("become one" in note for note in shop.take("t", settings).notes)
    assert any("become one" in one.text for one in shop.source.check({"t": settings})) == said
    return said


def test_no_index_is_asked_for_where_none_can_be_made(shop: Shop) -> None:
    shop.app.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, updated_at DATETIME)")
    shop.app.execute("CREATE VIEW v AS SELECT * FROM t")
    settings = StreamSettings(cursor=("updated_at",), key=("id",), mode=Mode.MERGE)
    checked = shop.source.check({"t": settings, "v": settings})
    found = [one for one in checked if "no index leads" in one.text]
    assert [one.hint[:12] for one in found] == ["CREATE INDEX", ""]


def test_a_text_cursor_with_a_nul_in_it_goes_on(shop: Shop) -> None:
    shop.app.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, c TEXT)")
    shop.many("INSERT INTO t VALUES (?, ?)", [(1, "a\0b"), (2, "a")])
    first = shop.take("t", StreamSettings(cursor=("c",)))
    assert sorted(first.column("id")) == [1, 2]
    shop.many("INSERT INTO t VALUES (?, ?)", [(3, "a\0c")])
    assert shop.take("t", StreamSettings(cursor=("c",)), first).column("id") == [3]


@pytest.mark.parametrize("encoding", ["UTF-16le", "UTF-16be"])
def test_a_text_cursor_in_another_order_than_unicode_is_refused(shop: Shop, encoding: str) -> None:
    shop.app.execute(f"PRAGMA encoding = '{encoding}'")
    shop.app.execute("CREATE TABLE t (id TEXT PRIMARY KEY, updated_at TEXT)")
    shop.app.execute("INSERT INTO t VALUES ('\u0100', '2026-01-31 10:00:00')")
    with pytest.raises(ConnectorError, match="another order than Unicode"):
        shop.take("t", BY_ID)
    assert shop.take("t", BY_TIME).column("id") == ["\u0100"]


@pytest.mark.parametrize("declared", ["DATETIME", "TEXT"])
@pytest.mark.parametrize(("separator", "zone"), [(" ", ""), ("T", ""), ("T", "Z"), ("T", "+00:00")])
def test_times_kept_as_text_are_read_up_to_the_running_second(
    shop: Shop, declared: str, separator: str, zone: str
) -> None:
    shop.app.execute(f"CREATE TABLE t (id INTEGER PRIMARY KEY, updated_at {declared})")
    past = [f"2026-01-31{separator}10:00:0{second}{zone}" for second in (0, 1)]
    shop.many("INSERT INTO t (updated_at) VALUES (?)", [(t,) for t in [*past, ""]])
    took = 1.0
    while took >= 1:  # or its second may have been over
        began = time.monotonic()
        now = dt.datetime.now(dt.UTC).strftime(f"%Y-%m-%d{separator}%H:%M:%S{zone}")
        shop.app.execute("UPDATE t SET updated_at = ? WHERE id = 3", (now,))
        first = shop.take("t", BY_TIME)
        took = time.monotonic() - began
    assert first.column("id") == [1, 2]
    assert first.cursor is not None
    assert first.cursor.position.text == past[1]
    assert first.marks[-1].data_at == 1769853601 * 10**6
    shop.app.execute("INSERT INTO t (updated_at) VALUES (?)", (past[1].replace(":01", ":02"),))
    assert shop.take("t", BY_TIME, first).column("id") == [4]


@pytest.mark.parametrize("per_second", [1, 1_000, 1_000_000])
def test_unix_times_are_read_up_to_the_running_second(shop: Shop, per_second: int) -> None:
    shop.app.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, at INTEGER)")
    now = time.time()
    insert = "INSERT INTO t (at) VALUES (?)"
    shop.many(insert, [(int((now - ago) * per_second),) for ago in (1_000, 2)])
    waits = StreamSettings(cursor=("at",), settle=60.0)
    first = shop.take("t", waits)
    assert first.column("id") == [1]
    shop.many(insert, [(int((now - 2) * per_second),)])
    assert shop.take("t", waits, first).has_news is False
    assert shop.take("t", StreamSettings(cursor=("at",), settle=0.0), first).column("id") == [2, 3]


def test_a_number_without_an_end_in_an_integer_cursor_moves_nothing(shop: Shop) -> None:
    shop.app.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, n INTEGER)")
    shop.app.execute("INSERT INTO t (n) VALUES (5), (9e999), ('x'), (9223372036854775807)")
    taken = shop.take("t", StreamSettings(cursor=("n",)))
    assert taken.column("id") == [1, 4]
    assert taken.counts == {"beyond_bound": 2}
    assert taken.cursor is not None
    assert taken.cursor.position.text == "9223372036854775807"


def test_a_time_of_the_future_is_counted_and_moves_nothing(shop: Shop) -> None:
    shop.app.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, updated_at DATETIME)")
    shop.app.execute("INSERT INTO t VALUES (1, '2026-01-31 10:00:00'), (2, '9999-12-31 00:00:00')")
    taken = shop.take("t", BY_TIME)
    assert taken.column("id") == [1]
    assert taken.counts == {"beyond_bound": 1}
    assert taken.note("lies in the future")


@pytest.mark.parametrize("statement", ["DELETE FROM t", "UPDATE t SET id = id - 5"])
def test_a_table_that_ends_before_the_cursor_is_said(shop: Shop, statement: str) -> None:
    shop.app.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, x TEXT)")
    shop.app.execute("INSERT INTO t VALUES (8, 'a'), (9, 'b')")
    first = shop.take("t", BY_ID)
    again = shop.take("t", BY_ID, first)
    assert (again.has_news, again.idle) == (False, "")
    shop.app.execute(statement)
    fallen = shop.take("t", BY_ID, first)
    assert fallen.has_news is False
    assert "reaches the cursor, 9, any more" in fallen.idle
    assert fallen.idle in fallen.notes


def test_a_newest_row_that_waits_to_settle_is_no_table_that_fell_back(shop: Shop) -> None:
    shop.app.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, updated_at DATETIME)")
    shop.app.execute("INSERT INTO t VALUES (1, '2026-01-31 10:00:00'), (2, '2026-01-31 11:00:00')")
    first = shop.take("t", BY_TIME)
    shop.app.execute("UPDATE t SET updated_at = datetime('now', '+1 hour') WHERE id = 2")
    assert shop.take("t", BY_TIME, first).idle == ""


def test_a_cursor_that_mixes_forms_of_time_is_refused(shop: Shop) -> None:
    shop.app.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, updated_at DATETIME)")
    shop.app.execute("INSERT INTO t VALUES (1, '2026-01-31 10:00:00'), (2, '2026-01-31T09:00:00')")
    with pytest.raises(ConnectorError, match="'updated_at' mixes ways to write a time") as caught:
        shop.take("t", BY_TIME)
    assert caught.value.error is ErrorClass.PERMANENT
    shop.app.execute("UPDATE t SET updated_at = '2026-02-01T09:00:00Z' WHERE id = 2")
    with pytest.raises(ConnectorError, match="'updated_at' mixes ways to write a time"):
        shop.take("t", BY_TIME)


@pytest.mark.parametrize("value", ["1790000000", "1790000000.5", "'11/30/2026 10:00'"])
def test_a_form_of_time_that_comes_to_lie_below_the_cursor_is_refused(
    shop: Shop, value: str
) -> None:
    shop.app.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, updated_at DATETIME)")
    shop.app.execute("INSERT INTO t VALUES (1, NULL), (2, '2026-01-01 10:00:00')")
    settings = StreamSettings(cursor=("updated_at",), null_cursor="skip")
    first = shop.take("t", settings)
    assert first.column("id") == [2]
    shop.app.execute(f"INSERT INTO t VALUES (3, {value})")
    with pytest.raises(ConnectorError, match="mixes ways to write a time"):
        shop.take("t", settings, first)


@pytest.mark.parametrize("short", ["2026-01-03", "2026-01-03 10:00"])
def test_a_day_or_a_minute_alone_that_comes_to_lie_below_the_cursor_is_refused(
    shop: Shop, short: str
) -> None:
    shop.app.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, updated_at DATETIME)")
    shop.app.execute("INSERT INTO t VALUES (1, '2026-01-01'), (2, '2026-01-03 10:00:30')")
    first = shop.take("t", BY_TIME)
    assert first.column("id") == [1, 2]
    shop.app.execute("INSERT INTO t VALUES (3, ?), (4, '2026-01-05 11:00:00')", (short,))
    with pytest.raises(ConnectorError, match="mixes ways to write a time"):
        shop.take("t", BY_TIME, first)


def test_epoch_numbers_in_a_datetime_cursor_are_refused_with_what_to_do(shop: Shop) -> None:
    shop.app.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, updated_at DATETIME)")
    shop.app.execute("INSERT INTO t VALUES (1, 1767225600)")
    with pytest.raises(ConnectorError, match="YYYY-MM-DD HH:MM:SS"):
        shop.take("t", BY_TIME)


def test_floats_are_no_cursors(shop: Shop) -> None:
    shop.app.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, f REAL)")
    with pytest.raises(ConnectorError, match="'f' cannot be a cursor"):
        shop.take("t", StreamSettings(cursor=("f",)))


@pytest.mark.parametrize("indexed", [False, True])
def test_rows_without_a_cursor_value_are_held_skipped_or_read_again(
    shop: Shop, indexed: bool
) -> None:
    shop.app.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, updated_at DATETIME)")
    if indexed:
        shop.app.execute("CREATE INDEX by_time ON t (updated_at)")
    shop.app.execute("INSERT INTO t VALUES (1, '2026-01-31 10:00:00'), (2, NULL)")
    with pytest.raises(NeedsAnswer) as caught:
        shop.take("t", BY_TIME)
    assert caught.value.kind is HoldKind.NULL_CURSOR
    skipping = StreamSettings(cursor=("updated_at",), null_cursor="skip")
    skipped = shop.take("t", skipping)
    assert (skipped.column("id"), skipped.counts) == ([1], {"null_cursor": 1})
    again = StreamSettings(cursor=("updated_at",), null_cursor="reread")
    first = shop.take("t", again)
    assert (sorted(first.column("id")), first.counts) == ([1, 2], {})
    second = shop.take("t", again, first)
    assert second.column("id") == [2]
    assert second.cursor == first.cursor


def test_rows_without_a_cursor_value_move_no_cursor_back(shop: Shop) -> None:
    """(C4) The newest rows are gone: the bound lies before the cursor."""
    shop.app.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, n INT)")
    shop.app.execute("INSERT INTO t VALUES (1, 5), (2, 10), (3, NULL)")
    settings = StreamSettings(cursor=("n",), null_cursor="reread")
    first = shop.take("t", settings)
    shop.app.execute("DELETE FROM t WHERE n = 10")
    second = shop.take("t", settings, first)
    assert second.column("id") == [3]
    assert second.cursor == first.cursor


def test_a_null_in_the_key_of_a_merge_is_held(shop: Shop) -> None:
    shop.app.execute("CREATE TABLE t (id INT, n INTEGER)")
    shop.app.execute("INSERT INTO t VALUES (NULL, 1)")
    with pytest.raises(NeedsAnswer) as caught:
        shop.take("t", StreamSettings(key=("id",), cursor=("n",)))
    assert caught.value.kind is HoldKind.NULL_KEY


def test_another_definition_of_the_cursor_is_held_and_says_what_changed(shop: Shop) -> None:
    shop.app.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, n INT)")
    shop.app.execute("INSERT INTO t VALUES (1, 1)")
    first = shop.take("t", BY_ID)
    with pytest.raises(NeedsAnswer, match="cursor column was 'id', is 'n'") as caught:
        shop.take("t", StreamSettings(cursor=("n",)), first)
    assert caught.value.kind is HoldKind.DEFINITION
    assert caught.value.choices == ("refresh", "cursor set", "retry")
    fresh = take(shop.source, "t", StreamSettings(cursor=("n",)), refresh=True)
    assert (len(fresh.rows), fresh.ordered, len(fresh.marks)) == (1, False, 1)


def test_a_cursor_goes_on_in_nothing_but_what_it_was_kept_for(shop: Shop, tmp_path: Path) -> None:
    """(C4) Source, table, key, mode and the cursor's type are all of its definition."""
    for table in ("t", "u"):
        shop.app.execute(f"CREATE TABLE {table} (id INTEGER PRIMARY KEY, n INT)")
        shop.app.execute(f"INSERT INTO {table} VALUES (1, 1)")
    first = shop.take("t", BY_ID)
    other = Shop(tmp_path / "other.db")
    other.app.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, n INT)")
    typed = Shop(tmp_path / "typed.db")
    typed.app.execute("CREATE TABLE t (id VARCHAR(9) PRIMARY KEY, n INT)")
    for where, stream, settings, what in (
        (other, "t", BY_ID, "the source was"),
        (shop, "u", BY_ID, "the table was 't', is 'u'"),
        (shop, "t", replace(BY_ID, key=("n",)), r"the key was \(id\), is \(n\)"),
        (shop, "t", replace(BY_ID, mode=Mode.APPEND), "the mode was 'merge', is 'append'"),
        (typed, "t", BY_ID, "the cursor's type was 'int64', is 'text'"),
    ):
        with pytest.raises(NeedsAnswer, match=what) as caught:
            where.take(stream, settings, first)
        assert caught.value.kind is HoldKind.DEFINITION
    for each in (other, typed):
        each.source.close()
        each.app.close()


def test_a_table_without_the_cursor_is_read_as_a_whole_but_never_appended(shop: Shop) -> None:
    shop.app.execute("CREATE TABLE t (id INTEGER PRIMARY KEY)")
    shop.app.execute("INSERT INTO t VALUES (1)")
    taken = shop.take("t", StreamSettings(cursor=("updated_at",), mode=Mode.REPLACE))
    assert not taken.ordered
    assert taken.cursor is not None
    assert taken.cursor.kind is CursorKind.SNAPSHOT_ID
    assert taken.notes == ()
    merged = shop.take("t", StreamSettings(cursor=("updated_at",)))
    assert merged.note("rows that are deleted at the source stay")
    with pytest.raises(ConnectorError, match="mode append"):
        shop.take("t", StreamSettings(cursor=("updated_at",), mode=Mode.APPEND))


def test_where_a_table_is_replaced_all_of_it_is_read_whatever_cursor_is_named(shop: Shop) -> None:
    shop.app.execute("CREATE TABLE t (id INTEGER PRIMARY KEY)")
    shop.app.execute("INSERT INTO t VALUES (1), (2)")
    settings = StreamSettings(cursor=("id",), mode=Mode.REPLACE)
    first = shop.take("t", settings)
    shop.app.execute("INSERT INTO t VALUES (3)")
    assert shop.take("t", settings, first).column("id") == [1, 2, 3]


@pytest.mark.parametrize(
    "more", [{"lookback": 3}, {"null_cursor": "reread"}], ids=["lookback", "null_cursor"]
)
def test_what_reads_rows_again_is_refused_where_they_are_appended(
    shop: Shop, more: dict[str, Any]
) -> None:
    shop.app.execute("CREATE TABLE t (id INTEGER PRIMARY KEY)")
    with pytest.raises(ConnectorError, match="which mode append would double") as refused:
        shop.take("t", StreamSettings(cursor=("id",), mode=Mode.APPEND, **more))
    assert refused.value.error is ErrorClass.PERMANENT


def test_lookback_reads_behind_the_cursor_only_when_there_is_news(shop: Shop) -> None:
    shop.app.execute("CREATE TABLE t (id INTEGER PRIMARY KEY)")
    shop.many("INSERT INTO t VALUES (?)", ((i,) for i in range(1, 11)))
    settings = StreamSettings(cursor=("id",), lookback=3)
    first = shop.take("t", settings)
    assert shop.take("t", settings, first).has_news is False
    shop.app.execute("INSERT INTO t VALUES (11)")
    second = shop.take("t", settings, first)
    assert second.column("id") == [8, 9, 10, 11]
    assert second.cursor is not None
    assert second.cursor.position.text == "11"


def test_marks_of_a_read_that_looks_back_move_no_cursor_back(shop: Shop) -> None:
    shop.app.execute("CREATE TABLE t (id INTEGER PRIMARY KEY)")
    shop.many("INSERT INTO t VALUES (?)", ((i,) for i in range(1, 40_001)))
    settings = StreamSettings(cursor=("id",), lookback=39_000)
    first = shop.take("t", settings)
    shop.app.execute("INSERT INTO t VALUES (50000)")
    second = shop.take("t", settings, first)
    assert len(second.rows) == 39_001
    places = [mark.cursor.position.text for mark in second.marks if mark.cursor is not None]
    assert len(places) == len(second.marks) > 2
    assert (set(places[:-1]), places[-1]) == ({"40000"}, "50000")


def test_a_query_is_read_like_a_table(shop: Shop) -> None:
    shop.app.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, n INT)")
    shop.app.execute("INSERT INTO t VALUES (1, 10), (2, 20)")
    settings = StreamSettings(
        query="SELECT id, n FROM t WHERE n > 10;", key=("id",), cursor=("id",)
    )
    taken = shop.take("big ones", settings)
    assert taken.rows == [{"id": 2, "n": 20}]
    changed = StreamSettings(query="SELECT id, n FROM t", key=("id",), cursor=("id",))
    with pytest.raises(NeedsAnswer, match="the query was"):
        shop.take("big ones", changed, taken)


def test_a_table_that_gained_a_column_is_seen_by_the_warm_source(shop: Shop) -> None:
    shop.app.execute("CREATE TABLE t (id INTEGER PRIMARY KEY)")
    shop.app.execute("INSERT INTO t VALUES (1)")
    first = shop.take("t", BY_ID)
    shop.app.execute("ALTER TABLE t ADD COLUMN x TEXT")
    shop.app.execute("INSERT INTO t VALUES (2, 'new')")
    assert shop.take("t", BY_ID, first).rows == [{"id": 2, "x": "new"}]


def test_a_column_renamed_between_a_look_and_the_read_is_no_text_of_its_name(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop.app.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, note TEXT)")
    shop.app.execute("INSERT INTO t VALUES (1, 'a')")
    begin = sqlite.Sqlite.begin

    def late(dialect: sqlite.Sqlite) -> None:
        shop.app.execute("ALTER TABLE t RENAME COLUMN note TO remark")
        begin(dialect)

    with monkeypatch.context() as patch:
        patch.setattr(sqlite.Sqlite, "begin", late)
        with pytest.raises(ConnectorError, match="was altered") as caught:
            shop.take("t", BY_ID)
    assert caught.value.error is ErrorClass.TRANSIENT
    assert shop.take("t", BY_ID).rows == [{"id": 1, "remark": "a"}]


def test_a_virtual_table_whose_module_is_missing_keeps_no_other_from_being_found(
    shop: Shop,
) -> None:
    shop.app.execute("CREATE TABLE t (id INTEGER PRIMARY KEY)")
    shop.app.execute("PRAGMA writable_schema = on")
    made = "CREATE VIRTUAL TABLE v USING a_module_of_theirs(x)"
    shop.app.execute("INSERT INTO sqlite_schema VALUES ('table', 'v', 'v', 0, ?)", (made,))
    assert {found.name for found in shop.source.discover(["*"], {})} == {"t", "v"}
    with pytest.raises(ConnectorError, match="no such module") as caught:
        shop.take("v", StreamSettings())
    assert caught.value.error is ErrorClass.PERMANENT


def test_a_file_put_in_the_place_of_another_is_read_by_the_warm_source(
    shop: Shop, tmp_path: Path
) -> None:
    shop.app.execute("CREATE TABLE t (id INTEGER PRIMARY KEY)")
    shop.app.execute("INSERT INTO t VALUES (1)")
    first = shop.take("t", BY_ID)
    copy = tmp_path / "copy.db"
    with closing(sqlite3.connect(copy)) as other, other:
        shop.app.backup(other)
        other.execute("INSERT INTO t VALUES (2)")
    copy.rename(shop.path)
    assert shop.take("t", BY_ID, first).column("id") == [2]


def _made(path: Path, columns: str, row: tuple[object, ...]) -> bytes:
    """A database as a script makes it anew each night: as many statements each time."""
    with closing(sqlite3.connect(path)) as db, db:
        db.execute(f"CREATE TABLE t ({columns})")
        db.execute("INSERT INTO t VALUES (?, ?, ?)", row)
    return path.read_bytes()


def test_a_file_copied_over_another_is_read_by_the_warm_source(tmp_path: Path) -> None:
    """Also where SQLite's own counters do not show it, and the columns are others."""
    path = tmp_path / "shop.db"
    _made(path, "id INTEGER PRIMARY KEY, a TEXT, b TEXT", (1, "a1", "b1"))
    source = open_source("shop", "sql", {"url": f"sqlite://{path}"}, Secrets({}))
    whole = StreamSettings(mode=Mode.REPLACE)
    assert take(source, "t", whole).rows == [{"id": 1, "a": "a1", "b": "b1"}]
    path.write_bytes(_made(tmp_path / "2", "id INTEGER PRIMARY KEY, a TEXT, b TEXT", (2, "a2", "")))
    assert take(source, "t", whole).rows == [{"id": 2, "a": "a2", "b": ""}]
    path.write_bytes(_made(tmp_path / "3", "id INTEGER PRIMARY KEY, b TEXT, a TEXT", (3, "b3", "")))
    assert take(source, "t", whole).rows == [{"id": 3, "b": "b3", "a": ""}]
    source.close()


def test_a_file_put_in_the_place_of_one_without_streams_is_discovered(
    shop: Shop, tmp_path: Path
) -> None:
    assert shop.source.discover(["t*"], {}) == []
    with closing(sqlite3.connect(tmp_path / "new.db")) as other:
        other.execute("CREATE TABLE t (id INTEGER PRIMARY KEY)")
    (tmp_path / "new.db").rename(shop.path)
    assert [found.name for found in shop.source.discover(["t*"], {})] == ["t"]


def test_what_is_committed_while_reading_comes_with_the_next_run(shop: Shop) -> None:
    shop.app.execute("PRAGMA journal_mode = WAL")
    shop.app.execute("CREATE TABLE t (id INTEGER PRIMARY KEY)")
    shop.many("INSERT INTO t VALUES (?)", ((i,) for i in range(1, 50_001)))
    inserted: list[int] = []

    def insert_once() -> bool:
        if not inserted:
            inserted.append(50_001)
            shop.app.execute("INSERT INTO t VALUES (50001)")
        return False

    first = take(shop.source, "t", BY_ID, stopped=insert_once)
    assert len(first.rows) == 50_000
    assert shop.take("t", BY_ID, first).column("id") == [50_001]


def test_stopping_ends_a_read_and_leaves_the_source_usable(shop: Shop) -> None:
    shop.app.execute("CREATE TABLE t (id INTEGER PRIMARY KEY)")
    shop.app.execute("INSERT INTO t VALUES (1)")
    with pytest.raises(Stopped):
        take(shop.source, "t", BY_ID, stopped=lambda: True)
    assert shop.take("t", BY_ID).column("id") == [1]


def test_what_is_not_there_is_named_with_what_comes_nearest(shop: Shop, tmp_path: Path) -> None:
    shop.app.execute("CREATE TABLE orders (id INTEGER PRIMARY KEY)")
    with pytest.raises(ConnectorError, match="no table 'order'; did you mean 'orders'") as caught:
        shop.take("order", BY_ID)
    assert caught.value.error is ErrorClass.PERMANENT
    url = {"url": f"sqlite://{tmp_path}/none.db"}
    with pytest.raises(ConnectorError, match="there is no file") as caught:
        take(open_source("gone", "sql", url, Secrets({})), "t", BY_ID)
    assert caught.value.error is ErrorClass.TRANSIENT, "it may be on its way"
    (tmp_path / "note.db").write_text(
        "this is no database, but long enough to look like a file" * 20
    )
    url = {"url": f"sqlite://{tmp_path}/note.db"}
    with pytest.raises(ConnectorError, match="not a database") as caught:
        take(open_source("note", "sql", url, Secrets({})), "t", BY_ID)
    assert caught.value.error is ErrorClass.PERMANENT


def test_a_file_in_wal_mode_that_may_not_be_read_is_said_to_be(shop: Shop) -> None:
    shop.source.discover(["*"], {})  # loads the driver while this user may read it
    is_root = os.geteuid() == 0
    with TemporaryDirectory() as folder:
        path = Path(folder) / "app.sqlite"
        with closing(sqlite3.connect(path)) as app:
            app.execute("PRAGMA journal_mode = wal")
            app.execute("CREATE TABLE t (id INTEGER PRIMARY KEY)")
        source = open_source("app", "sql", {"url": f"sqlite://{path}"}, Secrets({}))
        Path(folder).chmod(0o555)
        os.seteuid(65534 if is_root else os.geteuid())
        try:
            with pytest.raises(ConnectorError, match="is in WAL mode, and SQLite reads it only"):
                source.discover(["*"], {})
        finally:
            os.seteuid(0 if is_root else os.geteuid())
            source.close()
            Path(folder).chmod(0o755)


def test_a_file_in_wal_mode_on_a_disk_that_takes_no_log_is_said_to_be(tmp_path: Path) -> None:
    """As systemd's ``ProtectSystem=strict`` has it, which SQLite words in another way."""
    path = tmp_path / "app.sqlite"
    with closing(sqlite3.connect(path)) as app:
        app.execute("PRAGMA journal_mode = wal")
        app.execute("CREATE TABLE t (id INTEGER PRIMARY KEY)")
    (tmp_path / "app.sqlite-wal").mkdir()  # in the way, as for root nothing else is
    source = open_source("app", "sql", {"url": f"sqlite://{path}"}, Secrets({}))
    with closing(source), pytest.raises(ConnectorError, match="is in WAL mode, and SQLite reads"):
        source.discover(["*"], {})


@pytest.mark.parametrize(
    ("select", "found"),
    [(["*"], ["a", "a_tmp", "b"]), (["*", "!*_tmp"], ["a", "b"]), ([], []), (["b"], ["b"])],
)
def test_select_takes_by_globs_and_takes_away_by_exclamation(
    shop: Shop, select: list[str], found: list[str]
) -> None:
    for name in ("a", "a_tmp", "b"):
        shop.app.execute(f"CREATE TABLE {name} (id INTEGER PRIMARY KEY, updated_at DATETIME)")
    shop.app.execute("CREATE INDEX ai ON a (updated_at)")
    streams = shop.source.discover(select, {})
    assert [s.name for s in streams] == found
    for stream in streams:
        assert stream.cursors == ("updated_at", "id")
        assert stream.schema.key == ("id",)
        assert stream.indexed == (("updated_at", "id") if stream.name == "a" else ("id",))


def test_a_file_whose_writer_was_cut_off_waits_until_somebody_puts_it_right(
    shop: Shop, tmp_path: Path
) -> None:
    shop.app.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, x TEXT)")
    shop.many("INSERT INTO t VALUES (?, ?)", ((i, "x" * 500) for i in range(200)))
    shop.app.execute("PRAGMA cache_size = 5")
    shop.app.execute("BEGIN")
    shop.app.execute("UPDATE t SET x = x || 'y'")
    cut_off = tmp_path / "cut_off.db"
    for end in "", "-journal":
        Path(f"{cut_off}{end}").write_bytes(Path(f"{shop.path}{end}").read_bytes())
    shop.app.execute("ROLLBACK")
    source = open_source("shop", "sql", {"url": f"sqlite://{cut_off}"}, Secrets({}))
    with pytest.raises(ConnectorError, match="was cut off while it wrote to") as caught:
        take(source, "t", BY_ID)
    assert caught.value.error is ErrorClass.TRANSIENT
    with closing(sqlite3.connect(cut_off)) as other:
        other.execute("BEGIN IMMEDIATE")
    assert {len(x) for x in take(source, "t", BY_ID).column("x")} == {500}
    source.close()


def test_a_view_that_is_named_is_a_stream(shop: Shop) -> None:
    shop.app.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, n INT)")
    shop.app.execute("INSERT INTO t VALUES (1, 2)")
    shop.app.execute("CREATE VIEW v AS SELECT id, n FROM t")
    assert [s.name for s in shop.source.discover([], {"v": StreamSettings()})] == ["v"]
    assert shop.take("v", StreamSettings(mode=Mode.REPLACE)).rows == [{"id": 1, "n": 2}]


def test_a_table_of_more_than_a_thousand_columns_is_read(shop: Shop) -> None:
    names = ", ".join(f"c{i} TEXT" for i in range(1_200))
    shop.app.execute(f"CREATE TABLE t (id INTEGER PRIMARY KEY, {names})")
    shop.app.execute("INSERT INTO t (id, c1199) VALUES (1, 'last')")
    assert shop.take("t", StreamSettings(mode=Mode.REPLACE)).rows[0]["c1199"] == "last"


def test_a_table_with_a_column_named_rowid_is_discovered(shop: Shop) -> None:
    shop.app.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, rowid TEXT)")
    shop.app.execute("INSERT INTO t VALUES (1, 'one')")
    (found,) = shop.source.discover(["t"], {})
    assert (found.name, found.rows) == ("t", None)


def test_an_error_in_a_query_is_told_without_what_is_made_of_it(shop: Shop) -> None:
    settings = StreamSettings(mode=Mode.REPLACE, query="SELECT 1 FRO t")
    with pytest.raises(ConnectorError) as failed:
        shop.take("q", settings)
    assert str(failed.value).endswith('near "t": syntax error')


def test_check_says_what_is_missing(shop: Shop) -> None:
    shop.app.execute("CREATE TABLE t (n INT)")
    findings = shop.source.check({"t": BY_TIME, "u": BY_TIME})
    texts = {f.level: f.text for f in findings}
    assert findings[0].level == "ok"
    assert any("no key to merge on" in f.text for f in findings)
    assert "no table 'u'" in texts["problem"]


@pytest.mark.parametrize(
    "settings",
    [
        StreamSettings(key=("nope",)),
        StreamSettings(columns=(("nope", "text"),)),
        StreamSettings(columns=(("id", "number"),)),
        StreamSettings(mode=Mode.APPEND, cursor=("nope",)),
        StreamSettings(cursor=("b",)),
    ],
)
def test_check_finds_what_a_run_would_fail_with(shop: Shop, settings: StreamSettings) -> None:
    shop.app.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, b BLOB)")
    with pytest.raises(ConnectorError) as refused:
        shop.take("t", settings)
    problems = [f.text for f in shop.source.check({"t": settings}) if f.level == "problem"]
    assert problems == [str(refused.value)]


def test_the_index_that_check_proposes_can_be_made_as_it_stands(shop: Shop) -> None:
    shop.app.execute('CREATE TABLE "or der.s" (id INTEGER PRIMARY KEY, "Changed ""At""" INT)')
    settings = {"or der.s": StreamSettings(cursor=('Changed "At"',))}
    proposed = next(f for f in shop.source.check(settings) if f.level == "warning")
    shop.app.execute(proposed.hint)
    assert all(f.level == "ok" for f in shop.source.check(settings))
    query = StreamSettings(query='SELECT * FROM "or der.s"', cursor=("id",))
    assert [f.hint for f in shop.source.check({"q": query}) if f.level == "warning"] == [""]

"""What a cursor column cannot show is said before it is read (rule 8, C2)."""

from __future__ import annotations

import datetime as dt
from dataclasses import replace
from typing import Any

from catalog.position import encode
from catalog.records import Cursor, CursorKind, StreamState
from reconciler.config.desired import Connection, Mode, Pipeline, StreamSettings
from reconciler.plan.notes import notes

_POSTGRES = Connection("db", "sql", {"url": "postgresql://u@h/shop"})
_SQLITE = Connection("db", "sql", {"url": "sqlite:////shop.db"})
_FILES = Connection("in", "files", {"path": "/in"})
_CURSOR = StreamSettings(cursor=("updated_at",))


def _pipeline(settings: StreamSettings) -> Pipeline:
    return Pipeline("p", "db", "out", streams={"orders": settings})


_PLACES: dict[str, Any] = {"int": 7, "text": "2026-11-30 12:00:00", "date": dt.date(2026, 11, 30)}


def _texts(source: Connection, settings: StreamSettings, tag: str = "") -> str:
    states = []
    if tag:
        cursor = Cursor(CursorKind.MONOTONIC, "{}", encode(tag, _PLACES.get(tag, 0)))
        states.append(StreamState("p", "orders", cursor=cursor))
    return "\n".join(text for _, text in notes(_pipeline(settings), source, states))


_DELETES = "deletes, and rows whose key changed, are not seen by a cursor"
_LATE = (
    "the cursor is of type int: exact only if rows become visible in its order; "
    'mode = "merge" with `lookback` covers those that come late'
)
_SKIPPED = "rows without a cursor value are left out, and counted"
_ONE_WRITER = "the writer is taken to stamp rows inside the transaction that inserts them"


def test_deletes_and_changed_keys_are_not_seen_by_a_cursor() -> None:
    assert _texts(_POSTGRES, _CURSOR) == _DELETES
    assert _texts(_POSTGRES, replace(_CURSOR, mode=Mode.REPLACE)) == ""


def test_a_cursor_that_is_the_key_shows_no_row_that_changes() -> None:
    numbered = replace(_CURSOR, key=_CURSOR.cursor)
    assert "rows that change are not seen either" in _texts(_POSTGRES, numbered)
    assert "rows that change are not seen either" not in _texts(_POSTGRES, _CURSOR)


def test_of_whole_tables_that_are_merged_rows_that_are_gone_stay() -> None:
    stay = 'rows that are deleted at the source stay: mode = "replace" takes them away'
    assert _texts(_POSTGRES, StreamSettings()) == stay
    assert _texts(_POSTGRES, StreamSettings(mode=Mode.REPLACE)) == ""
    # The cursor is named for all tables of the pipeline, and this one lacks it.
    assert _texts(_POSTGRES, _CURSOR, "snapshot") == stay
    assert _texts(Connection("h", "history", {"url": "sqlite:////catalog.db"}), _CURSOR) == ""


def test_an_integer_cursor_on_postgres_is_exact_only_with_lookback_and_merge() -> None:
    looks_back = replace(_CURSOR, lookback=100.0)
    assert _texts(_POSTGRES, _CURSOR, "int") == f"{_DELETES}\n{_LATE}"
    assert _texts(_POSTGRES, looks_back, "int") == _DELETES
    appends = replace(looks_back, mode=Mode.APPEND)
    assert _texts(_POSTGRES, appends, "int") == f"{_DELETES}\n{_LATE}"


def test_rows_stamped_by_the_application_may_come_too_late() -> None:
    stamped = replace(_CURSOR, stamped_by="application")
    late = "rows that become visible more than {} s after their stamp are missed"
    for tag in ("", "timestamp", "naive_timestamp", "date"):
        assert _texts(_POSTGRES, stamped, tag) == f"{_DELETES}\n{late.format(10)}"
    for tag in ("", "text", "int"):
        settled = replace(stamped, settle=2.5)
        assert _texts(_SQLITE, settled, tag) == f"{_DELETES}\n{late.format(2.5)}"


def test_elsewhere_than_on_postgres_the_writer_stamps_inside_its_transaction() -> None:
    """Also once the first run has found out of what kind the cursor is."""
    for tag in ("", "text", "int"):
        assert _texts(_SQLITE, _CURSOR, tag) == f"{_DELETES}\n{_ONE_WRITER}"
    for tag in ("", "timestamp", "naive_timestamp", "date"):
        assert _texts(_POSTGRES, _CURSOR, tag) == _DELETES


def test_rows_left_out_for_want_of_a_cursor_value_are_announced() -> None:
    assert _texts(_POSTGRES, replace(_CURSOR, null_cursor="skip")) == f"{_DELETES}\n{_SKIPPED}"
    assert _texts(_POSTGRES, replace(_CURSOR, null_cursor="reread")) == _DELETES


def test_changed_and_deleted_files_are_named() -> None:
    words = "a file that changes after it was read {}; one that is deleted is not noticed"
    assert _texts(_FILES, StreamSettings(path="*.csv")) == words.format("is held")
    again = StreamSettings(path="*.csv", changed="reread")
    assert _texts(_FILES, again) == words.format("is read again")
    assert _texts(_FILES, StreamSettings(path="*.csv", mode=Mode.REPLACE)) == ""


def test_streams_that_select_finds_share_one_note() -> None:
    found = Pipeline("p", "db", "out", select=("*",), defaults=_CURSOR)
    assert {name for name, _ in notes(found, _POSTGRES, ())} == {"*"}


def test_each_stream_that_has_a_cursor_or_is_named_has_its_notes() -> None:
    cursor = Cursor(CursorKind.MONOTONIC, "{}", encode("int", 7))
    states = [StreamState("p", "seen", cursor=cursor), StreamState("p", "whole")]
    named = replace(_pipeline(_CURSOR), defaults=_CURSOR)
    assert notes(named, _SQLITE, states) == [
        ("orders", _DELETES),
        ("orders", _ONE_WRITER),
        ("seen", _DELETES),
        ("seen", _ONE_WRITER),
    ]

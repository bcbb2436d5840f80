"""What a cursor column cannot show is said before it is read (rule 8, C2)."""

from __future__ import annotations

from dataclasses import replace

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


def _texts(source: Connection, settings: StreamSettings, tag: str = "", value: int = 0) -> str:
    states = []
    if tag:
        cursor = Cursor(CursorKind.MONOTONIC, "{}", encode(tag, value))
        states.append(StreamState("p", "orders", cursor=cursor))
    return "\n".join(text for _, text in notes(_pipeline(settings), source, states))


def test_deletes_and_changed_keys_are_not_seen_by_a_cursor() -> None:
    assert "deletes" in _texts(_POSTGRES, _CURSOR)
    assert _texts(_POSTGRES, replace(_CURSOR, mode=Mode.REPLACE)) == ""


def test_an_integer_cursor_on_postgres_is_exact_only_with_lookback() -> None:
    assert "become visible in its order" in _texts(_POSTGRES, _CURSOR, "int", 7)
    assert "order" not in _texts(_POSTGRES, replace(_CURSOR, lookback=100.0), "int", 7)
    assert "order" not in _texts(_SQLITE, _CURSOR, "int", 7)


def test_rows_stamped_by_the_application_may_come_too_late() -> None:
    assert "10 s" in _texts(_POSTGRES, replace(_CURSOR, stamped_by="application"))
    assert "stamp" not in _texts(_POSTGRES, _CURSOR)


def test_changed_and_deleted_files_are_named() -> None:
    assert "held" in _texts(_FILES, StreamSettings(path="*.csv"))
    assert "read again" in _texts(_FILES, StreamSettings(path="*.csv", changed="reread"))


def test_streams_that_select_finds_share_one_note() -> None:
    found = Pipeline("p", "db", "out", select=("*",), defaults=_CURSOR)
    assert {name for name, _ in notes(found, _POSTGRES, ())} == {"*"}

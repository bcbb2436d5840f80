"""What is printed: times, sizes, plain tables, and records as JSON."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from catalog.records import (
    Cursor,
    CursorKind,
    Outcome,
    Position,
    Run,
    StreamResult,
    StreamState,
    Trigger,
    TriggerKind,
)
from reconciler.cli import output

MINUTE = 60_000_000


def test_a_time_is_iso_8601_in_utc_to_the_microsecond() -> None:
    assert output.iso(1_790_000_000_000_001) == "2026-09-21T14:13:20.000001Z"
    assert output.iso(None) is None


@pytest.mark.parametrize("at", [10**30, -(10**30)])
def test_a_time_that_no_calendar_has_is_no_error(at: int) -> None:
    assert output.iso(at) is None


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0s"),
        (9.94, "9.9s"),
        (61, "1m 1s"),
        (3600, "1h"),
        (90_061, "1d 1h"),
        (86_400 * 30, "30d"),
    ],
)
def test_a_span_is_in_its_two_largest_units(seconds: float, text: str) -> None:
    assert output.span(seconds) == text


@pytest.mark.parametrize(
    ("definition", "words"),
    [
        (
            '{"column":"id","table":"public.orders","type":"int64"}',
            "id (int64) of public.orders",
        ),
        ('{"column":"id"}', "id"),
        ('{"path":"*.csv"}', '{"path":"*.csv"}'),
        ("anything", "anything"),
        ("[1]", "[1]"),
    ],
)
def test_a_cursor_is_said_by_its_column(definition: str, words: str) -> None:
    assert output.cursor_of(definition) == words


def test_a_moment_is_said_from_now() -> None:
    now = 10 * MINUTE
    assert output.ago(now - 2 * MINUTE, now) == "2m ago"
    assert output.ago(now + 2 * MINUTE, now) == "in 2m"
    assert output.ago(now, now) == "now"
    assert output.ago(now - 3_000_000, now) == "3s ago"
    assert output.ago(None, now) == "-"


def test_sizes_and_counts_read_well() -> None:
    assert output.size(12) == "12 B"
    assert output.size(3 * 2**20) == "3.0 MiB"
    assert output.size(5 * 2**40) == "5.0 TiB"
    assert output.count(1, "row") == "1 row"
    assert output.count(1234, "row") == "1,234 rows"


def test_a_run_has_the_fields_that_are_promised() -> None:
    run = Run(
        epoch=7,
        pipeline="shop",
        holder="daemon-1",
        trigger=Trigger(TriggerKind.TICK, tick=MINUTE),
        reason="done",
        started_at=MINUTE,
        finished_at=2 * MINUTE,
        outcome=Outcome.SUCCEEDED,
        streams=(StreamResult("orders", Outcome.SUCCEEDED, rows=3),),
    )
    record = json.loads(json.dumps(output.run_record(run)))
    promised = (
        "id pipeline outcome reason started_at finished_at rows bytes epoch holder streams count"
    )
    assert set(promised.split()) <= set(record)
    assert record["id"] == record["epoch"] == 7
    assert record["started_at"] == "1970-01-01T00:01:00.000000Z"
    assert record["trigger"]["tick"] == "1970-01-01T00:01:00.000000Z"
    assert record["streams"][0]["outcome"] == "succeeded"
    assert record["streams"][0]["rows"] == 3


def test_a_run_under_way_has_no_outcome_yet() -> None:
    run = Run(7, "shop", "daemon-1", Trigger(TriggerKind.TICK), "due", MINUTE)
    record = output.run_record(run)
    assert record["outcome"] is None
    assert record["finished_at"] is None


def test_bytes_paths_and_sets_become_json() -> None:
    cursor = Cursor(CursorKind.MONOTONIC, "id int64", Position("int", b"\x01\xff", "1"))
    record = output.plain(StreamState("shop", "orders", cursor=cursor))
    assert record["cursor"]["position"] == {"tag": "int", "data": "01ff", "text": "1"}
    assert output.plain({"a": Path("/x"), "b": frozenset(("y",))}) == {"a": "/x", "b": ["y"]}


def test_a_table_away_from_a_terminal_is_aligned_and_never_cut(
    capsys: pytest.CaptureFixture[str],
) -> None:
    output.table(("name", "why"), [("shop", "x" * 300), ("a", "two\nlines")])
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["name  why", f"shop  {'x' * 300}", "a     two lines"]


def test_a_table_on_a_terminal_keeps_short_words_whole(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output, "on_terminal", lambda: True)
    monkeypatch.setenv("COLUMNS", "60")
    output.table(("last run", "reason"), [("nothing_new", "[bold]a source's own words[/] " * 4)])
    shown = capsys.readouterr().out
    assert "nothing_new" in shown
    assert shown.count("[bold]") == 4  # what comes from outside is no markup
    assert len(shown.splitlines()) > 2


@pytest.mark.parametrize(
    ("width", "lines"),
    [
        ("36", ["last run     reason", "nothing_new  not due now: it is", "             paused"]),
        ("32", ["last run  nothing_new", "reason    not due now: it is paused"]),
        ("1", ["last run  nothing_new", "reason    not due now: it is paused"]),
    ],
)
def test_a_table_too_wide_for_its_terminal_is_told_row_by_row(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    width: str,
    lines: list[str],
) -> None:
    monkeypatch.setattr(output, "on_terminal", lambda: True)
    monkeypatch.setenv("COLUMNS", width)
    rows = [("nothing_new", "not due now: it is paused")] * 2
    output.table(("last run", "reason"), rows)
    shown = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    between = [] if width == "36" else [""]
    assert shown == [*lines, *between, *lines[len(lines) - 2 :]]


def test_pairs_leave_out_what_is_empty(capsys: pytest.CaptureFixture[str]) -> None:
    output.pairs((("run", 7), ("error", None), ("reason", ""), ("rows", 0)))
    assert capsys.readouterr().out == "run   7\nrows  0\n"

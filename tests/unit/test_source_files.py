"""Files as a source: each file once, whole, by its content; bad lines set aside."""

from __future__ import annotations

import contextlib
import datetime as dt
import errno
import gzip
import os
import time
import tracemalloc
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from catalog.records import CursorKind, ErrorClass, FileEntry, HoldKind
from reconciler.config.desired import FileFormat, Mode, StreamSettings
from reconciler.connectors.ports import (
    ConnectorError,
    Mark,
    NeedsAnswer,
    Progress,
    ReadRequest,
    Secrets,
    Source,
    Stopped,
)
from reconciler.connectors.registry import open_source
from reconciler.connectors.sources import (
    csv_lines,
    file_csv,
    file_jsonl,
    file_match,
    file_parquet,
    file_read,
    file_set,
)
from reconciler.connectors.sources.file_format import BLOCK
from tests.replacing import replace
from tests.source_kit import Taken, take

CSV = StreamSettings(path="*.csv*", mode=Mode.APPEND)


class Inbox:
    """A folder, a catalog's ledger of it, and the source under test."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ledger: dict[str, FileEntry] = {}
        self.seq = 0
        self.source: Source = open_source("inbox", "files", {"path": str(folder)}, Secrets({}))
        self._last: Taken | None = None

    def put(self, name: str, content: bytes | str, *, age: float = 60.0) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        when = time.time() - age
        os.utime(path, (when, when))
        return path

    def take(
        self, settings: StreamSettings = CSV, stopped: Callable[[], bool] = lambda: False
    ) -> Taken:
        """Read, and commit each mark as a run does. Files settle at once: their ctime is now."""
        settings = _settled(settings)
        cursor = self._last.cursor if self._last else None
        taken = take(
            self.source,
            "in",
            settings,
            cursor,
            ledger=tuple(self.ledger.values()),
            stopped=stopped,
        )
        for mark in taken.marks:
            self.seq += 1
            if settings.mode is Mode.REPLACE:
                self.ledger = {}
            self.ledger |= {f.path: replace(f, seq=f.seq or self.seq) for f in mark.files}
            for path in mark.forgotten:
                del self.ledger[path]
        self._last = taken if taken.marks else self._last
        return taken


def _settled(settings: StreamSettings) -> StreamSettings:
    if settings.settle is not None:
        return settings
    return StreamSettings(
        **{name: getattr(settings, name) for name in StreamSettings.__slots__} | {"settle": 0.0}
    )


@pytest.fixture
def inbox(tmp_path: Path) -> Inbox:
    folder = tmp_path / "inbox"
    folder.mkdir()
    return Inbox(folder)


# -- which files, and once each (C6) -------------------------------------------------------------


def test_each_file_is_read_once_in_order_of_its_time_with_a_mark_after_it(inbox: Inbox) -> None:
    inbox.put("b.csv", "id\n1\n", age=20)
    inbox.put("a.csv", "id\n2\n", age=10)
    first = inbox.take()
    assert first.column("id") == ["1", "2"]
    assert first.rows_before_mark == [1, 2]
    assert [mark.files[0].path for mark in first.marks] == ["b.csv", "a.csv"]
    assert first.cursor is not None
    assert first.cursor.kind is CursorKind.SNAPSHOT_ID
    assert inbox.take().has_news is False
    inbox.put("c.csv", "id\n3\n")
    second = inbox.take()
    assert second.column("id") == ["3"]
    assert second.cursor is not None
    assert second.cursor.position.text == "2"


def test_a_file_that_was_written_to_just_now_waits(inbox: Inbox) -> None:
    inbox.put("a.csv", "id\n1\n")
    taken = inbox.take(StreamSettings(path="*.csv", mode=Mode.APPEND, settle=60.0))
    assert taken.has_news is False
    assert taken.note("written to just now")


def test_a_time_of_content_that_lies_in_the_future_keeps_no_file_back(inbox: Inbox) -> None:
    inbox.put("a.csv", "id\n1\n", age=-86_400.0)
    assert inbox.take().column("id") == ["1"]


def test_a_file_of_a_clock_that_is_ahead_waits_and_it_is_said(
    inbox: Inbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    inbox.put("a.csv", "id\n1\n")
    an_hour_ago = time.time_ns() - 3600 * 10**9
    monkeypatch.setattr(file_set, "time", SimpleNamespace(time_ns=lambda: an_hour_ago))
    taken = inbox.take()
    assert taken.rows == []
    assert "'a.csv', were changed at a time that this machine's clock has not reached" in taken.idle
    assert taken.notes == (taken.idle.removeprefix("nothing new: "),)


def test_a_file_that_moved_is_known_by_its_content(inbox: Inbox) -> None:
    inbox.put("a.csv", "id\n1\n").rename(inbox.folder / "a.csv")
    inbox.take()
    (inbox.folder / "a.csv").rename(inbox.folder / "done.csv")
    taken = inbox.take()
    assert taken.rows == []
    assert taken.marks[0].forgotten == ("a.csv",)
    assert set(inbox.ledger) == {"done.csv"}
    assert inbox.take().has_news is False


def test_content_that_moves_or_is_touched_stays_of_the_batch_that_brought_it(inbox: Inbox) -> None:
    inbox.put("a.csv", "id\n1\n")
    inbox.put("b.csv", "id\n2\n")
    inbox.take()
    assert {f.path: f.seq for f in inbox.ledger.values()} == {"a.csv": 1, "b.csv": 2}
    (inbox.folder / "a.csv").rename(inbox.folder / "done.csv")
    os.utime(inbox.folder / "b.csv")
    inbox.take()
    inbox.put("copy.csv", "id\n1\n")
    inbox.put("c.csv", "id\n3\n")
    inbox.take()
    assert {f.path: f.seq for f in inbox.ledger.values()} == {
        "done.csv": 1,
        "b.csv": 2,
        "copy.csv": 1,
        "c.csv": 6,  # a mark after that of the copy
    }


@pytest.mark.parametrize("copied", [True, False], ids=["copied", "moved"])
def test_what_was_read_by_another_name_is_noted_before_that_name_has_other_content(
    inbox: Inbox, copied: bool
) -> None:
    """A run may be cut off after any batch. The ledger has one content for each name: once it is
    the new one, what was copied or moved away would be read again, over newer rows of its keys."""
    settings = StreamSettings(path="*.csv", key=("id",), changed="reread")
    path = inbox.put("a.csv", "id,at\n1,old\n")
    inbox.take(settings)
    old = inbox.folder / "old.csv"
    if copied:
        old.write_bytes(path.read_bytes())
    else:
        path.rename(old)
    inbox.put("a.csv", "id,at\n1,new\n")
    taken = inbox.take(settings)
    assert [mark.files[0].path for mark in taken.marks] == ["old.csv", "a.csv"]
    assert taken.column("at") == ["new"]


def test_a_copy_is_not_read_again_and_is_told(inbox: Inbox) -> None:
    inbox.put("a.csv", "id\n1\n")
    inbox.put("b.csv", "id\n1\n")
    taken = inbox.take()
    assert taken.column("id") == ["1"]
    assert taken.note("has the content of 'a.csv'")
    assert set(inbox.ledger) == {"a.csv", "b.csv"}


def test_a_file_that_was_moved_and_copied_is_noted_by_both_names(inbox: Inbox) -> None:
    inbox.put("a.csv", "id\n1\n")
    inbox.take()
    (inbox.folder / "a.csv").rename(inbox.folder / "b.csv")
    inbox.put("c.csv", "id\n1\n", age=10)
    taken = inbox.take()
    assert (taken.rows, taken.idle, set(inbox.ledger)) == ([], "", {"b.csv", "c.csv"})


def test_a_copy_of_what_went_away_before_it_was_read_is_left_for_the_next_run(
    inbox: Inbox,
) -> None:
    original = inbox.put("a.csv", "id\n1\n", age=20)
    inbox.put("copy.csv", "id\n1\n", age=10)
    looks = iter((False, True))  # asked after a look at each of the two

    def stopped() -> bool:
        if next(looks, False):
            original.unlink()
        return False

    first = inbox.take(stopped=stopped)
    assert (first.rows, first.marks) == ([], [])
    assert first.note("'copy.csv' is left for a later run")
    assert "'a.csv' is left" in first.idle
    assert inbox.take().column("id") == ["1"]


@pytest.mark.parametrize("refresh", [False, True])
def test_a_copy_is_not_read_twice_where_all_files_are_read(inbox: Inbox, refresh: bool) -> None:
    mode = Mode.APPEND if refresh else Mode.REPLACE
    settings = _settled(StreamSettings(path="*.csv", mode=mode))
    for name, age in ("a", 40), ("b", 30), ("c", 20):
        inbox.put(f"{name}.csv", "id\n2\n" if name == "b" else "id\n1\n", age=age)
    taken = take(inbox.source, "in", settings, refresh=refresh)
    assert taken.column("id") == ["1", "2"]
    (mark,) = taken.marks
    assert {f.path for f in mark.files} == {"a.csv", "b.csv", "c.csv"}
    assert not take(inbox.source, "in", settings, ledger=mark.files).has_news


@pytest.mark.parametrize("copied", [False, True])
def test_a_log_that_grew_before_it_was_rotated_is_held(
    inbox: Inbox, monkeypatch: pytest.MonkeyPatch, copied: bool
) -> None:
    log = inbox.put("log.csv", "id\n1\n2\n")
    inbox.take()
    inbox.put("log.csv", "id\n1\n2\n3\n")
    settings = CSV
    if copied:
        rotated = inbox.put("log.csv.1.csv", log.read_bytes()).stat().st_ctime_ns
        while log.stat().st_ctime_ns <= rotated:  # the kernel's clock has steps
            inbox.put("log.csv", "id\n", age=0.0)
        settings = replace(CSV, settle=2.0)  # the copy has settled just now, and the log has not
        now = SimpleNamespace(time_ns=lambda: rotated + 2 * 10**9)
        monkeypatch.setattr(file_set, "time", now)
    else:
        log.rename(inbox.folder / "log.csv.1.csv")
    with pytest.raises(NeedsAnswer, match=r"'log.csv.1.csv' \(as 'log.csv'\) changed after being"):
        inbox.take(settings)


def test_a_log_that_is_copied_away_and_grows_at_once_beyond_what_was_read_is_held(
    inbox: Inbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = inbox.put("log.csv", "id\n1\n")
    inbox.take()
    inbox.put("log.csv", "id\n1\n2\n3\n")
    rotated = inbox.put("log.csv.1.csv", log.read_bytes()).stat().st_ctime_ns
    while log.stat().st_ctime_ns <= rotated:
        inbox.put("log.csv", "id\n4\n5\n6\n7\n", age=0.0)
    now = SimpleNamespace(time_ns=lambda: rotated + 2 * 10**9)
    monkeypatch.setattr(file_set, "time", now)
    with pytest.raises(NeedsAnswer, match=r"'log.csv.1.csv' \(as 'log.csv'\) changed after being"):
        inbox.take(replace(CSV, settle=2.0))


@pytest.mark.parametrize(
    "settings", [CSV, StreamSettings(path="*.csv", key=("id",), changed="reread")]
)
def test_files_that_exchange_their_names_are_known_by_their_content(
    inbox: Inbox, settings: StreamSettings
) -> None:
    for name in "abc":
        inbox.put(f"{name}.csv", f"id\n{name}\n")
    inbox.take(settings)
    for old, new in ("a", "d"), ("b", "a"), ("c", "b"), ("d", "c"):
        (inbox.folder / f"{old}.csv").rename(inbox.folder / f"{new}.csv")
    taken = inbox.take(settings)
    assert (taken.rows, len(taken.marks)) == ([], 1)
    assert taken.note("'a.csv' has the content of 'b.csv'")
    assert inbox.take(settings).has_news is False


def test_a_folder_that_was_renamed_is_noted_file_by_file(inbox: Inbox) -> None:
    """However many there are: a commit, which is one message, may stand between any two."""
    settings = replace(CSV, path="*/*.csv")
    for name in "abc":
        inbox.put(f"old/{name}.csv", f"id\n{name}\n")
    inbox.take(settings)
    (inbox.folder / "old").rename(inbox.folder / "new")
    assert [len(mark.files) for mark in inbox.take(settings).marks] == [1, 1, 1]


def test_a_copy_of_what_a_file_became_is_not_noted_before_it_is_read(inbox: Inbox) -> None:
    settings = StreamSettings(path="*.csv", key=("id",), changed="reread")
    inbox.put("a.csv", "id\n1\n")
    inbox.take(settings)
    for name, age in ("a", 20), ("copy", 10):
        inbox.put(f"{name}.csv", "id\n2\n", age=age)
    taken = inbox.take(settings)
    assert [[file.path for file in mark.files] for mark in taken.marks] == [["a.csv"], ["copy.csv"]]
    assert {file.seq for file in inbox.ledger.values()} == {2, 3}


def test_a_log_that_grew_before_it_was_rotated_may_come_again_where_rows_are_merged(
    inbox: Inbox,
) -> None:
    merged = StreamSettings(path="*.csv", key=("id",))
    log = inbox.put("log.csv", "id\n1\n2\n")
    inbox.take(merged)
    inbox.put("log.csv", "id\n1\n2\n3\n").rename(inbox.folder / "log.csv.1.csv")
    assert not log.exists()
    assert inbox.take(merged).column("id") == ["1", "2", "3"]


def test_a_new_file_in_the_inode_of_one_that_is_gone_is_new(inbox: Inbox) -> None:
    for name, content in (("a.csv", "id\n"), ("b.csv", "id\n1\n"), ("c.csv", "id\n2\n3\n")):
        file = inbox.put("file.tmp", content)
        file.rename(inbox.folder / name)
        taken = inbox.take()
        (inbox.folder / name).rename(inbox.folder / "file.tmp")
    assert taken.column("id") == ["2", "3"]


def test_a_file_that_was_only_touched_is_not_read_again(inbox: Inbox) -> None:
    path = inbox.put("a.csv", "id\n1\n")
    inbox.take()
    os.utime(path)
    taken = inbox.take()
    assert taken.rows == []
    assert taken.marks[0].files[0].path == "a.csv"
    assert inbox.take().has_news is False


@pytest.mark.parametrize("what", ["inode", "size", "mtime_ns", "ctime_ns"])
def test_a_file_is_looked_at_again_where_anything_of_it_differs(inbox: Inbox, what: str) -> None:
    """(C6) A clock that is coarse, or put back by hand, hides no change by itself."""
    inbox.put("a.csv", "id\n1\n")
    inbox.take()
    known = inbox.ledger["a.csv"]
    assert inbox.take().has_news is False
    inbox.ledger["a.csv"] = replace(known, **{what: getattr(known, what) - 1})
    assert inbox.take().has_news is True

    stat = {"st_ino": 1, "st_size": 2, "st_mtime_ns": 3, "st_ctime_ns": 4}
    found = file_set.Found("a.csv", inbox.folder / "a.csv", *stat.values())
    assert found.is_still(cast(os.stat_result, SimpleNamespace(**stat)))
    there = {"inode": "st_ino"}.get(what, f"st_{what}")
    assert not found.is_still(cast(os.stat_result, SimpleNamespace(**{**stat, there: 9})))


def test_a_file_that_changed_is_held_by_name(inbox: Inbox) -> None:
    inbox.put("a.csv", "id\n1\n")
    inbox.take()
    inbox.put("a.csv", "id\n1\n2\n")
    with pytest.raises(NeedsAnswer, match=r"'a\.csv' changed after being read") as caught:
        inbox.take()
    assert caught.value.kind is HoldKind.FILES_CHANGED


def test_a_file_that_changed_is_read_again_where_rows_are_merged(inbox: Inbox) -> None:
    settings = StreamSettings(path="*.csv", key=("id",), changed="reread")
    inbox.put("a.csv", "id\n1\n")
    inbox.take(settings)
    inbox.put("a.csv", "id\n1\n2\n")
    assert inbox.take(settings).column("id") == ["1", "2"]
    assert inbox.take(settings).has_news is False


def test_replace_reads_all_files_whenever_any_came_changed_or_went(inbox: Inbox) -> None:
    settings = StreamSettings(path="*.csv", mode=Mode.REPLACE)
    inbox.put("a.csv", "id\n1\n", age=20)
    inbox.put("b.csv", "id\n2\n", age=10)
    first = inbox.take(settings)
    assert (first.column("id"), first.ordered, len(first.marks)) == (["1", "2"], False, 1)
    assert inbox.take(settings).has_news is False
    inbox.put("b.csv", "id\n3\n", age=10)
    assert inbox.take(settings).column("id") == ["1", "3"]
    (inbox.folder / "a.csv").unlink()
    assert inbox.take(settings).column("id") == ["3"]
    assert set(inbox.ledger) == {"b.csv"}


@pytest.mark.parametrize("refresh", [True, False])
def test_a_folder_that_cannot_be_listed_does_not_take_its_rows_away(
    inbox: Inbox, monkeypatch: pytest.MonkeyPatch, *, refresh: bool
) -> None:
    settings = StreamSettings(path="**/*.csv", mode=Mode.REPLACE, settle=0.0)
    inbox.put("a.csv", "id\n1\n", age=20)
    inbox.put("sub/b.csv", "id\n2\n", age=10)
    inbox.take(settings)
    ledger = tuple(inbox.ledger.values())
    scandir = os.scandir

    def refuse(path: str) -> object:
        if str(path) == str(inbox.folder / "sub"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scandir(path)

    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", refuse)
        with pytest.raises(ConnectorError, match="folder 'sub' cannot be listed") as caught:
            take(inbox.source, "in", settings, refresh=refresh, ledger=ledger)
    assert caught.value.error is ErrorClass.TRANSIENT
    assert take(inbox.source, "in", settings, refresh=refresh, ledger=ledger).idle == ""
    (inbox.folder / "sub" / "b.csv").unlink()
    (inbox.folder / "sub").rmdir()
    gone = take(inbox.source, "in", settings, refresh=refresh, ledger=ledger)
    assert gone.column("id") == ["1"], "a folder that is gone with its files keeps nothing back"


@pytest.mark.parametrize("path", ["**/*.csv", "sub/*.csv", "*/*.csv"])
@pytest.mark.parametrize("mode", [Mode.REPLACE, Mode.APPEND])
def test_a_listing_that_breaks_off_is_not_taken_for_whole(
    inbox: Inbox, monkeypatch: pytest.MonkeyPatch, path: str, mode: Mode
) -> None:
    """As of a folder on a server that goes away: it is opened, and read no further."""
    settings = StreamSettings(path=path, mode=mode, settle=0.0)
    for i in range(4):
        inbox.put(f"sub/{i}.csv", f"id\n{i}\n", age=20 + i)
    inbox.take(settings)
    scandir = os.scandir

    @contextlib.contextmanager
    def broken(place: str) -> Iterator[Iterator[object]]:
        with scandir(place) as entries:
            yield some(entries, breaks="sub" in str(place))

    def some(entries: Iterator[object], *, breaks: bool) -> Iterator[object]:
        yield next(entries)
        if breaks:
            raise OSError(errno.ESTALE, "Stale file handle", "sub")
        yield from entries

    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", broken)
        with pytest.raises(ConnectorError, match="'sub' cannot be listed: Stale") as caught:
            inbox.take(settings)
    assert caught.value.error is ErrorClass.TRANSIENT
    assert len(inbox.ledger) == 4
    assert inbox.take(settings).has_news is False


def test_a_folder_that_cannot_be_listed_is_named(
    inbox: Inbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = StreamSettings(path="*/in/*.csv", mode=Mode.APPEND, settle=0.0)
    inbox.put("sub/in/a.csv", "id\n1\n")
    (inbox.folder / "shut/in").mkdir(parents=True)
    access = os.access
    monkeypatch.setattr(os, "access", lambda p, mode: "shut" not in str(p) and access(p, mode))
    taken = inbox.take(settings)
    assert taken.column("id") == ["1"]
    assert taken.note("folder 'shut' cannot be listed")
    assert "folder 'shut' cannot be listed" in inbox.take(settings).idle
    found = inbox.source.check({"in": settings})
    assert any("'shut/in'" in finding.text for finding in found)


def test_a_refresh_waits_for_a_file_that_was_read_and_is_being_written(inbox: Inbox) -> None:
    inbox.put("a.csv", "id\n1\n", age=20)
    inbox.take()
    ledger = tuple(inbox.ledger.values())
    inbox.put("a.csv", "id\n1\n2\n")
    with pytest.raises(ConnectorError, match=r"'a.csv', which was read before, was written") as no:
        take(inbox.source, "in", replace(CSV, settle=60.0), refresh=True, ledger=ledger)
    assert no.value.error is ErrorClass.TRANSIENT


def test_replace_waits_for_a_file_that_was_renamed_just_now(inbox: Inbox) -> None:
    inbox.put("a.csv", "id\n1\n", age=200).rename(inbox.folder / "a.csv")
    inbox.put("b.csv", "id\n2\n", age=100)
    settings = StreamSettings(path="*.csv", mode=Mode.REPLACE)
    inbox.take(settings)
    (inbox.folder / "a.csv").rename(inbox.folder / "c.csv")
    assert inbox.take(replace(settings, settle=60.0)).has_news is False
    assert inbox.take(settings).column("id") == ["1", "2"]
    (inbox.folder / "b.csv").unlink()
    inbox.put("d.csv", "id\n3\n")
    assert inbox.take(replace(settings, settle=60.0)).has_news is True


def test_a_refresh_reads_all_again_to_one_mark(inbox: Inbox) -> None:
    inbox.put("a.csv", "id\n1\n", age=20)
    inbox.put("b.csv", "id\n2\n", age=10)
    inbox.take()
    taken = take(
        inbox.source, "in", _settled(CSV), refresh=True, ledger=tuple(inbox.ledger.values())
    )
    assert taken.column("id") == ["1", "2"]
    assert [len(mark.files) for mark in taken.marks] == [2]


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("cut.csv", b"id\n1\n2", "does not end with a newline"),
        ("cut.csv.gz", gzip.compress(b"id\n" + b"1\n" * 1000, mtime=0)[:-6], "gzip is cut"),
        ("empty.csv", b"", "is empty"),
        ("cut.jsonl", b'{"id": 1}\n{"id": ', "does not end with a newline"),
        ("cut.parquet", b"PAR1 and no footer", "footer cannot be read"),
    ],
)
def test_a_file_that_is_not_whole_is_left_and_the_others_are_read(
    inbox: Inbox, name: str, content: bytes, why: str
) -> None:
    inbox.put(name, content, age=30)
    ending = "." + name.partition(".")[2]
    good = {".csv": b"id\n7\n", ".csv.gz": gzip.compress(b"id\n7\n"), ".jsonl": b'{"id": "7"}\n'}
    if ending == ".parquet":
        pq.write_table(pa.table({"id": ["7"]}), inbox.folder / "good.parquet")
    else:
        inbox.put("good" + ending, good[ending], age=20)
    settings = StreamSettings(path="*" + ending, mode=Mode.APPEND)
    taken = inbox.take(settings)
    assert taken.column("id") == ["7"]
    assert why in taken.note(name)
    assert set(inbox.ledger) == {"good" + ending}


def test_replace_waits_for_a_file_that_is_not_whole(inbox: Inbox) -> None:
    inbox.put("cut.csv", "id\n1")
    with pytest.raises(ConnectorError, match="cannot leave one out") as caught:
        inbox.take(StreamSettings(path="*.csv", mode=Mode.REPLACE))
    assert caught.value.error is ErrorClass.TRANSIENT


def test_a_file_that_changes_while_it_is_read_is_not_committed(inbox: Inbox) -> None:
    path = inbox.put("a.csv", "id\n" + "1\n" * 10)
    request = ReadRequest("in", _settled(CSV), None)
    items = inbox.source.read(request).items()
    assert not isinstance(next(items), Mark)
    path.write_text("id\n2\n")
    with pytest.raises(ConnectorError, match="changed while it was read") as caught:
        list(items)
    assert caught.value.error is ErrorClass.TRANSIENT


def test_a_file_that_changes_before_it_is_read_waits_and_the_others_are_committed(
    inbox: Inbox,
) -> None:
    inbox.put("a.csv", "id\n1\n", age=20)
    later = inbox.put("b.csv", "id\n2\n", age=10)
    (inbox.folder / "folder.csv").mkdir()  # is no file
    read = inbox.source.read(ReadRequest("in", _settled(CSV), None))
    marks = []
    for item in read.items():
        if isinstance(item, Mark):
            marks.append(item)
            later.write_text("id\n2\n3\n")
    assert [entry.path for mark in marks for entry in mark.files] == ["a.csv"]
    assert [note for note in read.notes if "'b.csv' is left for a later run" in note]


def test_a_large_file_that_is_hashed_shows_progress_and_stops_when_asked(inbox: Inbox) -> None:
    inbox.put("a.jsonl", b'{"id": 1, "pad": "' + b"x" * (2 * BLOCK) + b'"}\n')
    settings = _settled(StreamSettings(path="*.jsonl", mode=Mode.APPEND))
    items = list(inbox.source.read(ReadRequest("in", settings, None)).items())
    assert sum(item.bytes for item in items if isinstance(item, Progress)) >= 2 * BLOCK
    with pytest.raises(Stopped):
        inbox.take(settings, stopped=lambda: True)


def test_files_below_folders_match_by_two_stars(inbox: Inbox) -> None:
    inbox.put("2026/01/a.csv", "id\n1\n")
    assert inbox.take(StreamSettings(path="**/*.csv", mode=Mode.APPEND)).column("id") == ["1"]
    assert set(inbox.ledger) == {"2026/01/a.csv"}


def test_a_file_that_a_pattern_matches_in_several_ways_is_read_once(inbox: Inbox) -> None:
    inbox.put("2026/01/a.csv", "x\n1\n")
    assert inbox.take(StreamSettings(path="**/**/*.csv", mode=Mode.APPEND)).column("x") == ["1"]


def test_links_that_lead_round_in_circles_are_not_followed_for_ever(inbox: Inbox) -> None:
    inbox.put("a/one.csv", "x\n1\n")
    inbox.put("b/two.csv", "x\n2\n")
    for place, target in (("up", "."), ("again", "."), ("a/b", "../b"), ("b/a", "../a")):
        (inbox.folder / place).symlink_to(target)
    elsewhere = inbox.folder.with_name(f"{inbox.folder.name}-elsewhere")
    elsewhere.mkdir()
    (elsewhere / "three.csv").write_text("x\n3\n")
    (inbox.folder / "out").symlink_to(elsewhere)
    settings = StreamSettings(path="**/*.csv", mode=Mode.APPEND, settle=0.0)
    assert sorted(inbox.take(settings).column("x")) == ["1", "2", "3"]
    assert set(inbox.ledger) == {"a/one.csv", "b/two.csv", "out/three.csv"}
    assert file_match.unlisted(inbox.folder, "**/*.csv") == []


def test_another_definition_is_held(inbox: Inbox) -> None:
    inbox.put("a.csv", "id\n1\n")
    inbox.take()
    keyed = StreamSettings(path="*.csv*", mode=Mode.APPEND, key=("id",))
    with pytest.raises(NeedsAnswer, match="the key was") as caught:
        inbox.take(keyed)
    assert caught.value.kind is HoldKind.DEFINITION
    assert caught.value.choices == ("refresh", "retry"), "a number of reads cannot be set"
    with pytest.raises(NeedsAnswer, match="the mode was 'append', is 'merge'"):
        inbox.take(replace(CSV, mode=Mode.MERGE))
    inbox.source = open_source("inbox", "files", {"path": str(inbox.folder.parent)}, Secrets({}))
    with pytest.raises(NeedsAnswer, match="the source was"):
        inbox.take()


def test_a_name_that_does_not_say_what_it_is_is_refused(inbox: Inbox) -> None:
    inbox.put("a.dat", "id\n1\n")
    with pytest.raises(ConnectorError, match=r"'a\.dat' does not say what it is"):
        inbox.take(StreamSettings(path="*", mode=Mode.APPEND))
    as_csv = StreamSettings(path="*", mode=Mode.APPEND, format=FileFormat(type="csv"))
    assert inbox.take(as_csv).column("id") == ["1"]


def test_what_the_ledger_cannot_keep_of_a_file_does_not_come_into_it(
    inbox: Inbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Inodes of 64 bits, as of some network file systems, and times beyond the year 2262."""
    inbox.put("a.csv", "id\n1\n")

    def odd(info: os.stat_result) -> Any:
        times = {"st_mtime_ns": 2**65, "st_ctime_ns": info.st_ctime_ns}
        same = {"st_size": info.st_size, "st_mode": info.st_mode}
        return SimpleNamespace(st_ino=2**64 - info.st_ino, **times, **same)

    stat, fstat = Path.stat, os.fstat
    monkeypatch.setattr(Path, "stat", lambda self: odd(stat(self)))
    monkeypatch.setattr(os, "fstat", lambda number: odd(fstat(number)))
    assert inbox.take().column("id") == ["1"]
    (entry,) = inbox.ledger.values()
    assert (0 <= entry.inode < 2**63, entry.mtime_ns) == (True, 2**63 - 1)
    assert inbox.take().has_news is False


def test_a_folder_that_is_not_there_may_come_back(tmp_path: Path) -> None:
    source = open_source("gone", "files", {"path": str(tmp_path / "gone")}, Secrets({}))
    with pytest.raises(ConnectorError, match="there is no folder") as caught:
        take(source, "in", CSV)
    assert caught.value.error is ErrorClass.TRANSIENT
    assert source.check({})[0].level == "problem"


def test_a_folder_below_one_that_may_not_be_entered_is_said_to_be(
    inbox: Inbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a service sees /home with systemd's ``ProtectHome=yes``."""
    stat = os.stat

    def refuse(path: Any, *args: Any, **options: Any) -> os.stat_result:
        if str(path).startswith(str(inbox.folder)):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return stat(path, *args, **options)

    monkeypatch.setattr(os, "stat", refuse)
    with pytest.raises(ConnectorError, match="it may not be entered") as caught:
        inbox.take()
    assert caught.value.error is ErrorClass.TRANSIENT
    (finding,) = inbox.source.check({"in": CSV})
    assert (finding.level, "it may not be entered" in finding.text) == ("problem", True)


def test_check_and_discover_show_what_is_there(inbox: Inbox) -> None:
    inbox.put("a.csv", "id,x\n1,2\n")
    inbox.put("b.csv", "id,y\n1,2\n")
    settings = StreamSettings(path="*.csv", columns=(("id", "int64"),))
    assert [f.level for f in inbox.source.check({"in": settings})] == ["ok", "ok"]
    assert inbox.source.check({"in": StreamSettings(path="*.x")})[1].level == "warning"
    (found,) = inbox.source.discover([], {"in": settings})
    assert {f.name: f.type for f in found.schema.fields} == {
        "id": "int64",
        "x": "text",
        "y": "text",
    }


# -- CSV -----------------------------------------------------------------------------------------


def test_csv_is_text_unless_columns_say_otherwise(inbox: Inbox) -> None:
    inbox.put("a.csv", 'id,amount,day,note\n007,1.50,2026-01-31,""\n008,,,\n')
    columns = (("amount", "decimal(18,2)"), ("day", "date"))
    taken = inbox.take(StreamSettings(path="*.csv", mode=Mode.APPEND, columns=columns))
    assert taken.rows == [
        {"id": "007", "amount": Decimal("1.50"), "day": dt.date(2026, 1, 31), "note": ""},
        {"id": "008", "amount": None, "day": None, "note": None},
    ]


def test_bom_crlf_quoted_newlines_and_other_delimiters_are_understood(inbox: Inbox) -> None:
    inbox.put("a.csv", '\ufeffid;text\r\n1;"two\r\nlines; and ""quotes"""\r\n\r\n2;b\r\n')
    settings = StreamSettings(path="*.csv", mode=Mode.APPEND, format=FileFormat(delimiter=";"))
    assert inbox.take(settings).rows == [
        {"id": "1", "text": 'two\r\nlines; and "quotes"'},
        {"id": "2", "text": "b"},
    ]


def test_lines_that_do_not_parse_are_set_aside_with_file_line_and_reason(inbox: Inbox) -> None:
    inbox.put("a.csv", b'id,n\n1,"a\nb"\n2\n3,4,5\n6,x\n7,\xff\n8,9\n')
    taken = inbox.take(StreamSettings(path="*.csv", mode=Mode.APPEND, columns=(("id", "int64"),)))
    assert taken.column("id") == [1, 6, 8]
    places = {row.place: (row.reason, row.raw) for row in taken.rejected}
    assert places["a.csv:4"] == ("1 values, but 2 columns", "2")
    assert places["a.csv:5"] == ("3 values, but 2 columns", "3,4,5")
    assert "UTF-8" in places["a.csv:7"][0]
    assert set(places) == {"a.csv:4", "a.csv:5", "a.csv:7"}


def test_a_value_of_another_type_sets_its_line_aside(inbox: Inbox) -> None:
    inbox.put("a.csv", "id\n1\n\ntwo\n3\n")
    taken = inbox.take(StreamSettings(path="*.csv", mode=Mode.APPEND, columns=(("id", "int64"),)))
    assert taken.column("id") == [1, 3]
    assert [(row.place, row.raw) for row in taken.rejected] == [("a.csv:4", "two")]


@pytest.mark.parametrize("bad", ['2,"open', '"open', '2,3,"open'])
def test_a_quote_that_is_never_closed_takes_only_its_own_line(inbox: Inbox, bad: str) -> None:
    inbox.put("a.csv", f"id,n\n1,a\n{bad}\n3,c\n4,d\n")
    taken = inbox.take()
    assert taken.column("id") == ["1", "3", "4"]
    assert [(row.place, row.raw) for row in taken.rejected] == [("a.csv:3", bad)]


def test_a_quote_that_is_never_closed_in_the_last_of_several_blocks_takes_only_its_own_line(
    inbox: Inbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_csv, "BLOCK", 64)
    inbox.put("a.csv", "id,n,m\n" + "1,2,3\n" * 12 + '4,"5\n6,7,8\n9,9,9\n')
    taken = inbox.take()
    assert taken.column("id") == ["1"] * 12 + ["6", "9"]
    assert [(row.place, row.raw) for row in taken.rejected] == [("a.csv:14", '4,"5')]


def test_a_value_of_thousands_of_lines_costs_no_other_row_where_a_line_does_not_parse(
    inbox: Inbox,
) -> None:
    long = "\n".join(f'line ""{i}""' for i in range(1500))
    inbox.put("a.csv", f'id,n\n1,a\n2,"{long}"\n3,c\n4,"open\n5,e\n6,f\n')
    taken = inbox.take()
    assert taken.column("id") == ["1", "2", "3", "5", "6"]
    assert taken.rows[1]["n"] == long.replace('""', '"')
    assert [row.place for row in taken.rejected] == ["a.csv:1504"]


def test_a_nul_hides_no_quote_where_a_block_ends(
    inbox: Inbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_csv, "BLOCK", 10)
    inbox.put("a.csv", 'x\n"1"a""\n"\0b"",,\0""""\n \n')
    taken = inbox.take()
    assert taken.column("x") == ['1a""', " "]
    assert [row.place for row in taken.rejected] == ["a.csv:3"]


def test_a_value_that_ends_with_a_newline_at_the_end_of_the_file_is_kept(inbox: Inbox) -> None:
    inbox.put("a.csv", 'id,n\n1,"a\n"\n')
    assert inbox.take().rows == [{"id": "1", "n": "a\n"}]


def test_a_line_longer_than_a_block_is_read(inbox: Inbox) -> None:
    long = "x" * (BLOCK + 10)
    inbox.put("a.csv", f"id,n\n1,a\n2,{long}\n3,c\n")
    assert [len(n) for n in inbox.take().column("n")] == [1, len(long), 1]


def test_a_line_that_is_too_long_is_set_aside_without_being_kept(
    inbox: Inbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (csv_lines, file_jsonl):
        monkeypatch.setattr(module, "LINE_LIMIT", 1000)
    monkeypatch.setattr(file_csv, "BLOCK", 200)  # longer lines are not left to Arrow
    most, more = "x" * 996, "x" * 5000
    inbox.put("a.csv", f'id,n\n1,a\n2,{more}\n3,{most}\n4,"\n{more}\n5,e\n')
    taken = inbox.take()
    assert taken.column("id") == ["1", "3", "5"]
    assert [(row.place, row.reason[:22]) for row in taken.rejected] == [
        ("a.csv:3", "a line of more than 64"),
        ("a.csv:5", "a quote is opened and "),
        ("a.csv:6", "a line of more than 64"),
    ]
    rows = [f'{{"n": "{n}"}}' for n in ("a", more, "x" * 900, "d")]
    rows.append('{"n": "e"}' + " " * 1010)  # an object long before its end
    inbox.put("a.jsonl", "\n".join(rows) + "\n")
    monkeypatch.setattr(file_jsonl, "BLOCK", 100)
    taken = inbox.take(StreamSettings(path="*.jsonl", mode=Mode.APPEND))
    assert [len(n) for n in taken.column("n")] == [1, 900, 1]
    assert [(row.place, row.reason[:22]) for row in taken.rejected] == [
        ("a.jsonl:2", "a line of more than 64"),
        ("a.jsonl:5", "a line of more than 64"),
    ]


def test_lines_that_are_named_late_cost_no_memory_for_those_before(
    inbox: Inbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is kept of where records stand is that of some blocks, however long the file is."""
    monkeypatch.setattr(file_csv, "BLOCK", 40_000)
    good, bad = "1,a\n" * 10_000, "3\n"
    inbox.put("a.csv", "id,n\n" + good + bad + good * 12 + bad)
    kept = []

    def forget(self: Any, good: int, bad: int) -> None:
        kept.append(len(self._good.numbers) + len(self._bad.numbers))
        plain(self, good, bad)

    plain = file_csv._Places.forget
    monkeypatch.setattr(file_csv._Places, "forget", forget)
    taken = inbox.take()
    assert [row.place for row in taken.rejected] == ["a.csv:10002", "a.csv:130003"]
    assert len(taken.column("id")) == 130_000
    assert len(kept) > 10
    assert 0 < max(kept) <= 30_000


@pytest.mark.parametrize("encoding", ["utf-8", "cp1252", "utf-16"])
def test_a_line_end_within_quotes_is_kept_wherever_a_block_ends(
    inbox: Inbox, monkeypatch: pytest.MonkeyPatch, encoding: str
) -> None:
    settings = StreamSettings(path="*.csv", mode=Mode.APPEND, format=FileFormat(encoding=encoding))
    text = "a,é\r\n" + '"1\r\n\r\r\n","2\r\n"\r\n' * 12
    for size in range(32, 64):
        monkeypatch.setattr(file_csv, "BLOCK", size)
        inbox.put("a.csv", text.encode(encoding))
        inbox.ledger.clear()
        taken = inbox.take(settings)
        assert (taken.rows, taken.rejected) == ([{"a": "1\r\n\r\r\n", "é": "2\r\n"}] * 12, [])


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("body", ["1,a\n2,b\n", '1,a\n2,b\n3,"c\n'])
def test_a_byte_order_mark_is_no_part_of_the_first_name(
    inbox: Inbox, encoding: str, body: str
) -> None:
    inbox.put("a.csv", f"\ufeffid,n\n{body}".encode(encoding))
    taken = inbox.take(replace(CSV, format=FileFormat(encoding=encoding)))
    assert taken.rows == [{"id": "1", "n": "a"}, {"id": "2", "n": "b"}]


def test_other_encodings_are_read_and_their_bad_bytes_set_aside(inbox: Inbox) -> None:
    inbox.put("a.csv", "id,n\n1,é\n".encode("latin-1"))
    latin = StreamSettings(path="*.csv", mode=Mode.APPEND, format=FileFormat(encoding="latin-1"))
    assert inbox.take(latin).column("n") == ["é"]


@pytest.mark.parametrize("empty", ["\n", "\r\n\r\n", "\r"])
def test_empty_lines_before_the_header_are_passed_over(inbox: Inbox, empty: str) -> None:
    end = empty[:2] if empty.startswith("\r\n") else empty
    lines = ['"i', 'd",name', "1,a", "2", "3,b", '4,"', "5,c"]
    inbox.put("a.csv", empty + end.join(lines) + end)
    taken = inbox.take()
    assert taken.column("name") == ["a", "b", "c"]
    assert len(taken.rejected) == 2


def test_a_header_alone_is_a_file_without_rows(inbox: Inbox) -> None:
    inbox.put("a.csv", "id,n\n")
    taken = inbox.take()
    assert (taken.rows, len(taken.marks), taken.schema.names) == ([], 1, ["id", "n"])


def test_without_a_header_columns_are_numbered(inbox: Inbox) -> None:
    inbox.put("a.csv", "1,a\n")
    settings = StreamSettings(path="*.csv", mode=Mode.APPEND, format=FileFormat(header=False))
    assert inbox.take(settings).rows == [{"column_1": "1", "column_2": "a"}]


def test_a_header_that_names_a_column_twice_is_refused(inbox: Inbox) -> None:
    inbox.put("a.csv", "id,id\n1,2\n")
    with pytest.raises(ConnectorError, match="names 'id' twice"):
        inbox.take()


def test_columns_that_some_files_lack_are_null_in_them(inbox: Inbox) -> None:
    inbox.put("a.csv", "id,x\n1,a\n", age=20)
    inbox.put("b.csv", "y,id\nb,2\n", age=10)
    assert inbox.take().rows == [
        {"id": "1", "x": "a", "y": None},
        {"id": "2", "x": None, "y": "b"},
    ]


def test_a_gzip_of_several_parts_is_read_whole(inbox: Inbox) -> None:
    inbox.put("a.csv.gz", gzip.compress(b"id\n1\n") + gzip.compress(b"2\n"))
    assert inbox.take().column("id") == ["1", "2"]


@pytest.mark.parametrize("name", ["a.csv.GZ", "a.TSV.gz"])
def test_a_name_may_say_in_capitals_that_it_is_packed(inbox: Inbox, name: str) -> None:
    inbox.put(name, gzip.compress(b"id\n1\n"))
    assert inbox.take(replace(CSV, path="*")).column("id") == ["1"]


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl"])
def test_a_packed_file_whose_name_does_not_say_so_is_named(inbox: Inbox, name: str) -> None:
    inbox.put(name, gzip.compress(b"id\n1\n"))
    assert inbox.take(replace(CSV, path="*")).note("packed by gzip, and its name does not end")


@pytest.mark.parametrize("name", ["a.csv.gz", "a.jsonl.gz"])
def test_a_gzip_filled_up_with_zeros_is_read(inbox: Inbox, name: str) -> None:
    body = b"id\n1\n" if "csv" in name else b'{"id": "1"}\n'
    inbox.put(name, gzip.compress(body) + bytes(600))
    assert inbox.take(replace(CSV, path="*.gz")).column("id") == ["1"]


def test_a_key_without_a_value_is_held(inbox: Inbox) -> None:
    inbox.put("a.csv", "id,n\n,1\n")
    with pytest.raises(NeedsAnswer) as caught:
        inbox.take(StreamSettings(path="*.csv", key=("id",)))
    assert caught.value.kind is HoldKind.NULL_KEY


# -- JSON lines and Parquet ------------------------------------------------------------------------


def test_json_types_are_found_over_the_whole_file(inbox: Inbox) -> None:
    inbox.put(
        "a.jsonl",
        '{"a": 1, "b": "x", "n": {"q": [1]}, "m": 1}\n{"a": 1.5, "c": true, "m": "two"}\n'
        '{"a": null, "big": 123456789012345678901}\n',
    )
    taken = inbox.take(StreamSettings(path="*.jsonl", mode=Mode.APPEND))
    assert taken.rows == [
        {"a": 1.0, "b": "x", "n": '{"q":[1]}', "m": "1", "c": None, "big": None},
        {"a": 1.5, "b": None, "n": None, "m": "two", "c": True, "big": None},
        {"a": None, "b": None, "n": None, "m": None, "c": None, "big": "123456789012345678901"},
    ]


def test_json_numbers_keep_the_digits_that_a_float_has_no_place_for(inbox: Inbox) -> None:
    inbox.put(
        "a.jsonl",
        b'\xef\xbb\xbf{"sum": 12345678901234567.89, "doc": {"n": [1.10,  0.3000000000000000001]},'
        b' "note": 1.10}\n'
        b'{"sum": 3, "doc": ["d\\u00e9"], "note": "x", "whole": 9007199254740993.0}\n',
    )
    columns = (("sum", "decimal(20,2)"), ("whole", "int64"))
    taken = inbox.take(StreamSettings(path="*.jsonl", mode=Mode.APPEND, columns=columns))
    assert taken.column("sum") == [Decimal("12345678901234567.89"), Decimal(3)]
    assert taken.column("doc") == ['{"n":[1.10,0.3000000000000000001]}', r'["d\u00e9"]']
    assert taken.column("note") == ["1.10", "x"]
    assert taken.column("whole") == [None, 9007199254740993]


def test_json_lines_that_are_like_those_before_are_not_looked_at_one_by_one(
    inbox: Inbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which takes several times as long. A column that gets its values late is known soon;
    of lines that are no objects each is looked at by itself, and no other."""
    looked_at = []

    def look(line: bytes) -> dict[str, Any] | str:
        looked_at.append(line)
        return plain(line)

    plain = file_jsonl._object
    monkeypatch.setattr(file_jsonl, "_object", look)
    lines = [f'{{"id": {n}, "doc": {{"n": [{n}]}}, "late": null}}' for n in range(1000)]
    lines[300:] = [line.replace("null", '"x"') for line in lines[300:]]
    lines[700:800:10] = ["no object"] * 10
    inbox.put("a.jsonl", "\n".join(lines) + "\n")
    taken = inbox.take(StreamSettings(path="*.jsonl", mode=Mode.APPEND))
    assert (len(taken.rows), len(taken.rejected)) == (990, 10)
    assert taken.rows[-1] == {"id": 999, "doc": '{"n":[999]}', "late": "x"}
    assert len(looked_at) < 40


@pytest.mark.parametrize(
    ("first", "later", "kept"),
    [
        ("1", "9223372036854775808", ["1", "9223372036854775808"]),
        ("1.5", "-9223372036854775809", ["1.5", "-9223372036854775809"]),
        ("1", "2.0", [1.0, 2.0]),
        ("true", "1", ["true", "1"]),
        ("[1]", '"x"', ["[1]", "x"]),
        ("[1]", "null", ["[1]", None]),
    ],
)
def test_a_value_of_another_type_that_comes_late_counts_as_well(
    inbox: Inbox, first: str, later: str, kept: list[Any]
) -> None:
    inbox.put("a.jsonl", f'{{"a": {first}}}\n' * 50 + f'{{"a": {later}}}\n')
    taken = inbox.take(StreamSettings(path="*.jsonl", mode=Mode.APPEND))
    assert taken.column("a")[-2:] == kept


def test_a_byte_order_mark_that_does_not_begin_the_file_is_no_json(
    inbox: Inbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    for size in range(10, 40):
        monkeypatch.setattr(file_jsonl, "BLOCK", size)
        lines = ['\ufeff{"id": 1}\n', '\ufeff{"id": 2, "n": 1}\n', '{"id": 3}\n']
        inbox.put("a.jsonl", "".join(lines).encode())
        inbox.ledger.clear()
        taken = inbox.take(StreamSettings(path="*.jsonl", mode=Mode.APPEND))
        assert taken.rows == [{"id": 1}, {"id": 3}]
        assert [row.place for row in taken.rejected] == ["a.jsonl:2"]


@pytest.mark.parametrize("encoding", ["cp1252", "utf-16", "UTF8"])
def test_json_lines_are_read_in_the_encoding_that_is_named(inbox: Inbox, encoding: str) -> None:
    settings = replace(CSV, path="*.jsonl", format=FileFormat(encoding=encoding))
    lines = [f'{{"id": {n}, "name": "\N{EURO SIGN} {"ü" * 9}"}}\n' for n in range(9)]
    inbox.put("a.jsonl", "".join(lines).encode(encoding))
    taken = inbox.take(settings)
    assert taken.column("id") == [*range(9)]
    assert set(taken.column("name")) == {"\N{EURO SIGN} " + "ü" * 9}
    if encoding == "cp1252":
        inbox.put("b.jsonl", b'{"id": "\x81"}\n')
        with pytest.raises(ConnectorError, match=r"'b\.jsonl': it cannot be read as cp1252"):
            inbox.take(settings)


def test_json_lines_that_are_no_objects_are_set_aside(inbox: Inbox) -> None:
    inbox.put("a.jsonl", b'\xef\xbb\xbf{"id": 1}\nnope\n[1]\n\n{"id": "\xff"}\n{"id": 2}\n')
    taken = inbox.take(StreamSettings(path="*.jsonl", mode=Mode.APPEND))
    assert taken.column("id") == [1, 2]
    assert [row.place for row in taken.rejected] == ["a.jsonl:2", "a.jsonl:3", "a.jsonl:5"]


def test_objects_in_which_nothing_is_named_are_set_aside_where_there_are_no_others(
    inbox: Inbox,
) -> None:
    inbox.put("a.jsonl", "{}\n{}\n")
    taken = inbox.take(StreamSettings(path="*.jsonl", mode=Mode.APPEND))
    assert (taken.rows, [row.place for row in taken.rejected]) == ([], ["a.jsonl:1", "a.jsonl:2"])
    inbox.put("b.jsonl", '{}\n{"a": 1}\n')
    taken = inbox.take(StreamSettings(path="*.jsonl", mode=Mode.APPEND))
    assert (taken.column("a"), taken.rejected) == ([None, 1], [])


def test_objects_with_names_of_their_own_come_in_small_blocks(
    inbox: Inbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_jsonl, "_CELLS", 1000)
    inbox.put("a.jsonl", "".join(f'{{"id": {i}, "k{i}": {i}}}\n' for i in range(99)))
    (file,) = file_set.listing(inbox.folder, "*.jsonl", "inbox")
    schema = pa.schema([("id", pa.int64()), *((f"k{i}", pa.int64()) for i in range(99))])
    with file.full.open("rb") as raw:
        found = [batch for batch, _ in file_jsonl.JsonLines(CSV).blocks(file, raw, schema)]
    assert [batch.num_rows for batch in found if batch is not None] == [10] * 9 + [9]
    assert inbox.take(StreamSettings(path="*.jsonl", mode=Mode.APPEND)).column("k98")[-1] == 98


def test_columns_type_json_values_and_set_aside_what_does_not_fit(inbox: Inbox) -> None:
    inbox.put("a.jsonl.gz", gzip.compress(b'{"at": "2026-01-31T10:00:00Z"}\n{"at": "soon"}\n'))
    columns = (("at", "timestamp"),)
    taken = inbox.take(StreamSettings(path="*.gz", mode=Mode.APPEND, columns=columns))
    assert taken.column("at") == [dt.datetime(2026, 1, 31, 10, tzinfo=dt.UTC)]
    assert taken.rejected[0].place == "a.jsonl.gz:2"


def test_a_column_that_files_spell_in_different_case_is_one(inbox: Inbox) -> None:
    inbox.put("1.csv", "Id,Name\n1,a\n", age=30)
    inbox.put("2.csv", "NAME,ID\nb,2\n", age=20)
    inbox.put("3.jsonl", '{"id": "3", "name": "c"}\n', age=10)
    pq.write_table(pa.table({"nAME": ["d"], "iD": ["4"]}), inbox.put("4.parquet", b""))
    settings = StreamSettings(path="*", mode=Mode.MERGE, key=("id",), columns=(("id", "int64"),))
    assert inbox.take(settings).rows == [
        {"id": n, "Name": name} for n, name in enumerate("abcd", 1)
    ]


def test_parquet_files_of_different_types_meet_in_a_type_that_holds_both(inbox: Inbox) -> None:
    pq.write_table(pa.table({"a": [1, 2]}), inbox.folder / "1.parquet")
    os.utime(inbox.folder / "1.parquet", (1, 1))
    pq.write_table(pa.table({"a": [1.5], "x": ["q"]}), inbox.folder / "2.parquet")
    taken = inbox.take(StreamSettings(path="*.parquet", mode=Mode.APPEND))
    assert taken.rows == [
        {"a": 1.0, "x": None},
        {"a": 2.0, "x": None},
        {"a": 1.5, "x": "q"},
    ]


@pytest.mark.parametrize("rows", [100_000, 4_000_000], ids=["many groups", "one group"])
def test_a_parquet_file_is_not_kept_in_memory_while_it_is_read(inbox: Inbox, rows: int) -> None:
    table = pa.table({"a": pc.random(4_000_000)})
    pq.write_table(table, inbox.folder / "a.parquet", row_group_size=rows)
    del table
    inbox.put("a.parquet", (inbox.folder / "a.parquet").read_bytes())
    (file,) = file_set.listing(inbox.folder, "*.parquet", "inbox")
    reader = file_parquet.Parquet(StreamSettings())
    schema = pa.schema({"a": pa.float64()})
    before, most, count = pa.total_allocated_bytes(), 0, 0
    tracemalloc.start()  # what is read of the file is Python's, what is made of it Arrow's
    try:
        with file.full.open("rb", buffering=0) as raw:
            for batch, _ in reader.blocks(file, cast("Any", raw), schema):
                assert batch is not None
                count += batch.num_rows
                most = max(most, pa.total_allocated_bytes() - before)
        most += tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert count == 4_000_000
    assert file.size > 30_000_000
    assert most < 12_000_000


@pytest.mark.parametrize("kind", ["plain", "dictionary", "wide"])
def test_large_rows_of_a_parquet_file_come_in_small_batches(inbox: Inbox, kind: str) -> None:
    if kind == "wide":
        table = pa.table({f"c{i}": range(2_000) for i in range(3_000)})
    else:
        table = pa.table({"a": ["x" * 30_000] * 2_000})
    path = inbox.folder / "a.parquet"
    pq.write_table(table, path, use_dictionary=kind == "dictionary", compression="zstd")
    (file,) = file_set.listing(inbox.folder, "*.parquet", "inbox")
    reader = file_parquet.Parquet(StreamSettings())
    with file.full.open("rb", buffering=0) as raw:
        found = [batch for batch, _ in reader.blocks(file, cast("Any", raw), table.schema)]
    batches = [batch for batch in found if batch is not None]
    assert pa.Table.from_batches(batches).equals(table)
    assert max(batch.nbytes for batch in batches) <= 20_000_000


def test_a_parquet_value_that_does_not_fit_its_column_is_set_aside(inbox: Inbox) -> None:
    pq.write_table(pa.table({"a": ["1", "x"]}), inbox.folder / "1.parquet")
    columns = (("a", "int64"),)
    taken = inbox.take(StreamSettings(path="*.parquet", mode=Mode.APPEND, columns=columns))
    assert taken.column("a") == [1]
    assert taken.rejected[0].place == "1.parquet: row 2"


def test_far_times_of_a_parquet_file_of_spark_do_not_wrap_around(inbox: Inbox) -> None:
    texts = ("9999-12-31", "0001-01-01", "2026-01-31T01:02:03.000004")
    times = [dt.datetime.fromisoformat(text) for text in texts]
    table = pa.table({"at": times, "l": [[at] for at in times]})
    path = inbox.put("a.parquet", b"")
    pq.write_table(table, path, use_deprecated_int96_timestamps=True)
    taken = inbox.take(StreamSettings(path="*.parquet", mode=Mode.APPEND))
    assert (taken.column("at"), taken.column("l")) == (times, [[at] for at in times])


def test_what_parquet_holds_and_its_type_has_no_place_for_is_set_aside(inbox: Inbox) -> None:
    texts = pa.array([b"ok", b"\xff", b"ok", b"ok"], pa.binary()).view(pa.string())
    lists = pa.ListArray.from_arrays([0, 1, 1, 2, 2], texts)
    times = pa.array([86_400_000_000, 0, 0, -1]).view(pa.time64("us"))
    path = inbox.put("a.parquet", b"")
    pq.write_table(pa.table({"n": [1, 2, 3, 4], "x": texts, "l": lists, "t": times}), path)
    taken = inbox.take(StreamSettings(path="*.parquet", mode=Mode.APPEND))
    assert taken.column("n") == [1]
    assert [row.reason for row in taken.rejected] == [
        "column 'x': b'\\xff' is no UTF-8 text",
        "column 'l': 'a list<text> of bytes' is no UTF-8 text",
        "column 't': -1 us is no time of a day",
    ]


def test_more_files_than_one_commit_can_note_are_refused_before_they_are_read(
    inbox: Inbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a.csv", "b.csv"):
        inbox.put(name, f"id\n{name}\n")
    monkeypatch.setattr(file_read, "WHOLE_BYTES", 300)
    with pytest.raises(ConnectorError, match="2 files are more than it can note") as caught:
        inbox.take(replace(CSV, mode=Mode.REPLACE))
    assert caught.value.error is ErrorClass.PERMANENT
    assert inbox.take().column("id") == ["a.csv", "b.csv"], "one by one they can"


def test_of_many_files_that_are_left_for_later_the_first_are_named(
    inbox: Inbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_read, "NOTES", 2)
    for number in range(5):
        inbox.put(f"{number}.csv", f"id\n{number}")
    *named, more = inbox.take().notes
    assert [note.partition(" is left")[0] for note in named] == ["'0.csv'", "'1.csv'"]
    assert more == "and 3 more such notes"

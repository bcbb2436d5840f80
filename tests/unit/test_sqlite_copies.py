"""Backup and restore of a catalog's file: what is refused in which words, to whom the copy belongs,
what is durable before what, and what a restore leaves behind (A1, D6)."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import shutil
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import apsw
import pytest

from catalog.copies import Backup, Restored
from catalog.errors import CatalogError
from catalog.open import back_up, open_catalog, restore
from catalog.port import Catalog, new_operation_id
from catalog.records import Outcome, Pause, RunQuery
from catalog.sqlite import backing_up, files, migrating, restoring
from catalog.sqlite.database import LOCKS, LOCKS_AT, Location
from tests.cli_kit import claim, commit, ran
from tests.unit.test_sqlite_open import LOCK

T = TypeVar("T")
EARLY = 1_000_000
"""A time at which the known counters decide: the first second of 1970."""


def on(path: Path, work: Callable[[Catalog], Awaitable[T]]) -> T:
    async def opened() -> T:
        async with open_catalog(f"sqlite:///{path}") as catalog:
            return await work(catalog)

    return asyncio.run(opened())


async def begin(catalog: Catalog) -> None:
    """One run that is done, one that is open."""
    await ran(catalog)
    await commit(catalog, await claim(catalog, ttl=0.0), at=20)


async def go_on(catalog: Catalog) -> None:
    """Two runs more."""
    for _ in range(2):
        await ran(catalog, at=40)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "state" / "catalog.db"
    on(path, begin)
    return path


@pytest.fixture
def target(tmp_path: Path) -> Path:
    folder = tmp_path / "copies"
    folder.mkdir()
    return folder / "b.db"


@pytest.fixture
def source(path: Path, target: Path) -> Path:
    """A backup, and a catalog that went on."""
    save(path, target)
    on(path, go_on)
    return target


def save(path: Path, target: Path, **how: bool) -> Backup:
    return back_up(f"sqlite:///{path}", target, **how)


def put_back(path: Path, source: Path, *, now: int = EARLY, **how: Any) -> Restored:
    return restore(f"sqlite:///{path}", source, by="ann@host", why="lost", now=now, **how)


def words_of(work: Callable[[], object]) -> str:
    with pytest.raises(CatalogError) as caught:
        work()
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    return f"{type(caught.value).__name__}: {caught.value}"


def there(*folders: Path) -> dict[Path, bytes]:
    """Every file below the folders."""
    return {
        path: path.read_bytes() for each in folders for path in each.rglob("*") if path.is_file()
    }


def beside(path: Path, end: str) -> Path:
    return path.with_name(path.name + end)


# -- the words of files --------------------------------------------------------------------------


def test_an_error_of_the_system_is_said_with_its_place(tmp_path: Path) -> None:
    def fails(*args: object) -> None:
        with files.told("it was not done"):
            raise OSError(*args)

    here = str(tmp_path / "x")
    assert words_of(lambda: fails(errno.EIO, "Input/output error", here)) == (
        f"Unavailable: it was not done: {here}: Input/output error"
    )
    assert words_of(lambda: fails(errno.ENOSPC, "No space left on device")) == (
        "Unavailable: it was not done: the disk: No space left on device; make room there, and try "
        "again"
    )


def test_only_a_folder_may_be_of_a_kind_that_cannot_be_synced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "file"
    file.touch()
    opened = set(os.listdir("/proc/self/fd"))  # noqa: PTH208
    for code, path, passes in (
        (errno.EINVAL, tmp_path, True),
        (errno.EINVAL, file, False),
        (errno.EIO, tmp_path, False),
    ):

        def fails(_fd: int, code: int = code) -> None:
            raise OSError(code, os.strerror(code))

        with monkeypatch.context() as patched:
            patched.setattr(os, "fsync", fails)
            if passes:
                files.sync(path)
            else:
                with pytest.raises(OSError, match=os.strerror(code)):
                    files.sync(path)
    assert set(os.listdir("/proc/self/fd")) == opened  # noqa: PTH208


def test_whoever_could_not_give_the_file_to_its_owner_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    me = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    path = tmp_path / "c.db"
    for _ in ("as the folder", "as the file"):
        assert words_of(lambda: files.see_owner(path)) == (
            f"CannotOpen: {path} belongs to user {me}, and what user 12345 puts there the other "
            "could not open; do this as that user, or as root"
        )
        path.touch()


@pytest.mark.parametrize("verb", ["backup", "restore"])
def test_what_just_fits_is_copied(
    path: Path, target: Path, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    """A mebibyte is left free."""
    size = save(path, target).size_bytes
    second = target.with_name("second.db")
    folder = second.parent if verb == "backup" else path.parent

    def work() -> object:
        return save(path, second) if verb == "backup" else put_back(path, target)

    usage, asked = shutil.disk_usage(folder), []

    def room(free: int) -> Callable[[Path], object]:
        def found(where: Path) -> object:
            asked.append(where)
            return usage._replace(free=free)

        return found

    free = size + 1024 * 1024 - 1
    with monkeypatch.context() as patched:
        patched.setattr(shutil, "disk_usage", room(free))
        assert words_of(work) == (
            f"Unavailable: {folder} has {free:,} bytes free, and the copy takes {size:,}: make "
            "room there, or name another place; nothing was changed"
        )
    monkeypatch.setattr(shutil, "disk_usage", room(free + 1))
    work()
    assert asked == [folder, folder]


# -- backup --------------------------------------------------------------------------------------


def other_program(path: Path) -> None:
    path.unlink()
    with sqlite3.connect(path) as db:
        db.execute("create table notes (text)")
    db.close()


@pytest.mark.parametrize(
    ("prepare", "words"),
    [
        (
            lambda path, _: path.unlink(),
            "CannotOpen: {path} is not there: there is no catalog to back up yet",
        ),
        (lambda _, target: target.mkdir(), "CannotOpen: {target} is a directory; name a file"),
        (
            lambda _, target: target.parent.rmdir(),
            "CannotOpen: {target.parent} is not there; make that directory first",
        ),
        *(
            (
                lambda _, target, end=end: beside(target, end).touch(),
                f"CannotOpen: {{target}}{end} lies beside it; remove that, or name another file",
            )
            for end in ("-wal", "-shm", "-journal")
        ),
        (
            lambda _, target: target.touch(),
            "CannotOpen: {target} is there already; name another file, or replace it (--force)",
        ),
        (
            lambda path, _: path.write_bytes(b""),
            "CannotOpen: {path} is an empty file, and no catalog",
        ),
        (
            lambda path, _: other_program(path),
            "CannotOpen: {path} is a database of another program; name another file",
        ),
    ],
)
def test_what_is_not_backed_up_is_said_in_a_sentence_and_nothing_changes(
    path: Path, target: Path, prepare: Callable[[Path, Path], object], words: str
) -> None:
    prepare(path, target)
    before = there(path.parent, target.parent)
    for dry_run in (True, False):
        said = words_of(lambda dry_run=dry_run: save(path, target, dry_run=dry_run))  # type: ignore[misc]
        assert said == words.format(path=path, target=target)
    assert there(path.parent, target.parent) == before


@pytest.mark.parametrize("end", ["", "-wal", "-shm", "-journal", ".restoring"])
def test_no_file_of_the_catalogs_own_is_written_over(path: Path, end: str) -> None:
    own = beside(path, end)
    link = path.parent.parent / "link"
    link.symlink_to(own)
    for target in (own, link):
        assert words_of(lambda target=target: save(path, target, force=True)) == (  # type: ignore[misc]
            f"CannotOpen: {target} is the catalog itself; name another file"
        )


def test_of_many_problems_some_are_shown_and_the_others_counted() -> None:
    for found, shown in (
        (["a"], "a"),
        (["a", "b", "c"], "a; b; c"),
        (["a", "b", "c", "d"], "a; b; c and 1 more"),
        (["a", "b", "c", "d", "e"], "a; b; c and 2 more"),
    ):
        said = words_of(lambda found=found: backing_up.refuse_problems(found, "it is bad"))  # type: ignore[misc]
        assert said == f"CannotOpen: it is bad ({shown}); nothing was changed"
    backing_up.refuse_problems([], "it is bad")


def test_a_catalog_that_contradicts_itself_is_named_as_damaged(path: Path, target: Path) -> None:
    db = apsw.Connection(str(path))
    db.execute("update pipelines set epoch = 99")
    db.close()
    said = words_of(lambda: save(path, target))
    assert said.startswith(f"CannotOpen: {path} is damaged (pipeline 'shop': ")
    assert there(target.parent) == {}


def test_a_backup_says_what_it_holds(path: Path, target: Path) -> None:
    catalog = on(path, _id)
    would_be = save(path, target, dry_run=True)
    assert not target.exists()
    done = save(path, target)
    wanted = Backup(str(target), catalog, 2, target.stat().st_size, pipelines=1, open_runs=1)
    assert done == would_be == wanted


async def _id(catalog: Catalog) -> str:
    return catalog.id


def test_a_backup_is_durable_before_it_has_its_name_and_its_name_before_it_is_told(
    path: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    rename, fsync = os.rename, os.fsync

    def noted_rename(old: Path, new: Path) -> None:
        rename(old, new)
        steps.append(f"named {Path(new).name}")

    def noted_fsync(fd: int) -> None:
        fsync(fd)
        is_folder = stat.S_ISDIR(os.fstat(fd).st_mode)
        steps.append("folder synced" if is_folder else f"{os.fstat(fd).st_size} bytes synced")

    monkeypatch.setattr(os, "rename", noted_rename)
    monkeypatch.setattr(os, "fsync", noted_fsync)
    done = save(path, target)
    assert steps == [f"{done.size_bytes} bytes synced", "named b.db", "folder synced"]


def test_a_backup_has_the_rights_of_the_catalog_and_until_then_those_of_its_owner_alone(
    path: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, modes = backing_up.step, set()

    def looked(pages: apsw.Backup) -> None:
        (part,) = target.parent.iterdir()
        assert part.match(".b.db.*.part")
        modes.add(stat.S_IMODE(part.stat().st_mode))
        step(pages)

    monkeypatch.setattr(backing_up, "step", looked)
    path.chmod(0o751)
    old = os.umask(0)
    try:
        save(path, target)
    finally:
        os.umask(old)
    assert modes == {0o600}
    assert stat.S_IMODE(target.stat().st_mode) == 0o640


def test_what_came_by_that_name_while_it_was_copied_is_replaced_only_if_that_is_meant(
    path: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = backing_up.step

    def late(pages: apsw.Backup) -> None:
        target.write_text("another's")
        step(pages)

    monkeypatch.setattr(backing_up, "step", late)
    assert "is there already" in words_of(lambda: save(path, target))
    assert there(target.parent) == {target: b"another's"}
    save(path, target, force=True)
    assert target.read_bytes().startswith(b"SQLite format 3")


def test_a_catalog_that_is_replaced_while_it_is_opened_is_not_backed_up(
    path: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect = Location.connect
    other = path.with_name("other.db")
    shutil.copy(path, other)

    def late(self: Location, *, for_loop: bool = False) -> apsw.Connection:
        db = connect(self, for_loop=for_loop)
        other.rename(self.path)
        return db

    monkeypatch.setattr(Location, "connect", late)
    assert words_of(lambda: save(path, target)) == (
        f"Unavailable: {path} was replaced while it was being opened; try again"
    )
    assert there(target.parent) == {}


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (apsw.FullError("database or disk is full"), "the disk is full"),
        (apsw.IOError("disk I/O error"), "disk I/O error"),
    ],
)
def test_a_copy_that_the_disk_does_not_take_is_said(
    path: Path, target: Path, monkeypatch: pytest.MonkeyPatch, error: apsw.Error, why: str
) -> None:
    def fails(_pages: apsw.Backup) -> None:
        raise error

    monkeypatch.setattr(backing_up, "step", fails)
    assert words_of(lambda: save(path, target)) == (
        f"Unavailable: {path} could not be copied to {target}: {why}"
    )
    assert there(target.parent) == {}


# -- restore -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prepare", "words"),
    [
        (lambda _, source: source.unlink(), "CannotOpen: {source} is not there"),
        (
            lambda _, source: (source.unlink(), source.mkdir()),
            "CannotOpen: {source} is a directory; name the file",
        ),
        (
            lambda path, source: (source.unlink(), os.link(path, source)),
            "CannotOpen: {source} is the catalog itself; name a backup of it",
        ),
        (
            lambda path, _: (path.unlink(), path.mkdir()),
            "CannotOpen: {path} is a directory; name a file",
        ),
        (
            lambda _, source: source.write_bytes(b"none" * 1000),
            "CannotOpen: {source} is no catalog: it is not a SQLite database",
        ),
        (
            lambda _, source: source.write_bytes(b""),
            "CannotOpen: {source} is an empty file, and no catalog",
        ),
        (
            lambda _, source: change(source, "update streams set published = 99"),
            "CannotOpen: {source} is damaged (shop.orders: published up to 99, but its last batch "
            "is 2); nothing was changed",
        ),
    ],
)
def test_what_is_not_restored_is_said_in_a_sentence_and_nothing_changes(
    path: Path, source: Path, prepare: Callable[[Path, Path], object], words: str
) -> None:
    prepare(path, source)
    before = there(path.parent, source.parent)
    for dry_run in (True, False):
        said = words_of(lambda dry_run=dry_run: put_back(path, source, dry_run=dry_run))  # type: ignore[misc]
        assert said == words.format(path=path, source=source)
    assert there(path.parent, source.parent) == before


def change(path: Path, sql: str) -> None:
    with sqlite3.connect(path) as db:
        db.execute(sql)
    db.close()


def test_a_backup_with_a_row_that_cannot_be_read_is_refused(path: Path, source: Path) -> None:
    change(source, "update pipelines set paused = 'none'")
    said = words_of(lambda: put_back(path, source))
    assert said.startswith(f"CannotOpen: {source} is damaged (JSON is malformed")
    assert said.endswith("); name another backup")


def test_a_restore_without_room_says_so(
    path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_tables: object) -> list[str]:
        raise apsw.FullError("database or disk is full")

    monkeypatch.setattr(restoring, "problems", full)
    assert words_of(lambda: put_back(path, source)) == (
        f"Unavailable: no room for a copy of {source}; nothing was changed"
    )


def test_a_restore_says_and_records_what_it_did(path: Path, source: Path) -> None:
    catalog = on(path, _id)
    done = put_back(path, source, now=1_790_000_000_000_000)
    kept = path.with_name("catalog.db.replaced-20260921T141320Z")
    assert done == Restored(
        path=str(path),
        source=str(source),
        catalog=catalog,
        epoch_of_source=2,
        epoch=1_790_000_000_000,
        interrupted=(2,),
        replaced=catalog,
        kept=str(kept),
        size_bytes=path.stat().st_size,
    )
    (edit,) = on(path, lambda c: c.edits())
    assert (edit.at, edit.by, edit.why) == (1_790_000_000_000_000, "ann@host", "lost")
    assert (edit.action, edit.pipeline, edit.stream) == ("restore_catalog", "", "")
    assert json.loads(edit.old) == {"catalog": catalog, "epoch": 4, "at": str(kept)}
    assert json.loads(edit.new) == {
        "from": str(source),
        "its_epoch": 2,
        "epoch": 1_790_000_000_000,
        "interrupted": [2],
    }
    run = on(path, lambda c: c.run(2))
    assert run is not None
    assert (run.outcome, run.finished_at) == (Outcome.INTERRUPTED, 1_790_000_000_000_000)
    assert run.reason == (
        f"the catalog was restored from {source} by ann@host, as it was while this run was open"
    )


def test_each_restore_of_one_second_keeps_what_stood_there_by_a_name_of_its_own(
    path: Path, source: Path
) -> None:
    names = [Path(put_back(path, source).kept).name for _ in range(3)]
    first = "catalog.db.replaced-19700101T000001Z"
    assert names == [first, f"{first}-2", f"{first}-3"]
    beside(path, ".replaced-19700101T000002Z-wal").touch()
    kept = put_back(path, source, now=2_000_000).kept
    assert Path(kept).name == "catalog.db.replaced-19700101T000002Z-2"


def test_of_the_catalogs_that_are_known_those_of_the_same_id_count(
    path: Path, source: Path, tmp_path: Path
) -> None:
    """That which stands there, and the one of a restore that was cut short."""
    assert put_back(path, source).epoch == 4 + 10**9
    beside(path, ".restoring").write_bytes(path.read_bytes())
    path.unlink()
    assert put_back(path, source).epoch == 4 + 2 * 10**9
    other = tmp_path / "other" / "catalog.db"
    on(other, go_on)
    on(other, go_on)
    assert put_back(other, source).epoch == 2 + 10**9


def test_runs_that_end_with_a_restore_are_changes_of_their_own(path: Path, target: Path) -> None:
    async def more(catalog: Catalog) -> None:
        for name in ("b", "a"):
            await claim(catalog, name)
        await catalog.edit(new_operation_id(), "ann", "", Pause("last"))

    on(path, more)
    before = {state.name: state.change for state in on(path, lambda c: c.changed(0))}
    save(path, target)
    put_back(path, target)
    after = {state.name: state.change for state in on(path, lambda c: c.changed(0))}
    assert after["last"] == before["last"] == 1 + max(before[name] for name in ("shop", "b", "a"))
    assert [after[name] for name in ("shop", "b", "a")] == [after["last"] + n for n in (1, 2, 3)]
    assert on(path, lambda c: c.runs(RunQuery(open_only=True))) == ()
    assert on(path, lambda c: c.check()).problems == ()


@pytest.mark.parametrize("killed", [False, True], ids=["by who closed it", "by who was killed"])
def test_what_was_written_while_a_restore_was_prepared_is_not_lost(
    path: Path, source: Path, monkeypatch: pytest.MonkeyPatch, *, killed: bool
) -> None:
    give = files.give

    async def dies(catalog: Catalog) -> None:
        await go_on(catalog)
        os._exit(0)

    def late(part: Path, like: os.stat_result) -> None:
        give(part, like)
        if not killed:
            on(path, go_on)
        elif (pid := os.fork()) == 0:
            on(path, dies)
        else:
            os.waitpid(pid, 0)

    with monkeypatch.context() as patched:
        patched.setattr(files, "give", late)
        assert words_of(lambda: put_back(path, source)) == (
            f"Unavailable: {path} was written to while the restore was prepared; stop whatever "
            "uses it, and try again"
        )
    logs = {"catalog.db-shm", "catalog.db-wal"} if killed else set()
    assert {file.name for file in there(path.parent)} == {"catalog.db", *logs}
    assert len(on(path, lambda c: c.runs(RunQuery()))) == 6


def test_a_restore_cut_short_by_the_disk_says_so_and_bars_the_catalog_until_it_is_done(
    path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    move = files.move

    def fails(old: Path, new: Path) -> None:
        if new == path:
            raise OSError(errno.EIO, "Input/output error", str(new))
        move(old, new)

    with monkeypatch.context() as patched:
        patched.setattr(files, "move", fails)
        assert words_of(lambda: put_back(path, source)) == (
            f"Unavailable: the restore of {path} was cut short; nothing is lost, carry it out "
            f"again: {path}: Input/output error"
        )
    barred = (
        f"CannotOpen: {path} is being restored, or its restore was cut short: then carry it out "
        "again with `reconciler catalog restore FILE`, from the same file or from "
        f"{path}.restoring"
    )
    for work in (lambda: on(path, _id), lambda: save(path, source.with_name("c.db"))):
        assert words_of(work) == barred
    assert not path.exists()
    assert put_back(path, source).epoch_of_source == 2
    assert [run.epoch for run in on(path, lambda c: c.runs(RunQuery()))] == [2, 1]


def test_what_is_damaged_is_kept_as_it_is_with_all_that_lies_beside(
    path: Path, source: Path
) -> None:
    """But for the memory that its log's users shared."""
    for end in ("", "-wal", "-shm"):
        beside(path, end).write_text(f"no database{end}")
    left = path.with_name(".catalog.db.x.part")
    left.mkdir()  # what cannot be removed bars nothing
    done = put_back(path, source)
    assert (done.replaced, done.epoch) == ("", 2 + 10**9)
    found = {file.name: content for file, content in there(path.parent).items() if file != path}
    kept = Path(done.kept).name
    assert found == {kept: b"no database", f"{kept}-wal": b"no database-wal"}
    assert [run.epoch for run in on(path, lambda c: c.runs(RunQuery()))] == [2, 1]


def test_a_copy_that_somebody_has_open_is_not_restored_from(path: Path, source: Path) -> None:
    place = [str(source), str(LOCKS_AT + 2), str(LOCKS - 2), "read"]
    with subprocess.Popen(
        [sys.executable, "-S", "-c", LOCK, *place], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdout.readline()
        said = words_of(lambda: put_back(path, source))
        child.stdin.close()
    assert said == (
        f"Unavailable: {source} is open in process {child.pid}: stop the daemon and every other "
        "program that uses it, then try again; nothing was changed"
    )
    put_back(path, source)


def test_a_copy_made_by_hand_in_the_midst_of_a_change_comes_without_it(
    path: Path, source: Path, tmp_path: Path
) -> None:
    by_hand = tmp_path / "by-hand.db"
    db = sqlite3.connect(source, isolation_level=None)
    db.execute("pragma cache_size = 1")
    db.execute("begin")
    db.execute("update streams set published = 99")
    db.execute(
        "update runs set reason = hex(zeroblob(200000))"
    )  # takes that page's place in memory
    for end in ("", "-journal"):
        shutil.copy(beside(source, end), beside(by_hand, end))
    db.execute("rollback")
    db.close()
    put_back(path, by_hand)
    runs = on(path, lambda c: c.runs(RunQuery()))
    assert [run.epoch for run in runs] == [2, 1]
    assert max(len(run.reason) for run in runs) < 1000


def test_a_backup_of_an_older_version_is_brought_up_to_date(
    path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    older = migrating.migrations()
    newer = [*older, (len(older) + 1, "create table later (x integer) strict;")]
    monkeypatch.setattr(migrating, "migrations", lambda: newer)
    put_back(path, source)
    db = sqlite3.connect(path)
    assert db.execute("select count(*) from later").fetchone() == (0,)
    assert db.execute("pragma user_version").fetchone() == (len(newer),)
    db.close()


def test_a_restore_keeps_rights_but_none_to_execute(path: Path, source: Path) -> None:
    path.chmod(0o751)
    put_back(path, source)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_what_a_url_names_that_is_no_file_is_said(tmp_path: Path) -> None:
    words = (
        "CannotOpen: 'memory:' is no catalog in a file; only those of sqlite:///path are backed up "
        "and restored by this program"
    )
    assert words_of(lambda: back_up("memory:", tmp_path / "b.db")) == words
    assert words_of(lambda: restore("memory:", tmp_path / "b.db", by="ann")) == words

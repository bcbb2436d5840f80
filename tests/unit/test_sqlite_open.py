"""What may be opened as a catalog, how it is made, and what is refused in which words (D4, D5)."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import threading
from pathlib import Path
from textwrap import dedent
from typing import Any

import apsw
import pytest

from catalog.clock import ManualClock
from catalog.errors import CannotOpen, Unavailable
from catalog.open import open_catalog
from catalog.port import new_operation_id
from catalog.records import Pause
from catalog.sqlite import migrating
from catalog.sqlite.backend import SqliteCatalog
from catalog.sqlite.database import (
    Location,
    Tuning,
    refuse_remote,
    who_writes,
)
from catalog.sqlite.migrating import APPLICATION_ID, migrations
from catalog.sqlite.queries import SQL, parse

pytestmark = pytest.mark.anyio


async def refusal(path: Path) -> str:
    with pytest.raises(CannotOpen) as caught:
        async with open_catalog(f"sqlite:///{path}"):
            pass
    return str(caught.value)


async def make(path: Path, pauses: int = 1) -> str:
    """A catalog with something in it; its id."""
    async with open_catalog(f"sqlite:///{path}") as catalog:
        for number in range(pauses):
            await catalog.edit(new_operation_id(), "ann", "", Pause(f"p{number}"))
        return catalog.id


# -- urls --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url", ["", "sqlite:", "sqlite://", "sqlite:///", "catalog.db", "postgresql://h/d", "memory"]
)
async def test_a_url_of_no_backend_is_refused_and_told_what_is_allowed(url: str) -> None:
    with pytest.raises(CannotOpen, match=r"sqlite:///.* memory:") as caught:
        async with open_catalog(url):
            pass
    assert repr(url) in str(caught.value)


async def test_a_relative_path_stays_where_it_was_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    async with open_catalog("sqlite:///state/c.db") as catalog:
        monkeypatch.chdir("/")
        await catalog.edit(new_operation_id(), "ann", "", Pause("p"))
    assert (tmp_path / "state" / "c.db").exists()


async def test_memory_is_a_catalog_too() -> None:
    async with open_catalog("memory:") as catalog:
        await catalog.edit(new_operation_id(), "ann", "", Pause("p"))
        assert (await catalog.pipeline("p")).paused


# -- making it ---------------------------------------------------------------------------------


async def test_folder_and_file_are_made_for_their_owner_alone(tmp_path: Path) -> None:
    """Not the folders above: what root restores lies below one that the service must pass."""
    path = tmp_path / "a" / "b" / "catalog.db"
    old = os.umask(0o022)
    try:
        async with open_catalog(f"sqlite:///{path}") as catalog:
            await catalog.edit(new_operation_id(), "ann", "", Pause("p"))
            modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()}
    finally:
        os.umask(old)
    assert set(modes.values()) == {0o600}
    assert set(modes) == {"catalog.db", "catalog.db-wal", "catalog.db-shm"}
    folders = (path.parent, path.parent.parent)
    assert [stat.S_IMODE(each.stat().st_mode) for each in folders] == [0o700, 0o755]


async def test_folders_that_are_made_are_made_durable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each name by a sync of the folder it stands in."""
    synced: list[str] = []
    fsync = os.fsync

    def note(fd: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{fd}"))  # noqa: PTH115
        fsync(fd)

    monkeypatch.setattr(os, "fsync", note)
    await make(tmp_path / "a" / "b" / "catalog.db")
    assert synced == [str(tmp_path), str(tmp_path / "a")]


async def test_each_connection_flushes_in_full_and_never_checkpoints_by_itself(
    tmp_path: Path,
) -> None:
    location = Location.of(tmp_path / "c.db", Tuning())
    writer = location.open_writer(0)
    for db in (writer, location.connect(), location.connect(for_loop=True)):
        assert db.pragma("journal_mode") == "wal"
        assert db.pragma("synchronous") == 2
        assert db.pragma("wal_autocheckpoint") == 0
        assert db.pragma("fullfsync") == 1
        db.close()


async def test_what_is_made_is_marked_as_a_catalog_of_strict_tables(tmp_path: Path) -> None:
    await make(tmp_path / "c.db")
    db = apsw.Connection(str(tmp_path / "c.db"))
    assert db.pragma("application_id") == APPLICATION_ID
    assert db.pragma("user_version") == migrations()[-1][0]
    tables = db.execute("select name, strict from pragma_table_list where type = 'table'")
    loose = [name for name, strict in tables if not strict and not name.startswith("sqlite_")]
    assert loose == []
    db.close()


# -- refusals ----------------------------------------------------------------------------------


async def test_a_file_that_is_not_sqlite_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "c.db"
    path.write_text("these are my notes, and they are longer than a header of SQLite is " * 3)
    before = path.read_bytes()
    assert "not a SQLite database" in await refusal(path)
    assert path.read_bytes() == before


async def test_another_programs_database_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "c.db"
    db = apsw.Connection(str(path))
    db.execute("create table notes (text)")
    db.close()
    assert "another program" in await refusal(path)
    db = apsw.Connection(str(path))
    assert db.execute("select name from sqlite_schema").fetchall() == [("notes",)]
    db.close()


async def test_a_wrong_mark_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "c.db"
    await make(path)
    db = apsw.Connection(str(path))
    db.pragma("application_id", 7)
    db.close()
    assert "another program" in await refusal(path)


async def test_a_mark_or_a_version_of_another_program_is_refused_before_it_has_tables(
    tmp_path: Path,
) -> None:
    for pragma in ("application_id", "user_version"):
        path = tmp_path / f"{pragma}.db"
        db = apsw.Connection(str(path))
        db.pragma(pragma, 7)
        db.close()
        before = path.read_bytes()
        assert "another program" in await refusal(path)
        assert path.read_bytes() == before


async def test_a_newer_schema_is_refused_by_both_versions(tmp_path: Path) -> None:
    path = tmp_path / "c.db"
    await make(path)
    db = apsw.Connection(str(path))
    db.pragma("user_version", 99)
    db.close()
    words = await refusal(path)
    assert "schema is 99" in words
    assert f"knows {migrations()[-1][0]}" in words


@pytest.mark.parametrize(
    "otherwise", ["update meta set made_by = 'x'", "alter table meta drop column made_by"]
)
async def test_tables_of_before_a_release_are_refused(tmp_path: Path, otherwise: str) -> None:
    """Of one number, and made by a migration that was another one then."""
    path = tmp_path / "c.db"
    await make(path)
    db = apsw.Connection(str(path))
    db.execute(otherwise)
    db.close()
    before = path.read_bytes()
    words = await refusal(path)
    assert str(path) in words
    assert "before a release, with other tables" in words
    assert path.read_bytes() == before


@pytest.mark.parametrize("keep", [0.0, 0.3, 0.9])
async def test_a_truncated_file_is_refused_as_damaged(tmp_path: Path, keep: float) -> None:
    path = tmp_path / "c.db"
    await make(path, pauses=200)
    size = path.stat().st_size
    os.truncate(path, max(200, int(size * keep)))
    words = await refusal(path)
    assert str(path) in words
    assert "damaged" in words or "not a SQLite database" in words


async def test_a_directory_is_refused(tmp_path: Path) -> None:
    assert "directory" in await refusal(tmp_path)


async def test_a_link_that_leads_nowhere_is_refused(tmp_path: Path) -> None:
    (tmp_path / "c.db").symlink_to(tmp_path / "away.db")
    assert "c.db cannot be opened for writing" in await refusal(tmp_path / "c.db")
    assert not (tmp_path / "away.db").exists()


async def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "cannot be made" in await refusal(tmp_path / "file" / "c.db")


def mountinfo(*mounts: tuple[str, str]) -> str:
    lines = [
        f"{number} 1 0:{number} / {point} rw - {kind} none rw"
        for number, (point, kind) in enumerate(mounts, 20)
    ]
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize(
    "kind", ["nfs", "nfs4", "cifs", "smb3", "9p", "virtiofs", "fuse", "fuse.sshfs", "ceph"]
)
def test_a_remote_file_system_is_refused_by_name(kind: str) -> None:
    mounts = mountinfo(("/", "ext4"), ("/srv/my\\040data", kind), ("/srv/other", "ext4"))
    words = f"type {kind} .*/srv/my data.*put the catalog .`state_dir`. on a local disk"
    with pytest.raises(CannotOpen, match=words):
        refuse_remote(Path("/srv/my data/state"), mounts)
    refuse_remote(Path("/srv/other"), mounts)
    refuse_remote(Path("/srv/my data2"), mounts)


def test_a_mount_of_any_name_is_told_apart() -> None:
    """The kernel writes the bytes that it has, but for spaces and the like."""
    for name, written in (
        ("dätä", "dätä"),
        ("\udcff", "\udcff"),
        ("a\u2028b", "a\u2028b"),
        ("\\", "\\134"),
    ):
        mounts = mountinfo(("/", "ext4"), (f"/srv/{written}", "nfs4"))
        refuse_remote(Path("/srv"), mounts)
        with pytest.raises(CannotOpen):
            refuse_remote(Path(f"/srv/{name}/state"), mounts)
    refuse_remote(Path("/srv"), "")


async def test_opening_a_catalog_looks_where_it_lies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mounts = mountinfo(("/", "ext4"), (str(tmp_path / "there"), "nfs4"))
    read = Path.read_bytes

    def read_bytes(path: Path) -> bytes:
        return os.fsencode(mounts) if str(path) == "/proc/self/mountinfo" else read(path)

    monkeypatch.setattr(Path, "read_bytes", read_bytes)
    (tmp_path / "link").symlink_to(tmp_path / "there")
    (tmp_path / "there").mkdir()
    for folder in ("there", "link"):
        assert "a file system of type nfs4" in await refusal(tmp_path / folder / "c.db")
    assert list((tmp_path / "there").iterdir()) == []
    await make(tmp_path / "here" / "c.db")


def test_the_mount_that_hides_the_others_counts() -> None:
    mounts = mountinfo(("/", "ext4"), ("/srv", "nfs4"), ("/srv", "xfs"))
    refuse_remote(Path("/srv/state"), mounts)
    with pytest.raises(CannotOpen):
        refuse_remote(Path("/srv/state"), mountinfo(("/", "ext4"), ("/srv", "xfs"), ("/srv", "9p")))


async def test_a_file_kept_locked_is_unavailable(tmp_path: Path) -> None:
    path = tmp_path / "c.db"
    other = apsw.Connection(str(path))
    other.execute("begin exclusive")
    with pytest.raises(Unavailable, match="written by"):
        await SqliteCatalog.open(path, ManualClock(), 1 << 30, Tuning(busy_seconds=0.05))
    other.close()
    await make(path)


@pytest.mark.parametrize("begin", ["begin", "begin immediate"])
async def test_a_file_that_another_uses_is_made_a_catalog_once_that_is_over(
    tmp_path: Path, begin: str
) -> None:
    """The journal is changed with the file for oneself. SQLite waits for who reads, and not for
    who is about to write, as one that makes the same catalog is."""
    path = tmp_path / "c.db"
    path.touch()
    other = apsw.Connection(str(path))
    other.execute(begin)
    assert other.execute("select * from sqlite_schema").fetchall() == []
    with pytest.raises(Unavailable, match="is being written by"):
        await SqliteCatalog.open(path, ManualClock(), 1 << 30, Tuning(busy_seconds=0.05))
    reading = threading.Timer(0.1, other.close)
    reading.start()
    catalog = await SqliteCatalog.open(path, ManualClock(), 1 << 30)
    reading.join()
    await catalog.aclose()
    db = apsw.Connection(str(path))
    assert db.pragma("journal_mode") == "wal"
    db.close()


@pytest.mark.parametrize("after", ["connect", "_use_wal"])
async def test_who_opens_what_is_replaced_meanwhile_writes_nothing_beside_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: str
) -> None:
    path, other = tmp_path / "c.db", tmp_path / "other.db"
    await make(other)
    path.touch()
    real = getattr(Location, after)

    def late(self: Location, *args: Any, **more: Any) -> Any:
        found = real(self, *args, **more)
        other.rename(path)
        return found

    monkeypatch.setattr(Location, after, late)
    with pytest.raises(Unavailable) as caught:
        await SqliteCatalog.open(path, ManualClock(), 1 << 30)
    assert str(caught.value) == f"{path} was replaced while it was being opened; try again"
    log = tmp_path / "c.db-wal"
    assert not log.exists() or (after == "_use_wal" and not log.read_bytes())


def test_two_that_make_the_same_catalog_at_once_make_it_once(tmp_path: Path) -> None:
    path = tmp_path / "c.db"
    path.touch()
    late, first = apsw.Connection(str(path)), apsw.Connection(str(path))
    late.pragma("journal_mode", "wal")

    def begins(_cursor: object, sql: str, _bindings: object) -> bool:
        if sql == "begin immediate":
            late.exec_trace = None
            migrating.migrate(first, path, 1)
        return True

    late.exec_trace = begins
    migrating.migrate(late, path, 2)
    assert late.execute("select created_at from meta").fetchall() == [(1,)]
    late.close()
    first.close()


async def test_where_no_log_can_be_kept_the_file_is_refused(tmp_path: Path) -> None:
    """This way to the disk has no shared memory."""
    path = tmp_path / "c.db"
    with pytest.raises(CannotOpen, match="cannot keep a write-ahead log there"):
        await SqliteCatalog.open(path, ManualClock(), 1 << 30, Tuning(vfs="unix-none"))


LOCK = """
import fcntl, sys
first, count, kind = int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
with open(sys.argv[1], "r+b") as file:
    fcntl.lockf(file, fcntl.LOCK_EX if kind == "write" else fcntl.LOCK_SH, count, first)
    print("kept", flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize(
    ("first", "count", "kind", "named"),
    [
        (120, 1, "write", True),
        (120, 2, "write", True),  # the kernel shows it in one with the lock of a checkpoint
        (119, 2, "write", True),
        (120, 0, "write", True),  # to the end
        (121, 1, "write", False),
        (119, 1, "write", False),
        (120, 1, "read", False),
    ],
)
def test_who_holds_the_write_lock_is_named(
    tmp_path: Path, first: int, count: int, kind: str, *, named: bool
) -> None:
    shared = tmp_path / "c.db-shm"
    shared.write_bytes(bytes(200))
    command = [sys.executable, "-S", "-c", LOCK, str(shared), str(first), str(count), kind]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdout.readline()
        words = who_writes(tmp_path / "c.db")
        child.stdin.close()
    assert words == (f"process {child.pid}" if named else "another process")


# -- migrations --------------------------------------------------------------------------------


def schema(path: Path) -> list[tuple[Any, ...]]:
    db = apsw.Connection(str(path))
    rows = db.execute("select type, name, sql from sqlite_schema order by 1, 2").fetchall()
    db.close()
    return rows


def test_migrations_are_numbered_without_a_gap() -> None:
    assert [number for number, _ in migrations()] == list(range(1, len(migrations()) + 1))


def test_migrations_come_in_the_order_of_their_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However the folder lists them."""
    for name in ("0010_b.sql", "0009_a.sql", "notes.txt"):
        (tmp_path / name).write_text(name)
    names = sorted(tmp_path.iterdir(), reverse=True)
    monkeypatch.setattr(Path, "iterdir", lambda _: iter(names))
    monkeypatch.setattr(migrating.resources, "files", lambda _: tmp_path)
    assert migrations() == [(9, "0009_a.sql"), (10, "0010_b.sql")]


async def test_a_migrated_catalog_equals_a_fresh_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each older version, brought up step by step, ends with the same schema and keeps its id."""
    steps = [*migrations(), (len(migrations()) + 1, "create table later (x integer) strict;")]
    monkeypatch.setattr(migrating, "migrations", lambda: steps)
    await make(tmp_path / "fresh.db")
    for version in range(1, len(steps)):
        path = tmp_path / f"from{version}.db"
        with monkeypatch.context() as older:
            older.setattr(migrating, "migrations", lambda: steps[:version])  # noqa: B023
            first = await make(path)
        assert await make(path) == first
        assert schema(path) == schema(tmp_path / "fresh.db")
        assert await make(path) == first  # known by its tables again


async def test_a_migration_that_fails_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "c.db"
    await make(path)
    before = schema(path)
    steps = [*migrations(), (99, "create table later (x integer) strict; insert into nowhere;")]
    with monkeypatch.context() as newer:
        newer.setattr(migrating, "migrations", lambda: steps)
        with pytest.raises(Unavailable):
            await make(path)
    assert schema(path) == before
    await make(path)


# -- statements --------------------------------------------------------------------------------


async def test_every_statement_compiles_on_the_schema(tmp_path: Path) -> None:
    await make(tmp_path / "c.db")
    db = apsw.Connection(str(tmp_path / "c.db"))
    for name, sql in SQL.items():
        arguments = [None] * 30
        cursor = db.cursor()
        cursor.exec_trace = lambda *_: False  # compile and bind, do not run
        for count in range(30):
            try:
                cursor.execute(sql, arguments[:count])
            except apsw.ExecTraceAbort:
                break
            except apsw.BindingsError:
                continue
        else:
            pytest.fail(f"{name} cannot be bound")
    db.close()


def test_statements_are_found_by_name_without_their_comments() -> None:
    text = """
        -- Of the file.
        -- name: one
        -- What it does.
        select 1 -- here
        from t;

        -- name: two
        select 2;
    """
    assert parse(dedent(text)) == {"one": "select 1 from t", "two": "select 2"}

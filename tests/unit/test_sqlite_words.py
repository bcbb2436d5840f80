"""What the SQLite catalog says when something is wrong: each sentence, whole."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import anyio
import apsw
import msgspec
import pytest

from catalog.clock import ManualClock
from catalog.errors import BadRequest, CannotOpen, CatalogError, Full, Unavailable, Unknown
from catalog.port import new_operation_id as op
from catalog.records import Holder, Pause
from catalog.sqlite import database
from catalog.sqlite.backend import SqliteCatalog
from catalog.sqlite.database import Location, Tuning, explained, in_words, who_writes
from catalog.sqlite.migrating import migrations
from tests.crash.sqlite_disk import FailingDisk
from tests.patience import PATIENCE

pytestmark = pytest.mark.anyio
LIMIT = 1 << 30
C = Path("/x/c.db")
QUICK = Tuning(busy_seconds=0.05)


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        (
            CannotOpen(
                "/x/c.db is not a SQLite database; move it away, or name another file",
            ),
            apsw.NotADBError("file is not a database"),
        ),
        (
            CannotOpen("/x/c.db is damaged (malformed); restore it from a backup"),
            apsw.CorruptError("malformed"),
        ),
        *(
            (
                CannotOpen(
                    "/x/c.db cannot be opened for writing (why); check its owner and rights, "
                    "those of its folder, and that the disk takes another file (df, df -i)"
                ),
                kind("why"),
            )
            for kind in (apsw.CantOpenError, apsw.ReadOnlyError, apsw.PermissionsError)
        ),
        (
            Unavailable("/x/c.db is being written by another process; try again once that is done"),
            apsw.BusyError("database is locked"),
        ),
        (
            CannotOpen(
                "/x/c.db is damaged, or of a newer SQLite (unsupported file format); restore it "
                "from a backup"
            ),
            apsw.SQLError("unsupported file format"),
        ),
        (Unavailable("/x/c.db: disk I/O error"), apsw.IOError("disk I/O error")),
        (
            CannotOpen("/x/c.db is damaged (KeyError: 'k'); restore it from a backup"),
            KeyError("k"),
        ),
    ],
)
def test_what_sqlite_says_at_an_opening_becomes_a_sentence(
    wanted: CatalogError, found: Exception
) -> None:
    with pytest.raises(CatalogError) as caught, explained(C):
        raise found
    assert (type(caught.value), str(caught.value)) == (type(wanted), str(wanted))
    assert caught.value.__suppress_context__


def test_a_fault_of_the_program_at_an_opening_stays_one() -> None:
    with pytest.raises(ZeroDivisionError), explained(C):
        raise ZeroDivisionError


ROW = (
    "/x/c.db holds a row that cannot be understood ({}): it is damaged, or was written by "
    "something else; `catalog check` looks for more, a backup replaces it"
)
UNICODE = UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte")


@pytest.mark.parametrize(
    ("error", "written", "read"),
    [
        (
            apsw.CorruptError("malformed"),
            "/x/c.db is damaged (malformed); restore it from a backup",
            "/x/c.db is damaged (malformed); restore it from a backup",
        ),
        (
            apsw.NotADBError("no"),
            "/x/c.db is damaged (no); restore it from a backup",
            "/x/c.db is damaged (no); restore it from a backup",
        ),
        (
            apsw.IOError("disk I/O error"),
            "/x/c.db: disk I/O error",
            "/x/c.db cannot be read: disk I/O error",
        ),
        (KeyError("k"), ROW.format("KeyError: 'k'"), ROW.format("KeyError: 'k'")),
        (UNICODE, ROW.format(f"UnicodeDecodeError: {UNICODE}"), None),
        (
            msgspec.DecodeError("truncated"),
            ROW.format("DecodeError: truncated"),
            ROW.format("DecodeError: truncated"),
        ),
        # What a caller wants to have written may be of a wrong type; what is read may not.
        (TypeError("t"), None, ROW.format("TypeError: t")),
        (ValueError("v"), None, ROW.format("ValueError: v")),
        (IndexError("i"), None, ROW.format("IndexError: i")),
        (msgspec.MsgspecError("m"), None, ROW.format("MsgspecError: m")),
    ],
)
def test_what_a_read_or_a_write_met_becomes_a_sentence(
    error: Exception, written: str | None, read: str | None
) -> None:
    found = in_words(C, error)
    assert found is error if written is None else str(found) == written
    if read is not None:
        found = in_words(C, error, reading=True)
        assert (type(found), str(found)) == (Unavailable, read)
    fault = ZeroDivisionError()
    assert in_words(C, fault, reading=True) is fault


# -- files that are not opened -------------------------------------------------------------------


def change(path: Path, name: str, value: int) -> None:
    db = apsw.Connection(str(path))
    db.pragma(name, value)
    db.close()


@pytest.mark.parametrize(
    ("how", "words"),
    [
        (
            lambda path: change(path, "application_id", 7),
            "{} is a database of another program; name another file",
        ),
        (
            lambda path: change(path, "user_version", 0),
            "{} is damaged: it is marked as a catalog and names no version of its schema (0); "
            "restore it from a backup",
        ),
        (
            lambda path: change(path, "user_version", 99),
            "{} was written by a newer version of this program (its schema is 99, this one knows "
            f"{migrations()[-1][0]}); install that version, or restore an older backup",
        ),
        (
            lambda path: path.write_bytes(b"no database" * 100),
            "{} is not a SQLite database; move it away, or name another file",
        ),
        (lambda path: (path.unlink(), path.mkdir()), "{} is a directory; name a file"),
    ],
)
async def test_what_is_no_catalog_is_refused_in_a_sentence(
    tmp_path: Path, how: Callable[[Path], object], words: str
) -> None:
    path = tmp_path / "c.db"
    catalog = await SqliteCatalog.open(path, ManualClock(), LIMIT)
    await catalog.aclose()
    how(path)
    with pytest.raises(CannotOpen) as caught:
        await SqliteCatalog.open(path, ManualClock(), LIMIT)
    assert str(caught.value) == words.format(path)


async def test_where_there_can_be_no_file_or_no_log_a_sentence_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    path = tmp_path / "file" / "c.db"
    with pytest.raises(CannotOpen) as caught:
        await SqliteCatalog.open(path, ManualClock(), LIMIT)
    assert str(caught.value) == f"{path} cannot be made or opened: File exists"
    path = tmp_path / "c.db"
    with pytest.raises(CannotOpen) as caught:
        await SqliteCatalog.open(path, ManualClock(), LIMIT, Tuning(vfs="unix-none"))
    assert str(caught.value) == (
        f"{path}: SQLite cannot keep a write-ahead log there (its mode stays 'delete'); put the "
        "catalog on a local disk"
    )
    mounts = "20 1 0:20 / / rw - ext4 none rw\n21 1 0:21 / /srv rw - nfs4 none rw\n"
    with pytest.raises(CannotOpen) as caught:
        database.refuse_remote(Path("/srv/state"), mounts)
    assert str(caught.value) == (
        "/srv/state lies on a file system of type nfs4 (mounted at /srv), where SQLite's locks do "
        "not hold; put the catalog (`state_dir`) on a local disk"
    )


# -- who has the lock ----------------------------------------------------------------------------

HELD = "1: POSIX  ADVISORY  WRITE 77 fe:01:{inode} {first} {last}"


@pytest.mark.parametrize(
    ("lines", "who"),
    [
        ([HELD.format(inode="{inode}", first=120, last=120)], "process 77"),
        ([HELD.format(inode="{inode}", first=0, last="EOF")], "process 77"),
        ([HELD.format(inode="{inode}", first=120, last="EOF")], "process 77"),
        ([HELD.format(inode="{inode}", first=121, last="EOF")], "another process"),
        ([HELD.format(inode="{inode}", first=121, last=127)], "another process"),
        ([HELD.format(inode="{inode}", first=0, last=119)], "another process"),
        ([HELD.format(inode="{other}", first=120, last=120)], "another process"),
        (
            [HELD.format(inode="{inode}", first=120, last=120).replace("77", "0")],
            "a process of another container",
        ),
        (
            [HELD.format(inode="{inode}", first=120, last=120).replace("77", "1")],
            "process 1",
        ),
        (  # who waits for it does not have it, and has a field more
            ["1: -> POSIX  ADVISORY  WRITE 76 fe:01:{inode} 120 120"],
            "another process",
        ),
        (
            [
                HELD.format(inode="{other}", first=120, last=120).replace("77", "75"),
                "1: -> POSIX  ADVISORY  WRITE 76 fe:01:{other} 120 120",
                HELD.format(inode="{inode}", first=120, last=120).replace("WRITE", "READ"),
                HELD.format(inode="{inode}", first=123, last=123).replace("77", "78"),
                HELD.format(inode="{inode}", first=120, last=120),
            ],
            "process 77",
        ),
        ([], "another process"),
    ],
)
def test_who_has_the_lock_is_read_from_the_kernels_list(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines: list[str], who: str
) -> None:
    shared = tmp_path / "c.db-shm"
    shared.touch()
    inode = shared.stat().st_ino
    text = "\n".join(line.format(inode=inode, other=inode + 1) for line in lines)
    monkeypatch.setattr(Path, "read_text", lambda *_: text)
    assert who_writes(tmp_path / "c.db") == who
    shared.unlink()
    assert who_writes(tmp_path / "c.db") == "another process"


# -- an open catalog -----------------------------------------------------------------------------


async def refused(catalog: SqliteCatalog, kind: type[CatalogError], same: str = "") -> str:
    with pytest.raises(kind) as caught:
        await catalog.edit(same or op(), "ann", "", Pause("p"))
    return str(caught.value)


async def test_what_an_open_catalog_cannot_do_it_says_in_a_sentence(tmp_path: Path) -> None:
    path, same = tmp_path / "c.db", op()
    catalog = await SqliteCatalog.open(path, ManualClock(), LIMIT, QUICK)
    await catalog.renew(same, Holder("h", "host", 1), [], ttl=60)
    assert await refused(catalog, BadRequest, same) == (
        f"operation {same} was a renew; a edit needs an id of its own"
    )
    other = apsw.Connection(str(path))
    other.execute("begin immediate")
    words = f"{path} has been kept by {who_writes(path)} for 0.05 s; end it, or let it finish"
    assert await refused(catalog, Unavailable) == words
    assert (await catalog.stats()).last_error == words
    other.execute("rollback")
    other.close()
    path.rename(tmp_path / "away.db")
    words = (
        f"{path} was replaced or removed while it was open, and nothing written now would be kept: "
        "stop every program that has it open, see that the right file is there, and start again"
    )
    assert await refused(catalog, Unavailable) == words
    assert (await catalog.stats()).last_error == words
    await catalog.aclose()
    assert await refused(catalog, Unavailable) == f"{path} is closed"


async def test_at_its_ceiling_it_says_what_can_be_done(tmp_path: Path) -> None:
    path, limit = tmp_path / "c.db", 512 * 1024
    catalog = await SqliteCatalog.open(path, ManualClock(), limit)

    async def grow() -> None:
        for number in range(limit):
            await catalog.edit(op(), "ann", "x" * 9_000, Pause(f"p{number}"))

    with pytest.raises(Full) as caught:
        await grow()
    assert str(caught.value) == (
        f"{path} has no room left (its ceiling is {limit} bytes); nothing is lost. Raise "
        "`catalog_limit`, keep runs for a shorter time in [retention], or make room on the disk"
    )
    await catalog.aclose()


async def test_what_a_bad_disk_leaves_open_is_said_in_a_sentence(tmp_path: Path) -> None:
    path, disk = tmp_path / "c.db", FailingDisk()
    catalog = await SqliteCatalog.open(path, ManualClock(), LIMIT, Tuning(vfs=disk.name))
    disk.fails = lambda _path: True
    assert await refused(catalog, Unknown) == (
        f"{path}: COMMIT answered with an error (the disk did not take it), and the file cannot be "
        "read back: it may have happened"
    )
    words = f"{path} cannot be recovered: the disk did not take it"
    assert await refused(catalog, Unavailable) == words
    assert (await catalog.stats()).last_error == words
    with pytest.raises(Unavailable) as caught:
        await catalog.pipeline("p")
    assert str(caught.value) == words
    disk.fails = lambda _path: False
    with anyio.fail_after(PATIENCE):
        while (await catalog.stats()).last_error:  # noqa: ASYNC110
            await anyio.sleep(0.01)
    await catalog.aclose()


async def test_the_numbers_of_an_open_catalog_are_those_of_its_files(tmp_path: Path) -> None:
    path = tmp_path / "c.db"
    catalog = await SqliteCatalog.open(path, ManualClock(), LIMIT)
    for name in ("p", "q"):
        await catalog.edit(op(), "ann", "", Pause(name))
    stats = await catalog.stats()
    assert stats.wal_bytes == (tmp_path / "c.db-wal").stat().st_size > 0
    await catalog.aclose()
    assert stats.size_bytes == path.stat().st_size
    assert (stats.backend, stats.limit_bytes, stats.pipelines) == ("sqlite", LIMIT, 2)
    assert (stats.open_runs, stats.writes, stats.groups, stats.last_error) == (0, 2, 2, "")


def test_a_log_that_is_not_there_has_no_bytes(tmp_path: Path) -> None:
    assert Location.of(tmp_path / "c.db", Tuning()).wal_bytes() == 0
    assert Location.of(tmp_path / "c.db", Tuning()).identity() == (0, 0)

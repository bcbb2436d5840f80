"""``catalog backup`` and ``catalog restore``, typed in a small project (A1, D6)."""

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
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import apsw
import pytest

from catalog.open import open_catalog
from catalog.port import Catalog, new_operation_id
from catalog.records import Outcome, Pause, RequestRun, Run, RunQuery
from catalog.sqlite import backing_up, files, restoring
from tests.cli_kit import Shop, claim, commit, make_shop, ran


@pytest.fixture
def shop(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Shop:
    """A project that ran once, and whose second run is open; a request waits."""
    shop = make_shop(tmp_path, capsys)

    async def work(catalog: Catalog) -> None:
        await ran(catalog)
        await commit(catalog, await claim(catalog, ttl=0.0), at=20)
        await catalog.edit(new_operation_id(), "bob@host", "", RequestRun("stock", "r1"))

    shop.on(work)
    return shop


def _catalog(shop: Shop) -> Path:
    return shop.folder / "state" / "catalog.db"


def _runs(shop: Shop) -> dict[int, Run]:
    return {run.epoch: run for run in shop.on(lambda c: c.runs(RunQuery()))}


def _there(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def _back_up(shop: Shop) -> Path:
    backup = shop.folder / "backup.db"
    assert shop.cli("catalog", "backup", str(backup)).code == 0
    return backup


async def _goes_on(catalog: Catalog) -> None:
    """What happens after a backup, and is lost."""
    for at in (30, 40):
        await ran(catalog, at=at)


# -- backup --------------------------------------------------------------------------------------


def test_a_backup_is_one_whole_file_for_its_owner_alone(shop: Shop) -> None:
    before = _there(shop.folder)
    backup = shop.folder / "copy" / "backup.db"
    backup.parent.mkdir()
    done = shop.cli("catalog", "backup", str(backup))
    assert "2 pipelines, 1 run open" in done.out
    assert "last epoch 2" in done.out
    assert _there(backup.parent) == {"backup.db"}
    assert stat.S_IMODE(backup.stat().st_mode) == 0o600
    backup.chmod(0o400)
    with sqlite3.connect(f"{backup.as_uri()}?mode=ro", uri=True) as db:
        assert db.execute("pragma journal_mode").fetchone() == ("delete",)
        assert db.execute("select epoch from meta").fetchone() == (2,)
    db.close()
    assert _there(backup.parent) == {"backup.db"}
    assert _there(shop.folder) == before | {"copy"}


def test_a_backup_in_a_directory_is_named_after_project_and_time(shop: Shop) -> None:
    done = shop.cli("catalog", "backup", str(shop.folder), "--json").json
    path = Path(done["backup"]["path"])
    assert path.parent == shop.folder
    assert path.match("shop-*T*Z.db")
    assert done["backup"]["size_bytes"] == path.stat().st_size
    assert (done["dry_run"], done["backup"]["epoch"]) == (False, 2)


def test_a_file_that_is_there_is_replaced_only_when_that_is_meant(shop: Shop) -> None:
    backup = shop.folder / "backup.db"
    backup.write_text("an older one")
    refused = shop.cli("catalog", "backup", str(backup))
    assert refused.code == 1
    assert "there already" in refused.err
    assert backup.read_text() == "an older one"
    assert shop.cli("catalog", "backup", str(backup), "--force").code == 0
    assert backup.read_bytes().startswith(b"SQLite format 3")


def test_a_log_that_lies_beside_is_not_taken_for_the_backups(shop: Shop) -> None:
    """As of an older copy made by hand: whoever opens the new one would copy it in."""
    backup = shop.folder / "backup.db"
    log = shop.folder / "backup.db-wal"
    log.write_bytes(b"older")
    refused = shop.cli("catalog", "backup", str(backup), "--force")
    assert (refused.code, f"{log} lies beside it" in refused.err) == (1, True)
    assert not backup.exists()


def test_a_dry_run_of_a_backup_finds_the_same_mistakes_and_writes_nothing(shop: Shop) -> None:
    before = _there(shop.folder)
    backup = str(shop.folder / "backup.db")
    done = shop.cli("catalog", "backup", backup, "--dry-run")
    assert done.out.startswith("Nothing was written.")
    assert shop.cli("catalog", "backup", f"{shop.folder}/no/b.db", "--dry-run").code == 1
    assert _there(shop.folder) == before


@pytest.mark.parametrize("name", ["state/catalog.db", "state/catalog.db-wal"])
def test_a_backup_is_never_put_over_the_catalog(shop: Shop, name: str) -> None:
    refused = shop.cli("catalog", "backup", str(shop.folder / name), "--force")
    assert (refused.code, "the catalog itself" in refused.err) == (1, True)
    assert shop.cli("catalog", "check").code == 0


def test_what_never_ran_has_nothing_to_back_up(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shop = make_shop(tmp_path, capsys)
    assert "no catalog to back up" in shop.cli("catalog", "backup", "b.db").err
    assert _there(tmp_path) == {"config.toml"}


def test_who_commits_meanwhile_is_not_kept_waiting_and_not_in_the_backup(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A writer that does not wait at all writes between any two pages of the copy."""
    writer = apsw.Connection(str(_catalog(shop)))
    written = []

    def step(pages: apsw.Backup) -> None:
        writer.execute("begin immediate; update meta set epoch = epoch + 1; commit").fetchall()
        written.append(pages.remaining)
        pages.step(1)

    monkeypatch.setattr(backing_up, "step", step)
    done = shop.cli("catalog", "backup", str(shop.folder / "backup.db"), "--json").json["backup"]
    assert done["epoch"] == 2
    assert len(written) == done["size_bytes"] // 4096 > 10
    assert writer.execute("select epoch from meta").fetchall() == [(2 + len(written),)]
    writer.close()


def test_a_damaged_catalog_is_not_backed_up_over_a_good_backup(shop: Shop) -> None:
    backup = _back_up(shop)
    good = backup.read_bytes()
    with sqlite3.connect(_catalog(shop)) as db:
        db.execute("update pipelines set epoch = 99 where name = 'stock'")
    db.close()
    refused = shop.cli("catalog", "backup", str(backup), "--force")
    assert refused.code == 1
    assert "epoch 99 was never issued" in refused.err
    assert backup.read_bytes() == good
    assert not [name for name in _there(shop.folder) if name.endswith(".part")]


def test_a_backup_cut_short_leaves_nothing_by_its_name(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = _there(shop.folder)

    def stops(pages: apsw.Backup) -> None:
        raise apsw.FullError("not an error")

    monkeypatch.setattr(backing_up, "step", stops)
    refused = shop.cli("catalog", "backup", str(shop.folder / "backup.db"))
    assert (refused.code, "disk is full" in refused.err) == (1, True)
    assert _there(shop.folder) == before


# -- restore -------------------------------------------------------------------------------------


def test_a_restored_catalog_issues_no_epoch_of_the_lost_one(shop: Shop) -> None:
    backup = _back_up(shop)
    shop.on(_goes_on)
    lost = shop.on(lambda c: c.runs(RunQuery()))
    done = shop.cli("catalog", "restore", str(backup), "--why", "disk", "--json").json["restored"]

    async def look(catalog: Catalog) -> tuple[str, int]:
        return catalog.id, (await claim(catalog)).lease.epoch

    name, epoch = shop.on(look)
    assert name == done["catalog"] == done["replaced"]
    assert epoch == done["epoch"] + 1
    assert epoch > max(run.epoch for run in lost) + 10**9
    assert shop.cli("catalog", "check").code == 0


def test_a_counter_ahead_of_the_clock_is_raised_too(shop: Shop) -> None:
    """The catalog that stands there is asked, when it is the same."""
    backup = _back_up(shop)
    with sqlite3.connect(_catalog(shop)) as db:
        db.execute("update meta set epoch = ?", (10**15,))
    db.close()
    done = shop.cli("catalog", "restore", str(backup), "--json").json["restored"]
    assert done["epoch"] > 10**15 + 1


def test_the_same_backup_restored_twice_issues_other_epochs(shop: Shop, tmp_path: Path) -> None:
    """Also where nobody knows of the first time: the catalog is gone."""
    backup = _back_up(shop)
    first = shop.cli("catalog", "restore", str(backup), "--json").json["restored"]["epoch"]
    shutil.rmtree(_catalog(shop).parent)
    at = time.time_ns() // 1_000_000
    second = shop.cli("catalog", "restore", str(backup), "--json").json["restored"]["epoch"]
    assert second >= at >= first


def test_where_the_clock_is_wrong_the_known_counters_decide() -> None:
    assert restoring.raised(0, 5, 7) == 7 + 10**9
    assert restoring.raised(1_790_000_000 * 10**6, 5) == 1_790_000_000 * 1000


def test_open_runs_of_the_backup_end_and_say_why(shop: Shop) -> None:
    backup = _back_up(shop)
    done = shop.cli("catalog", "restore", str(backup))
    assert "Interrupted, since the copy has them as open: 2." in done.out
    run = _runs(shop)[2]
    assert run.outcome is Outcome.INTERRUPTED
    assert f"restored from {backup}" in run.reason
    assert run.rows == 3, "what it committed"
    assert shop.on(lambda c: c.holders()) == ()


def test_what_was_asked_for_before_the_backup_is_asked_for_again(shop: Shop) -> None:
    backup = _back_up(shop)

    async def answered(catalog: Catalog) -> None:
        await ran(catalog, "stock")

    shop.on(answered)
    shop.cli("catalog", "restore", str(backup))
    request = shop.on(lambda c: c.pipeline("stock")).request
    assert request is not None
    assert request.id == "r1"


def test_the_audit_says_who_restored_what_and_why(shop: Shop) -> None:
    backup = _back_up(shop)
    shop.on(_goes_on)
    kept = shop.cli("catalog", "restore", str(backup), "--why", "disk", "--json").json["restored"]
    (edit, *_) = shop.on(lambda c: c.edits())
    assert (edit.action, edit.why, "@" in edit.by) == ("restore_catalog", "disk", True)
    assert json.loads(edit.old) == {
        "catalog": kept["catalog"],
        "epoch": 4,
        "at": kept["kept"],
    }
    assert json.loads(edit.new)["from"] == str(backup)
    assert json.loads(edit.new)["epoch"] == kept["epoch"]
    assert "restored" in shop.cli("catalog", "check").out


def test_what_stood_there_is_kept_and_can_be_restored_too(shop: Shop) -> None:
    backup = _back_up(shop)
    shop.on(_goes_on)
    lost = set(_runs(shop))
    kept = shop.cli("catalog", "restore", str(backup), "--json").json["restored"]["kept"]
    assert set(_runs(shop)) == {1, 2}
    shop.cli("catalog", "restore", kept)
    assert set(_runs(shop)) == lost


def test_a_directory_that_is_not_there_is_not_taken_for_a_file(shop: Shop) -> None:
    """As it was by the first backup of a timer; each later one then failed."""
    done = shop.cli("catalog", "backup", f"{shop.folder}/backups/")
    assert (done.code, "is no directory; make it first" in done.err) == (1, True)
    assert not (shop.folder / "backups").exists()


def test_a_restore_where_there_is_no_catalog_yet_makes_all_that_is_needed(shop: Shop) -> None:
    backup = _back_up(shop)
    runs = set(_runs(shop))
    shutil.rmtree(_catalog(shop).parent)
    done = shop.cli("catalog", "restore", str(backup))
    assert "kept as" not in done.out
    assert _there(_catalog(shop).parent) == {"catalog.db"}
    assert stat.S_IMODE(_catalog(shop).stat().st_mode) == 0o600
    assert set(_runs(shop)) == runs


def test_the_log_of_a_catalog_that_was_removed_is_not_taken_for_the_new_ones(shop: Shop) -> None:
    backup = _back_up(shop)
    runs = set(_runs(shop))

    async def logged(catalog: Catalog) -> None:
        await _goes_on(catalog)
        shutil.copy(f"{_catalog(shop)}-wal", shop.folder / "log")

    shop.on(logged)
    _catalog(shop).unlink()
    shutil.move(shop.folder / "log", f"{_catalog(shop)}-wal")
    assert shop.cli("catalog", "restore", str(backup)).code == 0
    assert set(_runs(shop)) == runs
    assert shop.cli("catalog", "check").code == 0


def test_a_catalog_behind_a_link_is_restored_where_it_lies(shop: Shop) -> None:
    """SQLite keeps its log there too."""
    backup = _back_up(shop)
    disk = shop.folder / "disk"
    disk.mkdir()
    shutil.move(_catalog(shop), disk / "the.db")
    _catalog(shop).symlink_to(disk / "the.db")
    shop.on(_goes_on)
    kept = shop.cli("catalog", "restore", str(backup), "--json").json["restored"]["kept"]
    assert _catalog(shop).is_symlink()
    assert set(_runs(shop)) == {1, 2}
    assert _there(disk) == {"the.db", Path(kept).name}
    shutil.move(disk / "the.db", disk / "the.db.restoring")
    assert "restore was cut short" in shop.cli("status").err


def test_a_restore_that_fails_on_the_way_says_so_and_can_be_carried_out_again(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    backup = _back_up(shop)
    shop.on(_goes_on)
    move = files.move

    def fails(path: Path, to: Path) -> None:
        if to.name == "catalog.db":
            raise OSError(errno.EIO, "Input/output error", str(to))
        move(path, to)

    with monkeypatch.context() as patched:
        patched.setattr(files, "move", fails)
        refused = shop.cli("catalog", "restore", str(backup))
    assert refused.code == 1
    assert "nothing is lost, carry it out again" in refused.err
    assert "restore was cut short" in shop.cli("status").err
    assert shop.cli("catalog", "restore", str(backup)).code == 0
    assert set(_runs(shop)) == {1, 2}


def test_what_a_killed_restore_left_goes_with_the_next(shop: Shop) -> None:
    backup = _back_up(shop)
    left = _catalog(shop).with_name(".catalog.db.0123.part-wal")
    left.write_bytes(b"a part")
    shop.cli("catalog", "restore", str(backup))
    assert not left.exists()


def test_a_dry_run_where_there_is_no_catalog_leaves_nothing(shop: Shop) -> None:
    backup = _back_up(shop)
    shutil.rmtree(_catalog(shop).parent)
    assert shop.cli("catalog", "restore", str(backup), "--dry-run").code == 0
    assert not _catalog(shop).parent.exists()


def test_a_dry_run_of_a_restore_tries_all_and_changes_nothing(shop: Shop) -> None:
    backup = _back_up(shop)
    shop.on(_goes_on)
    before = {path: path.read_bytes() for path in _catalog(shop).parent.iterdir() if path.is_file()}
    assert "Nothing was changed" in shop.cli("catalog", "restore", str(backup), "--dry-run").out
    assert {
        path: path.read_bytes() for path in _catalog(shop).parent.iterdir() if path.is_file()
    } == before


def test_a_copy_made_by_hand_comes_with_its_log(shop: Shop) -> None:
    async def copied(catalog: Catalog) -> None:
        await _goes_on(catalog)
        for end in ("", "-wal"):
            shutil.copy(f"{_catalog(shop)}{end}", f"{shop.folder}/by-hand.db{end}")

    shop.on(copied)
    runs = set(_runs(shop))
    shutil.rmtree(_catalog(shop).parent)
    by_hand = {p.name: p.read_bytes() for p in shop.folder.glob("by-hand.db*")}
    assert shop.cli("catalog", "restore", str(shop.folder / "by-hand.db")).code == 0
    assert set(_runs(shop)) == runs
    assert {p.name: p.read_bytes() for p in shop.folder.glob("by-hand.db*")} == by_hand


# -- what is refused -----------------------------------------------------------------------------


def _of_another_program(path: Path) -> None:
    path.unlink()
    with sqlite3.connect(path) as db:
        db.execute("create table notes (text)")
    db.close()


def _newer(path: Path) -> None:
    with sqlite3.connect(path) as db:
        db.execute("pragma user_version = 9000")
    db.close()


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:40_000])


def _contradicts_itself(path: Path) -> None:
    with sqlite3.connect(path) as db:
        db.execute("update streams set published = 99")
    db.close()


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda path: path.write_text("hello, " * 1000), "not a SQLite database"),
        (lambda path: path.write_bytes(b""), "is an empty file, and no catalog"),
        (_of_another_program, "database of another program"),
        (_newer, "written by a newer version"),
        (_cut, "is damaged"),
        (_contradicts_itself, "published up to 99"),
        (lambda path: path.unlink(), "is not there"),
        (lambda path: (path.unlink(), path.mkdir()), "is a directory"),
    ],
    ids=["text", "empty", "foreign", "newer", "cut", "rows", "missing", "directory"],
)
def test_what_is_no_good_backup_is_refused_in_words_and_nothing_changes(
    shop: Shop, spoil: Callable[[Path], object], words: str
) -> None:
    backup = _back_up(shop)
    spoil(backup)
    before = _runs(shop)
    state = _there(_catalog(shop).parent)
    refused = shop.cli("catalog", "restore", str(backup))
    assert refused.code == 1
    assert words in refused.err
    assert _there(_catalog(shop).parent) == state
    assert _runs(shop) == before


def test_the_catalog_is_not_restored_from_itself(shop: Shop) -> None:
    assert "the catalog itself" in shop.cli("catalog", "restore", str(_catalog(shop))).err


def test_a_holder_that_lives_bars_a_restore(shop: Shop) -> None:
    backup = _back_up(shop)
    with shop.daemon_lock():
        refused = shop.cli("catalog", "restore", str(backup))
    assert refused.code == 4
    assert "daemon-" in refused.err
    assert shop.cli("catalog", "restore", str(backup)).code == 0


_OPENS = """
import asyncio, sys
from catalog.open import open_catalog
async def main():
    async with open_catalog(sys.argv[1]) as catalog:
        print("open", flush=True)
        await asyncio.to_thread(sys.stdin.readline)
asyncio.run(main())
"""


@pytest.mark.parametrize("gone", [False, True], ids=["there", "removed under it"])
def test_any_process_that_has_it_open_bars_a_restore_and_is_named(
    shop: Shop, *, gone: bool
) -> None:
    """Also when the file was removed: its log and its locks are still those of the name."""
    backup = _back_up(shop)
    with subprocess.Popen(
        [sys.executable, "-c", _OPENS, f"sqlite:///{_catalog(shop)}"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "open\n"
        if gone:
            _catalog(shop).unlink()
        refused = shop.cli("catalog", "restore", str(backup))
        other.communicate("\n")
    assert refused.code == 1
    assert f"is open in {'another process' if gone else f'process {other.pid}'}" in refused.err
    assert _catalog(shop).exists() != gone
    assert shop.cli("catalog", "restore", str(backup)).code == 0


def test_who_waited_to_open_what_was_replaced_meanwhile_does_not_go_on_with_it(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has the old file open, and would write into the log of the new one."""
    from catalog.sqlite.database import Location

    connect = Location.connect
    other = shop.folder / "other.db"
    shutil.copy(_catalog(shop), other)

    def late(self: Location, *, for_loop: bool = False) -> apsw.Connection:
        db = connect(self, for_loop=for_loop)
        if other.exists():
            other.rename(self.path)
        return db

    monkeypatch.setattr(Location, "connect", late)
    refused = shop.cli("status")
    assert refused.code == 1
    assert "was replaced while it was being opened" in refused.err
    assert shop.cli("status").code == 0


def test_who_opens_a_catalog_while_its_restore_begins_does_not_go_on(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    from catalog.sqlite.database import Location

    connect = Location.connect
    ready = _catalog(shop).with_name("catalog.db.restoring")

    def late(self: Location, *, for_loop: bool = False) -> apsw.Connection:
        db = connect(self, for_loop=for_loop)
        ready.touch()
        return db

    with monkeypatch.context() as patched:
        patched.setattr(Location, "connect", late)
        assert "is being restored" in shop.cli("status").err
    ready.unlink()
    assert shop.cli("status").code == 0


def test_a_restore_cut_short_is_told_to_all_who_would_open_the_catalog(shop: Shop) -> None:
    backup = _back_up(shop)
    ready = _catalog(shop).with_name("catalog.db.restoring")
    shutil.copy(backup, ready)
    for command in (["status"], ["catalog", "backup", "b.db"], ["pause", "shop"]):
        refused = shop.cli(*command)
        assert (refused.code, "restore was cut short" in refused.err) == (1, True)
    assert shop.cli("catalog", "restore", str(ready)).code == 0
    assert not ready.exists()
    assert shop.cli("status").code == 0


def test_without_room_nothing_is_begun(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    backup = _back_up(shop)
    usage = shutil.disk_usage(shop.folder)._replace(free=5000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    before = _there(shop.folder) | _there(_catalog(shop).parent)
    for command in (["backup", str(shop.folder / "b2.db")], ["restore", str(backup)]):
        refused = shop.cli("catalog", *command)
        assert refused.code == 1
        assert "has 5,000 bytes free" in refused.err
    assert _there(shop.folder) | _there(_catalog(shop).parent) == before


def _as_nobody(work: Callable[[], int]) -> int:
    """The exit code of ``work`` in a process of another user's."""
    pid = os.fork()
    if pid == 0:
        code = 99
        with suppress(BaseException):
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
            code = work()
        os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_another_user_is_refused_in_words(shop: Shop) -> None:
    backup = _back_up(shop)
    state = _catalog(shop).parent
    for path in (shop.folder, state, *state.iterdir(), backup):
        path.chmod(0o777)
    before = _runs(shop)

    def tried() -> int:
        done = shop.cli("catalog", "restore", str(backup))
        return 0 if done.code == 1 and "belongs to user 0" in done.err else 1

    assert _as_nobody(tried) == 0
    assert _runs(shop) == before
    for path in (state, shop.folder):
        path.chmod(0o755)

    def tried_backup() -> int:
        done = shop.cli("catalog", "backup", str(shop.folder / "b2.db"))
        return 0 if done.code == 1 and "Permission denied" in done.err else 1

    state.chmod(0o777)  # its catalog may be read, but its folder takes no file
    assert _as_nobody(tried_backup) == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_what_root_restores_belongs_to_whom_the_catalog_belonged(shop: Shop) -> None:
    backup = _back_up(shop)
    for path in (_catalog(shop).parent, _catalog(shop)):
        os.chown(path, 65534, 65534)
    _catalog(shop).chmod(0o640)
    shop.cli("catalog", "restore", str(backup))
    found = _catalog(shop).stat()
    assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (65534, 65534, 0o640)
    shutil.move(_catalog(shop), shop.folder / "gone.db")
    shop.cli("catalog", "restore", str(backup))
    assert _catalog(shop).stat().st_uid == 65534


def test_a_pause_after_the_backup_is_undone_by_the_restore(shop: Shop) -> None:
    backup = _back_up(shop)

    async def pause(catalog: Catalog) -> None:
        await catalog.edit(new_operation_id(), "bob@host", "", Pause("shop"))

    shop.on(pause)
    shop.cli("catalog", "restore", str(backup))

    async def paused() -> bool:
        async with open_catalog(f"sqlite:///{_catalog(shop)}") as catalog:
            return (await catalog.pipeline("shop")).paused is not None

    assert not asyncio.run(paused())

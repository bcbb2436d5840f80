"""``catalog restore``: an older copy in the place of the catalog, and nothing lost on the way.

All that can fail is done to a copy beside the catalog: it is checked, its counter raised, its open
runs ended, and synced. Then, while nobody can have the catalog open, come only renames:

1. the copy becomes ``catalog.db.restoring``. From here on nobody opens the catalog: who finds that
   file is told to carry the restore out again;
2. what stood there goes to ``catalog.db.replaced-<time>``, its log with it, so that no log of the
   old file is ever taken for the new one's;
3. the copy becomes ``catalog.db``.

Between them the folder is synced. Cut short before 1 nothing has happened; before 3 it is to be
carried out again; after 3 it is done.
"""

from __future__ import annotations

import fcntl
import glob
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import apsw

from catalog import rules
from catalog.copies import Restored
from catalog.errors import CannotOpen, CatalogError, Unavailable
from catalog.records import Edit, Micros
from catalog.sqlite import database, files, migrating
from catalog.sqlite.backing_up import open_still, refuse_problems
from catalog.sqlite.checking import problems
from catalog.sqlite.database import RESTORING, Location
from catalog.sqlite.files import SIDES, beside
from catalog.sqlite.tables import Tables

LEAST_RAISE = 10**9
ACTION = "restore_catalog"
"""In the audit, of no pipeline."""


@dataclass(frozen=True, slots=True)
class Asked:
    """Who wants which file restored, and when."""

    source: Path
    by: str
    why: str
    now: Micros


@dataclass(frozen=True, slots=True)
class _Present:
    """What stands where the catalog is to be."""

    counters: tuple[tuple[str, int], ...]
    """Id and last epoch of each catalog that can be read; an empty id: there is none."""
    looks: tuple[object, ...]
    """Changes when somebody writes to it."""


def raised(now: Micros, *counters: int) -> int:
    """The counter after a restore: above every epoch that a lost catalog may have issued (A1).

    ``counters``: those that are known, the copy's and that of the catalog it replaces. The lost one
    was further by what nobody can tell; the time in milliseconds is further still, since nothing
    starts a thousand runs in each second of fifty years. That holds too when the same copy is
    restored a second time, on a machine that never heard of the first. Where the clock is wrong,
    a thousand million are left from the highest known: three months of a hundred runs a second.
    """
    return max(now // 1000, max(counters) + LEAST_RAISE)


def restore(location: Location, asked: Asked, *, dry_run: bool) -> Restored:
    """Put the copy ``asked.source`` in the catalog's place. ``dry_run``: try all, keep nothing.

    Raises ``CannotOpen`` or ``Unavailable``; then nothing has changed. Blocks for as long as the
    disk takes.
    """
    # SQLite keeps the log beside the file itself, wherever a link to it is.
    location = Location(location.path.resolve(), location.tuning)
    path = location.path
    _see_source(path, asked.source)
    nothing = f"{asked.source} was not restored, and nothing was changed"
    with files.told(nothing), ExitStack() as undo:
        if path.is_dir():
            raise CannotOpen(f"{path} is a directory; name a file")
        if dry_run and not path.parent.exists():
            undo.callback(_remove_empty, path.parent)
        database.make_folder(path.parent)
        database.refuse_remote(path.parent.resolve())
        like = files.see_owner(path)
        with alone(path):
            pass  # refused before anything is copied
        present = _look(location)
        part = undo.enter_context(files.part_of(path))
        _copy(asked.source, part)
        kept = _kept(path, asked.now)
        restored = _make_ready(part, asked, present, path, kept)
        files.give(part, like)
        files.sync(part)
        undo.enter_context(alone(path))
        if _looks(path) != present.looks:
            raise Unavailable(
                f"{path} was written to while the restore was prepared; stop whatever uses it, and "
                "try again"
            )
        if not dry_run:
            _put_in_place(part, path, kept)
        return restored


# -- the copy ------------------------------------------------------------------------------------


def _see_source(path: Path, source: Path) -> None:
    if source.is_dir() or not source.exists():
        what = "is a directory; name the file" if source.is_dir() else "is not there"
        raise CannotOpen(f"{source} {what}")
    if path.exists() and source.samefile(path):
        raise CannotOpen(f"{source} is the catalog itself; name a backup of it")


def _copy(source: Path, part: Path) -> None:
    """The bytes, and those of a log beside them: a file copied by hand has one."""
    with ExitStack() as held:
        if os.access(source, os.W_OK):
            held.enter_context(alone(source))
        found = [("", source), *((side, beside(source, side)) for side in ("-wal", "-journal"))]
        found = [(side, each) for side, each in found if each.exists()]
        files.see_room(part.parent, sum(each.stat().st_size for _, each in found))
        for side, each in found:
            with each.open("rb") as old, beside(part, side).open("xb") as new:
                os.fchmod(new.fileno(), 0o600)
                shutil.copyfileobj(old, new)


def _make_ready(part: Path, asked: Asked, present: _Present, path: Path, kept: Path) -> Restored:
    """Check the copy and make it what is to be in force, in one file."""
    with _as_backup(asked.source):
        db = apsw.Connection(str(part), vfs="unix-none", flags=apsw.SQLITE_OPEN_READWRITE)
        try:
            for name, value in (("locking_mode", "exclusive"), ("journal_mode", "delete")):
                db.pragma(name, value)
            if not migrating.is_current(db, asked.source):
                migrating.refuse_nothing(db, asked.source)
                migrating.migrate(db, asked.source, asked.now)
            tables = Tables(db)
            refuse_problems(list(problems(tables)), f"{asked.source} is damaged")
            db.execute("begin immediate")
            restored = _go_on_from(tables, asked, present, path, kept)
            db.execute("commit")
            return restored
        finally:
            database.give_back(db)


def _go_on_from(
    tables: Tables, asked: Asked, present: _Present, path: Path, kept: Path
) -> Restored:
    source, now = asked.source, asked.now
    catalog, before = tables.catalog_id(), tables.last_epoch()
    epoch = raised(now, before, *(n for name, n in present.counters if name == catalog))
    tables.set_epoch(epoch)
    why = f"the catalog was restored from {source} by {asked.by}, as it was while this run was open"
    ended = _end_open_runs(tables, why, now)
    tables.drop_holders()
    stood, stood_at = present.counters[0]
    kept_name = str(kept) if path.exists() else ""
    tables.write_edit(
        Edit(
            id=0,
            at=now,
            by=asked.by,
            why=asked.why,
            action=ACTION,
            pipeline="",
            stream="",
            old=json.dumps({"catalog": stood, "epoch": stood_at, "at": kept_name}),
            new=json.dumps(
                {"from": str(source), "its_epoch": before, "epoch": epoch, "interrupted": ended}
            ),
        )
    )
    return Restored(
        path=str(path),
        source=str(source),
        catalog=catalog,
        epoch_of_source=before,
        epoch=epoch,
        interrupted=tuple(ended),
        replaced=stood,
        kept=kept_name,
        size_bytes=tables.db.pragma("page_count") * tables.db.pragma("page_size"),
    )


def _end_open_runs(tables: Tables, why: str, now: Micros) -> list[int]:
    """Nobody conducts them; their triggers stay, so that the next runs answer them (A2, A3)."""
    ended = []
    change = tables.last_change()
    for state in tables.leased():
        change += 1
        free, run = rules.interrupt(state, tables.open_run(state.epoch), why, now)
        tables.end_run(run)
        tables.write_pipeline(rules.touch(free, change))
        ended.append(run.epoch)
    return ended


@contextmanager
def _as_backup(source: Path) -> Iterator[None]:
    try:
        yield
    except apsw.NotADBError:
        raise CannotOpen(f"{source} is no catalog: it is not a SQLite database") from None
    except (apsw.Error, *database.NOT_UNDERSTOOD) as error:
        if isinstance(error, apsw.FullError):
            raise Unavailable(f"no room for a copy of {source}; nothing was changed") from None
        raise CannotOpen(f"{source} is damaged ({error}); name another backup") from None


# -- what stands there ---------------------------------------------------------------------------


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Keep every other process from opening the database; raises ``Unavailable`` if one has it.

    By SQLite's own locks, and not through SQLite: the file may be none, or damaged. Not for a
    process that has it open itself (D4).
    """
    places = ((path, database.LOCKS_AT, database.LOCKS), (beside(path, "-shm"), 128, 1))
    with ExitStack() as undo:
        for each, start, length in places:
            with suppress(FileNotFoundError):
                fd = os.open(each, os.O_RDWR | os.O_CLOEXEC)
                undo.callback(os.close, fd)
                try:
                    fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB, length, start)
                except (BlockingIOError, PermissionError):
                    raise Unavailable(
                        f"{path} is open in {database.who_has_open(path)}: stop the daemon and "
                        "every other program that uses it, then try again; nothing was changed"
                    ) from None
        yield


def _look(location: Location) -> _Present:
    """Read what stands there, and let SQLite put its log in order, as far as that is possible."""
    path = location.path
    ready = beside(path, RESTORING)  # of a restore that was cut short
    counters = [_read(path, location.connect), _read(ready, lambda: open_still(ready))]
    return _Present(tuple(counters), _looks(path))


def _read(path: Path, connect: Callable[[], apsw.Connection]) -> tuple[str, int]:
    if not path.exists():
        return "", 0
    try:
        db = connect()
    except (apsw.Error, CatalogError):
        return "", 0
    try:
        tables = Tables(db)
        return tables.catalog_id(), tables.last_epoch()
    except (apsw.Error, *database.NOT_UNDERSTOOD):
        return "", 0
    finally:
        database.give_back(db)


def _looks(path: Path) -> tuple[object, ...]:
    found: list[object] = []
    for each in (path, beside(path, "-wal")):
        try:
            stat = each.stat()
        except FileNotFoundError:
            found.append(None)
        else:
            found.append((stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns))
    return tuple(found)


def _kept(path: Path, now: Micros) -> Path:
    if path.exists() and beside(path, RESTORING).exists() and (begun := _log_kept(path)):
        return begun  # a restore that was cut short has moved its log there
    at = datetime.fromtimestamp(now / 1e6, UTC)
    name = f".replaced-{at:%Y%m%dT%H%M%SZ}"
    number, kept = 1, beside(path, name)
    while any(beside(kept, side).exists() for side in ("", *SIDES)):
        number += 1
        kept = beside(path, f"{name}-{number}")
    return kept


def _log_kept(path: Path) -> Path | None:
    """Where a log is kept whose file is not."""
    for side in ("-wal", "-journal"):
        for log in path.parent.glob(f"{glob.escape(path.name)}.replaced-*{side}"):
            kept = log.with_name(log.name.removesuffix(side))
            if not kept.exists():
                return kept
    return None


def _put_in_place(part: Path, path: Path, kept: Path) -> None:
    ready = beside(path, RESTORING)
    files.move(part, ready)
    with files.told(f"the restore of {path} was cut short; nothing is lost, carry it out again"):
        files.sync(path.parent)
        for side in ("-wal", "-journal", ""):
            with suppress(FileNotFoundError):
                files.move(beside(path, side), beside(kept, side))
        beside(path, "-shm").unlink(missing_ok=True)
        files.sync(path.parent)
        files.move(ready, path)
        files.sync(path.parent)
    files.remove_parts(path)


def _remove_empty(folder: Path) -> None:
    with suppress(OSError):
        folder.rmdir()

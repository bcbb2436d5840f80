"""``catalog backup``: a whole copy of a catalog in one file, while others go on writing.

SQLite's own backup copies pages out of one read transaction, and readers keep no writer waiting:
the log only starts anew later. All of the copy is as of one moment. ``VACUUM INTO`` does that too,
but it makes each row and index anew, which takes several times as long and more memory.
"""

from __future__ import annotations

from pathlib import Path

import apsw

from catalog.copies import Backup
from catalog.errors import CannotOpen, Unavailable
from catalog.sqlite import database, files, migrating
from catalog.sqlite.checking import problems
from catalog.sqlite.database import Location
from catalog.sqlite.files import SIDES, beside
from catalog.sqlite.tables import Tables

PAGES_AT_ONCE = 1024
_SHOWN = 3


def back_up(location: Location, target: Path, *, force: bool, dry_run: bool) -> Backup:
    """Copy the catalog to ``target``, durably; until it is whole there is nothing by that name.

    ``force``: a file that is there is replaced. Raises ``CannotOpen`` or ``Unavailable``; then all
    is as it was. Blocks for as long as the disk takes.
    """
    path = location.path
    stood = location.identity()
    database.refuse_half_restored(path)
    if not path.exists():
        raise CannotOpen(f"{path} is not there: there is no catalog to back up yet")
    _see_target(path, target, force=force)
    db = location.connect()
    try:
        with database.explained(path), files.told(f"{target} cannot be written"):
            location.still(stood)
            if not migrating.is_current(db, path):
                migrating.refuse_nothing(db, path)
            files.see_room(target.parent, db.pragma("page_count") * database.PAGE_SIZE)
            if dry_run:
                return _described(db, target)
            with files.part_of(target) as part:
                part.touch(0o600, exist_ok=False)
                _copy(db, part, target)
                files.sync(part)
                done = _checked(part, target, f"{path} is damaged")
                part.chmod(path.stat().st_mode & 0o666)
                _see_target(path, target, force=force)  # it took a while
                files.move(part, target)
                files.sync(target.parent)
                return done
    finally:
        database.give_back(db)


def _see_target(path: Path, target: Path, *, force: bool) -> None:
    if target.is_dir():
        raise CannotOpen(f"{target} is a directory; name a file")
    if not target.parent.is_dir():
        raise CannotOpen(f"{target.parent} is not there; make that directory first")
    own = (path, *(beside(path, side) for side in (*SIDES, database.RESTORING)))
    if target.resolve() in [each.resolve() for each in own]:
        raise CannotOpen(f"{target} is the catalog itself; name another file")
    for side in SIDES:  # of what lay there before; SQLite would take it for the new file's
        if (left := beside(target, side)).exists():
            raise CannotOpen(f"{left} lies beside it; remove that, or name another file")
    if target.exists() and not force:
        raise CannotOpen(f"{target} is there already; name another file, or replace it (--force)")


def _copy(db: apsw.Connection, part: Path, target: Path) -> None:
    # Nobody else knows the file, so that it needs no locks, which not every file system has.
    copy = apsw.Connection(str(part), vfs="unix-none")
    try:
        for name, value in (
            ("locking_mode", "exclusive"),
            ("synchronous", "off"),  # it is synced once, at the end
            ("journal_mode", "off"),
        ):
            copy.pragma(name, value)
        db.execute("begin")
        Tables(db).last_epoch()  # the moment that all of it is of
        with copy.backup("main", db, "main") as pages:
            while not pages.done:
                step(pages)
        db.execute("rollback")
        copy.pragma("journal_mode", "delete")  # whole without a log beside it
    except (apsw.FullError, apsw.IOError) as error:
        # SQLite's words may be about the other side, which has no error.
        why = "the disk is full" if isinstance(error, apsw.FullError) else str(error)
        raise Unavailable(f"{db.filename} could not be copied to {target}: {why}") from None
    finally:
        database.give_back(copy)


def step(pages: apsw.Backup) -> None:
    """Copy some of what is left."""
    pages.step(PAGES_AT_ONCE)


def _checked(part: Path, target: Path, damaged: str) -> Backup:
    db = open_still(part)
    try:
        found = list(problems(Tables(db)))
        refuse_problems(found, damaged)
        return _described(db, target)
    finally:
        database.give_back(db)


def open_still(path: Path) -> apsw.Connection:
    """A connection to a file that nobody changes: it needs nothing beside it, and no rights."""
    uri = f"{path.absolute().as_uri()}?immutable=1"
    return apsw.Connection(uri, flags=apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI)


def refuse_problems(found: list[str], what: str) -> None:
    """Raise ``CannotOpen`` when a check found anything; ``what`` says of which file."""
    if found:
        more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
        raise CannotOpen(f"{what} ({'; '.join(found[:_SHOWN])}{more}); nothing was changed")


def _described(db: apsw.Connection, target: Path) -> Backup:
    tables = Tables(db)
    pipelines, open_runs = tables.counts()
    return Backup(
        path=str(target),
        catalog=tables.catalog_id(),
        epoch=tables.last_epoch(),
        size_bytes=db.pragma("page_count") * db.pragma("page_size"),
        pipelines=pipelines,
        open_runs=open_runs,
    )

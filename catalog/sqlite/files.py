"""What backup and restore do to files: names, rights, room, and making them durable."""

from __future__ import annotations

import errno
import glob
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from catalog.errors import CannotOpen, Unavailable

SIDES = ("-wal", "-shm", "-journal")
"""What SQLite may put beside a database."""
_RESERVE = 1024 * 1024
"""Bytes that a copy leaves free."""


def beside(path: Path, end: str) -> Path:
    """The file whose name is this one's with ``end``."""
    return path.with_name(path.name + end)


@contextmanager
def part_of(path: Path) -> Iterator[Path]:
    """A name beside ``path`` for what is not whole yet; whatever is there at the end is removed."""
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        yield part
    finally:
        for left in (part, *(beside(part, side) for side in SIDES)):
            with suppress(OSError):
                left.unlink(missing_ok=True)


@contextmanager
def told(what: str) -> Iterator[None]:
    """The system's errors as the port's: ``what`` could not be done, and why."""
    try:
        yield
    except OSError as error:
        room = "; make room there, and try again" if error.errno == errno.ENOSPC else ""
        where = error.filename or "the disk"
        raise Unavailable(f"{what}: {where}: {error.strerror}{room}") from None


def see_room(folder: Path, needed: int) -> None:
    """Raise ``Unavailable`` where a copy of so many bytes would not fit."""
    free = shutil.disk_usage(folder).free
    if free < needed + _RESERVE:
        raise Unavailable(
            f"{folder} has {free:,} bytes free, and the copy takes {needed:,}: make room there, or "
            "name another place; nothing was changed"
        )


def see_owner(path: Path) -> os.stat_result:
    """Whose a new file at ``path`` is to be: as the one there, else as its folder.

    Raises ``CannotOpen`` when this user could only make one of its own there.
    """
    found = (path if path.exists() else path.parent).stat()
    if os.geteuid() not in (0, found.st_uid):
        raise CannotOpen(
            f"{path} belongs to user {found.st_uid}, and what user {os.geteuid()} puts there the "
            "other could not open; do this as that user, or as root"
        )
    return found


def give(path: Path, like: os.stat_result) -> None:
    """Rights and owner as of the file ``like``; where it is a folder, for its owner alone."""
    path.chmod(0o600 if stat.S_ISDIR(like.st_mode) else like.st_mode & 0o666)
    if os.geteuid() == 0:
        os.chown(path, like.st_uid, like.st_gid)


def sync(path: Path) -> None:
    """Make a file's bytes, or a folder's entries, durable."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    except OSError as error:
        # Some file systems, of the kind that only a backup is put on, cannot sync a folder.
        if error.errno != errno.EINVAL or not path.is_dir():
            raise
    finally:
        os.close(fd)


def remove_parts(path: Path) -> None:
    """Remove what processes that were killed left of ``part_of``."""
    for part in path.parent.glob(f".{glob.escape(path.name)}.*.part*"):
        with suppress(OSError):
            part.unlink()


def move(path: Path, to: Path) -> None:
    """Rename, replacing what is there."""
    path.rename(to)

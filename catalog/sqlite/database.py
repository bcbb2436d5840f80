"""Opening the catalog's file: one function for every connection of every process (D5).

Nothing else in a process may open the file, its ``-wal`` or its ``-shm``: closing any descriptor
of them drops the locks that SQLite holds (D4). No connection crosses a fork.
"""

from __future__ import annotations

import os
import secrets
from importlib import resources
from pathlib import Path

import apsw

from catalog.errors import CannotOpen, Unavailable

APPLICATION_ID = 0x68726563
"""Tells this file from any other SQLite database ("hrec")."""
PAGE_SIZE = 4096
BUSY_MS = 5_000
"""How long a writer waits for another process's transaction."""
_REMOTE = {"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "virtiofs", "fuse.sshfs", "afs", "ceph"}


def connect(path: Path, *, busy_ms: int, synchronous: str = "FULL") -> apsw.Connection:
    """A connection with this catalog's settings. Raises ``CannotOpen`` or ``Unavailable``."""
    try:
        db = apsw.Connection(str(path), statementcachesize=256)
        db.set_busy_timeout(busy_ms)
        db.pragma("journal_mode", "wal")
        db.pragma("synchronous", synchronous)
        db.pragma("fullfsync", 1)  # macOS: its fsync alone does not reach the disk
        db.pragma("wal_autocheckpoint", 0)  # checkpoints have a thread of their own (D6)
        db.pragma("cache_size", -16_384)
        db.pragma("foreign_keys", 0)
        db.pragma("mmap_size", 0)
    except apsw.NotADBError:
        raise CannotOpen(
            f"{path} is not a SQLite database; move it away, or name another"
        ) from None
    except apsw.CorruptError as error:
        raise CannotOpen(f"{path} is damaged ({error}); restore it from a backup") from None
    except apsw.CantOpenError as error:
        raise CannotOpen(f"{path} cannot be opened: {error}") from None
    except apsw.Error as error:
        raise Unavailable(f"{path}: {error}") from None
    return db


def refuse_remote(path: Path) -> None:
    """Raise ``CannotOpen`` when the file lies on a file system whose locks cannot be trusted."""
    try:
        mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    except OSError:
        return  # no Linux: development only
    found = ("", "")
    for line in mounts:
        head, _, tail = line.partition(" - ")
        point, kind = head.split()[4].replace("\\040", " "), tail.split()[0]
        inside = path.is_relative_to(point)
        if inside and len(point) >= len(found[0]):
            found = (point, kind)
    if found[1] in _REMOTE:
        raise CannotOpen(
            f"{path} lies on {found[1]} (mounted at {found[0]}): SQLite's locks do not hold there; "
            "put state_dir on a local disk"
        )


def prepare(path: Path) -> None:
    """Make the folder and, with few rights, the file."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    refuse_remote(path.parent.resolve())
    if path.is_dir():
        raise CannotOpen(f"{path} is a directory; name a file")
    if not path.exists():
        try:
            os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))
        except OSError as error:
            raise CannotOpen(f"{path} cannot be made: {error.strerror}") from None


def migrations() -> list[tuple[int, str]]:
    """Number and text of each migration, ascending."""
    folder = resources.files("catalog.sqlite") / "migrations"
    found = [(int(f.name[:4]), f.read_text()) for f in folder.iterdir() if f.name.endswith(".sql")]
    return sorted(found)


def migrate(db: apsw.Connection, path: Path, now: int) -> None:
    """Bring the file to this program's version, once, whichever process comes first."""
    steps = migrations()
    newest = steps[-1][0]
    try:
        if db.pragma("user_version") == newest and db.pragma("application_id") == APPLICATION_ID:
            return
        db.execute("begin immediate")
        try:
            _apply(db, path, steps, now)
            db.execute("commit")
        except BaseException:
            db.execute("rollback")
            raise
    except apsw.BusyError:
        raise Unavailable(f"{path} is being written by another process; try again") from None
    except (apsw.NotADBError, apsw.CorruptError) as error:
        raise CannotOpen(f"{path} is damaged or no catalog ({error}); restore a backup") from None


def _apply(db: apsw.Connection, path: Path, steps: list[tuple[int, str]], now: int) -> None:
    version, newest = db.pragma("user_version"), steps[-1][0]
    tables = db.execute("select 1 from sqlite_schema limit 1").fetchone()
    if db.pragma("application_id") != APPLICATION_ID and tables:
        raise CannotOpen(f"{path} is another program's database; name another file")
    if version > newest:
        raise CannotOpen(
            f"{path} was written by a newer version of this program (schema {version}, this one "
            f"knows {newest}); install that version, or restore an older backup"
        )
    for number, text in steps:
        if number > version:
            for _ in db.execute(text):
                pass
    if not version:
        db.execute("insert into meta values (1, ?, 0, 0, ?)", (secrets.token_hex(16), now))
    db.pragma("application_id", APPLICATION_ID)
    db.pragma("user_version", newest)


def who_writes(path: Path) -> str:
    """The pid that holds a lock on the file, if the kernel tells; for the message alone."""
    try:
        inode = path.stat().st_ino
        shm = path.with_name(path.name + "-shm").stat().st_ino
        lines = Path("/proc/locks").read_text().splitlines()
    except OSError:
        return "another process"
    for line in lines:
        fields = line.split()
        place = fields[5] if fields[1] != "->" else fields[6]
        if place.rsplit(":", 1)[-1] in (str(inode), str(shm)) and "WRITE" in fields:
            pid = fields[4]
            if pid != str(os.getpid()):
                return f"process {pid}"
    return "another process"

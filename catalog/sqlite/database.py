"""Opening the catalog's file: one way in for every connection of every process (D5).

In a process that has a catalog open nothing else may open its file, its ``-wal`` or its ``-shm``:
closing any descriptor of them drops the locks that SQLite holds (D4). ``stat`` is safe. No
connection crosses a fork: a child opens its own.
"""

from __future__ import annotations

import os
import time
from collections.abc import Container, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import apsw
import msgspec

from catalog.errors import CannotOpen, Unavailable
from catalog.sqlite.files import beside
from catalog.sqlite.migrating import is_current, migrate

PAGE_SIZE = 4096
LOCKS_AT, LOCKS = 0x40000000, 512
"""Where in a database SQLite locks it: each connection that is open, one of these bytes or all."""
RESTORING = ".restoring"
"""Ends the name of a file beside a catalog: while it is there, the catalog is being replaced."""
_WRITER_CACHE_KIB = 32 * 1024
_READER_CACHE_KIB = 8 * 1024


@dataclass(frozen=True, slots=True)
class Tuning:
    """What every connection is opened with. Other values than these prove in tests why."""

    synchronous: str = "FULL"
    """NORMAL loses acknowledged commits when power fails."""
    busy_seconds: float = 5.0
    """How long a write waits for another process's transaction."""
    vfs: str | None = None
    checkpoint_pages: int = 1024
    """A write-ahead log grown by so many pages is copied back."""
    truncate_bytes: int = 64 * 1024 * 1024
    """A write-ahead log longer than this is also cut."""


@dataclass(frozen=True, slots=True)
class Location:
    """The file, and the only function that makes connections to it."""

    path: Path
    tuning: Tuning

    @classmethod
    def of(cls, path: Path, tuning: Tuning) -> Location:
        """The place of a path, which stays the same when the working directory changes."""
        return cls(path.absolute(), tuning)

    def connect(self, *, for_loop: bool = False) -> apsw.Connection:
        """A connection to a catalog that is there already.

        ``for_loop``: one that only reads and never waits for a lock (D3). Raises ``CannotOpen`` or
        ``Unavailable``.
        """
        with explained(self.path):
            db = apsw.Connection(
                str(self.path),
                flags=apsw.SQLITE_OPEN_READWRITE,
                vfs=self.tuning.vfs,
                statementcachesize=128,
            )
            try:
                self._set_up(db, for_loop=for_loop)
            except BaseException:
                close_in_doubt(db)
                raise
            return db

    def _set_up(self, db: apsw.Connection, *, for_loop: bool) -> None:
        # Else each new value bound to a statement would have it planned anew: 20 us, not 2.
        db.config(apsw.SQLITE_DBCONFIG_ENABLE_QPSG, 1)
        db.set_busy_timeout(0 if for_loop else round(self.tuning.busy_seconds * 1000))
        for name, value in (
            ("synchronous", self.tuning.synchronous),
            ("fullfsync", 1),  # macOS: its fsync alone does not reach the disk
            ("wal_autocheckpoint", 0),  # checkpoints have a thread of their own (D6)
            ("cache_size", -(_READER_CACHE_KIB if for_loop else _WRITER_CACHE_KIB)),
            ("mmap_size", 0),  # a failing disk is to be an error, not a signal
            ("temp_store", 2),
        ):
            db.pragma(name, value)
        if for_loop:
            db.pragma("query_only", 1)
        # SQLite opens the log with the first read; a checkpoint before it would do nothing.
        db.pragma("user_version")

    def open_writer(self, now: int) -> apsw.Connection:
        """Make, check and migrate the file where that is due; the first connection to it.

        ``now``: microseconds, for a new catalog. Raises ``CannotOpen`` or ``Unavailable``.
        """
        _prepare(self.path)
        stood = self.identity()
        db = self.connect()
        try:
            with explained(self.path):
                # What is refused is left as it is: its kind of journal ...
                self.still(stood)
                is_current(db, self.path)
                self._use_wal(db)
                self.still(stood)
                migrate(db, self.path, now)
        except BaseException:
            close_in_doubt(db)  # ... and its log, which may be another database's.
            raise
        return db

    def _use_wal(self, db: apsw.Connection) -> None:
        """Turning the log on wants the file for itself, and SQLite does not wait for a writer."""
        deadline = time.monotonic() + self.tuning.busy_seconds
        while True:
            try:
                mode = db.pragma("journal_mode", "wal")
            except apsw.BusyError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.01)
                continue
            if mode != "wal":
                raise CannotOpen(
                    f"{self.path}: SQLite cannot keep a write-ahead log there (its mode stays "
                    f"{mode!r}); put the catalog on a local disk"
                )
            return

    def still(self, stood: tuple[int, int]) -> None:
        """That no restore came between ``stood``, taken from ``identity``, and opening the file.

        Else this process has a file open whose name, and so whose log's, is another's by now. Once
        the log is on, the next restore finds this process. Raises ``Unavailable``, ``CannotOpen``.
        """
        refuse_half_restored(self.path)
        if self.identity() != stood:
            raise Unavailable(f"{self.path} was replaced while it was being opened; try again")

    def identity(self) -> tuple[int, int]:
        """Device and inode of what is at the path now; zeros when there is nothing."""
        try:
            found = os.stat(self.path)  # noqa: PTH116 - asked with every group: half the cost
        except OSError:
            return 0, 0
        return found.st_dev, found.st_ino

    def wal_bytes(self) -> int:
        """Size of the write-ahead log."""
        try:
            return beside(self.path, "-wal").stat().st_size
        except OSError:
            return 0


def sync_failed(error: apsw.Error) -> bool:
    """Whether the disk did not take what was written; it may say later that it did (D2)."""
    return getattr(error, "extendedresult", 0) == apsw.SQLITE_IOERR_FSYNC


def give_back(db: apsw.Connection) -> None:
    """Close after an error, which is the one to be told of."""
    with suppress(apsw.Error):
        db.close(force=True)


def close_in_doubt(db: apsw.Connection) -> None:
    """Close without copying the log back: after a failed sync the log alone can be trusted (D2)."""
    with suppress(apsw.Error):
        db.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
    give_back(db)


NOT_UNDERSTOOD = (ValueError, TypeError, LookupError, msgspec.MsgspecError)
"""What reading a row raises whose bytes were changed by something else than this program."""
_NOT_UNDERSTOOD_BY_A_WRITE = (UnicodeDecodeError, KeyError, msgspec.DecodeError)
"""Of those the ones that cannot come from what a caller wanted to have written."""


def in_words(path: Path, error: Exception, *, reading: bool = False) -> Exception:
    """What a read or a write met, as the port's error; a fault of the program stays what it is."""
    if isinstance(error, apsw.CorruptError | apsw.NotADBError):
        return Unavailable(f"{path} is damaged ({error}); restore it from a backup")
    if isinstance(error, apsw.Error):
        return Unavailable(f"{path}{' cannot be read' if reading else ''}: {error}")
    if isinstance(error, NOT_UNDERSTOOD if reading else _NOT_UNDERSTOOD_BY_A_WRITE):
        what = f"{type(error).__name__}: {error}"
        return Unavailable(
            f"{path} holds a row that cannot be understood ({what}): it is damaged, or was written "
            "by something else; `catalog check` looks for more, a backup replaces it"
        )
    return error


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """SQLite's errors as the port's, each a sentence."""
    try:
        yield
    except apsw.NotADBError:
        raise CannotOpen(
            f"{path} is not a SQLite database; move it away, or name another file"
        ) from None
    except apsw.CorruptError as error:
        raise CannotOpen(f"{path} is damaged ({error}); restore it from a backup") from None
    except (apsw.CantOpenError, apsw.ReadOnlyError, apsw.PermissionsError) as error:
        raise CannotOpen(
            f"{path} cannot be opened for writing ({error}); check its owner and rights, "
            "those of its folder, and that the disk takes another file (df, df -i)"
        ) from None
    except apsw.BusyError:
        raise Unavailable(
            f"{path} is being written by {who_writes(path)}; try again once that is done"
        ) from None
    except apsw.Error as error:
        if "unsupported file format" in str(error):
            raise CannotOpen(
                f"{path} is damaged, or of a newer SQLite ({error}); restore it from a backup"
            ) from None
        raise Unavailable(f"{path}: {error}") from None
    except NOT_UNDERSTOOD as error:
        raise CannotOpen(
            f"{path} is damaged ({type(error).__name__}: {error}); restore it from a backup"
        ) from None


# -- the file ------------------------------------------------------------------------------------


def _prepare(path: Path) -> None:
    """Make the folder and the file, for their owner alone."""
    try:
        if path.is_dir():
            raise CannotOpen(f"{path} is a directory; name a file")
        refuse_half_restored(path)
        make_folder(path.parent)
        refuse_remote(path.parent.resolve())
        # Only where nothing is yet: no descriptor of a file that may be open is closed here (D4).
        if not path.exists():
            with suppress(FileExistsError):
                os.close(os.open(path, os.O_CREAT | os.O_EXCL, 0o600))
    except OSError as error:
        raise CannotOpen(f"{path} cannot be made or opened: {error.strerror}") from None


def refuse_half_restored(path: Path) -> None:
    """Raise ``CannotOpen`` when the catalog is being replaced, or that was cut short."""
    path = path.resolve()
    ready = beside(path, RESTORING)
    if ready.exists():
        raise CannotOpen(
            f"{path} is being restored, or its restore was cut short: then carry it out again with "
            f"`reconciler catalog restore FILE`, from the same file or from {ready}"
        )


def make_folder(folder: Path) -> None:
    """Make a folder for its owner alone, and those above it as the umask says, since others may
    have to pass through them; durable. Raises ``OSError``."""
    _make_folder(folder, 0o700)


def _make_folder(folder: Path, mode: int) -> None:
    if folder.is_dir():
        return
    _make_folder(folder.parent, 0o777)
    folder.mkdir(mode=mode, exist_ok=True)
    # SQLite makes the entries in the file's own folder durable; those above it are made here.
    parent = os.open(folder.parent, os.O_RDONLY)
    try:
        os.fsync(parent)
    finally:
        os.close(parent)


_REMOTE = {"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "virtiofs", "afs", "ceph", "glusterfs"}


def refuse_remote(folder: Path, mountinfo: str | None = None) -> None:
    """Raise ``CannotOpen`` for a folder on a file system whose locks cannot be trusted (D4).

    ``mountinfo``: the kernel's list of mounts; read from ``/proc`` unless given.
    """
    if mountinfo is None:
        try:
            mountinfo = os.fsdecode(Path("/proc/self/mountinfo").read_bytes())
        except OSError:
            return  # no Linux: for development only
    mount, kind = "", ""
    for line in filter(None, mountinfo.split("\n")):
        head, _, tail = line.partition(" - ")
        # The kernel writes spaces and the like as "\040"; a name may be of any other bytes.
        name = os.fsencode(head.split(" ")[4]).decode("unicode_escape").encode("latin-1")
        point = os.fsdecode(name)
        # The longest one that holds the folder; of equals the last hides the others.
        if folder.is_relative_to(point) and len(point) >= len(mount):
            mount, kind = point, tail.split()[0]
    if kind in _REMOTE or kind.startswith("fuse"):
        raise CannotOpen(
            f"{folder} lies on a file system of type {kind} (mounted at {mount}), where SQLite's "
            "locks do not hold; put the catalog (`state_dir`) on a local disk"
        )


def who_writes(path: Path) -> str:
    """Which process holds the write lock, as far as the kernel tells; for messages alone."""
    # The write lock is one byte of the shared-memory file, its 120th.
    return _who_locks(beside(path, "-shm"), 120, 120, {"WRITE"})


def who_has_open(path: Path) -> str:
    """Which process has the catalog open, as far as the kernel tells; for messages alone."""
    return _who_locks(path, LOCKS_AT, LOCKS_AT + LOCKS - 1, {"READ", "WRITE"})


def _who_locks(path: Path, first: int, last: int, kinds: Container[str]) -> str:
    try:
        inode = path.stat().st_ino
        locks = Path("/proc/locks").read_text("ascii").splitlines()
    except OSError:
        return "another process"
    for line in locks:
        fields = line.split()
        if fields[1] == "->" or fields[3] not in kinds:
            continue
        pid, place, begins, ends = fields[4:8]
        covers = int(begins) <= last and (ends == "EOF" or int(ends) >= first)
        if covers and int(place.rsplit(":", 1)[-1]) == inode:
            return f"process {pid}" if int(pid) > 0 else "a process of another container"
    return "another process"

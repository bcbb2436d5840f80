"""The file work of the destinations, all of it: so that a loss simulator can sit under it (B8).

``Files`` is the real disk. A test hands a destination another object with the same methods, which
keeps only what was fsynced. Nothing in ``connectors/destinations`` opens, renames, flushes or
removes a file by any other way, except that DuckDB looks after its own database file.

Promises: what ``Sink.sync`` and ``Files.sync_dir`` returned for is on a disk that honours fsync.
A flush that fails is an error, and the file is never flushed again as if nothing had happened:
after a failed fsync the kernel may have dropped the pages and report success the next time.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from catalog.records import ErrorClass
from reconciler.connectors.ports import ConnectorError

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_POLL = 0.02
"""Seconds between two tries to take a lock: there is no flock with a deadline."""


class Sink:
    """A new file being written, once, from its beginning. Counts and checksums what passes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size = 0
        self._crc = 0
        self._failed = False
        self._fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o666)

    @property
    def checksum(self) -> str:
        """Of all bytes written so far: ``crc32:`` and eight hex digits."""
        return f"crc32:{self._crc:08x}"

    @property
    def closed(self) -> bool:
        return self._fd < 0

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.size

    def write(self, data: bytes) -> int:
        """Write all of ``data``."""
        view = memoryview(data).cast("B")
        self._crc = zlib.crc32(view, self._crc)
        done = 0
        while done < len(view):
            done += os.write(self._fd, view[done:])
        self.size += done
        return done

    def flush(self) -> None:
        """Nothing is buffered here; durable is ``sync``."""

    def sync(self) -> None:
        """Make the content durable. Raises ``OSError``; then the file is lost for good."""
        if self._failed:
            raise OSError(errno.EIO, "an earlier flush of this file failed", str(self.path))
        try:
            _flush(self._fd)
        except OSError:
            self._failed = True
            raise

    def close(self) -> None:
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)


class Files:
    """The disk. Paths are absolute; every method raises ``OSError`` as the system does."""

    def create(self, path: Path) -> Sink:
        """A new file; one that is already there is an error."""
        return Sink(path)

    def read(self, path: Path) -> bytes:
        return path.read_bytes()

    @contextmanager
    def reader(self, path: Path) -> Iterator[Callable[[int, int], bytes]]:
        """Keep a file open, and read so many bytes at an offset of it (fewer at its end)."""
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            yield lambda offset, size: os.pread(fd, size, offset)
        finally:
            os.close(fd)

    @contextmanager
    def alone(
        self, path: Path
    ) -> Iterator[tuple[Callable[[int, int], bytes], Callable[[int, bytes], None]]]:
        """Keep everybody else off a file, read as ``reader`` does, and put bytes at an offset of
        it; durable at the end. No other descriptor of it may be closed meanwhile: that would let
        the others in.

        Raises ``BlockingIOError`` while another process holds a record lock on it, as DuckDB does.
        """
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield (
                lambda offset, size: os.pread(fd, size, offset),
                lambda offset, data: _put(fd, offset, data),
            )
            _flush(fd)
        finally:
            os.close(fd)

    def cut(self, path: Path, size: int) -> None:
        """Make a file no longer than that; durable when it returns."""
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            os.ftruncate(fd, size)
            _flush(fd)
        finally:
            os.close(fd)

    def checksum(self, path: Path) -> str:
        """As ``Sink.checksum``, of a file that is there."""
        crc = 0
        with path.open("rb", buffering=0) as file:
            while block := file.read(1 << 20):
                crc = zlib.crc32(block, crc)
        return f"crc32:{crc:08x}"

    def size(self, path: Path) -> int | None:
        """Bytes of a regular file; None: there is none."""
        try:
            return path.stat().st_size if path.is_file() else None
        except FileNotFoundError:
            return None

    def identity(self, path: Path) -> tuple[int, ...] | None:
        """What changes when a file is written, replaced or restored; None: there is none."""
        try:
            found = path.stat()
        except FileNotFoundError:
            return None
        return (
            found.st_dev,
            found.st_ino,
            found.st_size,
            found.st_mtime_ns,
            found.st_ctime_ns,
        )

    def is_dir(self, path: Path) -> bool:
        return path.is_dir()

    def is_link(self, path: Path) -> bool:
        return path.is_symlink()

    def listdir(self, path: Path) -> list[str]:
        """Names in the directory, sorted; empty if there is no such directory."""
        try:
            return sorted(os.listdir(path))  # noqa: PTH208 - names are wanted, not paths
        except FileNotFoundError:
            return []

    def mkdir(self, path: Path) -> None:
        """Make one directory; one that is there already is fine."""
        path.mkdir(exist_ok=True)

    def rename(self, source: Path, target: Path) -> None:
        source.rename(target)

    def exchange(self, one: Path, other: Path) -> None:
        """Let two paths change places, in one step that no reader can see half of."""
        libc = ctypes.CDLL(None, use_errno=True)
        first, second = os.fsencode(one), os.fsencode(other)
        if sys.platform == "darwin":
            done = libc.renamex_np(first, second, _RENAME_EXCHANGE)
        else:
            done = libc.renameat2(_AT_FDCWD, first, _AT_FDCWD, second, _RENAME_EXCHANGE)
        if done != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), str(one), None, str(other))

    def unlink(self, path: Path) -> None:
        """Remove a file; one that is gone already is fine."""
        path.unlink(missing_ok=True)

    def rmdir(self, path: Path) -> bool:
        """Remove an empty directory. False: it is not empty, or is gone."""
        try:
            path.rmdir()
        except OSError as error:
            if error.errno in {errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT}:
                return False
            raise
        return True

    def sync_file(self, path: Path) -> None:
        """Make the content of a file that another library wrote durable."""
        _sync(path, os.O_RDONLY)

    def sync_dir(self, path: Path) -> None:
        """Make the entries of a directory durable."""
        _sync(path, os.O_RDONLY | os.O_DIRECTORY)

    @contextmanager
    def lock(self, path: Path, wait: float) -> Iterator[None]:
        """Hold the flock on ``path``, which is made if need be and holds the holder's pid.

        Raises ``ConnectorError`` (transient, ``busy``) naming the holder after ``wait`` seconds.
        """
        fd = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o666)
        try:
            _flock(fd, path, wait)
            os.ftruncate(fd, 0)
            os.pwrite(fd, str(os.getpid()).encode(), 0)
            yield
        finally:
            os.close(fd)


DISK = Files()


def _sync(path: Path, flags: int) -> None:
    fd = os.open(path, flags | os.O_CLOEXEC)
    try:
        _flush(fd)
    finally:
        os.close(fd)


def _put(fd: int, offset: int, data: bytes) -> None:
    done = 0
    while done < len(data):
        done += os.pwrite(fd, data[done:], offset + done)


def _flush(fd: int) -> None:
    if sys.platform == "darwin":  # there fsync leaves the data in the drive's cache
        fcntl.fcntl(fd, fcntl.F_FULLFSYNC)
    else:
        os.fsync(fd)


def _flock(fd: int, path: Path, wait: float) -> None:
    until = time.monotonic() + wait
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() < until:
                time.sleep(_POLL)
                continue
            holder = os.pread(fd, 32, 0).decode(errors="replace") or "unknown"
            raise ConnectorError(
                ErrorClass.TRANSIENT,
                f"{path} is locked by process {holder}, which publishes at this moment; "
                "publishing is tried again",
                busy=True,
            ) from None
        return


# -- compositions: the same on every disk -----------------------------------------------------


def make_dirs(files: Files, path: Path) -> None:
    """Make a directory and those above it that are missing.

    One above may be removed by another at the same moment because it is empty; then it is made
    again.
    """
    for _ in range(100):
        try:
            if not files.is_dir(path):
                make_dirs(files, path.parent)
                files.mkdir(path)
        except FileNotFoundError:
            continue
        return
    raise OSError(errno.ENOENT, "the directory is removed as often as it is made", str(path))


def make_durable(files: Files, path: Path) -> None:
    """Make a directory and those above it that are missing, each durable before the next."""
    if not files.is_dir(path):
        make_durable(files, path.parent)
        files.mkdir(path)
        sync_holder(files, path)


def sync_up(files: Files, path: Path, root: Path) -> None:
    """Make durable the entries of ``path`` and of each directory above it, ``root`` and the
    directory that holds ``root`` included: then a file in ``path`` can be reached after a loss of
    power, whoever made the directories (B8).
    """
    files.sync_dir(path)
    while path != root:
        path = path.parent
        files.sync_dir(path)
    sync_holder(files, root)


def sync_holder(files: Files, root: Path) -> None:
    """Make durable that ``root`` is in the directory above it."""
    with suppress(PermissionError):  # not ours to read: then ``root`` was there before us
        files.sync_dir(root.parent)


def disk_error(error: OSError) -> ConnectorError:
    """What a failed file operation means: a matter of rights and places does not mend itself."""
    lasting = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EXDEV, errno.EINVAL}
    hint = {
        errno.EXDEV: "; all of a destination must lie on one filesystem",
        errno.EINVAL: "; this filesystem cannot exchange two directories, which `replace` needs",
        errno.ENOSPC: "; make room on the disk, which may lack inodes (`df -i`)",
    }.get(error.errno or 0, "")
    return ConnectorError(
        ErrorClass.PERMANENT if error.errno in lasting else ErrorClass.TRANSIENT,
        f"{error.filename or 'a file of the destination'}: {error.strerror or error}{hint}",
    )


@contextmanager
def disk_errors() -> Iterator[None]:
    """Inside, a failed file operation becomes a ``ConnectorError``."""
    try:
        yield
    except OSError as error:
        raise disk_error(error) from error


def write_atomic(files: Files, path: Path, data: bytes) -> None:
    """Put ``data`` in the place of what ``path`` held: after a crash it is the one or the other.

    Durable when it returns. The new content waits beside it under a name that ends in ``.new``.
    """
    fresh = path.with_name(path.name + ".new")
    files.unlink(fresh)
    sink = files.create(fresh)
    try:
        sink.write(data)
        sink.sync()
    finally:
        sink.close()
    files.rename(fresh, path)
    files.sync_dir(path.parent)


def remove_tree(files: Files, path: Path) -> None:
    """Remove a directory and all in it; gone already is fine."""
    for name in files.listdir(path):
        try:
            files.unlink(path / name)
        except (IsADirectoryError, PermissionError):  # the latter is macOS's word for it
            remove_tree(files, path / name)
    files.rmdir(path)

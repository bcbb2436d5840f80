"""What DuckDB cannot get over when it is cut short, kept beside the file until it is through (B8).

A checkpoint writes changed rows to free blocks and then moves the header to them, so that the old
state holds until the new one is durable. Its metadata blocks, of 256 kB, are an exception: they are
written where they lie, though the header in force still points into them. When the power fails in
the midst of that, one of them is half old and half new, its checksum is wrong, and DuckDB never
opens the file again. Nor does it when an entry of its log came to the disk in part: the length is
there, the content is not.

So before anything that may begin a transaction or a checkpoint the blocks are copied, with the
header and the length of the log. Before the file is opened the blocks are put back if the header is
the same: then no checkpoint has come to its end since. And if DuckDB refuses the log, what was
added to it since is cut off: a publish that was cut short, which is done again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import duckdb
import msgspec

from reconciler.connectors.destinations.files import Files, write_atomic

HEADER = 3 * 4096
"""Bytes before the first block: what the file is, and two states of which the newer is in force."""


@dataclass(frozen=True, slots=True)
class _Kept:
    """The file's header, and blocks as they are while it is in force, each with its offset."""

    header: bytes
    blocks: tuple[tuple[int, bytes], ...]
    log: int
    """Bytes in the log."""


class Undo:
    """Of one database. To be used with the lock on the folder beside it held."""

    def __init__(self, files: Files, database: Path, log: Path, path: Path) -> None:
        """``path``: where all is kept."""
        self._files, self._database, self._log, self._path = files, database, log, path
        self._read: Callable[[int, int], bytes] = _closed
        self._header = b""

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Around the time in which the database is open: closing any descriptor of the file drops
        the lock that DuckDB has on it, so ours is closed last.
        """
        with self._files.reader(self._database) as self._read:
            self._header = b""
            yield

    def keep(self, connection: duckdb.DuckDBPyConnection) -> None:
        """Keep what may be cut short from now on; durable when it returns. Nothing to do as long as
        no checkpoint has ended since the last time. Not within a transaction.
        """
        header = self._read(0, HEADER)
        if header == self._header:
            return
        size = connection.execute("SELECT block_size FROM pragma_database_size()").fetchone()
        assert size is not None
        ids = connection.execute("SELECT block_id FROM pragma_metadata_info()").fetchall()
        places = [HEADER + number * size[0] for (number,) in ids]
        blocks = tuple((place, self._read(place, size[0])) for place in places)
        kept = _Kept(header, blocks, self._files.size(self._log) or 0)
        write_atomic(self._files, self._path, msgspec.msgpack.encode(kept))
        self._header = header

    def put_back(self) -> None:
        """Before the database is opened: undo a checkpoint that has not come to its end.

        Raises ``BlockingIOError`` while another process has the database open.
        """
        kept = self._in_force()
        if kept is None:
            return
        with self._files.reader(self._database) as read:
            torn = [(at, old) for at, old in kept.blocks if read(at, len(old)) != old]
        if torn:
            with self._files.alone(self._database) as put:
                for at, old in torn:
                    put(at, old)

    def cut_log(self) -> bool:
        """DuckDB refuses its log: cut off what was added to it since. False: nothing was.

        Raises ``BlockingIOError`` while another process has the database open.
        """
        kept = self._in_force()
        if kept is None or (self._files.size(self._log) or 0) <= kept.log:
            return False
        with self._files.alone(self._database):
            self._files.cut(self._log, kept.log)
        return True

    def _in_force(self) -> _Kept | None:
        """What is kept, if it is of the state that the database is in."""
        try:
            kept = msgspec.msgpack.decode(self._files.read(self._path), type=_Kept)
        except (FileNotFoundError, msgspec.MsgspecError):
            return None
        with self._files.reader(self._database) as read:
            return kept if read(0, HEADER) == kept.header else None

    def drop(self) -> None:
        """After the last checkpoint is durable. What is kept does no harm if it comes back: the
        header is another then, and never that one again."""
        self._files.unlink(self._path)


def _closed(offset: int, size: int) -> bytes:
    raise AssertionError(f"{size} bytes at {offset} of a database that is not open")

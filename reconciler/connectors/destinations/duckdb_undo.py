"""What DuckDB cannot get over when it is cut short, kept beside the file until it is through (B8).

A checkpoint writes changed rows to free blocks and then moves the header to them, so that the old
state holds until the new one is durable. Its metadata blocks, of 256 kB, are an exception: they are
written where they lie, though the header in force still points into them. When the power fails in
the midst of that, one of them is half old and half new, its checksum is wrong, and DuckDB never
opens the file again. Nor does it when an entry of its log came to the disk in part: the length is
there, the content is not.

So before anything that may begin a transaction or a checkpoint the blocks are copied, with the
header and the length of the log. Before the file is opened those that are torn are put back if the
header is the same: then no checkpoint has come to its end since. And if DuckDB refuses the log,
what was added to it since is cut off: a publish that was cut short, which is done again.
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
_WORD = (1 << 64) - 1

Reading = Callable[[int, int], bytes]
"""Bytes at an offset, so many; fewer at the file's end."""


@dataclass(frozen=True, slots=True)
class _Kept:
    """The file's header, and blocks as they are while it is in force, each with its offset."""

    header: bytes
    blocks: tuple[tuple[int, bytes], ...]
    log: int
    """Bytes in the log."""

    def is_in_force(self, read: Reading) -> bool:
        """The database has this header."""
        return read(0, HEADER) == self.header

    def torn(self, read: Reading) -> list[tuple[int, bytes]]:
        """The blocks to put back, each with its offset.

        Not those that lie there whole. What the header points to in them is the same, since a
        checkpoint leaves it alone. And a header is not one state's alone: the file may be a copy
        that was put here, and that others went on from by as many checkpoints; nothing in that is
        torn, and nothing of it is as it is kept here.
        """
        if not self.is_in_force(read):
            return []
        there = [(at, old, read(at, len(old))) for at, old in self.blocks]
        return [
            (at, old)
            for at, old, now in there
            if now != old and not (_is_whole(now) and _is_whole(old))
        ]


class Undo:
    """Of one database. To be used with the lock on the folder beside it held."""

    def __init__(self, files: Files, database: Path, log: Path, path: Path) -> None:
        """``path``: where all is kept."""
        self._files, self._database, self._log, self._path = files, database, log, path
        self._read: Reading = _closed
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
        # That the last checkpoint removed the log: DuckDB refuses one that is older than by one.
        self._files.sync_dir(self._database.parent)
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
        kept = self._kept()
        if kept is None:
            return
        with self._files.reader(self._database) as read:
            if not kept.torn(read):
                return
        with self._files.alone(self._database) as (read, put):
            # Looked at again: who had it open until now may have ended the checkpoint.
            for at, old in kept.torn(read):
                put(at, old)

    def cut_log(self) -> bool:
        """DuckDB refuses its log: cut off what was added to it since. False: nothing was.

        Raises ``BlockingIOError`` while another process has the database open.
        """
        kept = self._kept()
        if kept is None:
            return False
        with self._files.alone(self._database) as (read, _):
            if not kept.is_in_force(read) or (self._files.size(self._log) or 0) <= kept.log:
                return False
            self._files.cut(self._log, kept.log)
        return True

    def _kept(self) -> _Kept | None:
        try:
            return msgspec.msgpack.decode(self._files.read(self._path), type=_Kept)
        except (FileNotFoundError, msgspec.MsgspecError):
            return None

    def drop(self) -> None:
        """After the last checkpoint is durable. What is kept does no harm if it comes back: the
        header is another then, and never that one again."""
        self._files.unlink(self._path)


def _is_whole(block: bytes) -> bool:
    """Its checksum, in the first eight bytes, is right. A block that is kept and is not whole by
    this has another kind of checksum.
    """
    if not block or len(block) % 8:
        return False
    sum_, *words = memoryview(block).cast("Q")
    found = 5381
    for word in words:
        found ^= word * 0xBF58476D1CE4E5B9 & _WORD
    return found == sum_


def _closed(offset: int, size: int) -> bytes:
    raise AssertionError(f"{size} bytes at {offset} of a database that is not open")

"""What DuckDB writes over in its file, block by block, and in which order (B8).

Not what a loss of power leaves at some moments, but every write of a recorded process: a block that
the header in force points to is not written over unless it is kept beside the file by then, one
that the log speaks of is not written over at all, and neither log nor header come before the blocks
that they speak of are durable. That is all of DuckDB that the undo rests on.
"""

from __future__ import annotations

from collections import Counter
from contextlib import closing
from pathlib import Path

import duckdb
import msgspec
import pytest

from reconciler.connectors.destinations.duckdb_undo import HEADER, _Kept
from tests.crash.disk_recorder import Event, Kind, RecordedDisk, Recorder, Sectors
from tests.crash.duckdb_books import Store
from tests.crash.duckdb_large import LargeStore
from tests.crash.duckdb_life import FILE
from tests.crash.duckdb_world import Lives

BLOCK = 262_144
_CHANGES = {Kind.WRITE, Kind.TRUNCATE, Kind.PUNCH, Kind.ALLOCATE}


class Watch:
    """One recorded life, looked at write by write."""

    def __init__(self, folder: Path, lives: Lives) -> None:
        self.wrong: list[str] = []
        self.seen: Counter[str] = Counter()
        self._probe = folder / "probe.duckdb"
        self._file = lives.folder / FILE
        self._log = lives.folder / f"{FILE}.wal"
        self._undo = lives.folder / f"{FILE}.reconciler" / "undo"
        self._disk = RecordedDisk(lives.folder, lives.start.left)
        self._unsynced: set[int] = set()
        self._in_force: tuple[set[int], set[int]] | None = None
        for number, event in enumerate(lives.events):
            for wrong in self._look(event):
                self.wrong.append(f"event {number}: {wrong}")
            self._disk.play(event)

    def _look(self, event: Event) -> list[str]:
        path = self._disk.path_of(event)
        if path == self._log and event.kind in (Kind.WRITE, Kind.SYNC):
            self._in_force = None
            if self._unsynced and event.kind is Kind.WRITE:
                return [f"the log before blocks {self._unsynced}"]
        if path != self._file:
            return []
        if event.kind is Kind.SYNC:
            self._unsynced = set()
        if event.kind not in _CHANGES:
            return []
        if event.kind is Kind.WRITE and event.a < HEADER:
            self.seen["headers"] += 1
            self._in_force = None
            return [f"the header before blocks {self._unsynced}"] if self._unsynced else []
        return self._changed(event)

    def _changed(self, event: Event) -> list[str]:
        """Blocks are written, or cut off the file."""
        first = (event.a - HEADER) // BLOCK
        last = self._size() if event.kind is Kind.TRUNCATE else -(-len(event.data) // BLOCK) + first
        changed = {*range(first, last)}
        if event.kind is Kind.WRITE:
            self._unsynced |= changed
        if self._in_force is None:
            self._in_force = self._used(with_log=False), self._used(with_log=True)
        header, log = self._in_force
        kept = self._kept()
        self.seen["in place"] += len(changed & kept)
        lost = changed & ((header - kept) | (log - header))
        return [f"{event.kind.name} over blocks {lost}, kept are {kept}"] if lost else []

    def _size(self) -> int:
        return (len(self._content(self._file)) - HEADER) // BLOCK

    def _content(self, path: Path) -> bytes:
        node = self._disk.node(path)
        return bytes(node.shadow.written) if isinstance(node, Sectors) else b""

    def _kept(self) -> set[int]:
        """Blocks that are kept, durably, of the state in force."""
        node = self._disk.node(self._undo)
        if not isinstance(node, Sectors):
            return set()
        kept = msgspec.msgpack.decode(node.shadow.durable, type=_Kept)
        if kept.header != self._content(self._file)[:HEADER]:
            return set()
        return {(at - HEADER) // BLOCK for at, _ in kept.blocks}

    def _used(self, *, with_log: bool) -> set[int]:
        """Blocks of the tables and of their metadata, by DuckDB's own word."""
        log = self._probe.with_name(f"{self._probe.name}.wal")
        log.unlink(missing_ok=True)
        self._probe.write_bytes(self._content(self._file))
        if with_log and (content := self._content(self._log)):
            log.write_bytes(content)
        with closing(duckdb.connect(str(self._probe), read_only=True)) as db:
            run = db.execute
            found = {
                row[0] for row in run("SELECT block_id FROM pragma_metadata_info()").fetchall()
            }
            self.seen["most metadata"] = max(self.seen["most metadata"], len(found))
            for (table,) in run("SELECT table_name FROM duckdb_tables()").fetchall():
                sql = f"SELECT block_id, additional_block_ids FROM pragma_storage_info('{table}')"
                for block, more in run(sql).fetchall():
                    found |= {block, *(more or ())}
        return found


@pytest.mark.slow
@pytest.mark.parametrize(("source", "seed"), [(Store, 1), (LargeStore, 21), (LargeStore, 22)])
def test_what_is_written_over_in_place_is_kept_first(
    source: type[Store], seed: int, tmp_path: Path
) -> None:
    lives = Lives(tmp_path, seed, Recorder(tmp_path), source)
    lives.record(runs=4)
    watch = Watch(tmp_path, lives)
    assert watch.wrong == []
    assert watch.seen["headers"] > 5
    assert watch.seen["in place"] > 5
    assert source is Store or watch.seen["most metadata"] > 1

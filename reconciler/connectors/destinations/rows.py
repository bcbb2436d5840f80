"""Rows of a batch into staged Parquet files: row groups of a sane size, files that roll."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from reconciler.connectors.destinations.files import Files, Sink
from reconciler.connectors.destinations.staging import ENDING, flush_failed
from reconciler.connectors.ports import ArrowSchema, RecordBatch, StagedFile

GROUP_ROWS = 122_880
"""As many as DuckDB puts in a row group of its own: it takes such a batch over in half the time."""
GROUP_BYTES = 32 << 20
PART_BYTES = 256 << 20
_WAITING_BYTES = 64 << 20
"""Rows waiting in memory for all files of a batch together."""
_OPEN_FILES = 64


def stored_schema(schema: ArrowSchema) -> ArrowSchema:
    """``schema`` without columns that never had a value: they have no type to be stored as, and
    arrive once they have one.
    """
    return pa.schema([field for field in schema if not pa.types.is_null(field.type)])


class _Waiting:
    """Rows of one folder that are not written yet."""

    def __init__(self) -> None:
        self.batches: list[RecordBatch] = []
        self.rows = 0
        self.bytes = 0

    def add(self, batch: RecordBatch) -> None:
        self.batches.append(batch)
        self.rows += batch.num_rows
        self.bytes += batch.nbytes

    def take(self, *, everything: bool) -> list[RecordBatch]:
        """What is to be written: full row groups, or all; the rest goes on waiting."""
        batches, rest = self.batches, self.rows % GROUP_ROWS
        self.batches, self.rows, self.bytes = [], 0, 0
        if rest and rest < sum(batch.num_rows for batch in batches) and not everything:
            last = batches.pop()
            keep = min(rest, last.num_rows)
            batches.append(last.slice(0, last.num_rows - keep))
            self.add(last.slice(last.num_rows - keep))
        return batches


class _Part:
    """One staged file being written."""

    def __init__(self, sink: Sink, schema: ArrowSchema, compression: str) -> None:
        self.sink = sink
        self.rows = 0
        self._writer = pq.ParquetWriter(sink, schema, compression=compression)

    def write(self, table: pa.Table) -> None:
        self._writer.write_table(table, row_group_size=GROUP_ROWS)
        self.rows += table.num_rows

    def finish(self) -> None:
        """Close and fsync: the content is durable, the name is not yet."""
        try:
            self._writer.close()
            self.sink.sync()
        except BaseException:
            self.drop()
            raise
        self.sink.close()

    def drop(self) -> None:
        """Close, and write nothing more."""
        self._writer.is_open = False  # else it writes the file's end once nobody needs it any more
        with suppress(OSError):
            self.sink.close()


class PartFiles:
    """The staged files of one batch: ``<folder>/<number>.staged``, numbered through.

    Small batches are gathered to row groups of a sane size; a full file is closed and a new one
    begun. A failed write or flush ends the batch: ``ConnectorError`` (transient).
    """

    def __init__(
        self,
        files: Files,
        root: Path,
        directory: Path,
        schema: ArrowSchema,
        *,
        plain_names: bool,
    ) -> None:
        """``plain_names``: see ``FileStage``."""
        self._files = files
        self._root = root
        self._directory = directory
        self._columns = schema.names
        self._schema = schema
        if plain_names:
            self._schema = pa.schema([field.with_name(f"c{i}") for i, field in enumerate(schema)])
        self._compression = "snappy" if plain_names else "zstd"
        self._waiting: dict[str, _Waiting] = {}
        self._waiting_bytes = 0
        self._open: dict[str, _Part] = {}
        self._count = 0
        self._done: list[StagedFile] = []

    @property
    def bytes(self) -> int:
        """On disk, and waiting in memory."""
        done = sum(file.size for file in self._done)
        return done + sum(part.sink.size for part in self._open.values()) + self._waiting_bytes

    @property
    def empty(self) -> bool:
        """Nothing was written."""
        return not self._waiting and self._count == 0

    def write(self, batch: RecordBatch, folder: str = "") -> None:
        """Add rows to a folder (``a=1/b=2``, or none)."""
        columns = [batch.column(name) for name in self._columns]
        batch = pa.RecordBatch.from_arrays(columns, schema=self._schema)
        waiting = self._waiting.setdefault(folder, _Waiting())
        waiting.add(batch)
        self._waiting_bytes += batch.nbytes
        if waiting.bytes >= GROUP_BYTES:
            self._flush(folder)
        elif waiting.rows >= GROUP_ROWS:
            self._flush(folder, everything=False)
        while self._waiting_bytes > _WAITING_BYTES:
            self._flush(max(self._waiting, key=lambda name: self._waiting[name].bytes))

    def finish(self) -> tuple[StagedFile, ...]:
        """Close and fsync every file."""
        for folder in list(self._waiting):
            self._flush(folder)
        for folder in list(self._open):
            self._finish(folder)
        return tuple(self._done)

    def drop(self) -> None:
        """Close without caring for what is in the files."""
        for part in self._open.values():
            part.drop()
        self._open.clear()
        self._waiting.clear()

    def folders(self) -> Sequence[str]:
        """Every folder that has a finished file, each once."""
        base = self._directory.relative_to(self._root)
        return sorted({str(Path(file.path).parent.relative_to(base)) for file in self._done})

    def _flush(self, folder: str, *, everything: bool = True) -> None:
        waiting = self._waiting[folder]
        self._waiting_bytes -= waiting.bytes
        batches = waiting.take(everything=everything)
        self._waiting_bytes += waiting.bytes
        if not waiting.rows:
            del self._waiting[folder]
        try:
            part = self._open.get(folder) or self._begin(folder)
            part.write(pa.Table.from_batches(batches, self._schema))
        except OSError as error:
            raise flush_failed(self._directory, error) from error
        if part.sink.size >= PART_BYTES:
            self._finish(folder)

    def _begin(self, folder: str) -> _Part:
        if len(self._open) >= _OPEN_FILES:
            self._finish(next(iter(self._open)))
        directory = self._directory
        for name in folder.split("/") if folder else ():
            directory = directory / name
            self._files.mkdir(directory)
        sink = self._files.create(directory / f"{self._count:05d}{ENDING}")
        self._count += 1
        try:
            part = self._open[folder] = _Part(sink, self._schema, self._compression)
        except BaseException:
            sink.close()
            raise
        return part

    def _finish(self, folder: str) -> None:
        part = self._open.pop(folder)
        try:
            part.finish()
        except OSError as error:
            raise flush_failed(part.sink.path, error) from error
        path = str(part.sink.path.relative_to(self._root))
        self._done.append(StagedFile(path, part.sink.size, part.sink.checksum, part.rows))

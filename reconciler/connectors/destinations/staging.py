"""Staged batches on disk: their names, their parts, and how they are made durable (B2, B3, B8).

A batch lies in ``<root>/<catalog>/<pipeline>/<stream>/<epoch>/<seq>/``. Its files end in
``.staged``, which no reader's glob takes for data. ``sealed.json`` in it holds the receipt and is
written last: a directory without one was never sealed. Each part of a name is made safe for a
path; one too long for that is cut, and the directory keeps the whole in a file ``name``.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import msgspec
import pyarrow as pa

from catalog.records import Cursor, ErrorClass, HoldKind
from reconciler.config.desired import Mode, fold
from reconciler.connectors.destinations.files import (
    Files,
    make_dirs,
    make_durable,
    remove_tree,
    sync_up,
    write_atomic,
)
from reconciler.connectors.destinations.names import encode_name
from reconciler.connectors.killpoints import point
from reconciler.connectors.ports import (
    BatchName,
    ConnectorError,
    NeedsAnswer,
    Owner,
    Receipt,
    RecordBatch,
    RejectedRow,
    StagedFile,
    StageRequest,
)

ENDING = ".staged"
REJECTED = "__rejected"
"""After a table's name: the table of its rows that were set aside."""
_SEALED = "sealed.json"
_NAME = "name"


def _is_cut(encoded: str) -> bool:
    return "%~" in encoded


class Staging:
    """The staged batches of one destination, under ``root``."""

    def __init__(self, files: Files, root: Path, top: Path) -> None:
        """``top``: the directory that is the destination's own, ``root`` or one above it. It may be
        new; it, and its name in the directory that holds it, are made durable with each batch."""
        self.files = files
        self.root = root
        self.top = top
        self._ours: set[BatchName] = set()
        """What this process has sealed itself, and need not checksum again."""

    def directory(self, name: BatchName) -> Path:
        """Where the batch lies, made or not."""
        return self._stream(name.owner) / str(name.epoch) / str(name.seq)

    def _stream(self, owner: Owner) -> Path:
        parts = (owner.catalog, owner.pipeline, owner.stream)
        return self.root.joinpath(*(encode_name(part) for part in parts))

    def open(self, name: BatchName) -> Path:
        """Make the directory of a batch anew; what an earlier try left unsealed in it goes.

        A sealed one may be committed, and is never staged over (B2).
        """
        path = self.directory(name)
        if self.files.size(path / _SEALED) is not None:
            raise ConnectorError(
                ErrorClass.TRANSIENT,
                f"{path} holds a sealed batch of this name, which may be committed; the next run "
                "settles it and has a name of its own",
            )
        make_durable(self.files, self.top)
        remove_tree(self.files, path)
        make_dirs(self.files, path)
        parent = self.root
        for part in (name.owner.catalog, name.owner.pipeline, name.owner.stream):
            encoded = encode_name(part)
            parent = parent / encoded
            if _is_cut(encoded) and self.files.size(parent / _NAME) is None:
                write_atomic(self.files, parent / _NAME, part.encode())
        return path

    def seal(self, receipt: Receipt) -> None:
        """Make the batch and the way to it durable."""
        path = self.directory(receipt.name)
        write_atomic(self.files, path / _SEALED, msgspec.json.encode(receipt))
        point("staging.seal.receipt")
        sync_up(self.files, path, self.top)
        self._ours.add(receipt.name)

    def sealed(self, name: BatchName) -> Receipt | None:
        """The receipt of a batch, unless it was never sealed or something else wrote it."""
        try:
            body = self.files.read(self.directory(name) / _SEALED)
            return msgspec.json.decode(body, type=Receipt)
        except (FileNotFoundError, msgspec.MsgspecError):
            return None

    def remove(self, name: BatchName) -> None:
        """Remove a batch, and the directories above it that are empty then."""
        path = self.directory(name)
        # The receipt goes first: half removed is never again taken for sealed.
        self.files.unlink(path / _SEALED)
        remove_tree(self.files, path)
        while path != self.root:
            path = path.parent
            if not self.files.rmdir(path):
                break
        self._ours.discard(name)

    def verify(self, receipt: Receipt, file: StagedFile, path: Path | None = None) -> Path:
        """Where a committed batch's file lies, as it was sealed; otherwise ``NeedsAnswer`` (B5).

        ``path``: it has been moved there.
        """
        path = path or self.root / file.path
        size = self.files.size(path)
        if size is None:
            raise _lost(receipt, path, "is gone")
        if size != file.size:
            raise _lost(receipt, path, f"has {size} bytes in place of {file.size}")
        if receipt.name not in self._ours and self.files.checksum(path) != file.checksum:
            raise _lost(receipt, path, "does not have the checksum that it was sealed with")
        return path

    def list(self, catalog: str, pipeline: str) -> list[BatchName]:
        """Batches of this catalog and pipeline, in order of stream, epoch, seq."""
        base = self.root / encode_name(catalog) / encode_name(pipeline)
        found = []
        for encoded in self.files.listdir(base):
            stream = self._decode(base / encoded)
            if stream is None:
                continue
            owner = Owner(catalog, pipeline, stream)
            found += [
                BatchName(owner, int(epoch), int(seq))
                for epoch in self.files.listdir(base / encoded)
                if epoch.isdigit()
                for seq in self.files.listdir(base / encoded / epoch)
                if seq.isdigit()
            ]
        return sorted(found, key=lambda name: (name.owner.stream, name.epoch, name.seq))

    def _decode(self, path: Path) -> str | None:
        if not self.files.is_dir(path):
            return None
        if not _is_cut(path.name):
            return unquote(path.name) if path.name != "%" else ""
        if self.files.size(path / _NAME) is None:
            return None
        return self.files.read(path / _NAME).decode()


def flush_failed(path: Path, error: OSError) -> ConnectorError:
    """The words for a write or flush that failed while staging."""
    return ConnectorError(
        ErrorClass.TRANSIENT,
        f"{path} could not be written: {error.strerror or error}; the batch is given up and will "
        "be read again. Look at the disk: its space (df), its inodes (df -i), and its health in "
        "the kernel's log",
    )


def check_keys(key: Sequence[str], batch: RecordBatch, table: str) -> None:
    """A NULL in a key column is held (C5): no row could ever be found again by it."""
    for name in key:
        column = batch.column(name)
        if column.null_count:
            raise NeedsAnswer(
                HoldKind.NULL_KEY,
                f"{column.null_count} of {batch.num_rows} rows for table {table!r} have no value "
                f"in the key column {name!r}; fill them at the source, or choose another `key`",
                ("retry", "refresh"),
            )


def refuse_name(table: str, ours: Collection[str] = ()) -> None:
    """A table named as another one's rows set aside would be mixed up with them: held. So is one
    that has the name of a table of ``ours``."""
    if fold(table) in ours:
        raise NeedsAnswer(
            HoldKind.DESTINATION,
            f"table {table!r} is where markers are kept; give the stream another `table`",
            ("retry",),
        )
    if fold(table).endswith(REJECTED):
        raise NeedsAnswer(
            HoldKind.DESTINATION,
            f"table {table!r} is where rows of {table[: -len(REJECTED)]!r} that are set aside "
            "would go; give the stream another `table`",
            ("retry",),
        )


REJECTED_COLUMNS = (("place", pa.string()), ("reason", pa.string()), ("raw", pa.string()))
OWN_COLUMNS = (
    ("_run_id", pa.int64()),
    ("_batch_id", pa.int64()),
    ("_loaded_at", pa.timestamp("us", "UTC")),
)


def rejected_schema(rows: pa.Schema) -> pa.Schema:
    """Of ``<table>__rejected``: our three columns have the types they have in the table."""
    own = [
        (name, rows.field(name).type if name in rows.names else standard)
        for name, standard in OWN_COLUMNS
    ]
    return pa.schema([*REJECTED_COLUMNS, *own])


def rejected_batch(schema: pa.Schema, rows: Sequence[RejectedRow], name: BatchName) -> RecordBatch:
    """Rows set aside, stamped with the run, batch and time that brought them."""
    count = len(rows)
    own: list[Any] = [name.epoch, name.seq, time.time_ns() // 1_000]
    columns = [
        pa.array([row.place for row in rows], pa.string()),
        pa.array([row.reason for row in rows], pa.string()),
        pa.array([row.raw for row in rows], pa.string()),
        *(
            pa.repeat(pa.scalar(value, schema.field(column).type), count)
            for value, (column, _) in zip(own, OWN_COLUMNS, strict=True)
        ),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def receipt_of(
    connector: str,
    destination: str,
    request: StageRequest,
    files: tuple[StagedFile, ...],
    rejected: tuple[StagedFile, ...],
    cursor: Cursor | None,
) -> Receipt:
    """Of a batch whose files are all durable."""
    return Receipt(
        connector=connector,
        destination=destination,
        name=request.name,
        table=request.table,
        mode=request.mode,
        # Set where the last row of each key wins: also when a merged table is read all again.
        key=request.schema.key if request.settings.mode is Mode.MERGE else (),
        schema=request.schema,
        schema_version=request.schema_version,
        rows=sum(file.rows for file in files),
        bytes=sum(file.size for file in (*files, *rejected)),
        files=files,
        rejected=rejected,
        partition_by=request.settings.partition_by,
        cursor=cursor,
        after=request.after,
    )


def _lost(receipt: Receipt, path: Path, what: str) -> NeedsAnswer:
    name = receipt.name
    return NeedsAnswer(
        HoldKind.LOST_BATCH,
        f"batch {name.seq} of stream {name.owner.stream!r} (run {name.epoch}) is committed but not "
        f"published, and its file {path} {what}: restore it, or `refresh` the stream to read all "
        "again",
        ("refresh",),
    )


def refuse_empty_replace(request: StageRequest, rows: int, *, had_rows: bool) -> None:
    """A ``replace`` of a table that had rows by none is held unless it is meant (B7)."""
    if request.mode is Mode.REPLACE and not rows and had_rows and not request.may_empty:
        raise NeedsAnswer(
            HoldKind.EMPTY_REPLACE,
            f"the source has no rows now, and table {request.table!r} has some: replacing them "
            "by none is held; `allow_empty = true` on the stream lets it happen",
            ("retry", "refresh"),
        )

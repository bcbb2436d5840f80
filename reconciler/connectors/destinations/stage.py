"""One batch being staged as Parquet files: the same for every destination that keeps files."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol

import pyarrow as pa

from catalog.records import Cursor, ErrorClass
from reconciler.config.desired import Mode
from reconciler.connectors.destinations.files import disk_errors
from reconciler.connectors.destinations.partitions import Partitioning
from reconciler.connectors.destinations.rows import PartFiles, stored_schema
from reconciler.connectors.destinations.staging import (
    Staging,
    check_keys,
    flush_failed,
    receipt_of,
    refuse_empty_replace,
    rejected_batch,
    rejected_schema,
)
from reconciler.connectors.killpoints import point
from reconciler.connectors.ports import (
    ArrowSchema,
    ConnectorError,
    Marker,
    Receipt,
    RecordBatch,
    RejectedRow,
    StageRequest,
)


class _Home(Protocol):
    """The destination a batch is staged for."""

    connector: str

    @property
    def identity(self) -> str: ...


class FileStage:
    """A batch being staged; see ``Stage``. Nothing of it is seen by a reader."""

    def __init__(
        self,
        staging: Staging,
        request: StageRequest,
        home: _Home,
        partitioning: Partitioning | None,
        marker: Marker | None,
        *,
        plain_names: bool = False,
    ) -> None:
        """``plain_names``: columns are called c0, c1 … in the files, for a reader to whom other
        names could mean something.
        """
        self._staging = staging
        self._request = request
        self._home = home
        self._partitioning = partitioning
        self._had_rows = marker is not None and marker.has_rows
        _refuse_intervals(request)
        directory = staging.open(request.name)
        self._plain_names = plain_names
        self._rows = self._part_files(directory, stored_schema(request.arrow))
        self._rejected_schema = rejected_schema(request.arrow)
        self._rejected: PartFiles | None = None
        self._over = False

    def _part_files(self, directory: Path, schema: ArrowSchema) -> PartFiles:
        files, root = self._staging.files, self._staging.root
        return PartFiles(files, root, directory, schema, plain_names=self._plain_names)

    @property
    def bytes(self) -> int:
        """Bytes staged so far, as they lie on disk, and rows that wait in memory."""
        return self._rows.bytes + (self._rejected.bytes if self._rejected else 0)

    def write(self, batch: RecordBatch) -> None:
        """Add rows. Raises ``NeedsAnswer`` (``NULL_KEY``), ``ConnectorError``."""
        if batch.num_rows == 0:
            return
        check_keys(self._request.schema.key, batch, self._request.table)
        if self._partitioning is None:
            self._rows.write(batch)
            return
        for folder, rows in self._partitioning.split(batch):
            self._rows.write(rows, folder)

    def reject(self, rows: Sequence[RejectedRow]) -> None:
        if not rows:
            return
        if self._rejected is None:
            directory = self._staging.directory(self._request.name) / "rejected"
            with disk_errors():
                self._staging.files.mkdir(directory)
            self._rejected = self._part_files(directory, self._rejected_schema)
        self._rejected.write(rejected_batch(self._rejected_schema, rows, self._request.name))

    def seal(self, cursor: Cursor | None) -> Receipt:
        """(B8) Close, fsync every file, then every directory up to the destination's own."""
        request = self._request
        if request.mode is Mode.REPLACE and self._rows.empty:
            self._rows.write(pa.RecordBatch.from_pylist([], request.arrow))
        files = self._rows.finish()
        point("staging.seal.files")
        rejected = self._rejected.finish() if self._rejected else ()
        home = self._home
        receipt = receipt_of(home.connector, home.identity, request, files, rejected, cursor)
        refuse_empty_replace(request, receipt.rows, had_rows=self._had_rows)
        try:
            for folder in (*self._rows.folders(), *(["rejected"] if rejected else [])):
                self._sync_folder(folder)
            self._staging.seal(receipt)
        except OSError as error:
            raise flush_failed(self._staging.directory(request.name), error) from error
        self._over = True
        point("staging.seal.done")
        return receipt

    def _sync_folder(self, folder: str) -> None:
        base = self._staging.directory(self._request.name)
        path = base / folder
        while path != base:
            self._staging.files.sync_dir(path)
            path = path.parent

    def abort(self) -> None:
        """Remove a batch that was never sealed. A sealed one stays: it may be committed (B2).

        What a bad disk keeps of it is discarded by a later run; why it is given up is not this.
        """
        if self._over:
            return
        self._over = True
        self._rows.drop()
        if self._rejected:
            self._rejected.drop()
        with suppress(OSError):
            self._staging.remove(self._request.name)


def _refuse_intervals(request: StageRequest) -> None:
    for field in request.arrow:
        if pa.types.is_interval(field.type):
            raise ConnectorError(
                ErrorClass.PERMANENT,
                f"column {field.name!r} of table {request.table!r} is an interval, which Parquet "
                "files cannot hold; read it as text",
            )

"""The DuckDB destination: append, merge by key, or replace, in one file (E2).

Promises: a batch is staged and sealed beside the database, which is not opened for that; a publish
is one transaction that moves the marker with the rows, in order, once; it is durable when
``publish`` returns. A run that brings nothing does not open the database at all, unless somebody
changed it meanwhile. No PRIMARY KEY is made: it would halve the speed, and merging keeps keys
unique without.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from catalog.records import Cursor, ErrorClass, HoldKind
from reconciler.config.desired import Mode, fold
from reconciler.connectors.destinations.checks import check_folder
from reconciler.connectors.destinations.duckdb_file import (
    MEMORY_LIMITS,
    DuckdbFile,
    Look,
    OutOfMemory,
)
from reconciler.connectors.destinations.duckdb_table import MARKERS, MarkerRow, OpenSchema
from reconciler.connectors.destinations.duckdb_types import refuse_equal_names
from reconciler.connectors.destinations.files import DISK, Files, disk_errors
from reconciler.connectors.destinations.order import elsewhere, follows
from reconciler.connectors.destinations.stage import FileStage
from reconciler.connectors.destinations.staging import Staging, refuse_name
from reconciler.connectors.killpoints import point
from reconciler.connectors.ports import (
    BatchName,
    ConnectorError,
    Finding,
    Marker,
    NeedsAnswer,
    Owner,
    Receipt,
    Stage,
    StagedFile,
    StageRequest,
)

WAIT = 10.0
"""Seconds to wait for another process that has the database open."""


def open_duckdb(options: Mapping[str, object]) -> DuckdbDestination:
    """``options``: ``path``, the absolute path of the file, made with the first batch; and
    ``schema`` (``main``).
    """
    return DuckdbDestination(Path(str(options["path"])), str(options.get("schema") or "main"))


class DuckdbDestination:
    """See the module. One object serves one thread; several may serve the same file."""

    connector = "duckdb"
    modes = frozenset(Mode)

    def __init__(
        self, path: Path, schema: str = "main", files: Files = DISK, wait: float = WAIT
    ) -> None:
        self.path = path.resolve()
        self.schema = schema
        self._files = files
        self._file = DuckdbFile(files, self.path, wait)
        beside = self._file.beside
        self._staging = Staging(files, beside / "staged", beside)

    @property
    def identity(self) -> str:
        """Names this destination in receipts."""
        return f"duckdb:{self.path}#{fold(self.schema)}"

    def close(self) -> None:
        """Nothing is kept open: an open database keeps everybody else out."""

    # -- looking -----------------------------------------------------------------------------

    def check(self) -> list[Finding]:
        """The folder can be written and has room, and the file opens for writing now."""
        findings = check_folder(self.path.parent)
        try:
            with disk_errors():
                if not self._file.exists:
                    made = f"{self.path} will be made with the first batch"
                    return [*findings, Finding("ok", made)]
                with self._file.locked(), self._file.open():
                    findings.append(Finding("ok", f"{self.path} opens for writing"))
        except ConnectorError as error:
            level = "warning" if error.busy else "problem"
            hint = "close it there; until then batches wait" if error.busy else ""
            findings.append(Finding(level, str(error), hint))
        return findings

    def marker(self, table: str) -> Marker | None:
        """(B4) The marker of the table, whoever owns it. Opens the database only if it changed."""
        return self._look().markers.get(fold(table))

    def refuse_unmarked(self, table: str) -> None:
        self._refuse_unmarked(self._look(), table)

    def _refuse_unmarked(self, look: Look, table: str) -> None:
        if fold(table) in look.tables and fold(table) not in look.markers:
            raise self._foreign(table)

    def _look(self) -> Look:
        key = fold(self.schema)
        with disk_errors():
            if not self._file.exists:
                return Look()
            known = self._file.known().get(key)
            if known is not None:
                return known
            with self._file.locked():
                kept = dict(self._file.known())
                with self._file.open(read_only=True) as connection:
                    look = OpenSchema(connection, self.schema).look()
                self._file.remember({**kept, key: look})
            return look

    # -- staging -----------------------------------------------------------------------------

    def stage(self, request: StageRequest) -> Stage:
        """Begin a batch. Raises ``NeedsAnswer`` where the table is somebody else's."""
        refuse_name(request.table, (MARKERS,))
        refuse_equal_names(request.arrow, request.table)
        if request.mode is Mode.MERGE and not request.schema.key:
            raise ConnectorError(
                ErrorClass.PERMANENT,
                f"table {request.table!r} has no key to merge on; set `key`, or another `mode`",
            )
        look = self._look_if_free()
        if look:
            self._refuse_unmarked(look, request.table)
        marker = look.markers.get(fold(request.table)) if look else None
        with disk_errors():
            return FileStage(self._staging, request, self, None, marker, plain_names=True)

    def _look_if_free(self) -> Look | None:
        """A batch can be staged while another has the database; publish looks again."""
        try:
            return self._look()
        except ConnectorError as error:
            if error.busy:
                return None
            raise

    def _foreign(self, table: str) -> NeedsAnswer:
        return NeedsAnswer(
            HoldKind.DESTINATION,
            f"{self.path} has a table {table!r} in schema {self.schema!r} and no marker for it: "
            "somebody else made it, or gave it this name. 'cursor adopt' goes on with it as it is; "
            "or drop it, or give the stream another `table`, and then 'retry'",
            ("retry", "cursor adopt"),
        )

    def staged(self, catalog: str, pipeline: str) -> list[BatchName]:
        with disk_errors():
            return self._staging.list(catalog, pipeline)

    def discard(self, name: BatchName) -> None:
        with disk_errors():
            self._staging.remove(name)

    # -- publishing --------------------------------------------------------------------------

    def publish(self, receipts: Sequence[Receipt]) -> None:
        """(B5, B8, E2) One opening for all, a transaction for each."""
        for receipt in receipts:
            if receipt.destination != self.identity:
                raise elsewhere(receipt, self.identity)
        for memory in MEMORY_LIMITS:
            try:
                self._publish_all(receipts, memory)
            except OutOfMemory:
                if memory == MEMORY_LIMITS[-1]:
                    raise
            else:
                return

    def _publish_all(self, receipts: Sequence[Receipt], memory: str) -> None:
        with disk_errors(), self._file.locked():
            with self._file.open(memory=memory) as connection:
                kept = dict(self._file.known())  # now that nobody else can change it
                look = kept.get(fold(self.schema))
                schema = OpenSchema(connection, self.schema)
                for receipt in receipts:
                    self._file.begin(connection)
                    self._publish(schema, receipt)
                    point("duckdb.publish.before_commit")
                    connection.commit()
                    point("duckdb.publish.committed")
                self._file.checkpoint(connection)
                point("duckdb.publish.checkpointed")
                look = _look_again(schema, look, receipts)
            self._file.sync()
            point("duckdb.publish.synced")
            self._file.remember({**kept, fold(self.schema): look})
            for receipt in receipts:
                self._staging.remove(receipt.name)
                point("duckdb.publish.removed")

    def _publish(self, schema: OpenSchema, receipt: Receipt) -> None:
        schema.make()
        tables, old = schema.tables(), schema.markers().get(fold(receipt.table))
        seen = schema.seen(fold(receipt.table), old, tables) if old else None
        if not follows(receipt, (seen.owner, seen.seq, seen.epoch) if seen else None):
            return
        if old is None and fold(receipt.table) in tables:
            raise self._foreign(receipt.table)
        schema.load(receipt, self._paths(receipt, receipt.files))
        point("duckdb.publish.loaded")
        if receipt.rejected:
            schema.set_aside(receipt, self._paths(receipt, receipt.rejected))
        row = MarkerRow(
            owner=receipt.name.owner,
            seq=receipt.name.seq,
            epoch=receipt.name.epoch,
            cursor=receipt.cursor or (old.cursor if old else None),
            schema_version=receipt.schema_version,
            has_rows=schema.has_rows(receipt.table),
        )
        schema.set_marker(receipt.table, row)

    def _paths(self, receipt: Receipt, files: Sequence[StagedFile]) -> list[Path]:
        return [self._staging.verify(receipt, file) for file in files]

    # -- the marker by a person's word -----------------------------------------------------------

    def adopt(self, owner: Owner, table: str, seq: int, epoch: int, cursor: Cursor | None) -> None:
        """Set the marker. The table's rows are then those that are there now."""
        with disk_errors(), self._file.locked():
            with self._file.open() as connection:
                schema = OpenSchema(connection, self.schema)
                self._file.begin(connection)
                schema.make()
                old = schema.markers().get(fold(table))
                there = fold(table) in schema.tables() and schema.has_rows(table)
                version = old.schema_version if old else 0
                schema.set_marker(table, MarkerRow(owner, seq, epoch, cursor, version, there))
                connection.commit()
                self._file.checkpoint(connection)
                look = schema.look()
            self._file.sync()
            self._file.remember({fold(self.schema): look})


def _look_again(schema: OpenSchema, look: Look | None, receipts: Sequence[Receipt]) -> Look:
    """The look after a publish; only the tables that it touched are looked at anew."""
    if look is None:
        return schema.look()
    tables, rows = schema.tables(), schema.markers()
    touched = {fold(receipt.table) for receipt in receipts}
    fresh = {table: schema.seen(table, rows[table], tables) for table in touched}
    return Look({**look.markers, **fresh}, tables)

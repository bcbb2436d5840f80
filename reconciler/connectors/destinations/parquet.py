"""The Parquet destination: a folder per table, appended to or replaced as a whole (E1).

Promises: a sealed batch survives a loss of power; nothing unpublished ends in ``.parquet``; each
file appears at once, and a batch as a whole appears at once through ``_view.sql``; a publish that
was cut off anywhere is finished by publishing again. It does not merge: rows with a key are
appended, and the view shows the latest of each.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath

from catalog.records import Cursor, ErrorClass
from reconciler.config.desired import Mode
from reconciler.connectors.destinations.checks import check_folder
from reconciler.connectors.destinations.files import (
    DISK,
    Files,
    disk_errors,
    make_dirs,
    remove_tree,
    sync_holder,
    sync_up,
)
from reconciler.connectors.destinations.names import encode_name
from reconciler.connectors.destinations.order import elsewhere, follows
from reconciler.connectors.destinations.parquet_table import (
    TableFolder,
    TableState,
    manifest_name,
    next_state,
    publish_of,
    refuse_foreign,
    target_name,
)
from reconciler.connectors.destinations.partitions import Partitioning
from reconciler.connectors.destinations.stage import FileStage
from reconciler.connectors.destinations.staging import REJECTED, Staging, refuse_name
from reconciler.connectors.killpoints import point
from reconciler.connectors.ports import (
    BatchName,
    ConnectorError,
    Finding,
    Marker,
    Owner,
    Receipt,
    Stage,
    StagedFile,
    StageRequest,
)
from reconciler.schema.model import Schema

_OWN = ".reconciler"
LOCK_WAIT = 30.0
"""Seconds to wait for another publish into the same table."""


def open_parquet(options: Mapping[str, object]) -> ParquetDestination:
    """``options``: ``path``, the absolute folder of all tables; made with the first batch."""
    return ParquetDestination(Path(str(options["path"])))


class ParquetDestination:
    """See the module. One object serves one thread; several may serve the same folder."""

    connector = "parquet"
    modes = frozenset({Mode.APPEND, Mode.REPLACE})

    def __init__(self, path: Path, files: Files = DISK, lock_wait: float = LOCK_WAIT) -> None:
        self.path = path.resolve()
        self._files = files
        self._lock_wait = lock_wait
        self._staging = Staging(files, self.path / _OWN / "staged", self.path)

    @property
    def identity(self) -> str:
        """Names this destination in receipts."""
        return f"parquet:{self.path}"

    def close(self) -> None:
        """Nothing is kept open."""

    # -- looking -----------------------------------------------------------------------------

    def check(self) -> list[Finding]:
        """The folder can be written, has room, and holds no data files that no batch brought."""
        findings = check_folder(self.path)
        if any(finding.level == "problem" for finding in findings):
            return findings
        with disk_errors():
            for name in filter(self._is_table, self._files.listdir(self.path)):
                findings += _differences(TableFolder(self._files, self.path / name, name))
        return findings

    def _is_table(self, name: str) -> bool:
        return self._files.is_dir(self.path / name)

    def marker(self, table: str) -> Marker | None:
        """(B4) The marker of the table, whoever owns it."""
        with disk_errors():
            return self._folder(table).marker()

    def refuse_unmarked(self, table: str) -> None:
        with disk_errors():
            folder = self._folder(table)
            if folder.marker() is None:
                refuse_foreign(folder, _cut_off(folder))

    def _folder(self, table: str) -> TableFolder:
        return TableFolder(self._files, self.path / encode_name(table), table)

    # -- staging -----------------------------------------------------------------------------

    def stage(self, request: StageRequest) -> Stage:
        """Begin a batch. Raises ``NeedsAnswer`` where the folder is somebody else's."""
        if request.mode not in self.modes:
            raise ConnectorError(
                ErrorClass.PERMANENT,
                f"a parquet destination cannot {request.mode.value} (table {request.table!r}): "
                'set mode = "append" (the view shows the latest row per key) or "replace"',
            )
        refuse_name(request.table)
        folder = self._folder(request.table)
        partitioning = None
        if request.settings.partition_by:
            partitioning = Partitioning(request.settings.partition_by, request.arrow)
        with disk_errors():
            marker = folder.marker()
            if request.mode is Mode.REPLACE and self._files.is_link(folder.path):
                raise ConnectorError(
                    ErrorClass.PERMANENT,
                    f"{folder.path} is a link, whose place a replacement would take: move the "
                    "table's folder there, or make `path` lead to where it is",
                )
            if marker is None:
                refuse_foreign(folder, _cut_off(folder))
            elif request.mode is Mode.APPEND:
                folder.refuse_rounding(request.schema)
            return FileStage(self._staging, request, self, partitioning, marker)

    def staged(self, catalog: str, pipeline: str) -> list[BatchName]:
        with disk_errors():
            return self._staging.list(catalog, pipeline)

    def discard(self, name: BatchName) -> None:
        """Also what an append that was cut off has moved into the table already: a catalog that was
        restored knows nothing of it, and reads its rows again."""
        with disk_errors():
            receipt = self._staging.sealed(name)
            if receipt is not None and receipt.mode is Mode.APPEND:
                self._take_back(receipt)
            self._staging.remove(name)

    def _take_back(self, receipt: Receipt) -> None:
        table = receipt.table
        with self._locked(table):
            state = self._folder(table).state()
            moved = (
                (table, self._targets(receipt, state)),
                (f"{table}{REJECTED}", self._targets(receipt, state, rejected=True)),
            )
            for name, targets in moved:
                for target in targets:  # named for the next publish, so none of an earlier one
                    path = self.path / encode_name(name) / target
                    if self._files.size(path) is not None:
                        self._files.unlink(path)
                        self._files.sync_dir(path.parent)

    # -- publishing --------------------------------------------------------------------------

    def publish(self, receipts: Sequence[Receipt]) -> None:
        """(B5, E1) See ``Destination.publish``."""
        for receipt in receipts:
            if receipt.destination != self.identity:
                raise elsewhere(receipt, self.identity)
            with disk_errors(), self._locked(receipt.table):
                self._publish(receipt)

    @contextmanager
    def _locked(self, table: str) -> Iterator[None]:
        locks = self.path / _OWN / "locks"
        make_dirs(self._files, locks)
        with self._files.lock(locks / encode_name(table), self._lock_wait):
            yield

    def _publish(self, receipt: Receipt) -> None:
        folder = self._folder(receipt.table)
        state, marker = folder.state(), folder.marker()
        if follows(receipt, (marker.owner, marker.seq, marker.epoch) if marker else None):
            targets = self._targets(receipt, state)
            if receipt.mode is Mode.REPLACE:
                self._replace(receipt, folder, state, targets)
            else:
                self._append(receipt, folder, state, targets)
        else:
            # Another process may have been killed between its last rename and its last flush.
            sync_up(self._files, folder.path, self.path)
        folder.write_view()
        point("parquet.publish.view")
        self._remove_replaced(receipt, folder)
        self._staging.remove(receipt.name)
        point("parquet.publish.removed")

    def _targets(
        self, receipt: Receipt, state: TableState | None, *, rejected: bool = False
    ) -> dict[str, StagedFile]:
        """The batch's files, or those of its rows set aside, by their names in the table's folder
        once it is the next publish."""
        publish = (state.publishes if state else 0) + 1
        directory = self._staging.directory(receipt.name) / ("rejected" if rejected else "")
        batch = PurePosixPath(directory.relative_to(self._staging.root))
        files = receipt.rejected if rejected else receipt.files
        return {target_name(receipt, file, batch, publish): file for file in files}

    def _append(
        self,
        receipt: Receipt,
        folder: TableFolder,
        state: TableState | None,
        targets: Mapping[str, StagedFile],
    ) -> None:
        if state is None:
            refuse_foreign(folder, list(targets))
        make_dirs(self._files, folder.path)
        self._move(receipt, targets, folder.path)
        self._reject(receipt, state)
        self._sync_targets(targets, folder.path)
        sync_up(self._files, folder.path, self.path)
        point("parquet.publish.moved")
        known = folder.manifest(state) if state else []
        has_rows = receipt.rows > 0 or (state is not None and state.has_rows)
        after = next_state(state, receipt, list(targets), has_rows=has_rows)
        folder.write(after, [*known, *targets])
        point("parquet.publish.marked")

    def _replace(
        self,
        receipt: Receipt,
        folder: TableFolder,
        state: TableState | None,
        targets: Mapping[str, StagedFile],
    ) -> None:
        if state is None:
            refuse_foreign(folder, _cut_off(folder))
        fresh = TableFolder(self._files, self._swap_folder(receipt), receipt.table)
        self._move(receipt, targets, fresh.path)
        self._reject(receipt, state)
        after = next_state(state, receipt, list(targets), has_rows=receipt.rows > 0)
        fresh.write(after, list(targets))
        fresh.write_view(folder.path)
        self._sync_targets(targets, fresh.path)
        sync_up(self._files, fresh.path, fresh.path.parent)
        point("parquet.replace.built")
        if self._files.is_dir(folder.path):
            self._files.exchange(fresh.path, folder.path)
        else:
            self._files.rename(fresh.path, folder.path)
        point("parquet.replace.exchanged")
        self._files.sync_dir(self.path)
        with suppress(FileNotFoundError):  # another table's publish found it empty, and removed it
            self._files.sync_dir(fresh.path.parent)

    def _move(self, receipt: Receipt, targets: Mapping[str, StagedFile], base: Path) -> None:
        """Rename each staged file to where it belongs; those that an earlier try moved stay."""
        self._make_ready({(base / target).parent for target in targets})
        for target, file in targets.items():
            source, path = self._staging.root / file.path, base / target
            staged = self._files.size(source) is not None
            self._staging.verify(receipt, file, source if staged else path)
            if staged:
                self._files.rename(source, path)
                point("parquet.publish.renamed")

    def _make_ready(self, folders: set[Path]) -> None:
        """Make the folders and the way to them durable, before anything is moved into them: a
        rename must never survive into a folder that does not.
        """
        above: set[Path] = set()
        for path in folders:
            make_dirs(self._files, path)
            above.update(p for p in path.parents if self.path.parent in p.parents)
        for path in sorted(above):
            self._files.sync_dir(path)
        sync_holder(self._files, self.path)

    def _sync_targets(self, targets: Mapping[str, StagedFile], base: Path) -> None:
        folders = {base / parent for target in targets for parent in PurePosixPath(target).parents}
        for path in sorted(folders, reverse=True):
            self._files.sync_dir(path)
        # Only now those that the files left: never is a file gone here and not yet there.
        sources = {(self._staging.root / file.path).parent for file in targets.values()}
        for path in sorted(sources):
            if self._files.is_dir(path):
                self._files.sync_dir(path)

    def _reject(self, receipt: Receipt, state: TableState | None) -> None:
        """Move the rows set aside into ``<table>__rejected`` (C6)."""
        if not receipt.rejected:
            return
        base = self.path / encode_name(f"{receipt.table}{REJECTED}")
        targets = self._targets(receipt, state, rejected=True)
        self._move(receipt, targets, base)
        self._sync_targets(targets, base)

    # -- the place where a replacement is built and what it replaced is removed ------------------

    def _swap_places(self) -> tuple[Path, Path]:
        """Best first: beside the folder, where no glob under it looks; or inside it."""
        beside = self.path.with_name(f".{self.path.name}.reconciler-swap")
        return beside, self.path / _OWN / "swap"

    def _swap_folder(self, receipt: Receipt) -> Path:
        """The folder where this batch is built; made if no earlier try did."""
        name = _swap_name(receipt)
        beside, inside = self._swap_places()
        for place in (beside, inside):
            if self._files.is_dir(place / name):
                return place / name
        make_dirs(self._files, inside / name)
        try:
            make_dirs(self._files, beside)
            self._files.rename(inside / name, beside / name)
        except OSError:  # no right there, or another filesystem
            return inside / name
        return beside / name

    def _remove_replaced(self, receipt: Receipt, folder: TableFolder) -> None:
        """Remove what the batch replaced, and what of that of earlier ones a loss of power brought
        back. Files that no batch brought go back into the table."""
        for place in self._swap_places():
            if not self._files.is_dir(place):
                continue
            for name in self._files.listdir(place):
                if not _is_replaced(name, receipt):
                    continue
                old = TableFolder(self._files, place / name, receipt.table)
                if name != _swap_name(receipt):
                    for file in filter(publish_of, old.data_files()):
                        self._files.unlink(old.path / file)
                self._empty(old, folder)
                point("parquet.replace.emptied")
                remove_tree(self._files, old.path)
            self._files.rmdir(place)

    def _empty(self, old: TableFolder, folder: TableFolder) -> None:
        state = old.state()
        if state is not None:
            there = self._files.size(old.path / state.manifest) is not None
            known = old.manifest(state) if there else [*filter(publish_of, old.data_files())]
            for name in known:
                self._files.unlink(old.path / name)
            # Gone for good before the manifest goes: what is left after that is not ours.
            for parent in sorted({(old.path / name).parent for name in known}):
                if self._files.is_dir(parent):
                    self._files.sync_dir(parent)
        for name in _cut_off(old, state.publishes if state else 0):
            self._files.unlink(old.path / name)
        for name in old.data_files():
            make_dirs(self._files, (folder.path / name).parent)
            self._files.rename(old.path / name, folder.path / name)

    # -- the marker by a person's word -----------------------------------------------------------

    def adopt(self, owner: Owner, table: str, seq: int, epoch: int, cursor: Cursor | None) -> None:
        """Set the marker. The table's files are then those that are there now."""
        folder = self._folder(table)
        with disk_errors(), self._locked(table):
            old = folder.state()
            make_dirs(self._files, folder.path)
            there = [name for name in folder.data_files() if name.endswith(".parquet")]
            publishes = (old.publishes if old else 0) + 1
            state = TableState(
                owner=owner,
                seq=seq,
                epoch=epoch,
                cursor=cursor,
                schema_version=old.schema_version if old else 0,
                publishes=publishes,
                manifest=manifest_name(publishes),
                schema=old.schema if old else Schema(()),
                has_rows=bool(there) and (old is None or old.has_rows),
                eras=old.eras if old else (),
            )
            folder.write(state, there)
            folder.write_view()
            for each in sorted({(folder.path / name).parent for name in there} | {folder.path}):
                sync_up(self._files, each, self.path)


def _swap_name(receipt: Receipt) -> str:
    name = receipt.name
    return f"{encode_name(receipt.table)}.{name.epoch}.{name.seq}"


def _is_replaced(swap: str, receipt: Receipt) -> bool:
    """A folder of ``_swap_name`` holds what this batch, or one before it, replaced in its table."""
    table, *number = swap.rsplit(".", 2)
    if table != encode_name(receipt.table) or len(number) < 2 or not "".join(number).isdigit():
        return False
    epoch, seq = map(int, number)
    return (epoch, seq) <= (receipt.name.epoch, receipt.name.seq)


def _cut_off(folder: TableFolder, publishes: int = 0) -> list[str]:
    """Files of an append that came after so many publishes: it is under way, or was cut off."""
    after = publishes + 1
    return [name for name in folder.data_files() if publish_of(name, after) == after]


def _differences(folder: TableFolder) -> Iterator[Finding]:
    """Between what the manifest says and what lies in the folder."""
    state = folder.state()
    if state is None:
        return
    known, there = set(folder.manifest(state)), set(folder.data_files())
    if strange := sorted(there - known):
        yield _strangers(folder, strange)
    if gone := sorted(known - there):
        yield _gone(folder, gone)


def _strangers(folder: TableFolder, names: Sequence[str]) -> Finding:
    return Finding(
        "warning",
        f"{folder.path} holds {len(names)} files that no batch brought, such as {names[0]}: the "
        "view leaves them out, a glob does not",
        "move them away",
    )


def _gone(folder: TableFolder, names: Sequence[str]) -> Finding:
    return Finding(
        "problem",
        f"{folder.path} lacks {len(names)} published files, such as {names[0]}",
        "restore them, or `cursor adopt` to go on without, or `refresh` to read all again",
    )

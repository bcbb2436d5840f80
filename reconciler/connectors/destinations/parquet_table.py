"""One table of a Parquet destination: its folder, marker, manifest and view (E1).

The folder holds the data files, and beside them ``_reconciler.json`` (the marker, with the name of
the manifest), ``_files-<n>.json`` (the manifest: the files of published batches) and
``_view.sql``. A data file is named ``<n>-<epoch>-<seq>-<part>.parquet``, where ``n`` counts the
publishes of the table: names in order are batches in order of arrival, and within a batch rows are
in the order of ``_loaded_at``, then of names.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from catalog.records import Cursor, ErrorClass, HoldKind
from reconciler.config.desired import Mode, fold
from reconciler.connectors.arrow import arrow_type, to_arrow
from reconciler.connectors.destinations.duckdb_types import (
    as_text,
    quote_name,
    quote_text,
    sql_type,
)
from reconciler.connectors.destinations.files import Files, write_atomic
from reconciler.connectors.destinations.rows import stored_schema
from reconciler.connectors.destinations.staging import ENDING
from reconciler.connectors.ports import (
    ConnectorError,
    Marker,
    NeedsAnswer,
    Owner,
    Receipt,
    StagedFile,
)
from reconciler.schema.model import Field, Schema
from reconciler.schema.types import is_integer, parse

STATE = "_reconciler.json"
VIEW = "_view.sql"
_MANIFEST = re.compile(r"_files-\d+\.json(\.new)?")
_OURS = re.compile(r"(\d{8,})-\d+-\d+-\d{5,}\.parquet")


@dataclass(frozen=True, slots=True)
class Era:
    """Files in which a column that is text now has a type that DuckDB would not show as text."""

    publishes: int
    """They are of publishes up to this one, and after that of the era before."""
    schema: Schema


@dataclass(frozen=True, slots=True)
class TableState:
    """What ``_reconciler.json`` holds: the marker, and what the next publish goes on from."""

    owner: Owner
    seq: int
    epoch: int
    """The run whose batch was published last, or that adopted the table after it."""
    cursor: Cursor | None
    schema_version: int
    publishes: int
    """How many batches were published into this table; the ``n`` of its newest files."""
    manifest: str
    schema: Schema
    has_rows: bool = False
    newest: str = ""
    """One file that is there if any is: spares a look into the manifest."""
    eras: tuple[Era, ...] = ()
    """Oldest first; the present one is not among them."""


class TableFolder:
    """The folder of one table. Reads are cheap; writes want the table's lock held."""

    def __init__(self, files: Files, path: Path, table: str) -> None:
        self.files = files
        self.path = path
        self.table = table

    def state(self) -> TableState | None:
        """What the folder says of itself; None: it has no marker, or is not there."""
        try:
            return msgspec.json.decode(self.files.read(self.path / STATE), type=TableState)
        except FileNotFoundError:
            return None
        except msgspec.MsgspecError as error:
            raise self._damaged(STATE, f"is damaged ({error}): restore it; or remove it") from error

    def manifest(self, state: TableState) -> list[str]:
        """The published files, relative, in order of arrival."""
        if not state.manifest:
            return []
        try:
            return msgspec.json.decode(self.files.read(self.path / state.manifest), type=list[str])
        except (FileNotFoundError, msgspec.MsgspecError) as error:
            what = "is gone" if isinstance(error, FileNotFoundError) else f"is damaged ({error})"
            what += f", and with it which files are the table's: restore it; or remove {STATE}"
            raise self._damaged(state.manifest, what) from error

    def _damaged(self, name: str, what: str) -> ConnectorError:
        then = "and 'cursor adopt' takes the files in the folder as the table's rows"
        return ConnectorError(ErrorClass.PERMANENT, f"{self.path / name} {what}, {then}")

    def marker(self) -> Marker | None:
        """The marker. Its seq is 0 where every file that it speaks of is gone: an emptied table is
        to be noticed, not carried on (B4).
        """
        state = self.state()
        if state is None:
            return None
        if self.files.size(self.path / state.manifest) is None:
            self.manifest(state)  # says so, before anything is committed that needs it
        emptied = state.has_rows and not self._any_file(state)
        return Marker(
            owner=state.owner,
            seq=0 if emptied else state.seq,
            cursor=None if emptied else state.cursor,
            schema_version=state.schema_version,
            has_rows=state.has_rows and not emptied,
            epoch=0 if emptied else state.epoch,
        )

    def _any_file(self, state: TableState) -> bool:
        if state.newest and self.files.size(self.path / state.newest) is not None:
            return True
        return any(self.files.size(self.path / name) is not None for name in self.manifest(state))

    def data_files(self, folder: str = "") -> list[str]:
        """Everything in the folder that is not bookkeeping of ours, relative, sorted."""
        found = []
        for name in self.files.listdir(self.path / folder):
            relative = f"{folder}/{name}" if folder else name
            if self.files.is_dir(self.path / relative):
                found += self.data_files(relative)
            elif folder or not is_bookkeeping(name):
                found.append(relative)
        return sorted(found)

    def refuse_rounding(self, new: Schema) -> None:
        """Raises ``ConnectorError`` where the view would round whole numbers that are there, since
        their column is one of floats now."""
        state = self.state()
        assert state is not None
        for field in new.fields:
            old = state.schema.field(field.name)
            if old and is_integer(parse(old.type)) and field.type.startswith("float"):
                paths = [self.path / name for name in self.manifest(state)]
                if any(_rounds(path, field) for path in paths if self.files.size(path)):
                    raise ConnectorError(
                        ErrorClass.SCHEMA_INCOMPATIBLE,
                        f"column {field.name!r} of table {self.table!r} is {old.type} and holds "
                        f"numbers with more digits than {field.type}, which the source has now, "
                        "keeps. `refresh` the stream to set such rows aside, if need be after "
                        'naming another type in `columns`, such as "text"',
                    )

    def write(self, state: TableState, files: Sequence[str]) -> None:
        """Move the marker, durably."""
        write_atomic(self.files, self.path / state.manifest, msgspec.json.encode(files))
        write_atomic(self.files, self.path / STATE, msgspec.json.encode(state))

    def write_view(self, path: Path | None = None) -> None:
        """Bring ``_view.sql`` up to the marker, if it is not, and drop the manifest before it.

        ``path``: where the folder will be once it is in its place.
        """
        state = self.state()
        assert state is not None
        self.files.unlink(self.path / manifest_name(state.publishes - 1))
        head = f"-- batch {state.seq}, publish {state.publishes}\n"
        view = self.path / VIEW
        if self.files.size(view) is not None and self.files.read(view).startswith(head.encode()):
            return
        sql = view_sql(path or self.path, self.table, self.manifest(state), state)
        write_atomic(self.files, view, (head + sql).encode())


def _rounds(path: Path, field: Field) -> bool:
    """Whether a file has whole numbers in this column that a float does not keep."""
    with pq.ParquetFile(path) as file:
        if field.name not in file.schema_arrow.names:
            return False
        column = file.read([field.name]).column(0)
    if not pa.types.is_integer(column.type):
        return False
    floats = column.cast(arrow_type(field.type), safe=False)
    try:
        return not floats.cast(column.type).equals(column)
    except pa.ArrowInvalid:  # 2**64, of the largest one
        return True


def manifest_name(publishes: int) -> str:
    return f"_files-{publishes}.json"


def is_bookkeeping(name: str) -> bool:
    """A file of ours in a table's folder that holds no rows."""
    plain = name.removesuffix(".new")
    return plain in (STATE, VIEW) or _MANIFEST.fullmatch(name) is not None


def next_state(
    state: TableState | None, receipt: Receipt, files: Sequence[str], *, has_rows: bool
) -> TableState:
    """The state after ``receipt`` is published as ``files``."""
    publishes = (state.publishes if state else 0) + 1
    newest = files[-1] if files else (state.newest if state else "")
    eras: tuple[Era, ...] = ()
    if state and receipt.mode is not Mode.REPLACE:
        ends = _in_words(state.schema, receipt.schema)
        eras = (*state.eras, Era(state.publishes, state.schema)) if ends else state.eras
    return TableState(
        owner=receipt.name.owner,
        seq=receipt.name.seq,
        epoch=receipt.name.epoch,
        cursor=receipt.cursor or (state.cursor if state else None),
        schema_version=receipt.schema_version,
        publishes=publishes,
        manifest=manifest_name(publishes),
        schema=receipt.schema,
        has_rows=has_rows,
        newest=newest,
        eras=eras,
    )


def target_name(receipt: Receipt, file: StagedFile, batch: PurePosixPath, publish: int) -> str:
    """Where a staged file goes, relative to the table's folder. ``batch``: its staging folder."""
    inside = PurePosixPath(file.path).relative_to(batch)
    name = receipt.name
    number = inside.name.removesuffix(ENDING)
    return str(inside.parent / f"{publish:08d}-{name.epoch}-{name.seq}-{number}.parquet")


def refuse_foreign(folder: TableFolder, ours: Sequence[str]) -> None:
    """Files in a folder without a marker belong to somebody else, but for ``ours`` (rule 5)."""
    foreign = [name for name in folder.data_files() if name not in set(ours)]
    if foreign:
        shown = ", ".join(foreign[:3]) + (", …" if len(foreign) > 3 else "")
        raise NeedsAnswer(
            HoldKind.DESTINATION,
            f"{folder.path} holds {len(foreign)} files ({shown}) and no marker: somebody else "
            "wrote them. 'cursor adopt' takes them as rows of this table; or move them away, or "
            "give the stream another `table`, and then 'retry'",
            ("retry", "cursor adopt"),
        )


def view_sql(folder: Path, table: str, files: Sequence[str], state: TableState) -> str:
    """DuckDB: exactly the published rows, and of those with a key the latest of each."""
    schema = state.schema
    head = (
        "-- Written anew with each batch, so read it anew: .read '_view.sql'\n"
        f"CREATE OR REPLACE VIEW {quote_name(table)} AS\n"
    )
    if not files:
        arrow = stored_schema(to_arrow(schema))
        columns = [f"CAST(NULL AS {sql_type(f.type)}) AS {quote_name(f.name)}" for f in arrow]
        return f"{head}SELECT {', '.join(columns) or 'NULL AS nothing_yet'} WHERE false;\n"
    options = "union_by_name = true, hive_partitioning = false"
    if not schema.key:
        return f"{head}{_rows(folder, files, state, options)};\n"
    keys = ", ".join(quote_name(name) for name in schema.key)
    taken = {fold(field.name) for field in schema.fields}
    file, row = _untaken("_file", taken), "file_row_number"
    options += f",\n  filename = '{file}'"
    if row in taken:  # DuckDB has no other name for it
        row = _untaken("_row", taken)
        rows = _rows(folder, files, state, options)
        rows = f"SELECT *, row_number() OVER () AS {row} FROM (\n{rows})"
    else:
        rows = _rows(folder, files, state, f"{options}, {row} = true")
    number = f"split_part(parse_filename({file}), '-', 1)"
    if adopted := [name for name in files if not publish_of(name, state.publishes)]:
        paths = ", ".join(quote_text(str(folder / name)) for name in adopted)
        number = f"CASE WHEN {file} IN ({paths}) THEN '' ELSE {number} END"  # before all of ours
    return (
        f"{head}SELECT * EXCLUDE ({file}, {row}) FROM (\n{rows}\n)\n"
        f"QUALIFY row_number() OVER (PARTITION BY {keys}\n"
        f"  ORDER BY {number} DESC,\n"
        f"    _loaded_at DESC NULLS LAST, parse_filename({file}) DESC, {row} DESC) = 1;\n"
    )


def _untaken(name: str, taken: Collection[str]) -> str:
    return _untaken(f"_{name}", taken) if name in taken else name


def _rows(folder: Path, files: Sequence[str], state: TableState, options: str) -> str:
    """The rows of all files; those of each era by themselves, with what is text now as text."""
    parts = []
    after = -1
    for era in (*state.eras, Era(state.publishes, state.schema)):
        names = [n for n in files if after < publish_of(n, state.publishes) <= era.publishes]
        after = era.publishes
        if not names:
            continue
        paths = ",\n".join(f"  {quote_text(str(folder / name))}" for name in names)
        rows = f"SELECT * FROM read_parquet([\n{paths}\n], {options})"
        if words := _in_words(era.schema, state.schema):
            # It is there by name and type, even if no file of the era has a value for it.
            kinds = {name: sql_type(arrow_type(field.type)) for name, field in words.items()}
            none = ", ".join(f"CAST(NULL AS {kind}) AS {name}" for name, kind in kinds.items())
            texts = ", ".join(f"{as_text(name, kind)} AS {name}" for name, kind in kinds.items())
            rows = (
                f"SELECT * REPLACE ({texts}) FROM (\n"
                f"SELECT {none} WHERE false UNION ALL BY NAME\n{rows})"
            )
        parts.append(rows)
    return "\nUNION ALL BY NAME\n".join(parts)


def publish_of(name: str, last: int = 2**63) -> int:
    """Which publish, up to the ``last`` one, brought a file; 0: none did, as by its name, which is
    not as ``target_name`` makes it. It was there when the table was adopted.
    """
    found = _OURS.fullmatch(PurePosixPath(name).name)
    number = int(found[1]) if found else 0
    return number if number <= last else 0


def _in_words(old: Schema, new: Schema) -> dict[str, Field]:
    """The columns, quoted, that have become text and whose old values DuckDB does not take for it:
    it would read the new ones as what the old ones were, or show instants in the reader's zone."""
    texts = {field.name for field in new.fields if field.type == "text"}
    return {
        quote_name(field.name): field
        for field in old.fields
        if field.name in texts
        and field.type.startswith(("uuid", "json", "binary", "timestamp", "list", "struct"))
    }

"""Records in and out of the tables, over one connection and in whatever transaction it has."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import apsw
from msgspec.structs import astuple, replace

from catalog.clock import Clock
from catalog.records import (
    Commit,
    Cursor,
    Decision,
    Edit,
    FileEntry,
    PipelineState,
    Run,
    RunQuery,
    SchemaVersion,
    StreamState,
)
from catalog.rules import Heartbeat, is_lapsed
from catalog.sqlite.queries import SQL
from catalog.sqlite.rows import (
    HOLDER,
    NAME,
    PIPELINE_COLUMNS,
    VERSION,
    Row,
    commit_of,
    cursor_of,
    decision_of,
    holder_of,
    holder_row,
    names_of,
    pipeline_of,
    pipeline_row,
    run_end,
    run_of,
    stream_of,
    stream_row,
    to_json,
)


class Tables:
    """Typed access to the rows."""

    def __init__(self, db: apsw.Connection) -> None:
        self.db = db
        self.run_sql = db.execute
        """The connection's own ``execute``: what is asked for most often calls it directly."""

    def _one(self, name: str, *args: Any) -> Row | None:
        # Exhausts the statement, so that no read transaction stays open behind it (D3).
        rows: list[Row] = self.run_sql(SQL[name], args).fetchall()
        return rows[0] if rows else None

    def _all(self, name: str, *args: Any) -> list[Row]:
        rows: list[Row] = self.run_sql(SQL[name], args).fetchall()
        return rows

    def _number(self, name: str) -> int:
        return int(self._all(name)[0][0])

    def many(self, name: str, rows: Iterable[Row]) -> None:
        """One statement for each row."""
        self.db.executemany(SQL[name], rows)

    # -- the catalog -----------------------------------------------------------------------------

    def catalog_id(self) -> str:
        return str(self._all("catalog_id")[0][0])

    def last_epoch(self) -> int:
        return self._number("last_epoch")

    def set_epoch(self, epoch: int) -> None:
        self.run_sql(SQL["set_epoch"], (epoch,))

    def last_change(self) -> int:
        return self._number("last_change")

    def counts(self) -> tuple[int, int]:
        """Pipelines, open runs."""
        pipelines, open_runs = self._all("counts")[0]
        return pipelines, open_runs

    # -- pipelines -------------------------------------------------------------------------------

    def pipeline(self, name: str) -> PipelineState:
        """As stored; ``version`` 0 when there is none."""
        row = self._one("pipeline", name)
        return pipeline_of(row) if row else PipelineState(name)

    def pipeline_rows(self, names: Sequence[str]) -> dict[str, Row]:
        """As ``pipeline_row`` makes them; those there are."""
        rows = self._all("pipelines_named", to_json(names))
        return {row[NAME]: row[:PIPELINE_COLUMNS] for row in rows}

    def held_by(self, holder: str) -> list[PipelineState]:
        return [pipeline_of(row) for row in self._all("pipelines_held_by", holder)]

    def leased(self) -> list[PipelineState]:
        return [pipeline_of(row) for row in self._all("pipelines_leased")]

    def pipelines_that_saw(self, name: str) -> list[PipelineState]:
        """Those that may have consumed news of ``name``, in order of their own."""
        return [pipeline_of(row) for row in self._all("pipelines_that_saw", to_json(name))]

    def pipeline_seen(self, name: str, clock: Clock) -> PipelineState:
        """As a reader sees it, its lease with what the holder's heartbeat says."""
        row = self._one("pipeline", name)
        if row is None:
            return PipelineState(name)
        return _seen(row, self.heartbeat(row[HOLDER]) if row[HOLDER] else None, clock)

    def changed(self, after: int, limit: int, clock: Clock) -> list[PipelineState]:
        """As a reader sees them."""
        beats = {beat.holder.id: beat for beat in self.heartbeats()}
        rows = self._all("pipelines_changed", after, limit)
        return [_seen(row, beats.get(row[HOLDER]), clock) for row in rows]

    def write_pipeline(self, state: PipelineState) -> None:
        """Write a record that ``touch`` has passed."""
        statement = SQL["add_pipeline" if state.version == 1 else "set_pipeline"]
        self.run_sql(statement, pipeline_row(state))

    def write_pipelines(self, rows: Sequence[Row]) -> None:
        """The same for rows, many at once."""
        self.many("add_pipeline", [row for row in rows if row[VERSION] == 1])
        self.many("set_pipeline", [row for row in rows if row[VERSION] != 1])

    def hand_over(self, was: str, name: str) -> None:
        """What is recorded by ``was`` is recorded by ``name``, in the place of its streams; all but
        the pipelines' own records."""
        self.run_sql(SQL["drop_streams"], (name,))
        for rows in ("streams", "runs", "commits", "schemas", "decisions", "files"):
            self.run_sql(SQL[f"hand_over_{rows}"], (was, name))

    def replace_pipeline(self, state: PipelineState) -> None:
        """Write a record in the place of whichever is there by its name, if any."""
        self.run_sql(SQL["drop_pipeline"], (state.name,))
        self.run_sql(SQL["add_pipeline"], pipeline_row(state))

    # -- streams ---------------------------------------------------------------------------------

    def cursor(self, pipeline: str, stream: str) -> Cursor | None:
        row = self._one("cursor", pipeline, stream)
        return cursor_of(row) if row else None

    def stream(self, pipeline: str, stream: str) -> StreamState | None:
        row = self._one("stream", pipeline, stream)
        return stream_of(row) if row else None

    def streams(self, pipeline: str) -> dict[str, StreamState]:
        return {row[1]: stream_of(row) for row in self._all("streams", pipeline)}

    def stream_rows_of(self, pipelines: Sequence[str]) -> dict[str, list[Row]]:
        """The streams' rows of many pipelines, by pipeline."""
        found: dict[str, list[Row]] = {}
        for row in self._all("streams_of", to_json(pipelines)):
            found.setdefault(row[0], []).append(row)
        return found

    def write_stream(self, state: StreamState) -> None:
        self.run_sql(SQL["set_stream"], stream_row(state))

    # -- runs ------------------------------------------------------------------------------------

    def run(self, epoch: int) -> Run | None:
        row = self._one("run", epoch)
        return run_of(row) if row else None

    def open_run(self, epoch: int) -> Run:
        """The run of a lease that is held."""
        run = self.run(epoch)
        assert run is not None, f"the lease of epoch {epoch} has no run"
        return run

    def previous_run(self, pipeline: str, epoch: int) -> Run | None:
        row = self._one("previous_run", pipeline, epoch)
        return run_of(row) if row else None

    def open_connections(self) -> list[tuple[str, tuple[str, ...], int]]:
        """Holder, connections, and how many open runs of that holder have them."""
        return [(row[0], names_of(row[1]), row[2]) for row in self._all("open_connections")]

    def end_run(self, run: Run) -> None:
        self.run_sql(SQL["end_run"], run_end(run))

    def drop_run(self, epoch: int) -> None:
        self.run_sql(SQL["drop_run"], (epoch,))

    def runs(self, query: RunQuery) -> list[Run]:
        where: list[str] = ["true"]
        args: list[Any] = []
        if query.pipeline:
            where.append("pipeline = ?")
            args.append(query.pipeline)
        if query.open_only:
            where.append("outcome is null")
        if query.outcome is not None:
            where.append("outcome = ?")
            args.append(query.outcome)
        if query.below_epoch is not None:
            where.append("epoch < ?")
            args.append(query.below_epoch)
        sql = f"select * from runs_seen where {' and '.join(where)} order by epoch desc limit ?"
        return [run_of(row) for row in self.run_sql(sql, (*args, query.limit)).fetchall()]

    # -- commits, schemas, decisions, files --------------------------------------------------------

    def standings(self, streams: Iterable[Row]) -> list[Row]:
        """What commits to these streams, by pipeline and name, are judged by."""
        rows: list[Row] = self.db.executemany(SQL["standing"], streams).fetchall()
        return rows

    def commit(self, number: int) -> Commit:
        """A commit that is there, as it was answered."""
        return commit_of(self._all("commit", number)[0])

    def committed_by(self, pipeline: str, stream: str, seq: int) -> int:
        """The run that committed a batch, which is there."""
        return int(self._all("commits_above", pipeline, stream, seq - 1, 1)[0][5])

    def last_commit(self) -> int:
        """The highest number of a commit; it is never taken away."""
        return self._number("last_commit")

    def commits(
        self, pipeline: str, stream: str, limit: int, marks: Mapping[str, int]
    ) -> list[Commit]:
        """``marks``: by stream, up to which seq it is published."""
        rows = self._all("commits", pipeline, stream, limit)
        return [commit_of(row, marks[row[3]]) for row in rows]

    def commits_above(self, pipeline: str, stream: str, seq: int, limit: int) -> list[Commit]:
        """Those above what is published."""
        return [commit_of(r, seq) for r in self._all("commits_above", pipeline, stream, seq, limit)]

    def write_schema(self, pipeline: str, stream: str, schema: SchemaVersion) -> None:
        s = schema
        row = (pipeline, stream, s.version, s.fingerprint, s.created_at, s.epoch, s.body)
        self.run_sql(SQL["add_schema"], row)

    def schemas(self, pipeline: str, stream: str) -> list[SchemaVersion]:
        return [SchemaVersion(*row) for row in self._all("schemas", pipeline, stream)]

    def write_decision(self, pipeline: str, decision: Decision) -> None:
        self.run_sql(SQL["add_decision"], (pipeline, decision.stream, to_json(decision)))

    def decisions(self, pipeline: str, stream: str) -> list[Decision]:
        return [decision_of(row[0]) for row in self._all("decisions", pipeline, stream)]

    def clear_files(self, pipeline: str, stream: str) -> None:
        self.run_sql(SQL["clear_files"], (pipeline, stream))

    def forget_files(self, pipeline: str, stream: str, after: int, later: int) -> None:
        self.run_sql(SQL["forget_files"], (pipeline, stream, after, later))

    def change_files(
        self, pipeline: str, stream: str, drop: Collection[str], put: Sequence[FileEntry]
    ) -> None:
        self.many("drop_file", [(pipeline, stream, path) for path in drop])
        self.many("put_file", [(pipeline, stream, *astuple(entry)) for entry in put])

    def files(self, pipeline: str, stream: str, after: str, limit: int) -> list[FileEntry]:
        return [FileEntry(*row) for row in self._all("files", pipeline, stream, after, limit)]

    # -- edits, holders, operations ----------------------------------------------------------------

    def write_edit(self, edit: Edit) -> Edit:
        """Write an audit row; the record with its number."""
        e = edit
        rows = self._all(
            "add_edit", e.at, e.by, e.why, e.action, e.pipeline, e.stream, e.old, e.new
        )
        return replace(edit, id=int(rows[0][0]))

    def edits(self, pipeline: str, limit: int) -> list[Edit]:
        rows = self._all("edits_of", pipeline, limit) if pipeline else self._all("edits", limit)
        return [Edit(*row) for row in rows]

    def write_heartbeat(self, beat: Heartbeat) -> None:
        self.run_sql(SQL["put_holder"], holder_row(beat))

    def heartbeat(self, holder: str) -> Heartbeat | None:
        row = self._one("holder", holder)
        return holder_of(row) if row else None

    def heartbeats(self) -> list[Heartbeat]:
        return [holder_of(row) for row in self._all("holders")]

    def drop_holder(self, holder: str) -> None:
        self.run_sql(SQL["drop_holder"], (holder,))

    def drop_holders(self) -> None:
        self.run_sql(SQL["drop_holders"])

    def lease_counts(self) -> dict[str, int]:
        return dict(self._all("lease_counts"))

    def operation(self, op: str) -> tuple[str, bytes] | None:
        """The verb and the answer of an operation carried out before (A5)."""
        row = self._one("operation", op)
        return (row[0], row[1]) if row else None

    def write_operation(self, op: str, verb: str, at: int, answer: bytes) -> None:
        """Raises ``apsw.ConstraintError`` when the id was used before."""
        self.run_sql(SQL["add_operation"], (op, verb, at, answer))

    # -- retention and check -----------------------------------------------------------------------

    def old_runs(self, before: int, limit: int) -> list[int]:
        return [row[0] for row in self._all("old_runs", before, limit)]

    def old_commits(
        self, before: int, operations_before: int, limit: int, going: Sequence[int]
    ) -> list[int]:
        """``going``: runs that go before them."""
        args = (before, limit, operations_before, to_json(going))
        return [row[0] for row in self._all("old_commits", *args)]

    def drop(self, name: str, *args: Any) -> int:
        """Carry out one deletion; how many rows went."""
        self.run_sql(SQL[name], args)
        return self.db.changes()

    def sentences(self, name: str) -> list[str]:
        """What a statement of ``check.sql`` found."""
        return [str(row[0]) for row in self._all(name)]


def _seen(row: Row, beat: Heartbeat | None, clock: Clock) -> PipelineState:
    """As ``rules.seen``; ``beat`` is of the row's holder."""
    if not row[HOLDER]:
        return pipeline_of(row)
    expires_at = beat.expires_at if beat else None
    return pipeline_of(row, expires_at, lapsed=is_lapsed(beat, clock))

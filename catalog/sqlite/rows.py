"""Rows to records and back: columns stand in the order of the table, which is the record's.

Nested parts are JSON, and null where there is none. No statement is made or run here.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import msgspec

from catalog.records import (
    Commit,
    Cursor,
    CursorKind,
    Decision,
    ErrorClass,
    Hold,
    Holder,
    Mark,
    Outcome,
    PipelineState,
    Position,
    Request,
    Run,
    StreamResult,
    StreamState,
    Trigger,
)
from catalog.rules import Heartbeat

Row: TypeAlias = tuple[Any, ...]

_encode = msgspec.json.Encoder().encode
_mark = msgspec.json.Decoder(Mark).decode
_request = msgspec.json.Decoder(Request).decode
_names = msgspec.json.Decoder(tuple[str, ...]).decode
_pairs = msgspec.json.Decoder(tuple[tuple[str, int], ...]).decode
_hold = msgspec.json.Decoder(Hold).decode
_trigger = msgspec.json.Decoder(Trigger).decode
_results = msgspec.json.Decoder(tuple[StreamResult, ...]).decode
decision_of = msgspec.json.Decoder(Decision).decode

# A dictionary answers sooner than the enumeration's own look-up.
_KINDS: dict[str, CursorKind] = {kind.value: kind for kind in CursorKind}
_OUTCOMES: dict[str | None, Outcome | None] = {None: None, **{o.value: o for o in Outcome}}
_ERRORS: dict[str | None, ErrorClass | None] = {None: None, **{e.value: e for e in ErrorClass}}


def to_json(part: object) -> str:
    """JSON as SQLite's text."""
    return _encode(part).decode()


def _or_null(part: object) -> str | None:
    return _encode(part).decode() if part else None


PIPELINE_COLUMNS = 26
"""Those of the record; behind them stand the open run's counts."""
NAME, VERSION, CHANGE, EPOCH, HOLDER = range(5)
"""Where these stand in a pipeline's row, for whoever makes no record of it."""


def pipeline_row(p: PipelineState) -> Row:
    """As stored: without what only a reader sees (``lease_expires_at``, ``lapsed``)."""
    return (
        *(p.name, p.version, p.change, p.epoch, p.holder),
        *(_or_null(p.paused), _or_null(p.parked), _or_null(p.request)),
        *(p.cancel, p.tick, p.failures, p.retry_at, _or_null(p.retry_streams)),
        *(p.news, _or_null(p.after_seen), _or_null(p.held)),
        *(p.last_outcome, p.last_reason, p.last_epoch, p.last_started_at, p.last_finished_at),
        *(p.last_success_at, p.data_at, p.rows, p.rejected, p.origin),
    )


def pipeline_of(r: Row, expires_at: int | None = None, *, lapsed: bool = False) -> PipelineState:
    """The record of a row, with what its holder's heartbeat says (``rules.seen``)."""
    return PipelineState(
        r[0],
        r[1],
        r[2],
        r[3],
        r[4],
        expires_at,
        lapsed,
        _mark(r[5]) if r[5] else None,
        _mark(r[6]) if r[6] else None,
        _request(r[7]) if r[7] else None,
        r[8],
        r[9],
        r[10],
        r[11],
        _names(r[12]) if r[12] else (),
        r[13],
        _pairs(r[14]) if r[14] else (),
        _names(r[15]) if r[15] else (),
        _OUTCOMES[r[16]],
        r[17],
        r[18],
        r[19],
        r[20],
        r[21],
        r[22],
        r[23],
        r[24],
        r[25],
    )


def cursor_of(r: Row) -> Cursor | None:
    """The cursor in five columns."""
    if r[0] is None:
        return None
    return Cursor(_KINDS[r[0]], r[1], Position(r[2], r[3], r[4]))


def cursor_columns(cursor: Cursor | None) -> Row:
    """The five columns of a cursor."""
    if cursor is None:
        return (None, None, None, None, None)
    at = cursor.position
    return (cursor.kind, cursor.definition, at.tag, at.data, at.text)


def stream_row(s: StreamState) -> Row:
    """Without the number of its last commit."""
    return (
        *(s.pipeline, s.stream, s.seq, s.published, *cursor_columns(s.cursor), s.schema_version),
        *(_or_null(s.hold), s.directive, s.seen, s.ledger_from, s.committed_by, s.published_by),
        *(s.data_at, s.rows, s.last_outcome, s.last_reason),
    )


def stream_of(r: Row) -> StreamState:
    return StreamState(
        r[0],
        r[1],
        r[2],
        r[3],
        None if r[4] is None else Cursor(_KINDS[r[4]], r[5], Position(r[6], r[7], r[8])),
        r[9],
        _hold(r[10]) if r[10] else None,
        r[11],
        r[12],
        r[13],
        r[14],
        r[15],
        r[16],
        r[17],
        _OUTCOMES[r[18]],
        r[19],
    )


def run_row(r: Run) -> Row:
    return (
        *(r.epoch, r.pipeline, r.holder, to_json(r.trigger), r.reason, r.started_at),
        *(_or_null(r.connections), r.finished_at, r.outcome, r.error),
        *(r.rows, r.bytes, r.rejected, _or_null(r.streams), r.count, r.first_started_at),
    )


def run_end(r: Run) -> Row:
    """What ends a run, for the statement ``end_run``."""
    return (
        *(r.epoch, r.reason, r.finished_at, r.outcome, r.error, r.rows, r.bytes, r.rejected),
        *(_or_null(r.streams), r.count, r.first_started_at),
    )


def run_of(r: Row) -> Run:
    return Run(
        r[0],
        r[1],
        r[2],
        _trigger(r[3]),
        r[4],
        r[5],
        _names(r[6]) if r[6] else (),
        r[7],
        _OUTCOMES[r[8]],
        _ERRORS[r[9]],
        r[10],
        r[11],
        r[12],
        _results(r[13]) if r[13] else (),
        r[14],
        r[15],
    )


def commit_row(number: int, previous: int | None, c: Commit) -> Row:
    """Without whether it is published, which its stream's mark says."""
    return (
        *(number, previous, c.pipeline, c.stream, c.seq, c.epoch, c.committed_at),
        *(c.rows, c.bytes, c.rejected, c.schema_version, *cursor_columns(c.cursor), c.receipt),
    )


def commit_of(r: Row, mark: int = 0) -> Commit:
    """``mark``: up to which seq its stream is published. What has no receipt always is."""
    return Commit(
        r[2],
        r[3],
        r[4],
        r[5],
        r[16],
        r[7],
        r[8],
        r[9],
        r[10],
        r[6],
        cursor_of(r[11:16]),
        r[4] <= mark or not r[16],
    )


def names_of(text: str) -> tuple[str, ...]:
    """A JSON list of names."""
    return _names(text)


def holder_row(beat: Heartbeat) -> Row:
    h = beat.holder
    return (h.id, h.host, h.pid, beat.boot_id, beat.expires_ns, beat.expires_at)


def holder_of(r: Row) -> Heartbeat:
    return Heartbeat(Holder(r[0], r[1], r[2]), r[3], r[4], r[5])

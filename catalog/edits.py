"""What a person's edit does, as one pure function over records; shared by every backend.

Validation first: a refusal has changed nothing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import assert_never

from msgspec import Struct
from msgspec.structs import asdict, replace

from catalog.errors import BadRequest, Leased, NotFound, Stale, Unpublished
from catalog.records import (
    PIPELINE_SCOPE,
    Adopt,
    AnswerSchema,
    CancelRun,
    Decision,
    Edit,
    EditAction,
    HoldKind,
    Mark,
    Micros,
    Pause,
    PipelineState,
    Refresh,
    Release,
    Rename,
    Request,
    RequestRun,
    Resume,
    Run,
    SetCursor,
    StreamState,
)
from catalog.rules import interrupt

_NO_RUN = 2**63 - 1
"""No run is later than this."""


@dataclass(frozen=True, slots=True)
class Standing:
    """What the catalog says before an edit."""

    pipeline: PipelineState
    """As seen, with ``lapsed`` filled in; ``version`` 0 where there is none."""
    streams: Mapping[str, StreamState]
    """All of the pipeline's."""
    open_run: Run | None
    former: Standing | None = None
    """For ``Rename``: what it says of the pipeline by its old name."""


@dataclass(frozen=True, slots=True)
class Edited:
    """The records to write after an edit. ``edit.id`` is 0: the backend numbers it."""

    pipeline: PipelineState
    stream: StreamState | None
    """The stream that changed, perhaps a new one."""
    interrupted: Run | None
    """The open run of a lapsed lease, closed because the edit took the lease away."""
    decision: Decision | None
    edit: Edit
    vacated: PipelineState | None = None
    """For ``Rename``: what is left under the old name. All else that is recorded by that name goes
    over to ``pipeline.name``, whose own record and streams, if there are any, are replaced."""
    forget: tuple[int, int] | None = None
    """What later batches of ``stream`` than this one brought, or later runs, is struck from its
    ledger. None: nothing is."""


def apply_edit(by: str, why: str, action: EditAction, at: Standing, now: Micros) -> Edited:
    """Check an edit against what stands and say what it changes; see ``Catalog.edit``.

    Raises:
        NotFound, Leased, Stale, Unpublished: as ``Catalog.edit`` says; nothing is changed.
    """
    match action:
        case CancelRun():
            run = _run_to_cancel(action, at)
            pipeline, interrupted = replace(at.pipeline, cancel=run.epoch), None
            if at.pipeline.lapsed:  # nobody is there to be asked
                pipeline, interrupted = _take_lapsed(by, at, now)
            stream, decision = None, None
        case Pause() | Resume() | RequestRun():
            pipeline = _edit_pipeline(by, why, action, at, now)
            stream, interrupted, decision = None, None, None
        case AnswerSchema():
            stream, decision = _answer(by, why, action, at, now)
            pipeline, interrupted = at.pipeline, None
        case Refresh() | SetCursor() | Adopt() | Release():
            stream, decision = _edit_stream(action, at), None
            pipeline, interrupted = _take_lapsed(by, at, now)
        case Rename():
            return _rename(by, why, action, at, now)
        case _:
            assert_never(action)
    if stream:
        held = {*pipeline.held} - {stream.stream}
        pipeline = replace(pipeline, held=tuple(sorted(held)))
    pipeline = replace(pipeline, lease_expires_at=None, lapsed=False)
    changed = _difference(at, pipeline, stream)
    edit = _audit(by, why, action, now, *changed)
    forget = _forget(action) if isinstance(action, SetCursor) else None
    return Edited(pipeline, stream, interrupted, decision, edit, forget=forget)


def _forget(action: SetCursor) -> tuple[int, int] | None:
    if action.forget_after is None:
        return None
    return action.forget_after, _NO_RUN if action.forget_later is None else action.forget_later


def _audit(by: str, why: str, action: EditAction, now: Micros, old: str, new: str) -> Edit:
    return Edit(
        id=0,
        at=now,
        by=by,
        why=why,
        action=action_name(action),
        pipeline=action.pipeline,
        stream=getattr(action, "stream", ""),
        old=old,
        new=new,
    )


def _rename(by: str, why: str, action: Rename, at: Standing, now: Micros) -> Edited:
    if action.was == action.pipeline:
        raise BadRequest(f"pipeline {action.was!r} has that name already")
    former = at.former
    if former is None or not former.pipeline.version or former.pipeline.is_vacant:
        raise NotFound(f"the catalog has no pipeline {action.was!r} to rename {action.pipeline!r}")
    if any(stream.seq for stream in at.streams.values()):
        raise Stale(
            f"pipeline {action.pipeline!r} has committed batches of its own and cannot take "
            f"over those of {action.was!r}"
        )
    for name, side in ((action.was, former), (action.pipeline, at)):
        if run := side.open_run:
            if side is former and side.pipeline.lapsed:
                continue
            raise Leased(
                f"{action.was!r} becomes {action.pipeline!r} once run {run.epoch} of {name!r} by "
                f"holder {run.holder} has ended"
            )
    old, interrupted = _take_lapsed(by, former, now)
    pipeline = replace(
        old,
        name=action.pipeline,
        version=max(old.version, at.pipeline.version),
        epoch=max(old.epoch, at.pipeline.epoch),
        paused=old.paused if at.pipeline.is_vacant else at.pipeline.paused or old.paused,
        request=at.pipeline.request or old.request,
        origin=old.origin or old.name,
        lease_expires_at=None,
        lapsed=False,
    )
    # Destinations are not to take another pipeline by the old name for this one, and who has not
    # heard of the new name yet is not to begin anew by the old one.
    told = f"it is {pipeline.name!r} now, and `renamed_from` in the config names it back"
    pause = Mark(by, now, f"{told}; 'resume' is for another one by this name")
    origin = f"{old.name}~{old.version}"  # by one name versions only rise, so it never comes again
    vacated = PipelineState(old.name, version=old.version, paused=pause, origin=origin)
    edit = _audit(by, why, action, now, *_difference(former, pipeline, None))
    return Edited(pipeline, None, interrupted, None, edit, vacated)


def told_of_rename(state: PipelineState, rename: Rename) -> PipelineState | None:
    """A pipeline that has consumed news of the one that is renamed, and knows it by its new name
    now; None: it has not. Another one by the old name has news of its own.
    """
    seen = dict(state.after_seen)
    if rename.was not in seen or state.name in (rename.was, rename.pipeline):
        return None
    seen[rename.pipeline] = seen.pop(rename.was)
    return replace(state, after_seen=tuple(sorted(seen.items())))


def action_name(action: EditAction) -> str:
    """An action's name in the audit: ``SetCursor`` is ``set_cursor``."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", type(action).__name__).lower()


def _edit_pipeline(
    by: str, why: str, action: Pause | Resume | RequestRun, at: Standing, now: Micros
) -> PipelineState:
    pipeline = at.pipeline
    match action:
        case Pause():
            return replace(pipeline, paused=Mark(by, now, why))
        case RequestRun():
            request = Request(action.request, by, now, action.streams)
            asked = replace(pipeline, parked=None, request=request)
            # A run of some streams is no retry of the others.
            return asked if action.streams else replace(asked, retry_at=None, retry_streams=())
        case Resume():
            if not pipeline.version:
                raise NotFound(f"the catalog has no pipeline {pipeline.name!r} to resume")
            return replace(pipeline, paused=None, parked=None, failures=0)


def _run_to_cancel(action: CancelRun, at: Standing) -> Run:
    run = at.open_run
    if run is None or action.epoch not in (0, run.epoch):
        which = f"run {action.epoch}" if action.epoch else "run"
        raise NotFound(f"pipeline {action.pipeline!r} has no open {which} to cancel")
    return run


def _answer(
    by: str, why: str, action: AnswerSchema, at: Standing, now: Micros
) -> tuple[StreamState, Decision]:
    where = f"{action.pipeline}.{action.stream}"
    stream = at.streams.get(action.stream)
    hold = stream.hold if stream else None
    if stream is None or hold is None or hold.kind is not HoldKind.SCHEMA:
        raise NotFound(f"{where} waits for no answer to a schema change")
    if hold.fingerprint != action.fingerprint:
        raise Stale(
            f"{where}: the answer is to proposal {action.fingerprint}, but the source moved on and "
            f"proposal {hold.fingerprint} waits now; look at it and answer that one"
        )
    decision = Decision(
        stream=action.stream,
        from_version=hold.from_version,
        fingerprint=hold.fingerprint,
        answer=action.answer,
        changes=hold.detail,
        by=by,
        why=why,
        at=now,
    )
    return replace(stream, hold=None), decision


def _edit_stream(action: Refresh | SetCursor | Adopt | Release, at: Standing) -> StreamState:
    where = f"{action.pipeline}.{action.stream}"
    stream = at.streams.get(action.stream)
    if stream is None:
        if isinstance(action, Adopt | Release):
            raise NotFound(f"the catalog knows no stream {where}")
        stream = StreamState(action.pipeline, action.stream)
    if at.open_run and not at.pipeline.lapsed:
        raise Leased(
            f"{where}: run {at.open_run.epoch} of holder {at.open_run.holder} is under way and "
            "would overwrite the edit; cancel the run or wait for its end"
        )
    if isinstance(action, SetCursor | Adopt):
        _check_published(where, action.stream, at.streams)
    match action:
        case Refresh():
            return replace(stream, directive="refresh", seen="", hold=None)
        case Adopt():
            return replace(stream, directive="adopt", seen=action.seen, hold=None)
        case Release():
            return replace(stream, hold=None)
        case SetCursor():
            seq = max(stream.seq, action.seq_at_least)
            # The newest wish counts: reading all again would make this edit void. A marker that is
            # to follow the catalog is to follow it still.
            adopts = action.adopt or stream.directive == "adopt"
            seen = action.seen if action.adopt else stream.seen
            return replace(
                stream,
                cursor=action.cursor,
                seq=seq,
                published=seq,
                directive="adopt" if adopts else "",
                seen=seen if adopts else "",
                ledger_from=stream.ledger_from if action.forget_after is None else seq,
                hold=None,
            )


def _check_published(where: str, name: str, streams: Mapping[str, StreamState]) -> None:
    """A cursor of pipeline scope stands for all streams, so it waits for all of them (B5)."""
    for stream in streams.values():
        waits = stream.published < stream.seq
        if waits and name in (stream.stream, PIPELINE_SCOPE):
            raise Unpublished(
                f"{where}: batch {stream.seq} of {stream.stream!r} is committed and not yet "
                "published; run the pipeline once, then edit"
            )


def _take_lapsed(by: str, at: Standing, now: Micros) -> tuple[PipelineState, Run | None]:
    """A lapsed lease ends with the edit, so that its late holder cannot overwrite it (rule 1)."""
    if at.open_run is None:
        return at.pipeline, None
    why = f"holder {at.open_run.holder} stopped renewing its lease; {by} edited the pipeline"
    return interrupt(at.pipeline, at.open_run, why, now)


def _difference(
    at: Standing, pipeline: PipelineState, stream: StreamState | None
) -> tuple[str, str]:
    """The fields that changed, old and new, as two JSON objects (rule 8)."""
    old, new = asdict(replace(at.pipeline, lease_expires_at=None, lapsed=False)), asdict(pipeline)
    if stream:
        before = at.streams.get(stream.stream, StreamState(stream.pipeline, stream.stream))
        old |= asdict(before)
        new |= asdict(stream)
    changed = [key for key in new if old[key] != new[key]]
    return (
        json.dumps({key: old[key] for key in changed}, default=_plain, ensure_ascii=False),
        json.dumps({key: new[key] for key in changed}, default=_plain, ensure_ascii=False),
    )


def _plain(value: bytes | Struct) -> object:
    return value.hex() if isinstance(value, bytes) else asdict(value)

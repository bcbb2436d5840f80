"""What to do with each pipeline: the comparison of desired and observed state. Pure.

The order in which causes count is the order of the code: a run that is under way; a pipeline put
aside; a person's request; a wait after a failure; then what is due by schedule or by news from
upstream. Nothing here knows limits: whether there is room is the business of whoever claims.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeAlias

from catalog.records import (
    Candidate,
    Micros,
    Outcome,
    PipelineState,
    Trigger,
    TriggerKind,
)
from reconciler.config.desired import Every, Pipeline, Project, Schedule
from reconciler.plan.schedule import SECOND, latest_due, next_after
from reconciler.plan.words import schedule_words, these, when

GRACE_SECONDS = 60.0
"""A tick this late is still on time: what ``catch_up = false`` does not skip."""
_GRACE = round(GRACE_SECONDS * SECOND)

_LOOK_AGAIN = SECOND


class Code(StrEnum):
    """Why an action was chosen."""

    TICK = "tick"
    REQUEST = "request"
    RETRY = "retry"
    AFTER = "after"
    TAKEOVER = "takeover"
    CANCEL = "cancel"
    RUNNING = "running"
    LEASED = "leased"
    PAUSED = "paused"
    PARKED = "parked"
    BACKING_OFF = "backing_off"
    NEXT_TICK = "next_tick"
    UPSTREAM = "upstream"
    NO_TRIGGER = "no_trigger"
    ORPHANED = "orphaned"


@dataclass(frozen=True, slots=True)
class Reason:
    """A code for programs and a sentence for persons (rule 8)."""

    code: Code
    text: str


@dataclass(frozen=True, slots=True)
class Dispatch:
    """Claim and run it. ``due``: since when it waits."""

    candidate: Candidate
    due: Micros
    reason: Reason


@dataclass(frozen=True, slots=True)
class CancelRun:
    """End the run of this epoch, which this process conducts."""

    epoch: int
    reason: Reason


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing to do before ``until``; None: before something changes."""

    until: Micros | None
    reason: Reason


Action: TypeAlias = Dispatch | CancelRun | Wait


def held_streams(desired: Pipeline | None, state: PipelineState) -> tuple[str, ...]:
    """Streams that wait for a person. One that the config reads no more waits for nobody."""
    return state.held if desired is None else tuple(filter(desired.reads, state.held))


def decide(
    desired: Pipeline,
    state: PipelineState,
    upstream: Mapping[str, int],
    now: Micros,
    *,
    running: bool,
    since: Micros | None = None,
) -> Action:
    """What to do with one pipeline now, and why.

    ``upstream``: how much each pipeline named in ``after`` has brought so far (its ``news``).
    ``running``: this process conducts its run. ``since``: from when on this daemon could have
    started it (its own start, the pipeline's first sight, the end of a pause): ticks before that,
    less ``GRACE_SECONDS``, are the missed ones that ``catch_up = false`` skips, and no tick of a
    cron line before it counts for a pipeline that never ran; None: now.
    """
    return (
        _under_way(state, now, running=running)
        or _put_aside(state)
        or _answer_request(desired, state)
        or _backing_off(desired, state, now)
        or _on_tick(desired, state, now, since)
        or _after_upstream(desired, state, upstream)
        or _unconsumed(desired, state, now)
        or _nothing_due(desired, state, upstream, now)
    )


# -- not now ---------------------------------------------------------------------------------------


def _under_way(state: PipelineState, now: Micros, *, running: bool) -> Action | None:
    if not running:
        return _leased(state, now) if state.holder and not state.lapsed else None
    if state.cancel and state.cancel == state.epoch:
        reason = Reason(Code.CANCEL, f"a person asked to cancel run {state.epoch}")
        return CancelRun(state.epoch, reason)
    return Wait(None, Reason(Code.RUNNING, f"run {state.epoch} is under way"))


def _leased(state: PipelineState, now: Micros) -> Wait:
    expires = state.lease_expires_at
    until = None if expires is None else max(expires, now + _LOOK_AGAIN)
    text = f"run {state.epoch} is under way, conducted by {state.holder}"
    if state.cancel == state.epoch:
        text += ", and a person asked to cancel it"
    if expires is not None:
        text += f"; its lease lasts until {when(expires)} unless renewed"
    return Wait(until, Reason(Code.LEASED, text))


def _put_aside(state: PipelineState) -> Wait | None:
    if state.paused is not None:
        mark, code, verb = state.paused, Code.PAUSED, "paused"
    elif state.parked is not None:
        mark, code, verb = state.parked, Code.PARKED, "parked"
    else:
        return None
    said = f": {mark.why}" if mark.why else ""
    return Wait(None, Reason(code, f"{verb} by {mark.by} since {when(mark.at)}{said}"))


def _backing_off(desired: Pipeline, state: PipelineState, now: Micros) -> Wait | None:
    if state.retry_at is None or state.retry_at <= now or _in_the_future(state, now):
        return None
    text = f"{_failures(state)}; tried again at {when(state.retry_at)}"
    if 0 < state.failures <= desired.retries:
        text += f" (retry {state.failures} of {desired.retries})"
    return Wait(state.retry_at, Reason(Code.BACKING_OFF, text))


def _failures(state: PipelineState) -> str:
    if not state.failures:  # a run of other streams has ended well since
        return "an earlier run failed"
    times = "the last run" if state.failures == 1 else f"{state.failures} runs in a row"
    return f"{times} failed: {state.last_reason}" if state.last_reason else f"{times} failed"


def _nothing_due(
    desired: Pipeline, state: PipelineState, upstream: Mapping[str, int], now: Micros
) -> Wait:
    missing = _without_news(desired, state, upstream)
    waits_for = f"waits for something new from {these(missing)}" if missing else ""
    if desired.schedule is None:
        if waits_for:
            return Wait(None, Reason(Code.UPSTREAM, waits_for))
        text = "has neither `schedule` nor `after`: it runs when a person asks for it"
        return Wait(None, Reason(Code.NO_TRIGGER, text))
    following = next_after(desired.schedule, desired.name, now)
    text = f"not due; next at {when(following)} ({schedule_words(desired.schedule)})"
    if waits_for:
        text += f", or earlier: it {waits_for}"
    return Wait(following, Reason(Code.NEXT_TICK, text))


# -- now -------------------------------------------------------------------------------------------


def _dispatch(
    desired: Pipeline, state: PipelineState, trigger: Trigger, due: Micros, reason: Reason
) -> Dispatch:
    if state.lapsed:
        reason = Reason(
            Code.TAKEOVER,
            f"{reason.text}; takes over from run {state.epoch}, whose holder "
            f"{state.holder} stopped",
        )
    connections = tuple(dict.fromkeys((desired.source, desired.destination)))
    candidate = Candidate(desired.name, state.version, trigger, reason.text, connections)
    return Dispatch(candidate, due, reason)


def _answer_request(desired: Pipeline, state: PipelineState) -> Dispatch | None:
    request = state.request
    if request is None:
        return None
    trigger = Trigger(TriggerKind.REQUEST, request=request.id, streams=request.streams)
    only = f" (only {these(request.streams)})" if request.streams else ""
    reason = Reason(Code.REQUEST, f"asked for by {request.by}{only}")
    return _dispatch(desired, state, trigger, request.at, reason)


def _on_tick(
    desired: Pipeline, state: PipelineState, now: Micros, since: Micros | None
) -> Dispatch | None:
    schedule = desired.schedule
    if schedule is None:
        return None
    tick = _due_tick(schedule, desired, state, now, since)
    if tick is None:
        return None
    trigger = Trigger(TriggerKind.TICK, tick=tick)
    text = f"due since {when(tick)} ({schedule_words(schedule)})"
    return _dispatch(desired, state, trigger, tick, Reason(Code.TICK, text))


def _after_upstream(
    desired: Pipeline, state: PipelineState, upstream: Mapping[str, int]
) -> Dispatch | None:
    if not desired.after or _without_news(desired, state, upstream):
        return None
    news = tuple((name, upstream[name]) for name in desired.after)
    brought = "brought" if len(news) == 1 else "each brought"
    reason = Reason(Code.AFTER, f"{these(desired.after)} {brought} something new")
    # When the news came is not known here; its last run bounds it, and keeps the order fair.
    due = state.last_finished_at or 0
    return _dispatch(desired, state, Trigger(TriggerKind.AFTER, news=news), due, reason)


def _unconsumed(desired: Pipeline, state: PipelineState, now: Micros) -> Dispatch | None:
    """The retry that is due; or, without any other cause, the end of what was interrupted."""
    streams = state.retry_streams
    if state.retry_at is not None:
        due = state.retry_at
        text = f"tried again, {_failures(state)}"
        text += f" (only {these(streams)})" if streams else ""
    elif _unfinished(state):
        due = state.last_started_at or now
        text = f"run {state.epoch} did not get to its end; finishes what it left"
    else:
        return None
    trigger = Trigger(TriggerKind.RETRY, streams=streams)
    return _dispatch(desired, state, trigger, due, Reason(Code.RETRY, text))


def _unfinished(state: PipelineState) -> bool:
    """Its last run ended without consuming its trigger (A3)."""
    return state.lapsed or state.last_outcome in (Outcome.INTERRUPTED, Outcome.FENCED)


def _due_tick(
    schedule: Schedule,
    desired: Pipeline,
    state: PipelineState,
    now: Micros,
    since: Micros | None,
) -> Micros | None:
    on_time = (now if since is None else min(since, now)) - _GRACE
    after = _consumed(state, now)
    if _unfinished(state):
        # What that run answered is still due, however old it is and whatever else was skipped.
        return latest_due(schedule, desired.name, after, now)
    if state.last_started_at is not None and not _in_the_future(state, now):
        # A run that got to its end has read what was there when it started: an edited schedule
        # has no older tick to make up for.
        after = max(after or 0, state.last_started_at)
    if after is None and not isinstance(schedule, Every):
        after = on_time
    tick = latest_due(schedule, desired.name, after, now)
    if tick is None or desired.catch_up or tick >= on_time:
        return tick
    return tick if after is None else None


def _in_the_future(state: PipelineState, now: Micros) -> bool:
    """Its last run began or ended later than it is now: the clock was ahead and was set right."""
    return max(state.last_started_at or 0, state.last_finished_at or 0) > now + _GRACE


def _consumed(state: PipelineState, now: Micros) -> Micros | None:
    """The latest tick that a run answered. One that no clock had reached when the last run began
    was answered while the clock was ahead: it is still to come, and waits for nothing else.
    """
    began = now if state.last_started_at is None else min(state.last_started_at, now)
    return state.tick if state.tick is None or state.tick <= began + _GRACE else None


def _without_news(
    desired: Pipeline, state: PipelineState, upstream: Mapping[str, int]
) -> tuple[str, ...]:
    seen = dict(state.after_seen)
    return tuple(n for n in desired.after if upstream.get(n, 0) <= seen.get(n, 0))


# -- the whole project -----------------------------------------------------------------------------


def orphaned() -> Wait:
    """A pipeline that the catalog knows and the config does not: never run, never forgotten."""
    text = "not in the config: its data and its history stay, and it is not run"
    return Wait(None, Reason(Code.ORPHANED, text))


def plan_project(
    project: Project, states: Mapping[str, PipelineState], now: Micros
) -> tuple[tuple[str, Action], ...]:
    """Every pipeline's action as one who only looks on sees it.

    First what runs now, in order; then what waits, the earliest first; orphans last.
    """
    news = {name: state.news for name, state in states.items()}
    actions: list[tuple[str, Action]] = []
    for name, desired in project.pipelines.items():
        state = states.get(name) or PipelineState(name)
        actions.append((name, decide(desired, state, news, now, running=False)))
    actions += [
        (name, orphaned())
        for name, state in states.items()
        if name not in project.pipelines and not state.is_vacant
    ]
    return tuple(sorted(actions, key=_rank))


def _rank(entry: tuple[str, Action]) -> tuple[int, Micros, str]:
    name, action = entry
    match action:
        case Dispatch():
            return (0 if _asked(action) else 1, action.due, name)
        case CancelRun():
            return (0, 0, name)
        case Wait(until, reason) if reason.code is not Code.ORPHANED:
            return (2, until, name) if until is not None else (3, 0, name)
        case _:
            return (4, 0, name)


def _asked(dispatch: Dispatch) -> bool:
    return dispatch.candidate.trigger.kind is TriggerKind.REQUEST

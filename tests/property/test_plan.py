"""Laws of the plan, whatever the state."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from catalog.records import Mark, Outcome, PipelineState, Request, TriggerKind
from reconciler.config.desired import Cron, Every, Pipeline
from reconciler.plan.plan import CancelRun, Code, Dispatch, Wait, decide
from reconciler.plan.schedule import SECOND, latest_due
from reconciler.plan.why import Facts, lines, why
from tests.replacing import replace

NOW = 1_795_510_800 * SECOND
DAY = 86_400 * SECOND

moments = st.integers(NOW - 400 * DAY, NOW + 2 * DAY)
maybe = st.none() | moments
marks = st.none() | st.builds(Mark, st.just("ada"), moments, st.just("because"))
streams = st.lists(st.sampled_from(["a", "b"]), unique=True).map(tuple)
news = st.dictionaries(st.sampled_from(["up", "over"]), st.integers(0, 5))

pipelines = st.builds(
    Pipeline,
    st.just("shop"),
    st.just("source"),
    st.sampled_from(["source", "target"]),
    schedule=st.none()
    | st.floats(1, 40 * 86_400).map(Every)
    | st.builds(
        Cron,
        st.sampled_from(["30 2 * * *", "*/10 * * * *", "0 * * * *", "0 0 1 * *"]),
        st.sampled_from(["UTC", "Europe/Berlin", "Australia/Lord_Howe"]),
    ),
    catch_up=st.booleans(),
    after=st.lists(st.sampled_from(["up", "over"]), unique=True).map(tuple),
    retries=st.integers(0, 5),
)

states = st.builds(
    PipelineState,
    st.just("shop"),
    version=st.integers(0, 9),
    epoch=st.integers(0, 9),
    holder=st.sampled_from(["", "me"]),
    lease_expires_at=maybe,
    lapsed=st.booleans(),
    paused=marks,
    parked=marks,
    request=st.none() | st.builds(Request, st.just("r"), st.just("ada"), moments, streams),
    cancel=st.integers(0, 9),
    tick=maybe,
    failures=st.integers(0, 9),
    retry_at=maybe,
    retry_streams=streams,
    after_seen=news.map(lambda d: tuple(d.items())),
    held=streams,
    last_outcome=st.none() | st.sampled_from(Outcome),
    last_started_at=maybe,
    last_finished_at=maybe,
).map(lambda s: replace(s, lapsed=s.lapsed and bool(s.holder)))


@given(pipelines, states, news, maybe)
def test_nothing_is_started_that_runs_or_is_put_aside(
    desired: Pipeline, state: PipelineState, upstream: dict[str, int], since: int | None
) -> None:
    action = decide(desired, state, upstream, NOW, running=False, since=since)
    if isinstance(action, Dispatch):
        assert not state.holder or state.lapsed
        assert state.paused is None
        assert state.parked is None
        assert action.candidate.version == state.version
    assert not isinstance(decide(desired, state, upstream, NOW, running=True), Dispatch)


@given(pipelines, states, news)
def test_only_a_run_of_ones_own_is_cancelled(
    desired: Pipeline, state: PipelineState, upstream: dict[str, int]
) -> None:
    for running in (True, False):
        action = decide(desired, state, upstream, NOW, running=running)
        if isinstance(action, CancelRun):
            assert running
            assert action.epoch == state.cancel == state.epoch


@given(pipelines, states, news, maybe)
def test_a_wait_ends_later_and_every_action_has_its_reason(
    desired: Pipeline, state: PipelineState, upstream: dict[str, int], since: int | None
) -> None:
    action = decide(desired, state, upstream, NOW, running=False, since=since)
    assert action.reason.text
    if isinstance(action, Wait) and action.until is not None:
        assert action.until > NOW


@given(pipelines, states, news, maybe)
def test_what_is_waited_for_is_due_when_the_wait_is_over(
    desired: Pipeline, state: PipelineState, upstream: dict[str, int], since: int | None
) -> None:
    since = None if since is None else min(since, NOW)
    action = decide(desired, state, upstream, NOW, running=False, since=since)
    if isinstance(action, Wait) and action.reason.code in (Code.NEXT_TICK, Code.BACKING_OFF):
        assert action.until is not None
        free = replace(state, last_started_at=min(state.last_started_at or 0, NOW) or None)
        free = replace(free, tick=None if free.tick is None else min(free.tick, NOW))
        later = decide(desired, free, upstream, action.until, running=False, since=since)
        assert isinstance(later, Dispatch)


@given(pipelines, states, news)
def test_a_run_to_its_end_answers_what_was_due(
    desired: Pipeline, state: PipelineState, upstream: dict[str, int]
) -> None:
    action = decide(desired, state, upstream, NOW, running=False)
    if not isinstance(action, Dispatch):
        return
    trigger = action.candidate.trigger
    after_seen = trigger.news if trigger.kind is TriggerKind.AFTER else state.after_seen
    done = replace(
        state,
        holder="",
        lapsed=False,
        tick=trigger.tick if trigger.tick is not None else state.tick,
        request=None if trigger.kind is TriggerKind.REQUEST else state.request,
        after_seen=after_seen,
        retry_at=None,
        last_outcome=Outcome.SUCCEEDED,
        last_started_at=NOW,
    )
    again = decide(desired, done, upstream, NOW, running=False)
    if isinstance(again, Dispatch):
        assert again.candidate.trigger.kind is TriggerKind.AFTER
        assert trigger.kind is not TriggerKind.AFTER


@given(pipelines, states, news)
def test_an_interrupted_run_is_started_again_for_the_same_cause(
    desired: Pipeline, state: PipelineState, upstream: dict[str, int]
) -> None:
    action = decide(desired, state, upstream, NOW, running=False, since=NOW)
    if not isinstance(action, Dispatch):
        return
    if state.tick is not None and state.tick > (state.last_started_at or NOW):
        return  # answered while the clock was ahead: once its time has come, it is answered
    died = replace(state, holder="other", lapsed=True, last_started_at=NOW, last_finished_at=NOW)
    again = decide(desired, died, upstream, NOW + DAY, running=False, since=NOW + DAY)
    assert isinstance(again, Dispatch)
    first, second = action.candidate.trigger, again.candidate.trigger
    # A tick at least as late answers all that the first was to answer, for all streams.
    assert second.kind in (first.kind, TriggerKind.TICK)
    if first.tick is not None and desired.schedule is not None:
        assert second.tick == latest_due(desired.schedule, "shop", first.tick - 1, NOW + DAY)


@given(pipelines, states, news, st.booleans())
def test_why_has_an_answer_for_every_state(
    desired: Pipeline, state: PipelineState, upstream: dict[str, int], running: bool
) -> None:
    action = decide(desired, state, upstream, NOW, running=running)
    answer = why(desired, state, action, Facts(NOW, upstream=upstream, daemon="up"))
    assert answer.answer.startswith("shop ")
    assert answer.answer.endswith((".", ")"))
    assert answer.runs == (not isinstance(action, Dispatch) and action.reason.code in RUNS)
    assert answer.command.startswith("reconciler ") or isinstance(action, Dispatch)
    assert all(lines(answer)[:1])


RUNS = (Code.RUNNING, Code.LEASED, Code.CANCEL)

"""Faults planted into the code from outside, each of which a rule has to find.

A plant replaces one function of the product, or of a connector of this world, by one that leaves a
rule out. ``tests/simulation/test_plants.py`` holds that the checker of that rule finds it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import msgspec

from catalog import rules
from catalog.errors import Fenced
from catalog.memory import MemoryCatalog
from catalog.port import new_operation_id
from catalog.records import Outcome, PipelineState
from reconciler.daemon.backlog import Backlog
from reconciler.daemon.loop import Loop
from reconciler.lease.keeper import Keeper
from reconciler.plan import plan
from reconciler.run import conduct, execute, messages, stream
from tests.replacing import replace
from tests.simulation import destination
from tests.simulation.destination import Content, SimDestination, SimStage
from tests.simulation.source import SimRead, Table
from tests.simulation.wrong import Rule

Patch = tuple[Any, str, Any]
"""Where, which name, and what stands there instead."""


@dataclass(frozen=True, slots=True)
class Plant:
    """A fault, and the rules of which one has to find it."""

    rules: tuple[Rule, ...]
    patches: Callable[[], tuple[Patch, ...]]
    often: bool
    """Found within a few worlds, so that the ordinary suite can afford to look for it."""


PLANTS: dict[str, Plant] = {}


_Patches = Callable[[], tuple[Patch, ...]]


def _plant(*rules_: Rule, often: bool = True) -> Callable[[_Patches], None]:
    def enter(patches: _Patches) -> None:
        name = patches.__name__.strip("_").replace("_", "-")
        PLANTS[name] = Plant(rules_, patches, often)

    return enter


@contextmanager
def planted(name: str) -> Iterator[None]:
    """The code with this fault in it."""
    with ExitStack() as stack:
        for where, attribute, instead in PLANTS[name].patches():
            stack.enter_context(patch.object(where, attribute, instead))
        yield


def _nothing(*_: Any, **__: Any) -> None:
    """In place of a check: it finds nothing."""


def _by_a_new_operation_id() -> Callable[..., Any]:
    until_known = conduct.until_known

    async def anew(attempt: Any, **kwargs: Any) -> None:
        # ``op`` is a variable that the attempt closes over.
        cells = dict(zip(attempt.__code__.co_freevars, attempt.__closure__, strict=True))

        async def renamed() -> None:
            cells["op"].cell_contents = new_operation_id()
            await attempt()

        await until_known(renamed, **kwargs)

    return anew


# -- leases and epochs ---------------------------------------------------------------------------


@_plant(Rule.ONE_WRITER)
def _a_commit_ignores_the_epoch() -> tuple[Patch, ...]:
    return ((rules, "check_fence", _nothing),)


@_plant(Rule.ONE_WRITER)
def _a_takeover_uses_the_epoch_again() -> tuple[Patch, ...]:
    claim = MemoryCatalog._claim

    def again(self: Any, holder: Any, candidate: Any, state: PipelineState) -> Any:
        if state.holder:
            self._store.epoch -= 1
        return claim(self, holder, candidate, state)

    return ((MemoryCatalog, "_claim", again),)


@_plant(Rule.ONE_WRITER)
def _a_lease_is_taken_from_the_living() -> tuple[Patch, ...]:
    return (
        (rules, "is_takeable", lambda *_: True),
        (plan, "_leased", _nothing),
    )


@_plant(Rule.SETTLED, often=False)
def _a_lease_that_nobody_knows_of_is_not_released() -> tuple[Patch, ...]:
    reconcile = rules.reconcile

    def kept(*args: Any) -> Any:
        return reconcile(*args)[0], ()

    return ((rules, "reconcile", kept),)


@_plant(Rule.SETTLED)
def _a_dead_holder_renews_for_ever() -> tuple[Patch, ...]:
    beat = rules.heartbeat

    return (
        (rules, "heartbeat", lambda holder, clock, ttl: beat(holder, clock, 1e6 * ttl)),
        (Loop, "_with_dead_rival", lambda self, state: state),
    )


@_plant(Rule.LIMITS, often=False)
def _a_connection_has_no_limit() -> tuple[Patch, ...]:
    refuse = rules.refuse_claim

    def without(*args: Any, limits: Any, **kwargs: Any) -> Any:
        return refuse(*args, limits={}, **kwargs)

    return ((rules, "refuse_claim", without), (Loop, "_fits", lambda *_: True))


@_plant(Rule.LIMITS)
def _a_daemon_has_no_limit() -> tuple[Patch, ...]:
    take = Backlog.take
    return ((Backlog, "take", lambda self, room, fits: take(self, 100, fits)),)


# -- commit, publish, discard --------------------------------------------------------------------


@_plant(Rule.SEQUENCE, often=False)
def _a_commit_sent_again_by_a_new_operation_id_follows_anything() -> tuple[Patch, ...]:
    check = rules.check_batch

    def follows(stream: Any, last: Any, batch: Any) -> None:
        check(stream, last, replace(batch, follows=stream.seq))

    return ((rules, "check_batch", follows), (conduct, "until_known", _by_a_new_operation_id()))


@_plant(Rule.CURSOR)
def _a_cursor_may_go_back() -> tuple[Patch, ...]:
    cursor = SimRead._cursor

    def earlier(self: SimRead, at: int) -> Any:
        """A source that was put back by some hours now and then."""
        return cursor(self, at - at // 10**6 % 5 * 3600 * 10**6)

    return ((rules, "_check_cursor", _nothing), (SimRead, "_cursor", earlier))


@_plant(Rule.COMMIT_POINT)
def _it_is_published_before_it_is_committed() -> tuple[Patch, ...]:
    seal = SimStage.seal

    def and_publish(self: Any, cursor: Any) -> Any:
        receipt = seal(self, cursor)
        SimDestination(self._warehouse, self._process, lambda: (1e18, 0)).publish([receipt])
        return receipt

    return ((SimStage, "seal", and_publish),)


@_plant(Rule.COMMIT_POINT)
def _it_is_committed_before_it_is_sealed() -> tuple[Patch, ...]:
    seal = SimStage.seal

    def unsealed(self: Any, cursor: Any) -> Any:
        receipt = seal(self, cursor)
        self._staged.receipt = None
        return receipt

    return ((SimStage, "seal", unsealed),)


@_plant(Rule.DISCARD)
def _what_was_committed_is_discarded() -> tuple[Patch, ...]:
    discard = execute.discard_orphans

    def all_of_it(order: Any, there: Any) -> None:
        discard(msgspec.structs.replace(order, unpublished=()), there)

    return ((execute, "discard_orphans", all_of_it),)


@_plant(Rule.DISCARD, often=False)
def _a_lost_answer_is_taken_for_a_no() -> tuple[Patch, ...]:
    commit = conduct.Conduct._commit

    async def definite(self: Any, asked: Any) -> Any:
        answer = await commit(self, asked)
        no = isinstance(answer, messages.NotCommitted)
        return msgspec.structs.replace(answer, definite=True) if no else answer

    async def once(attempt: Any) -> None:
        await attempt()

    return ((conduct.Conduct, "_commit", definite), (conduct, "until_known", once))


@_plant(Rule.DISCARD, often=False)
def _a_lost_answer_is_asked_for_by_a_new_operation_id() -> tuple[Patch, ...]:
    return ((conduct, "until_known", _by_a_new_operation_id()),)


@_plant(Rule.ONCE)
def _the_marker_is_not_checked() -> tuple[Patch, ...]:
    return (
        (stream.StreamRun, "_check_marker", _nothing),
        (destination, "follows", lambda *_: True),
    )


@_plant(Rule.ONCE, often=False)
def _what_a_person_saw_is_not_compared() -> tuple[Patch, ...]:
    begin = stream.StreamRun.__init__

    def unseen(self: Any, *args: Any) -> None:
        begin(self, *args[:-1], replace(args[-1], seen=""))

    return ((stream.StreamRun, "__init__", unseen),)


@_plant(Rule.ONCE, often=False)
def _a_marker_of_another_run_is_not_noticed() -> tuple[Patch, ...]:
    return ((stream.StreamRun, "_committed_by", lambda *_: 0),)


@_plant(Rule.HOLD, Rule.AHEAD)
def _what_is_published_is_not_flushed() -> tuple[Patch, ...]:
    return ((SimDestination, "_flush", _nothing),)


@_plant(Rule.SETTLED)
def _what_is_committed_is_never_published() -> tuple[Patch, ...]:
    return ((stream.StreamRun, "_publish", _nothing),)


# -- reading and rows ----------------------------------------------------------------------------


@_plant(Rule.AHEAD)
def _the_bound_passes_open_transactions() -> tuple[Patch, ...]:
    return ((Table, "bound", lambda self, now: now // 10**6 * 10**6),)


@_plant(Rule.AHEAD)
def _the_bound_passes_the_second_that_is_not_over() -> tuple[Patch, ...]:
    return ((Table, "bound", lambda self, now: min([now, *self.opened.values()])),)


@_plant(Rule.ONCE, Rule.AHEAD)
def _rows_set_aside_are_dropped() -> tuple[Patch, ...]:
    return ((SimStage, "reject", _nothing),)


@_plant(Rule.ONCE, Rule.AHEAD)
def _an_older_row_wins_a_merge() -> tuple[Patch, ...]:
    applied = Content.applied

    def older(self: Content, staged: Any, receipt: Any) -> Content:
        after = applied(self, staged, receipt)
        return replace(after, by_key={**after.by_key, **self.by_key})

    return ((Content, "applied", older),)


# -- files and their ledger ----------------------------------------------------------------------


@_plant(Rule.ONCE, Rule.AHEAD, often=False)
def _the_ledger_is_not_rewound_with_the_cursor() -> tuple[Patch, ...]:
    return ((MemoryCatalog, "_forget_files", _nothing),)


@_plant(Rule.ONCE, Rule.AHEAD, often=False)
def _the_ledger_is_rewound_by_the_number_of_a_batch_alone() -> tuple[Patch, ...]:
    forget = MemoryCatalog._forget_files

    def whoever(self: Any, state: Any, after: int, later: int) -> None:
        """Two catalogs gave that number to two batches."""
        del later
        forget(self, state, after, 1 << 62)

    return ((MemoryCatalog, "_forget_files", whoever),)


@_plant(Rule.ONCE, Rule.AHEAD)
def _what_a_batch_read_is_noted_with_the_next_one() -> tuple[Patch, ...]:
    def late(self: Any, mark: Any) -> None:
        """What the last of its marks names is not among it, and lost with the run."""
        before, self.mark = self.mark, mark
        if before is not None:
            self.files += before.files
            self.forgotten += before.forgotten

    return ((stream._Pending, "_note", late),)


@_plant(Rule.ONCE, Rule.AHEAD, often=False)
def _what_a_batch_read_is_noted_apart_from_it() -> tuple[Patch, ...]:
    commit = MemoryCatalog.commit

    async def and_before(self: Any, op: str, lease: Any, batches: Any, published: Any) -> Any:
        for batch in batches:
            ledger = self._store.files.setdefault((lease.pipeline, batch.stream), {})
            ledger |= {entry.path: entry for entry in batch.files}
        return await commit(self, op, lease, batches, published)

    return ((MemoryCatalog, "commit", and_before),)


# -- triggers and plans --------------------------------------------------------------------------


@_plant(Rule.TRIGGER)
def _a_run_that_was_cut_off_takes_its_trigger() -> tuple[Patch, ...]:
    interrupt = rules.interrupt

    def consumed(state: PipelineState, run: Any, why: str, now: int) -> Any:
        after, closed = interrupt(state, run, why, now)
        return rules._consume(after, run), closed

    return ((rules, "interrupt", consumed),)


@_plant(Rule.TRIGGER, often=False)
def _a_cancelled_run_begins_again() -> tuple[Patch, ...]:
    return ((rules, "UNCONSUMED", rules.UNCONSUMED | {Outcome.CANCELLED}),)


@_plant(Rule.ASIDE)
def _the_planner_ignores_a_pause() -> tuple[Patch, ...]:
    return ((plan, "_put_aside", _nothing),)


@_plant(Rule.ASIDE, often=False)
def _a_hold_is_ignored() -> tuple[Patch, ...]:
    check, order = rules.check_batch, conduct.Conduct.order

    def unheld(stream: Any, last: Any, batch: Any) -> None:
        check(replace(stream, hold=None), last, batch)

    async def without(self: Any, *args: Any) -> Any:
        made = await order(self, *args)
        streams = tuple(replace(one, hold=None) for one in made.streams)
        return msgspec.structs.replace(made, streams=streams)

    return ((rules, "check_batch", unheld), (conduct.Conduct, "order", without))


@_plant(Rule.SETTLED)
def _a_persons_request_is_forgotten() -> tuple[Patch, ...]:
    return ((plan, "_answer_request", _nothing),)


@_plant(Rule.IN_TIME)
def _a_due_time_is_never_armed() -> tuple[Patch, ...]:
    nothing_due = plan._nothing_due

    def unarmed(*args: Any) -> Any:
        return replace(nothing_due(*args), until=None)

    return ((plan, "_nothing_due", unarmed),)


@_plant(Rule.IN_TIME, often=False)
def _what_comes_after_is_not_woken() -> tuple[Patch, ...]:
    return ((plan, "_after_upstream", _nothing),)


# -- processes -----------------------------------------------------------------------------------


@_plant(Rule.ALIVE)
def _a_catalog_that_is_away_ends_the_daemon() -> tuple[Patch, ...]:
    def raises(self: Loop, error: Exception) -> None:
        raise error

    return ((Loop, "trouble", raises),)


@_plant(Rule.ALIVE)
def _a_fenced_write_ends_the_daemon() -> tuple[Patch, ...]:
    def raises(self: Any, lease: Any) -> None:
        raise Fenced(lease.pipeline, lease.epoch, None)

    return ((Keeper, "_lose", raises),)

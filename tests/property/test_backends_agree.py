"""The SQLite backend and the reference model give the same answers, whatever is asked (rule 7).

Random verbs go to both, with the same operation ids, under clocks that move together: time passes,
the wall clock jumps, the machine boots anew, processes restart, answers are lost and asked for
again. Every answer, every refusal and everything that can be read must agree after each step.
"""

from __future__ import annotations

import tempfile
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import anyio.from_thread
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from catalog.clock import ManualClock
from catalog.conformance.kit import batch, cursor, dump, schema, schema_hold, token
from catalog.errors import CatalogError
from catalog.memory import MemoryCatalog, MemoryStore
from catalog.open import open_catalog
from catalog.port import Catalog
from catalog.records import (
    PIPELINE_SCOPE,
    Adopt,
    AnswerSchema,
    Batch,
    CancelRun,
    Candidate,
    Claimed,
    Decision,
    EditAction,
    FileEntry,
    Finish,
    Hold,
    Holder,
    HoldKind,
    Lease,
    Outcome,
    Pause,
    Refresh,
    Release,
    Rename,
    RequestRun,
    Resume,
    Retention,
    SetCursor,
    StreamResult,
    StreamState,
    Trigger,
    TriggerKind,
)
from tests.memory import MEMORY
from tests.replacing import replace

HOLDERS = (Holder("alpha", "host", 1), Holder("beta", "host", 2))
PIPELINES = ("shop", "till")
STREAMS = ("orders", "items")
STREAMS_AT_ONCE = (["orders"], ["orders"], ["items"], ["*"], ["orders", "orders"], ["orders", "*"])
TTL = 30.0
EXAMPLES = 40

handles = st.integers(0, 1)
picks = st.integers(0, 7)
holders = st.sampled_from(HOLDERS)
pipelines = st.sampled_from(PIPELINES)
streams = st.sampled_from((*STREAMS, PIPELINE_SCOPE))
small = st.integers(0, 3)
cursors = st.none() | st.builds(cursor, small) | st.builds(cursor, small) | st.just(token("x"))
holds = st.sampled_from(
    (schema_hold("f2"), schema_hold("f3"), Hold(HoldKind.NULL_KEY, "null", 1, ("release",)))
)
triggers = st.one_of(
    st.builds(Trigger, st.just(TriggerKind.TICK), tick=small),
    st.builds(Trigger, st.just(TriggerKind.REQUEST), request=st.sampled_from(("r1", "r2"))),
    st.builds(
        lambda news: Trigger(TriggerKind.AFTER, news=(("up", news),)),
        small,
    ),
    st.just(Trigger(TriggerKind.RETRY, streams=("orders",))),
)
results = st.builds(
    StreamResult,
    streams,
    st.sampled_from(Outcome),
    reason=st.just("so"),
    hold=st.none() | holds,
    adopted=st.booleans(),
)
finishes = st.builds(
    Finish,
    st.sampled_from((Outcome.SUCCEEDED, Outcome.NOTHING_NEW, *Outcome)),
    st.just("done"),
    streams=st.lists(results, max_size=2, unique_by=lambda one: one.stream).map(tuple),
    published=st.lists(st.tuples(streams, st.integers(0, 6)), max_size=1).map(tuple),
    retry_at=st.none() | small,
    park=st.sampled_from(("", "", "broken")),
)
files = st.builds(
    FileEntry,
    *(st.sampled_from("abc"), small, small, small, small, st.sampled_from("hk")),
    *(st.integers(0, 3), st.integers(0, 6)),
)
batches = st.builds(
    batch,
    st.sampled_from((0,) * 8 + (1, -1)),
    cursor=cursors,
    rows=small,
    rejected=small,
    data_at=st.none() | small,
    schema=st.none() | st.builds(schema, st.sampled_from((0, 0, 0, 1, 1, 1, 2, -1))),
    decisions=st.sampled_from(
        ((), (), (Decision("", 1, "f2", "approved", "[]", "policy", "widen"),))
    ),
    files=st.lists(files, max_size=2).map(tuple),
    forgotten=st.lists(st.sampled_from("abc"), max_size=1).map(tuple),
    replaces=st.booleans(),
)
edits: st.SearchStrategy[EditAction] = st.one_of(
    st.builds(Pause, pipelines),
    st.builds(Resume, pipelines),
    st.builds(RequestRun, pipelines, st.sampled_from(("r1", "r2"))),
    st.builds(CancelRun, pipelines, small),
    st.builds(
        AnswerSchema,
        pipelines,
        streams,
        st.sampled_from(("f2", "f3")),
        st.sampled_from(("approved", "rejected")),
    ),
    st.builds(Refresh, pipelines, streams),
    st.builds(SetCursor, pipelines, streams, cursors, st.integers(0, 6), st.booleans()),
    st.builds(
        SetCursor,
        *(pipelines, streams, cursors),
        forget_after=st.integers(0, 4),
        forget_later=st.none() | st.integers(0, 6),
    ),
    st.builds(Adopt, pipelines, streams),
    st.builds(Rename, pipelines, pipelines),
    st.builds(Release, pipelines, streams),
)

Ask = Callable[[str, Catalog], Awaitable[Any]]


class Side:
    """One backend with two handles on one catalog."""

    def __init__(self, clock: ManualClock, store: MemoryStore | Path) -> None:
        self._clock, self._store = clock, store
        self._stack = AsyncExitStack()
        self.handles: list[Catalog] = []

    async def start(self) -> None:
        await self._stack.aclose()
        self.handles = [await self._open() for _ in HOLDERS]

    async def _open(self) -> Catalog:
        if isinstance(self._store, MemoryStore):
            return MemoryCatalog(self._clock, self._store)
        opening = open_catalog(f"sqlite:///{self._store}", clock=self._clock)
        return await self._stack.enter_async_context(opening)

    async def aclose(self) -> None:
        await self._stack.aclose()

    async def answer(self, handle: int, op: str, ask: Ask) -> Any:
        """The answer, or the class of the refusal."""
        try:
            return await ask(op, self.handles[handle])
        except CatalogError as refusal:
            return type(refusal)

    async def dump(self, handle: int) -> dict[str, Any]:
        return await dump(self.handles[handle])


class BackendsAgree(RuleBasedStateMachine):
    """Drives both sides; ``self.model`` also serves to make requests that are near the mark."""

    def __init__(self) -> None:
        super().__init__()
        self._portal = anyio.from_thread.start_blocking_portal()
        self.portal = self._portal.__enter__()
        self._folder = tempfile.TemporaryDirectory(dir=MEMORY)
        self.clock = ManualClock()
        self.model = Side(self.clock, MemoryStore())
        self.tested = Side(self.clock, Path(self._folder.name, "catalog.db"))
        self.sides = (self.model, self.tested)
        self.ops = 0
        self.boots = 1
        self.issued: list[Lease] = []
        self.last: tuple[str, Ask] | None = None
        for side in self.sides:
            self.portal.call(side.start)

    def teardown(self) -> None:
        for side in self.sides:
            assert self.portal.call(side.handles[0].check).problems == ()
            self.portal.call(side.aclose)
        self._portal.__exit__(None, None, None)
        self._folder.cleanup()

    def send(self, handle: int, ask: Ask) -> Any:
        """A new request to both sides."""
        self.ops += 1
        self.last = (f"{self.ops:032x}", ask)
        return self.agree(handle, *self.last)

    def agree(self, handle: int, op: str, ask: Ask) -> Any:
        """Ask both sides under one operation id; they must give one answer."""
        expected, found = (self.portal.call(side.answer, handle, op, ask) for side in self.sides)
        assert found == expected
        return found

    def read(self, verb: str, *args: Any) -> Any:
        return self.portal.call(getattr(self.model.handles[0], verb), *args)

    def stream(self, pipeline: str, name: str) -> StreamState:
        found: tuple[StreamState, ...] = self.read("streams", pipeline)
        known = {one.stream: one for one in found}
        return known.get(name, StreamState(pipeline, name))

    # -- what is asked ---------------------------------------------------------------------------

    @rule(
        holder=holders,
        names=st.sampled_from(
            (["shop"], ["till"], ["shop", "till"], ["till", "shop"], ["shop", "shop"])
        ),
        trigger=triggers,
        seen=st.sampled_from((0, 0, 0, 0, 1)),
        limit=st.sampled_from((1, 2, 2)),
        dead=st.lists(st.sampled_from(("alpha", "beta")), max_size=1),
    )
    def claim(
        self,
        holder: Holder,
        names: list[str],
        trigger: Trigger,
        seen: int,
        limit: int,
        dead: list[str],
    ) -> None:
        candidates = [
            Candidate(name, self.read("pipeline", name).version - seen, trigger, "due", ("db",))
            for name in names
        ]
        answers = self.send(
            HOLDERS.index(holder),
            lambda op, catalog: catalog.claim(
                op, holder, candidates, ttl=TTL, limits={"db": limit}, dead=dead
            ),
        )
        if isinstance(answers, tuple):
            self.issued += [one.lease for one in answers if isinstance(one, Claimed)]

    def lease(self, pick: int) -> Lease:
        """A lease that is held now, as long as there is one; for a high ``pick`` an older one."""
        held = [one for one in self.issued if self.is_held(one)]
        leases = self.issued if pick > 5 or not held else held
        return leases[-1 - pick % len(leases)]

    def is_held(self, lease: Lease) -> bool:
        state = self.read("pipeline", lease.pipeline)
        return bool((state.epoch, state.holder) == (lease.epoch, lease.holder))

    @rule(holder=holders, names=st.sets(picks, max_size=3))
    def renew(self, holder: Holder, names: set[int]) -> None:
        held = [self.lease(pick) for pick in sorted(names) if self.issued]
        self.send(
            HOLDERS.index(holder),
            lambda op, catalog: catalog.renew(op, holder, held, ttl=TTL),
        )

    @precondition(lambda self: self.issued)
    @rule(
        pick=picks,
        names=st.sampled_from(STREAMS_AT_ONCE),
        like=batches,
        published=st.dictionaries(streams, st.integers(0, 6), max_size=1),
        handle=handles,
    )
    def commit(
        self,
        pick: int,
        names: list[str],
        like: Batch,
        published: dict[str, int],
        handle: int,
    ) -> None:
        lease = self.lease(pick)
        sealed: list[Batch] = []
        for name in names:
            earlier = sum(1 for one in sealed if one.stream == name)
            sealed.append(self.fitting(like, self.stream(lease.pipeline, name), earlier))
        self.send(handle, lambda op, catalog: catalog.commit(op, lease, sealed, published))

    def fitting(self, like: Batch, stream: StreamState, earlier: int) -> Batch:
        """``like``, its ``follows`` and schema version taken as off the mark, which is often 0."""
        step = like.schema
        version = schema(stream.schema_version + step.version) if step else None
        return replace(
            like,
            stream=stream.stream,
            follows=stream.seq + earlier + like.follows,
            receipt="" if stream.stream == PIPELINE_SCOPE else like.receipt,
            schema=version,
            decisions=tuple(replace(one, stream=stream.stream) for one in like.decisions),
        )

    @precondition(lambda self: self.issued)
    @rule(pick=picks, finish=finishes, handle=handles)
    def finish(self, pick: int, finish: Finish, handle: int) -> None:
        lease = self.lease(pick)
        self.send(handle, lambda op, catalog: catalog.finish(op, lease, finish))

    @rule(action=edits, handle=handles)
    def edit(self, action: EditAction, handle: int) -> None:
        self.send(handle, lambda op, catalog: catalog.edit(op, "ann", "because", action))

    @rule(age=st.sampled_from((0, 40)), handle=handles)
    def retain(self, age: int, handle: int) -> None:
        before = self.clock.wall_us() - age * 10**6
        keep = Retention(before, operations_before=before, limit=10_000)
        self.send(handle, lambda op, catalog: catalog.retain(op, keep))

    @precondition(lambda self: self.last is not None)
    @rule(handle=handles)
    def send_again(self, handle: int) -> None:
        """An answer was lost: the same request under the same id, perhaps by another process."""
        if self.last is not None:
            self.agree(handle, *self.last)

    # -- what happens to them --------------------------------------------------------------------

    @rule(seconds=st.sampled_from((0.001, 1, TTL - 0.001, TTL)))
    def time_passes(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @rule(seconds=st.sampled_from((-100, 100)))
    def the_wall_clock_jumps(self, seconds: int) -> None:
        self.clock.jump_wall(seconds)

    @rule()
    def the_machine_boots_anew(self) -> None:
        self.boots += 1
        self.clock.reboot(f"boot-{self.boots}")
        self.all_processes_restart()

    @rule()
    def all_processes_restart(self) -> None:
        for side in self.sides:
            self.portal.call(side.start)

    @invariant()
    def everything_that_can_be_read_agrees(self) -> None:
        expected = self.portal.call(self.model.dump, 0)
        assert self.portal.call(self.tested.dump, self.ops % 2) == expected


def test_backends_agree() -> None:
    run_state_machine_as_test(
        BackendsAgree,
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )

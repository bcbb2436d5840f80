"""What the suite's tests are written with: a world of handles on one catalog, and short words."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from typing import Any, Protocol

import pytest
from msgspec.structs import replace

from catalog import position
from catalog.clock import Clock, ManualClock
from catalog.port import Catalog, new_operation_id
from catalog.records import (
    Batch,
    Candidate,
    Claimed,
    Commit,
    Cursor,
    CursorKind,
    Edit,
    EditAction,
    Finish,
    Hold,
    Holder,
    HoldKind,
    Lease,
    NotClaimed,
    Outcome,
    Renewal,
    Retention,
    Run,
    RunQuery,
    SchemaVersion,
    StreamResult,
    Trigger,
    TriggerKind,
)

ALPHA = Holder("alpha", "host-1", 101)
BETA = Holder("beta", "host-2", 202)
TTL = 30.0
EVERYTHING = 1_000_000
"""A limit that no test reaches."""

op = new_operation_id


class Store(Protocol):
    """One catalog, new and empty for each test; the only thing that a backend contributes."""

    def open(self, clock: Clock) -> AbstractAsyncContextManager[Catalog]:
        """A handle on the catalog, as a process of its own would have."""
        ...


class World:
    """A catalog with handles on it, and a clock that only the test moves."""

    def __init__(self, store: Store) -> None:
        self.clock = ManualClock()
        self._store = store
        self._handles = AsyncExitStack()
        self.catalog: Catalog
        """The handle that tests use unless they say otherwise."""

    async def restart(self) -> None:
        """Close all handles and open a new one, as after a restart of all processes."""
        await self._handles.aclose()
        self.catalog = await self.open()

    async def open(self) -> Catalog:
        """One more handle, that is, another process."""
        return await self._handles.enter_async_context(self._store.open(self.clock))

    async def aclose(self) -> None:
        await self._handles.aclose()

    # -- verbs with what tests rarely care about filled in ---------------------------------------

    async def claim(
        self,
        *names: str,
        holder: Holder = ALPHA,
        dead: Sequence[str] = (),
        trigger: Trigger | None = None,
        connections: tuple[str, ...] = (),
        limits: Mapping[str, int] | None = None,
    ) -> tuple[Claimed | NotClaimed, ...]:
        """Claim pipelines at the versions that they have now."""
        candidates = [
            await self.candidate(name, trigger=trigger, connections=connections) for name in names
        ]
        return await self.catalog.claim(
            op(), holder, candidates, ttl=TTL, limits=limits or {}, dead=dead
        )

    async def lease(
        self,
        name: str = "shop",
        *,
        holder: Holder = ALPHA,
        dead: Sequence[str] = (),
        trigger: Trigger | None = None,
    ) -> Lease:
        """Claim one pipeline, which must succeed."""
        (answer,) = await self.claim(name, holder=holder, dead=dead, trigger=trigger)
        assert isinstance(answer, Claimed), answer
        return answer.lease

    async def candidate(
        self,
        name: str,
        *,
        trigger: Trigger | None = None,
        connections: tuple[str, ...] = (),
    ) -> Candidate:
        state = await self.catalog.pipeline(name)
        return Candidate(name, state.version, trigger or tick(1), "due", connections)

    async def commit(
        self, lease: Lease, *batches: Batch, published: Mapping[str, int] | None = None
    ) -> tuple[Commit, ...]:
        return await self.catalog.commit(op(), lease, batches, published or {})

    async def finish(
        self,
        lease: Lease,
        outcome: Outcome = Outcome.SUCCEEDED,
        *results: StreamResult,
        **more: Any,
    ) -> Run:
        finish = Finish(outcome, f"it {outcome}", streams=results, **more)
        return await self.catalog.finish(op(), lease, finish)

    async def run(
        self, name: str = "shop", outcome: Outcome = Outcome.SUCCEEDED, *batches: Batch, **more: Any
    ) -> Run:
        """A whole run: claim, commit, finish."""
        lease = await self.lease(name, trigger=more.pop("trigger", None))
        if batches:
            await self.commit(lease, *batches)
        return await self.finish(lease, outcome, **more)

    async def renew(self, *held: Lease, holder: Holder = ALPHA) -> Renewal:
        return await self.catalog.renew(op(), holder, held, ttl=TTL)

    async def edit(self, action: EditAction, *, by: str = "ann", why: str = "because") -> Edit:
        return await self.catalog.edit(op(), by, why, action)

    async def hold(self, hold: Hold, stream: str = "orders", name: str = "shop") -> None:
        """A run that ends with ``stream`` held."""
        lease = await self.lease(name)
        held = StreamResult(stream, Outcome.HELD, hold.reason, hold=hold)
        await self.finish(lease, Outcome.HELD, held)

    async def retain(self, **bounds: int) -> int:
        """Delete what lies before now, unless told otherwise."""
        now = self.clock.wall_us()
        keep = Retention(runs_before=now, operations_before=now)
        return await self.catalog.retain(op(), replace(keep, **bounds))

    async def retain_all(self) -> None:
        while await self.retain():
            pass

    async def problems(self) -> tuple[str, ...]:
        return (await self.catalog.check()).problems

    def lapse(self) -> None:
        """Let every lease's time pass."""
        self.clock.advance(TTL)


@pytest.fixture
async def world(store: Store) -> AsyncIterator[World]:
    """A world on the backend's ``store``, with one handle open; checked for damage at the end."""
    world = World(store)
    world.catalog = await world.open()
    yield world
    assert await world.problems() == ()
    await world.aclose()


async def dump(catalog: Catalog) -> dict[str, Any]:
    """Everything that can be read, sizes and counters of the process apart."""
    names = [state.name for state in await catalog.changed(0, EVERYTHING)]
    found: dict[str, Any] = {
        "changed": await catalog.changed(0, EVERYTHING),
        "runs": await catalog.runs(RunQuery(limit=EVERYTHING)),
        "open": await catalog.runs(RunQuery(open_only=True, limit=EVERYTHING)),
        "edits": await catalog.edits(limit=EVERYTHING),
        "holders": await catalog.holders(),
    }
    for name in names:
        found[name] = await catalog.pipeline(name)
        streams = await catalog.streams(name)
        found[f"{name} streams"] = streams
        found[f"{name} commits"] = await catalog.commits(name, limit=EVERYTHING)
        found[f"{name} unpublished"] = await catalog.commits(
            name, unpublished=True, limit=EVERYTHING
        )
        for stream in (one.stream for one in streams):
            at = f"{name}.{stream}"
            found[f"{at} cursor"] = await catalog.cursor(name, stream)
            found[f"{at} schemas"] = await catalog.schemas(name, stream)
            found[f"{at} decisions"] = await catalog.decisions(name, stream)
            found[f"{at} files"] = await catalog.files(name, stream)
    return found


# -- short words for records ---------------------------------------------------------------------


def tick(at: int) -> Trigger:
    return Trigger(TriggerKind.TICK, tick=at)


def request(name: str) -> Trigger:
    return Trigger(TriggerKind.REQUEST, request=name)


def cursor(
    value: int, kind: CursorKind = CursorKind.MONOTONIC, definition: str = "orders(id int)"
) -> Cursor:
    return Cursor(kind, definition, position.encode("int", value))


def token(value: str) -> Cursor:
    return Cursor(CursorKind.OPAQUE_TOKEN, "api page", position.encode("token", value))


def batch(follows: int = 0, stream: str = "orders", **more: Any) -> Batch:
    """A sealed batch of ten rows."""
    more = {"receipt": f'{{"batch": {follows + 1}}}', "rows": 10, "bytes": 100, **more}
    return Batch(stream, follows, **more)


def schema(version: int, body: str = "") -> SchemaVersion:
    body = body or f'{{"columns": {version}}}'
    return SchemaVersion(version, f"print of {body}", body)


def schema_hold(fingerprint: str = "f2") -> Hold:
    return Hold(
        HoldKind.SCHEMA,
        "column total was narrowed",
        at=7,
        choices=("approve", "reject", "refresh"),
        from_version=1,
        fingerprint=fingerprint,
        detail='[{"column": "total"}]',
    )


def result(
    outcome: Outcome = Outcome.SUCCEEDED, stream: str = "orders", **more: Any
) -> StreamResult:
    return StreamResult(stream, outcome, f"it {outcome}", **more)

"""Operation ids: an answer that was lost does no harm (A5)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from catalog.conformance.kit import (
    ALPHA,
    BETA,
    TTL,
    World,
    batch,
    cursor,
    dump,
    op,
    result,
    schema,
    schema_hold,
)
from catalog.errors import BadRequest, Conflict, Fenced
from catalog.port import Catalog
from catalog.records import (
    AnswerSchema,
    Decision,
    EditAction,
    FileEntry,
    Finish,
    Lease,
    Outcome,
    Pause,
    Refresh,
    RequestRun,
    Resume,
    Retention,
    SetCursor,
)

Send = Callable[[Catalog, str], Awaitable[Any]]
"""Sends one request, with the operation id given, to the handle given."""

DAY = 86_400


async def a_claim(world: World) -> Send:
    await world.claim("busy", holder=BETA)
    candidates = [
        await world.candidate("shop", connections=("db",)),
        await world.candidate("busy"),
        await world.candidate("third", connections=("db",)),
    ]

    async def send(catalog: Catalog, op: str) -> Any:
        return await catalog.claim(op, ALPHA, candidates, ttl=TTL, limits={"db": 1})

    return send


async def a_claim_that_takes_over(world: World) -> Send:
    await world.run("shop", Outcome.SUCCEEDED, batch(cursor=cursor(1), schema=schema(1)))
    await world.hold(schema_hold(), "items")
    await world.lease("shop", holder=BETA)
    candidate = await world.candidate("shop")

    async def send(catalog: Catalog, op: str) -> Any:
        return await catalog.claim(op, ALPHA, [candidate], ttl=TTL, limits={}, dead=["beta"])

    return send


async def a_renew(world: World) -> Send:
    known, _unknown = await world.lease("a"), await world.lease("b")
    lost = Lease("c", 99, "alpha")

    async def send(catalog: Catalog, op: str) -> Any:
        return await catalog.renew(op, ALPHA, [known, lost], ttl=TTL)

    return send


async def a_commit(world: World) -> Send:
    lease = await world.lease()
    await world.commit(lease, batch(0))
    file = FileEntry("a", 1, 2, 3, 4, "hash")
    decision = Decision("orders", 1, "f", "approved", "[]", "policy", "add")
    full = batch(
        1, cursor=cursor(5), schema=schema(1), files=(file,), decisions=(decision,), data_at=1
    )

    async def send(catalog: Catalog, op: str) -> Any:
        return await catalog.commit(op, lease, [full, batch(0, "items")], {"orders": 1})

    return send


async def a_finish(world: World) -> Send:
    await world.run("shop", Outcome.NOTHING_NEW)
    await world.edit(RequestRun("shop", "r1"))
    lease = await world.lease()
    finish = Finish(
        Outcome.NOTHING_NEW,
        "nothing",
        streams=(result(Outcome.HELD, hold=schema_hold()), result(stream="items")),
        retry_at=9,
        retry_streams=("orders",),
        park="why not",
    )

    async def send(catalog: Catalog, op: str) -> Any:
        return await catalog.finish(op, lease, finish)

    return send


def an_edit(action: EditAction) -> Callable[[World], Awaitable[Send]]:
    async def prepare(world: World) -> Send:
        await world.hold(schema_hold("f2"))

        async def send(catalog: Catalog, op: str) -> Any:
            return await catalog.edit(op, "ann", "because", action)

        return send

    prepare.__name__ = f"an_edit_{type(action).__name__}"
    return prepare


async def a_retain(world: World) -> Send:
    for outcome in (Outcome.SUCCEEDED, Outcome.FAILED, Outcome.SUCCEEDED, Outcome.FAILED):
        await world.run("shop", outcome)
    world.clock.advance(DAY)
    keep = Retention(world.clock.wall_us(), 0, limit=5)

    async def send(catalog: Catalog, op: str) -> Any:
        return await catalog.retain(op, keep)

    return send


REQUESTS = [
    a_claim,
    a_claim_that_takes_over,
    a_renew,
    a_commit,
    a_finish,
    an_edit(Pause("shop")),
    an_edit(Resume("shop")),
    an_edit(RequestRun("shop", "r1")),
    an_edit(AnswerSchema("shop", "orders", "f2", "approved")),
    an_edit(Refresh("shop", "orders")),
    an_edit(SetCursor("shop", "orders", cursor(1), seq_at_least=4)),
    a_retain,
]


@pytest.mark.anyio
class TestOperations:
    @pytest.mark.parametrize("prepare", REQUESTS, ids=lambda prepare: prepare.__name__)
    async def test_a_request_sent_again_is_answered_again_and_done_once(
        self, world: World, prepare: Callable[[World], Awaitable[Send]]
    ) -> None:
        send, same = await prepare(world), op()
        first = await send(world.catalog, same)
        once = await dump(world.catalog)
        world.clock.advance(1)
        assert await send(world.catalog, same) == first
        assert await dump(world.catalog) == once
        other = await world.open()
        assert await send(other, same) == first
        assert await dump(other) == once
        await world.restart()
        assert await send(world.catalog, same) == first
        assert await dump(world.catalog) == once

    @pytest.mark.parametrize("prepare", REQUESTS, ids=lambda prepare: prepare.__name__)
    async def test_an_answer_is_kept_for_a_day(
        self, world: World, prepare: Callable[[World], Awaitable[Send]]
    ) -> None:
        send, same = await prepare(world), op()
        first = await send(world.catalog, same)
        world.clock.advance(DAY - 1)
        await world.retain(runs_before=0, operations_before=world.clock.wall_us() - DAY * 10**6)
        before = await dump(world.catalog)
        assert await send(world.catalog, same) == first
        assert await dump(world.catalog) == before

    async def test_an_answer_outlives_the_lease_that_it_was_given_under(self, world: World) -> None:
        """The commit happened, so its late second sending must not hear ``Fenced``."""
        lease, same = await world.lease(), op()
        first = await world.catalog.commit(same, lease, [batch()], {})
        world.lapse()
        await world.lease(holder=BETA)
        assert await world.catalog.commit(same, lease, [batch()], {}) == first
        with pytest.raises(Fenced):
            await world.commit(lease, batch(1))

    async def test_a_refusal_is_not_remembered(self, world: World) -> None:
        lease, same = await world.lease(), op()
        with pytest.raises(Conflict):
            await world.catalog.commit(same, lease, [batch(1)], {})
        await world.commit(lease, batch(0))
        (row,) = await world.catalog.commit(same, lease, [batch(1)], {})
        assert row.seq == 2

    async def test_ids_are_told_apart(self, world: World) -> None:
        await world.edit(Pause("shop"))
        await world.edit(Pause("shop"))
        assert len(await world.catalog.edits()) == 2

    async def test_an_id_of_another_verb_is_refused_and_changes_nothing(self, world: World) -> None:
        lease, same = await world.lease(), op()
        await world.catalog.edit(same, "ann", "because", Pause("shop"))
        before = await dump(world.catalog)
        with pytest.raises(BadRequest, match=same):
            await world.catalog.commit(same, lease, [batch()], {})
        assert await dump(world.catalog) == before

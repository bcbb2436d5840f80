"""A stale epoch changes nothing, at every verb, however it became stale (rule 1)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
from msgspec.structs import replace

from catalog.conformance.kit import BETA, TTL, World, batch, cursor, dump, op, result, schema
from catalog.errors import Fenced
from catalog.records import (
    FileEntry,
    Finish,
    Hold,
    HoldKind,
    Lease,
    Outcome,
    Refresh,
    Renewal,
)

Ending = Callable[[World], Awaitable[Lease]]
"""Makes a lease, ends it, and gives it back."""


async def taken_over(world: World) -> Lease:
    lease = await world.lease()
    await world.commit(lease, batch())
    world.lapse()
    await world.lease(holder=BETA)
    return lease


async def taken_over_from_the_dead(world: World) -> Lease:
    lease = await world.lease()
    await world.lease(holder=BETA, dead=["alpha"])
    return lease


async def taken_over_by_itself(world: World) -> Lease:
    lease = await world.lease()
    await world.finish(lease)
    await world.lease()
    return lease


async def finished(world: World) -> Lease:
    lease = await world.lease()
    await world.commit(lease, batch())
    await world.finish(lease)
    return lease


async def released_as_unknown(world: World) -> Lease:
    lease = await world.lease()
    await world.renew()
    return lease


async def ended_by_an_edit_once_lapsed(world: World) -> Lease:
    lease = await world.lease()
    world.lapse()
    await world.edit(Refresh("shop", "orders"))
    return lease


async def never_issued(world: World) -> Lease:
    return replace(await world.lease(), epoch=99)


async def of_another_holder(world: World) -> Lease:
    return replace(await world.lease(holder=BETA), holder="alpha")


async def of_an_unknown_pipeline(world: World) -> Lease:
    return replace(await world.lease(), pipeline="nowhere")


async def of_nobody(world: World) -> Lease:
    lease = await world.lease()
    await world.finish(lease)
    return replace(lease, holder="")


ENDINGS = [
    taken_over,
    taken_over_from_the_dead,
    taken_over_by_itself,
    finished,
    released_as_unknown,
    ended_by_an_edit_once_lapsed,
    never_issued,
    of_another_holder,
    of_an_unknown_pipeline,
    of_nobody,
]


@pytest.mark.anyio
@pytest.mark.parametrize("ending", ENDINGS, ids=lambda ending: ending.__name__)
class TestFencing:
    async def test_a_stale_commit_changes_nothing(self, world: World, ending: Ending) -> None:
        lease = await ending(world)
        before = await dump(world.catalog)
        file = FileEntry("a.csv", 1, 2, 3, 4, "hash")
        for follows in (0, 1):
            full = batch(follows, cursor=cursor(9), schema=schema(1), files=(file,))
            for one in (full, replace(full, replaces=True), batch(0, "another")):
                with pytest.raises(Fenced) as fenced:
                    await world.commit(lease, one, published={"orders": 1})
                assert fenced.value.pipeline == lease.pipeline
                assert fenced.value.epoch == lease.epoch
        assert await dump(world.catalog) == before

    async def test_who_is_fenced_learns_which_epoch_is_current(
        self, world: World, ending: Ending
    ) -> None:
        lease = await ending(world)
        state = await world.catalog.pipeline(lease.pipeline)
        current = state.epoch if state.holder else None
        with pytest.raises(Fenced) as fenced:
            await world.commit(lease, batch())
        assert fenced.value.current == current
        with pytest.raises(Fenced) as fenced:
            await world.finish(lease)
        assert fenced.value.current == current

    async def test_a_stale_mark_of_what_is_published_changes_nothing(
        self, world: World, ending: Ending
    ) -> None:
        lease = await ending(world)
        before = await dump(world.catalog)
        with pytest.raises(Fenced):
            await world.commit(lease, published={"orders": 1})
        assert await dump(world.catalog) == before

    async def test_a_stale_finish_changes_nothing(self, world: World, ending: Ending) -> None:
        lease = await ending(world)
        before = await dump(world.catalog)
        hold = Hold(HoldKind.NULL_KEY, "null", 1, ("release",))
        for outcome in Outcome:
            finish = Finish(
                outcome,
                "late",
                streams=(result(outcome, hold=hold),),
                published=(("orders", 1),),
                retry_at=9,
                park="broken",
            )
            with pytest.raises(Fenced):
                await world.catalog.finish(op(), lease, finish)
        assert await dump(world.catalog) == before

    async def test_a_stale_lease_is_lost_at_renewal_and_takes_nothing_with_it(
        self, world: World, ending: Ending
    ) -> None:
        lease = await ending(world)
        mine = {
            Lease(state.name, state.epoch, "alpha")
            for state in await world.catalog.changed(0)
            if state.holder == "alpha"
        }
        before = await dump(world.catalog)
        renewed = await world.catalog.renew(
            op(), replace(BETA, id="alpha"), {lease, *mine}, ttl=TTL
        )
        assert renewed == Renewal((lease,), ())
        after = await dump(world.catalog)
        for part in ("holders", "changed", *(state.name for state in before["changed"])):
            # A heartbeat moves the expiry of the caller's own leases, and nothing else.
            del before[part], after[part]
        assert after == before

    async def test_a_stale_lease_stays_stale_after_a_restart(
        self, world: World, ending: Ending
    ) -> None:
        lease = await ending(world)
        await world.restart()
        before = await dump(world.catalog)
        with pytest.raises(Fenced):
            await world.commit(lease, batch())
        with pytest.raises(Fenced):
            await world.finish(lease)
        assert await dump(world.catalog) == before

"""``commit``: what a cursor and a schema may become (B1, C4, F, rules 4 and 6)."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
from msgspec.structs import replace

from catalog import position
from catalog.conformance.committing import refused
from catalog.conformance.kit import (
    World,
    batch,
    cursor,
    result,
    schema,
    token,
)
from catalog.errors import (
    Conflict,
    DefinitionChanged,
    SchemaConflict,
    WentBack,
)
from catalog.records import (
    Cursor,
    CursorKind,
    Outcome,
)


@pytest.mark.anyio
class TestCursors:
    async def test_a_monotonic_cursor_moves_forward_or_stays(self, world: World) -> None:
        lease = await world.lease()
        await world.commit(lease, batch(0, cursor=cursor(5)))
        await world.commit(lease, batch(1, cursor=cursor(5)))
        await refused(world, lease, WentBack, batch(2, cursor=cursor(4)))
        await world.commit(lease, batch(2, cursor=cursor(6)))

    @pytest.mark.parametrize("kind", [CursorKind.OPAQUE_TOKEN, CursorKind.SNAPSHOT_ID])
    async def test_the_other_kinds_have_no_order(self, world: World, kind: CursorKind) -> None:
        lease = await world.lease()
        await world.commit(lease, batch(0, cursor=cursor(5, kind)))
        await world.commit(lease, batch(1, cursor=cursor(4, kind)))
        assert await world.catalog.cursor("shop", "orders") == cursor(4, kind)

    @pytest.mark.parametrize(
        ("lower", "higher"),
        [
            (("int", -256), ("int", -255)),
            (("int", 9), ("int", 10)),
            (("int", 2**64 - 1), ("int", 2**64)),
            (("decimal", Decimal("-1.5")), ("decimal", Decimal("-1.25"))),
            (("decimal", Decimal("9.99")), ("decimal", Decimal("10"))),
            (("text", "Z"), ("text", "a")),
            (("text", "\uffff"), ("text", "\U00010000")),
            (("timestamp", -1), ("timestamp", 0)),
        ],
    )
    async def test_positions_are_ordered_by_their_bytes(
        self, world: World, lower: tuple[str, Any], higher: tuple[str, Any]
    ) -> None:
        low, high = (
            Cursor(CursorKind.MONOTONIC, "t(c)", position.encode(*value))
            for value in (lower, higher)
        )
        lease = await world.lease()
        await world.commit(lease, batch(0, cursor=low))
        await world.commit(lease, batch(1, cursor=high))
        await refused(world, lease, WentBack, batch(2, cursor=low))
        await world.restart()
        assert await world.catalog.cursor("shop", "orders") == high

    async def test_the_text_of_a_position_is_never_compared(self, world: World) -> None:
        lease = await world.lease()
        nine = replace(cursor(9), position=replace(cursor(9).position, text="99"))
        await world.commit(lease, batch(0, cursor=nine))
        await world.commit(lease, batch(1, cursor=cursor(10)))
        assert await world.catalog.cursor("shop", "orders") == cursor(10)

    @pytest.mark.parametrize(
        "other",
        [
            cursor(9, definition="orders(updated_at timestamptz)"),
            cursor(9, CursorKind.SNAPSHOT_ID),
            replace(cursor(9), position=position.encode("text", "9")),
        ],
        ids=["definition", "kind", "tag"],
    )
    async def test_another_definition_is_refused(self, world: World, other: Cursor) -> None:
        lease = await world.lease()
        await world.commit(lease, batch(0, cursor=cursor(5)))
        await refused(world, lease, DefinitionChanged, batch(1, cursor=other))

    async def test_a_refusal_says_what_of_the_cursor_is_another(self, world: World) -> None:
        lease = await world.lease()
        await world.commit(lease, batch(0, cursor=cursor(5)))
        for what, other in (
            ("definition", cursor(9, definition="another")),
            ("kind", cursor(9, CursorKind.SNAPSHOT_ID)),
            ("tag", replace(cursor(9), position=position.encode("text", "9"))),
        ):
            with pytest.raises(DefinitionChanged, match=f"the cursor's {what} is "):
                await world.commit(lease, batch(1, cursor=other))

    async def test_a_replacing_batch_may_go_anywhere(self, world: World) -> None:
        lease = await world.lease()
        await world.commit(lease, batch(0, cursor=cursor(5)))
        await world.commit(lease, batch(1, cursor=cursor(1), replaces=True))
        other = token("start")
        await world.commit(lease, batch(2, cursor=other, replaces=True))
        assert await world.catalog.cursor("shop", "orders") == other
        await refused(world, lease, Conflict, batch(2, cursor=other, replaces=True))

    async def test_cursors_of_streams_are_apart(self, world: World) -> None:
        lease = await world.lease()
        await world.commit(lease, batch(0, cursor=cursor(5)), batch(0, "items", cursor=cursor(1)))
        assert await world.catalog.cursor("shop", "items") == cursor(1)
        assert await world.catalog.cursor("shop", "orders") == cursor(5)


@pytest.mark.anyio
class TestSchemas:
    async def test_versions_are_numbered_from_one_without_a_gap(self, world: World) -> None:
        lease = await world.lease()
        await refused(world, lease, SchemaConflict, batch(0, schema=schema(2)))
        await refused(world, lease, SchemaConflict, batch(0, schema=schema(0)))
        await world.commit(lease, batch(0, schema=schema(1)))
        await refused(world, lease, SchemaConflict, batch(1, schema=schema(3)))
        for number in (0, 3):  # also one that looks like the last
            same = replace(schema(1), version=number)
            await refused(world, lease, SchemaConflict, batch(1, schema=same))
        await world.commit(lease, batch(1, schema=schema(2)))
        versions = await world.catalog.schemas("shop", "orders")
        now = world.clock.wall_us()
        assert versions == tuple(
            replace(schema(number), created_at=now, epoch=lease.epoch) for number in (1, 2)
        )

    async def test_a_new_version_may_look_like_the_last_one(self, world: World) -> None:
        lease = await world.lease()
        await world.commit(lease, batch(0, schema=schema(1)))
        same = replace(schema(1), version=2)
        (row,) = await world.commit(lease, batch(1, schema=same))
        assert row.schema_version == 2
        assert [one.version for one in await world.catalog.schemas("shop", "orders")] == [1, 2]

    async def test_the_last_version_may_be_named_again(self, world: World) -> None:
        lease = await world.lease()
        await world.commit(lease, batch(0, schema=schema(1)), batch(1, schema=schema(1)))
        await world.commit(lease, batch(2, schema=schema(1)))
        assert len(await world.catalog.schemas("shop", "orders")) == 1

    async def test_the_last_version_is_its_own_streams_and_pipelines(self, world: World) -> None:
        lease, other = await world.lease("shop"), await world.lease("other")
        bodies = ("orders of shop", "items of shop", "orders of other")
        a, b, c = (schema(1, body) for body in bodies)
        await world.commit(lease, batch(0, schema=a), batch(0, "items", schema=b))
        await world.commit(other, batch(0, schema=c))
        await world.commit(lease, batch(1, schema=a), batch(1, "items", schema=b))
        await world.commit(other, batch(1, schema=c))
        await world.commit(lease, batch(2, schema=schema(2)))
        await world.commit(lease, batch(3, schema=schema(2)))
        for name, follows, wrong in (("orders", 4, a), ("items", 2, a), ("items", 2, c)):
            with pytest.raises(SchemaConflict):
                await world.commit(lease, batch(follows, name, schema=wrong))

    async def test_a_version_once_read_never_changes(self, world: World) -> None:
        lease = await world.lease()
        await world.commit(lease, batch(0, schema=schema(1)))
        other = schema(1, "another")
        await refused(world, lease, SchemaConflict, batch(1, schema=other))
        same_print = replace(other, fingerprint=schema(1).fingerprint)
        await refused(world, lease, SchemaConflict, batch(1, schema=same_print))

    async def test_the_history_never_goes_back(self, world: World) -> None:
        lease = await world.lease()
        await world.commit(lease, batch(0, schema=schema(1)), batch(1, schema=schema(2)))
        await refused(world, lease, SchemaConflict, batch(2, schema=schema(1)))
        await refused(world, lease, SchemaConflict, batch(2, schema=schema(1), replaces=True))
        again = schema(3, schema(1).body)
        await world.commit(lease, batch(2, schema=again))
        assert (await world.catalog.streams("shop"))[0].schema_version == 3

    async def test_a_batch_that_does_more_may_show_the_last_schema_again(
        self, world: World
    ) -> None:
        lease = await world.lease()
        await world.commit(lease, batch(0, schema=schema(1)))
        await world.commit(lease, batch(1, schema=schema(1), replaces=True))
        other = schema(1, "another")
        await refused(world, lease, SchemaConflict, batch(2, schema=other, replaces=True))
        assert len(await world.catalog.schemas("shop", "orders")) == 1

    async def test_a_batch_without_a_schema_is_of_the_last_one(self, world: World) -> None:
        lease = await world.lease()
        rows = await world.commit(lease, batch(0), batch(1, schema=schema(1)), batch(2))
        assert [row.schema_version for row in rows] == [0, 1, 1]

    async def test_numbers_go_on_in_the_next_run(self, world: World) -> None:
        first = await world.run("shop", Outcome.SUCCEEDED, batch(0, schema=schema(1)))
        await world.restart()
        lease = await world.lease()
        await refused(world, lease, SchemaConflict, batch(1, schema=schema(1, "another")))
        await world.commit(lease, batch(1, schema=schema(2)))
        await world.finish(lease, Outcome.SUCCEEDED, result())
        versions = await world.catalog.schemas("shop", "orders")
        assert [(v.version, v.epoch) for v in versions] == [(1, first.epoch), (2, lease.epoch)]

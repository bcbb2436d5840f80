"""An error from the disk is never taken for an answer (D1, D2)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import anyio
import pytest

from catalog.clock import ManualClock
from catalog.errors import Full, Unavailable, Unknown
from catalog.port import new_operation_id
from catalog.records import Batch, Commit, Lease
from catalog.sqlite.backend import SqliteCatalog
from catalog.sqlite.database import Tuning
from tests.crash.sqlite_disk import FailingDisk
from tests.crash.test_sqlite_power_loss import claim
from tests.patience import PATIENCE

pytestmark = pytest.mark.anyio
LIMIT = 1 << 30


@pytest.fixture
def disk() -> FailingDisk:
    return FailingDisk()


@pytest.fixture
async def catalog(tmp_path: Path, disk: FailingDisk) -> AsyncIterator[SqliteCatalog]:
    tuning = Tuning(vfs=disk.name)
    catalog = await SqliteCatalog.open(tmp_path / "c.db", ManualClock(), LIMIT, tuning)
    yield catalog
    disk.fails = lambda _path: False
    await catalog.aclose()


def fail(disk: FailingDisk, times: int, what: str = "-wal") -> None:
    """Refuse the next ``times`` syncs of a file."""
    left = disk.refused + times
    disk.fails = lambda path: path.endswith(what) and disk.refused < left


async def commit(
    catalog: SqliteCatalog, lease: Lease, follows: int, op: str | None = None
) -> tuple[Commit, ...]:
    batch = Batch("s", follows, "receipt", rows=1)
    return await catalog.commit(op or new_operation_id(), lease, [batch], {"s": follows})


async def seq(catalog: SqliteCatalog, pipeline: str) -> int:
    streams = await catalog.streams(pipeline)
    return streams[0].seq if streams else 0


async def test_a_refused_sync_at_commit_is_recovered_from_and_nothing_is_done_twice(
    catalog: SqliteCatalog, disk: FailingDisk
) -> None:
    lease = await claim(catalog, "p")
    fail(disk, 1)
    (row,) = await commit(catalog, lease, 0)
    assert disk.refused == 1
    assert row.seq == 1
    (state,) = await catalog.streams("p")
    assert (state.seq, state.rows) == (1, 1)
    assert (await catalog.stats()).last_error == ""
    (row,) = await commit(catalog, lease, 1)
    assert row.seq == 2
    assert (await catalog.check()).problems == ()


async def test_a_group_whose_commit_failed_is_answered_one_by_one(
    catalog: SqliteCatalog, disk: FailingDisk
) -> None:
    leases = [await claim(catalog, f"p{number}") for number in range(20)]
    fail(disk, 1)
    answers: list[Commit] = []

    async def work(lease: Lease) -> None:
        answers.extend(await commit(catalog, lease, 0))

    async with anyio.create_task_group() as tasks:
        for lease in leases:
            tasks.start_soon(work, lease)
    assert sorted(row.pipeline for row in answers) == sorted(lease.pipeline for lease in leases)
    assert [await seq(catalog, lease.pipeline) for lease in leases] == [1] * len(leases)


async def test_while_nothing_can_be_recovered_the_outcome_is_unknown_and_nothing_is_written(
    catalog: SqliteCatalog, disk: FailingDisk
) -> None:
    lease, op = await claim(catalog, "p"), new_operation_id()
    disk.fails = lambda _path: True
    with pytest.raises(Unknown, match=r"may have happened"):
        await commit(catalog, lease, 0, op)
    with pytest.raises(Unavailable, match="cannot be recovered"):
        await commit(catalog, lease, 0)
    with pytest.raises(Unavailable, match="cannot be recovered"):
        await catalog.cursor("p", "s")
    assert "cannot be recovered" in (await catalog.stats()).last_error
    disk.fails = lambda _path: False
    with anyio.fail_after(PATIENCE):  # it recovers by itself, asked or not
        while (await catalog.stats()).last_error:  # noqa: ASYNC110
            await anyio.sleep(0.05)
    (row,) = await commit(catalog, lease, 0, op)
    assert row.seq == 1
    assert (await commit(catalog, lease, 0, op)) == (row,)
    assert await seq(catalog, "p") == 1


async def test_a_failed_checkpoint_costs_nothing(tmp_path: Path, disk: FailingDisk) -> None:
    tuning = Tuning(vfs=disk.name, checkpoint_pages=4)
    path = tmp_path / "d.db"
    catalog = await SqliteCatalog.open(path, ManualClock(), LIMIT, tuning)
    lease = await claim(catalog, "p")
    fail(disk, 3, "d.db")
    follows, op = 0, new_operation_id()
    with anyio.fail_after(PATIENCE):
        while follows < 50 or disk.refused < 3:
            with suppress(Unavailable):  # the file is being recovered
                await commit(catalog, lease, follows, op)
                follows, op = follows + 1, new_operation_id()
    await catalog.aclose()
    catalog = await SqliteCatalog.open(path, ManualClock(), LIMIT)
    assert await seq(catalog, "p") == follows
    assert (await catalog.check()).problems == ()
    await catalog.aclose()


async def test_an_operation_that_breaks_its_transaction_takes_no_other_along(
    tmp_path: Path,
) -> None:
    """SQLite ends the whole transaction when the file is full, and what follows in the group
    would be committed piecemeal, or acknowledged and lost (D1)."""
    limit = 2 * 1024 * 1024
    catalog = await SqliteCatalog.open(tmp_path / "c.db", ManualClock(), limit)
    leases = [await claim(catalog, f"p{number}") for number in range(30)]
    outcomes: dict[str, str] = {}

    async def work(number: int, lease: Lease) -> None:
        receipt = "x" * limit if number % 10 == 4 else "receipt"
        try:
            await catalog.commit(new_operation_id(), lease, [Batch("s", 0, receipt)], {})
            outcomes[lease.pipeline] = "done"
        except Full:
            outcomes[lease.pipeline] = "full"

    async with anyio.create_task_group() as tasks:
        for number, lease in enumerate(leases):
            tasks.start_soon(work, number, lease)
    await catalog.aclose()
    catalog = await SqliteCatalog.open(tmp_path / "c.db", ManualClock(), 2 * limit)
    for number, lease in enumerate(leases):
        too_long = number % 10 == 4
        assert outcomes[lease.pipeline] == ("full" if too_long else "done")
        assert await seq(catalog, lease.pipeline) == (0 if too_long else 1)
    assert (await catalog.check()).problems == ()
    await catalog.aclose()

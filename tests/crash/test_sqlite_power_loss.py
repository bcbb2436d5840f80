"""What was acknowledged is there after a loss of power, wherever it strikes (rule 3, D1, D6)."""

from __future__ import annotations

import random
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

import anyio
import pytest

from catalog.clock import ManualClock
from catalog.open import open_catalog
from catalog.port import Catalog, new_operation_id
from catalog.records import (
    Batch,
    Candidate,
    Claimed,
    Cursor,
    CursorKind,
    Holder,
    Lease,
    Position,
    Trigger,
    TriggerKind,
)
from catalog.sqlite.backend import SqliteCatalog
from catalog.sqlite.database import Tuning
from tests.crash.sqlite_disk import LossyDisk

HOLDER = Holder("h", "host", 1)
WORKERS = 8
LIMIT = 1 << 30


def cursor(seq: int) -> Cursor:
    return Cursor(CursorKind.MONOTONIC, "id", Position("int", seq.to_bytes(8, "big"), str(seq)))


@dataclass
class Cut:
    """What a loss of power left, and what had been acknowledged by then."""

    folder: Path
    acknowledged: dict[str, int]


@dataclass
class Machine:
    """A catalog under load on a lossy disk, its power cut every now and then."""

    folder: Path
    rng: random.Random
    synchronous: str
    every: int
    """About so many writes and syncs from one cut to the next."""
    disk: LossyDisk = field(default_factory=LossyDisk)
    acknowledged: dict[str, int] = field(default_factory=dict)
    cuts: list[Cut] = field(default_factory=list)
    _left: int = 1

    async def run(self, cuts: int) -> list[Cut]:
        """Load it until it was cut so often."""
        # Checkpoints and cuts of the log come often, since they are what is to be proved.
        tuning = Tuning(
            synchronous=self.synchronous,
            vfs=self.disk.name,
            checkpoint_pages=40,
            truncate_bytes=250_000,
        )
        path = self.folder / "live" / "catalog.db"
        catalog = await SqliteCatalog.open(path, ManualClock(), LIMIT, tuning)
        self.disk.on_event = self._event
        try:
            async with anyio.create_task_group() as tasks:
                for number in range(WORKERS):
                    tasks.start_soon(self._work, catalog, f"p{number}", cuts)
        finally:
            self.disk.on_event = lambda: None
            await catalog.aclose()
        return self.cuts

    async def _work(self, catalog: Catalog, name: str, cuts: int) -> None:
        lease = await claim(catalog, name)
        seq = 0
        while len(self.cuts) < cuts:
            batch = Batch("s", seq, "x" * self.rng.choice((10, 3000)), cursor(seq + 1), rows=1)
            await catalog.commit(new_operation_id(), lease, [batch], {"s": seq})
            seq += 1
            self.acknowledged[name] = seq

    def _event(self) -> None:
        self._left -= 1
        if self._left:
            return
        self._left = self.rng.randint(1, 2 * self.every)
        folder = self.folder / f"cut{len(self.cuts)}"
        folder.mkdir()
        acknowledged = dict(self.acknowledged)
        self.disk.image(folder, self.rng)
        self.cuts.append(Cut(folder, acknowledged))


async def claim(catalog: Catalog, name: str) -> Lease:
    candidate = Candidate(name, 0, Trigger(TriggerKind.TICK, tick=1), "due")
    (answer,) = await catalog.claim(new_operation_id(), HOLDER, [candidate], ttl=60, limits={})
    assert isinstance(answer, Claimed)
    return answer.lease


async def losses(cut: Cut) -> list[str]:
    """What was acknowledged and is not there after a restart; damage is a failure at once."""
    async with AsyncExitStack() as stack:
        url = f"sqlite:///{cut.folder / 'catalog.db'}"
        catalog = await stack.enter_async_context(open_catalog(url, clock=ManualClock()))
        assert (await catalog.check()).problems == ()
        lost = []
        for name, seq in cut.acknowledged.items():
            streams = await catalog.streams(name)
            found = streams[0].seq if streams else 0
            if found < seq:
                lost.append(f"{name}: {seq} acknowledged, {found} there")
            rows = await catalog.commits(name, "s", limit=1)
            assert [row.seq for row in rows] == ([found] if found else [])
            assert await catalog.cursor(name, "s") == (cursor(found) if found else None)
        return lost


async def lost_in(tmp_path: Path, seed: int, cuts: int, *, synchronous: str = "FULL") -> list[str]:
    machine = Machine(tmp_path, random.Random(seed), synchronous, every=80)
    found = await machine.run(cuts)
    assert max(min(cut.acknowledged.values(), default=0) for cut in found) > 5
    return [
        f"seed {seed}, {cut.folder.name}: {loss}" for cut in found for loss in await losses(cut)
    ]


@pytest.mark.anyio
@pytest.mark.parametrize("seed", [1, 2])
async def test_no_loss_of_power_takes_what_was_acknowledged(tmp_path: Path, seed: int) -> None:
    assert await lost_in(tmp_path, seed, 20) == []


@pytest.mark.anyio
async def test_the_trial_would_show_a_loss(tmp_path: Path) -> None:
    """Without a sync at each commit acknowledged batches are lost, and the trial above sees it."""
    assert await lost_in(tmp_path, 3, 20, synchronous="NORMAL")


@pytest.mark.slow
@pytest.mark.anyio
@pytest.mark.parametrize("seed", range(100, 140))
async def test_no_loss_of_power_among_thousands(tmp_path: Path, seed: int) -> None:
    assert await lost_in(tmp_path, seed, 50) == []

"""What was acknowledged is there after a loss of power, wherever it strikes (rule 3, D1, D6)."""

from __future__ import annotations

import random
import threading
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import apsw
import pytest

from catalog.clock import ManualClock
from catalog.errors import Unavailable, Unknown
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
from tests.crash.sqlite_disk import LossyDisk, passed_over
from tests.patience import PATIENCE

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
    failing: float = 0.0
    """The share of the main file's syncs that fail, once all work."""
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

    def _fails(self, path: str) -> bool:
        return path.endswith("catalog.db") and self.rng.random() < self.failing

    async def _work(self, catalog: Catalog, name: str, cuts: int) -> None:
        lease = await claim(catalog, name)
        seq = 0
        while len(self.cuts) < cuts:
            batch = Batch("s", seq, "x" * self.rng.choice((10, 3000)), cursor(seq + 1), rows=1)
            op, answer = new_operation_id(), None
            while answer is None:
                with suppress(Unknown, Unavailable):
                    answer = await catalog.commit(op, lease, [batch], {"s": seq})
            seq += 1
            self.acknowledged[name] = seq

    def _event(self) -> None:
        self._left -= 1
        if self._left == 1 and len(self.acknowledged) == WORKERS:
            self.disk.fails = self._fails
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


async def lost_in(
    tmp_path: Path, seed: int, cuts: int, *, synchronous: str = "FULL", **more: Any
) -> list[str]:
    machine = Machine(tmp_path, random.Random(seed), synchronous, **{"every": 80, **more})
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


@pytest.mark.slow
@pytest.mark.anyio
@pytest.mark.parametrize("seed", range(10))
async def test_no_loss_of_power_among_failed_syncs(tmp_path: Path, seed: int) -> None:
    """The first of them lost what a checkpoint had copied before a sync failed, for good."""
    with passed_over():
        assert await lost_in(tmp_path, seed, 20, every=500, failing=0.5) == []


@pytest.mark.anyio
@pytest.mark.parametrize("of", ["checkpoint", "recovery"])
async def test_what_was_copied_before_a_failed_sync_is_copied_again(
    tmp_path: Path, of: str
) -> None:
    """A checkpoint that a reader keeps from the log's end copies without a sync, and the log counts
    it as copied. When the sync of the next one fails, that is lost as well (D2)."""
    disk, path = LossyDisk(), tmp_path / "catalog.db"
    tuning = Tuning(vfs=disk.name, checkpoint_pages=60)
    catalog = await SqliteCatalog.open(path, ManualClock(), LIMIT, tuning)
    lease = await claim(catalog, "p")
    seq = 0

    async def commit() -> None:
        nonlocal seq
        op, answer = new_operation_id(), None
        while answer is None:
            with suppress(Unknown, Unavailable):
                batch = Batch("s", seq, "x" * 9_000, cursor(seq + 1))
                answer = await catalog.commit(op, lease, [batch], {"s": seq})
        seq += 1

    def copied() -> bool:
        return bool(disk.files[str(path)].pending)

    reader = apsw.Connection(str(path), vfs=disk.name)
    for _ in range(3):
        await commit()
    reader.execute("begin")
    reader.execute("select * from commits").fetchall()
    with anyio.fail_after(PATIENCE):
        while not copied():
            await commit()
        reader.close()
        failed: list[str] = []
        disk.fails = partial(_fails_once if of == "checkpoint" else _fails_twice, failed)
        with passed_over():
            while str(path) not in failed:
                await commit()
            for _ in range(40):
                await commit()
    image = tmp_path / "image"
    image.mkdir()
    disk.image(image, random.Random(1))
    await catalog.aclose()
    assert await losses(Cut(image, {"p": seq})) == []


def _fails_once(failed: list[str], path: str) -> bool:
    if failed or not path.endswith("catalog.db"):
        return False
    failed.append(path)
    return True


def _fails_twice(failed: list[str], path: str) -> bool:
    """A commit's sync, and then that of the file it is to be recovered from."""
    if path in failed or threading.current_thread().name != "catalog-writer":
        return False
    if not failed and not path.endswith("-wal"):
        return False
    failed.append(path)
    return True


MARK = "a batch whose sync fails"


@dataclass
class Failing:
    """A catalog opened anew on a lossy disk, so that its log holds little, and a batch that the
    disk does not take."""

    catalog: SqliteCatalog
    disk: LossyDisk
    path: Path
    lease: Lease

    @classmethod
    async def of(cls, folder: Path) -> Failing:
        """With one batch there, and a renewal after it."""
        disk, path = LossyDisk(), folder / "live" / "catalog.db"
        tuning = Tuning(vfs=disk.name)
        catalog = await SqliteCatalog.open(path, ManualClock(), LIMIT, tuning)
        lease = await claim(catalog, "p")
        await catalog.commit(new_operation_id(), lease, [Batch("s", 0, "first", cursor(1))], {})
        await catalog.aclose()
        catalog = await SqliteCatalog.open(path, ManualClock(), LIMIT, tuning)
        await catalog.renew(new_operation_id(), HOLDER, [lease], ttl=60)
        return cls(catalog, disk, path, lease)

    def syncs_mark(self, path: str) -> bool:
        """Whether a sync of the log is the batch's."""
        written = self.disk.files[path].pending if path.endswith("-wal") else []
        return any(data and MARK.encode() in data for _, data in written)

    async def commit(self, op: str) -> None:
        batch = Batch("s", 1, MARK * 2_000, cursor(2))
        with passed_over():
            await self.catalog.commit(op, self.lease, [batch], {})


@pytest.mark.anyio
async def test_a_commit_whose_sync_failed_never_reaches_the_file_in_part(tmp_path: Path) -> None:
    """Who opens the log anew, as after a second failed sync, would take it for committed and copy
    it, while no disk holds it: a loss of power in the midst of that leaves a part (D2)."""
    there = await Failing.of(tmp_path)
    disk, op, failed, cuts = there.disk, new_operation_id(), set[str](), list[Cut]()

    def fails(path: str) -> bool:
        if path in failed or not (failed or there.syncs_mark(path)):
            return False
        failed.add(path)
        disk.on_event = cut
        return True

    def cut() -> None:
        folder = tmp_path / f"cut{len(cuts)}"
        folder.mkdir()
        disk.image(folder, random.Random(len(cuts)))
        cuts.append(Cut(folder, {"p": 1}))

    disk.fails = fails
    with pytest.raises(Unknown):
        await there.commit(op)
    await there.commit(op)
    disk.on_event = lambda: None
    assert failed == {str(there.path), f"{there.path}-wal"}
    cuts.append(Cut(tmp_path / "end", {"p": 2}))
    cuts[-1].folder.mkdir()
    disk.image(cuts[-1].folder, random.Random(0))
    await there.catalog.aclose()
    assert [loss for cut in cuts for loss in await losses(cut)] == []


@pytest.mark.anyio
async def test_what_was_said_not_to_have_happened_does_not_come_back(tmp_path: Path) -> None:
    """A disk may hold what it said it did not take, and the cut of the log that would end it is
    not durable at once (D2). By then the run has thrown away what the batch stands for."""
    there = await Failing.of(tmp_path)
    there.disk.arrives, there.disk.fails = True, there.syncs_mark
    with pytest.raises(Unavailable, match="twice: it did not happen"):
        await there.commit(new_operation_id())
    for seed in range(8):
        folder = tmp_path / f"cut{seed}"
        folder.mkdir()
        there.disk.image(folder, random.Random(seed))
        async with open_catalog(f"sqlite:///{folder / 'catalog.db'}") as catalog:
            (stream,) = await catalog.streams("p")
            assert (stream.seq, stream.cursor) == (1, cursor(1))
            assert (await catalog.check()).problems == ()
    await there.catalog.aclose()

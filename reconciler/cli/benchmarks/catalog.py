"""The catalog: point reads, durable commits, claims and ticks at 100,000 pipelines."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import anyio
import apsw
from msgspec.structs import replace

from catalog.clock import SystemClock
from catalog.open import open_catalog
from catalog.port import Catalog, new_operation_id
from catalog.position import encode
from catalog.records import (
    Batch,
    Candidate,
    Claimed,
    Cursor,
    CursorKind,
    Finish,
    Holder,
    Lease,
    Outcome,
    SchemaVersion,
    StreamResult,
    Trigger,
    TriggerKind,
)
from reconciler.cli.benchmarks.measure import Measure, flush_floor, median, percentile
from reconciler.config.desired import Every, Pipeline
from reconciler.plan.plan import decide

PIPELINES = 100_000
_HOLDER = Holder("bench", "localhost", 1)
_TTL = 3600.0
_CLAIM = 500
_MS, _US = 1e3, 1e6


def name(number: int) -> str:
    return f"pipeline_{number:06}"


def _batch(follows: int) -> Batch:
    value = 1_790_000_000_000_000 + follows
    cursor = Cursor(CursorKind.MONOTONIC, '{"columns":["id"]}', encode("int", value))
    return Batch(
        stream="public.orders",
        follows=follows,
        receipt='{"files":[{"path":"1-1-0","size":4096}]}' + " " * 400,
        cursor=cursor,
        rows=100,
        bytes=4096,
        schema=SchemaVersion(1, "0" * 16, "{}"),
    )


async def fill(catalog: Catalog, pipelines: int) -> None:
    """Give the catalog so many pipelines, each with one finished run and a cursor."""
    for start in range(0, pipelines, _CLAIM):
        leases = await _claim(catalog, range(start, min(start + _CLAIM, pipelines)), 0)
        async with anyio.create_task_group() as tasks:
            for lease in leases:
                tasks.start_soon(_commit_and_finish, catalog, lease)


async def _commit_and_finish(catalog: Catalog, lease: Lease) -> None:
    await catalog.commit(new_operation_id(), lease, [_batch(0)], {})
    await _finish(catalog, lease, Outcome.SUCCEEDED)


async def _finish(catalog: Catalog, lease: Lease, outcome: Outcome) -> None:
    finish = Finish(
        outcome,
        "read to its bound",
        streams=(StreamResult("public.orders", outcome, rows=0),),
        published=(("public.orders", 1),),
    )
    await catalog.finish(new_operation_id(), lease, finish)


async def _claim(catalog: Catalog, numbers: range, version: int | None = None) -> list[Lease]:
    candidates = []
    for number in numbers:
        seen = version
        if seen is None:
            seen = (await catalog.pipeline(name(number))).version
        trigger = Trigger(TriggerKind.TICK, tick=time.time_ns() // 1_000)
        candidates.append(Candidate(name(number), seen, trigger, "due", ("shop_db", "warehouse")))
    answers = await catalog.claim(
        new_operation_id(), _HOLDER, candidates, ttl=_TTL, limits={"shop_db": 10_000}
    )
    return [answer.lease for answer in answers if isinstance(answer, Claimed)]


def measure(folder: Path, pipelines: int = PIPELINES) -> Iterator[Measure]:
    """All catalog figures, on a catalog made in ``folder``."""
    found: list[Measure] = []

    async def run() -> None:
        path = folder / "catalog.db"
        async with open_catalog(f"sqlite:///{path}", clock=SystemClock()) as catalog:
            await fill(catalog, pipelines)
            found.extend(await _reads(catalog, path, pipelines))
            found.extend(await _commits(catalog, folder))
            found.append(await _claims(catalog, pipelines))
            found.append(await _tick(catalog, pipelines))

    anyio.run(run)
    yield from found


async def _reads(catalog: Catalog, path: Path, pipelines: int) -> list[Measure]:
    numbers = [(i * 7919) % pipelines for i in range(5_000)]
    bare = _bare_reads(path, numbers)
    idle = await _timed_reads(catalog, numbers)
    async with anyio.create_task_group() as tasks:
        leases = await _claim(catalog, range(64))
        for lease in leases:
            tasks.start_soon(_commit_for_ever, catalog, lease, 1)
        await anyio.sleep(0.2)
        busy = await _timed_reads(catalog, numbers)
        tasks.cancel_scope.cancel()
    for lease in leases:
        await _finish(catalog, lease, Outcome.SUCCEEDED)
    floor, value, p99 = median(bare) * _US, median(idle) * _US, percentile(busy, 0.99) * _US
    return [
        Measure(
            f"read one cursor, {pipelines:,} pipelines, p50", value, "us", "at most 2x a bare read",
            value <= 2 * floor, floor, "a bare apsw point read of the same columns",
        ),
        Measure(
            "the same under 64 writers, p99", p99, "us", "under 100 us", p99 < 100,
            note=f"p50 {median(busy) * _US:.1f} us",
        ),
    ]  # fmt: skip


def _bare_reads(path: Path, numbers: list[int]) -> list[float]:
    db = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
    sql = "select * from streams where pipeline = ? and stream = ?"
    columns = [row[1] for row in db.execute("pragma table_info(streams)")]
    wanted = ", ".join(column for column in columns if column.startswith("cursor"))
    sql = sql.replace("*", wanted)
    took = []
    for number in numbers:
        key = (name(number), "public.orders")
        started = time.perf_counter()
        db.execute(sql, key).fetchall()
        took.append(time.perf_counter() - started)
    db.close()
    return took


async def _timed_reads(catalog: Catalog, numbers: list[int]) -> list[float]:
    took = []
    for index, number in enumerate(numbers):
        key = name(number)
        started = time.perf_counter()
        await catalog.cursor(key, "public.orders")
        took.append(time.perf_counter() - started)
        if index % 50 == 0:
            await anyio.sleep(0.001)
    return took


async def _commit_for_ever(catalog: Catalog, lease: Lease, seq: int) -> None:
    while True:
        published = {"public.orders": seq}
        await catalog.commit(new_operation_id(), lease, [_batch(seq)], published)
        seq += 1


async def _seqs(catalog: Catalog, leases: list[Lease]) -> dict[str, int]:
    return {x.pipeline: (await catalog.streams(x.pipeline))[0].seq for x in leases}


async def _commits(catalog: Catalog, folder: Path) -> list[Measure]:
    leases = await _claim(catalog, range(1000, 1064))
    seqs = await _seqs(catalog, leases)
    took, floors = [], []
    for _ in range(5):  # in turn with the floor: a machine's speed drifts
        floors += flush_floor(folder, 80)
        for _ in range(80):
            lease = leases[0]
            seq = seqs[lease.pipeline]
            published = {"public.orders": seq}
            started = time.perf_counter()
            await catalog.commit(new_operation_id(), lease, [_batch(seq)], published)
            took.append(time.perf_counter() - started)
            seqs[lease.pipeline] += 1
    alone = median(took)
    counted = [0]

    async def commit_many(lease: Lease) -> None:
        seq = seqs[lease.pipeline]
        while True:
            published = {"public.orders": seq}
            await catalog.commit(new_operation_id(), lease, [_batch(seq)], published)
            seq += 1
            counted[0] += 1

    started = time.perf_counter()
    with anyio.move_on_after(5.0):
        async with anyio.create_task_group() as tasks:
            for lease in leases:
                tasks.start_soon(commit_many, lease)
    rate = counted[0] / (time.perf_counter() - started)
    for lease in leases:
        await _finish(catalog, lease, Outcome.SUCCEEDED)
    floor = median(floors)
    return [
        Measure(
            "one durable commit alone, p50", alone * _US, "us", "at most 2.2x the floor",
            alone <= 2.2 * floor, floor * _US, "a 4 KiB append and fdatasync",
        ),
        Measure(
            "durable commits, 64 waiting", rate, "a second", "at least 10x one alone",
            rate >= 10 / alone, 1 / alone, "one alone",
        ),
    ]  # fmt: skip


async def _claims(catalog: Catalog, pipelines: int) -> Measure:
    took, flushes = [], []
    for round_ in range(9):
        start = 2_000 + round_ * _CLAIM
        versions = [
            replace(_candidate(n), version=(await catalog.pipeline(name(n))).version)
            for n in range(start, start + _CLAIM)
        ]
        before = (await catalog.stats()).groups
        started = time.perf_counter()
        answers = await catalog.claim(
            new_operation_id(), _HOLDER, versions, ttl=_TTL, limits={"shop_db": 10_000}
        )
        took.append(time.perf_counter() - started)
        flushes.append((await catalog.stats()).groups - before)
        assert all(isinstance(answer, Claimed) for answer in answers)
        async with anyio.create_task_group() as tasks:
            for answer in answers:
                if isinstance(answer, Claimed):
                    tasks.start_soon(_finish, catalog, answer.lease, Outcome.NOTHING_NEW)
    value = median(took) * _MS
    return Measure(
        f"claim {_CLAIM} due of {pipelines:,}, p50", value, "ms", "one flush, at most 25 ms",
        value <= 25 and max(flushes) == 1, note=f"{max(flushes)} flush",
    )  # fmt: skip


def _candidate(number: int) -> Candidate:
    trigger = Trigger(TriggerKind.TICK, tick=time.time_ns() // 1_000)
    return Candidate(name(number), 0, trigger, "due", ("shop_db", "warehouse"))


async def _tick(catalog: Catalog, pipelines: int) -> Measure:
    """The loop's part of a tick: read ten states and decide; the claim waits for the disk."""
    took = []
    for round_ in range(300):
        numbers = [(round_ * 7919 + i * 104_729) % pipelines for i in range(10)]
        desired = [Pipeline(name(n), "shop_db", "warehouse", schedule=Every(60.0)) for n in numbers]
        now = time.time_ns() // 1_000
        started = time.perf_counter()
        for pipeline in desired:
            state = await catalog.pipeline(pipeline.name)
            decide(pipeline, state, {}, now, running=False)
        took.append(time.perf_counter() - started)
    value = median(took) * _MS
    return Measure(
        f"tick with 10 due of {pipelines:,}, loop time, p50", value, "ms", "under 1 ms", value < 1
    )

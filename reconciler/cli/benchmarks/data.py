"""A million rows out of PostgreSQL, beside the bare libraries doing the same."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import anyio

from catalog.records import Candidate, Claimed, Outcome, Trigger, TriggerKind
from reconciler.cli.benchmarks import postgres
from reconciler.cli.benchmarks.measure import Measure, median
from reconciler.config.desired import Connection, Mode, Pipeline, Project, StreamSettings
from reconciler.daemon.session import Session, open_session
from reconciler.daemon.teller import Quiet

_ROUNDS = 3
_WORKER_MIB = 300


def _project(folder: Path, url: str) -> Project:
    whole = StreamSettings(mode=Mode.REPLACE)
    merged = StreamSettings(mode=Mode.MERGE)
    return Project(
        name="bench",
        state_dir=folder / "state",
        catalog=f"sqlite:///{folder}/state/catalog.db",
        connections={
            "db": Connection("db", "sql", {"url": url}),
            "parquet": Connection("parquet", "parquet", {"path": str(folder / "lake")}),
            "duckdb": Connection(
                "duckdb", "duckdb", {"path": str(folder / "ours.duckdb"), "schema": "main"}
            ),
        },
        pipelines={
            "parquet": Pipeline("parquet", "db", "parquet", streams={"public.mixed": whole}),
            "duckdb": Pipeline("duckdb", "db", "duckdb", streams={"public.mixed": merged}),
            "warm_parquet": Pipeline(
                "warm_parquet", "db", "parquet", streams={"public.tiny": whole}
            ),
            "warm_duckdb": Pipeline("warm_duckdb", "db", "duckdb", streams={"public.tiny": merged}),
        },
    )


async def _run(session: Session, project: Project, name: str) -> tuple[float, int]:
    """Seconds from claim to finish, and the worker's peak in MiB."""
    pipeline = project.pipelines[name]
    state = await session.catalog.pipeline(name)
    candidate = Candidate(
        name,
        state.version,
        Trigger(TriggerKind.TICK, tick=session.clock.wall_us()),
        "bench",
        (pipeline.source, pipeline.destination),
    )
    (claimed,) = await session.keeper.claim([candidate], {}, ())
    assert isinstance(claimed, Claimed)
    peak = [0]
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_watch_peak, session, peak)
        run = await session.runs.carry_out(session.runs.begin(claimed, project))
        tasks.cancel_scope.cancel()
    assert run is not None
    rows = 1 if name.startswith("warm") else postgres.ROWS
    if run.outcome is not Outcome.SUCCEEDED or run.rows != rows:
        raise RuntimeError(f"the run ended {run.outcome} with {run.rows} rows: {run.reason}")
    assert run.finished_at is not None
    return (run.finished_at - run.started_at) / 1e6, peak[0]


async def _watch_peak(session: Session, peak: list[int]) -> None:
    while True:
        for worker in session.pool.busy_workers():
            peak[0] = max(peak[0], _peak_mib(worker.pid))
        await anyio.sleep(0.05)


def _peak_mib(pid: int) -> int:
    status = Path(f"/proc/{pid}/status")
    for line in status.read_text().splitlines() if status.exists() else ():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) // 1024
    return 0


def _bare(kind: str, url: str, target: Path) -> float:
    target.unlink(missing_ok=True)
    done = subprocess.run(
        [sys.executable, "-m", "reconciler.cli.benchmarks.floors", kind, url, str(target)],
        capture_output=True,
        text=True,
        check=True,
    )
    return float(done.stdout)


def measure(folder: Path) -> Iterator[Measure]:
    """Rows a second to Parquet and to DuckDB; nothing where PostgreSQL is not installed."""
    if postgres.programs() is None:
        return
    with postgres.server(folder) as url:
        for kind, goal in (("parquet", 0.8), ("duckdb", 0.6)):
            yield from _measure_one(folder, url, kind, goal)


def _measure_one(folder: Path, url: str, kind: str, goal: float) -> Iterator[Measure]:
    ours, bare, peaks = [], [], []

    async def once(number: int) -> None:
        base = folder / f"{kind}{number}"
        base.mkdir()
        project = _project(base, url)
        async with open_session(project, "bench", Quiet()) as session:
            # The floors do not count their imports either: the worker is to be a warm one.
            await _run(session, project, f"warm_{kind}")
            seconds, peak = await _run(session, project, kind)
            ours.append(seconds)
            peaks.append(peak)

    for number in range(_ROUNDS):
        bare.append(_bare(kind, url, folder / f"bare{number}.{kind}"))
        anyio.run(once, number)
    ratio = median(bare) / median(ours)
    mode = "one unordered commit" if kind == "parquet" else "merge on a key"
    measure_ = Measure(
        f"{postgres.ROWS:,} mixed rows PostgreSQL to {kind}, {mode}",
        postgres.ROWS / median(ours), "rows a second", f"at least {goal} of the floor",
        ratio >= goal, postgres.ROWS / median(bare), f"bare ADBC stream to {kind}",
        f"ratio {ratio:.2f}; worker peak {max(peaks)} MiB",
    )  # fmt: skip
    yield measure_
    if kind == "parquet":
        yield replace(
            measure_, name="worker's peak memory, the same run", value=max(peaks), unit="MiB",
            goal=f"under {_WORKER_MIB} MiB", met=max(peaks) < _WORKER_MIB, floor=None, floor_is="",
            note="",
        )  # fmt: skip

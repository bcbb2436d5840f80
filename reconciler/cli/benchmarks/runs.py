"""Whole runs with nothing new, from claim to finish, through real workers."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import anyio

from catalog.records import Claimed, Finish, Outcome, Run
from reconciler.cli.benchmarks.measure import Measure, median, percentile
from reconciler.config.desired import (
    Connection,
    Daemon,
    Every,
    FileFormat,
    Mode,
    Pipeline,
    Project,
    StreamSettings,
)
from reconciler.daemon.loop import Loop
from reconciler.daemon.session import Session, open_session
from reconciler.daemon.teller import Quiet
from reconciler.run.messages import Done
from reconciler.telemetry.metrics import Metrics

MANY, FEW = 1_500, 100
_SECONDS = 6.0
_WARM = 8.0
"""Seconds until no worker is starting any more, on a slow machine too."""


class _Recorder(Quiet):
    """Counts runs and keeps how late each started."""

    def __init__(self) -> None:
        super().__init__()
        self.delays: list[float] = []
        self.nothing_new = 0
        self.other = 0

    def began(self, claimed: Claimed, delay: float | None) -> None:
        del claimed
        if delay is not None:
            self.delays.append(delay)

    def ended(self, claimed: Claimed, run: Run | None, finish: Finish, done: Done) -> None:
        del claimed, finish, done
        if run is not None and run.outcome is Outcome.NOTHING_NEW:
            self.nothing_new += 1
        else:
            self.other += 1


def _project(folder: Path, pipelines: int) -> Project:
    (folder / "inbox").mkdir(exist_ok=True)
    (folder / "inbox" / "one.csv").write_text("id,name\n1,a\n2,b\n")
    settings = {
        f"p{number:04}": StreamSettings(
            mode=Mode.APPEND, path="*.csv", table=f"p{number:04}", format=FileFormat("csv"),
            settle=0.0,
        )
        for number in range(pipelines)
    }  # fmt: skip
    return Project(
        name="bench",
        state_dir=folder / "state",
        catalog=f"sqlite:///{folder}/state/catalog.db",
        daemon=Daemon(max_runs=8),
        connections={
            "inbox": Connection("inbox", "files", {"path": str(folder / "inbox")}),
            "lake": Connection("lake", "parquet", {"path": str(folder / "lake")}),
        },
        pipelines={
            name: Pipeline(name, "inbox", "lake", schedule=Every(1.0), streams={name: stream})
            for name, stream in settings.items()
        },
    )


async def _watch(project: Project, seconds: float, *, settle: bool) -> tuple[_Recorder, float]:
    """Serve the project; once everything was loaded, record for ``seconds``."""
    recorder = _Recorder()
    async with open_session(project, "bench", recorder) as session:
        loop = _loop(project, session)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(session.keeper.keep)
            # A daemon that has been up for a while: a worker is ready.
            await session.pool.release(await session.pool.acquire(), healthy=True)
            await loop.observe_all()
            tasks.start_soon(loop.run, tasks)
            with anyio.move_on_after(180):
                while settle and recorder.other < len(project.pipelines):  # noqa: ASYNC110
                    await anyio.sleep(0.1)  # the first load is not measured
            await anyio.sleep(_WARM)
            recorder.delays.clear()
            recorder.nothing_new = 0
            started = time.perf_counter()
            await anyio.sleep(seconds)
            took = time.perf_counter() - started
            count = recorder.nothing_new
            loop.drain()
            await session.runs.wait_idle()
            tasks.cancel_scope.cancel()
    return recorder, count / took


def _loop(project: Project, session: Session) -> Loop:
    return Loop(
        project, session.catalog, session.keeper, session.runs, session.clock, Metrics("bench")
    )


def measure(folder: Path) -> Iterator[Measure]:
    """Rate of runs with nothing new when more are due than can be done, and how late a run
    starts when they are few."""
    many = _project(folder, MANY)
    _, rate = anyio.run(lambda: _watch(many, _SECONDS, settle=True))
    yield Measure(
        "no-op runs, claim to finish, durable, through workers", rate, "a second",
        "1,000 a second", rate >= 1000, note=f"{MANY} pipelines due each second",
    )  # fmt: skip
    few = _project(folder, FEW)
    recorder, _ = anyio.run(lambda: _watch(few, _SECONDS, settle=False))
    p50, p99 = median(recorder.delays) * 1e3, percentile(recorder.delays, 0.99) * 1e3
    yield Measure("due to started, p50", p50, "ms", "under 5 ms", p50 < 5,
                  note=f"{FEW} pipelines each second")  # fmt: skip
    yield Measure("due to started, p99", p99, "ms", "under 25 ms", p99 < 25)

"""Minutes of a real ``reconciler serve``: 200 pipelines, some each second, rows trickling in.

Looked at from outside: the processes in /proc, the scrape, the files. What grows by design is
measured by what it stands for: the catalog by the runs in it, the lake by the batches.
"""

from __future__ import annotations

import os
import random
import sqlite3
import threading
import time
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb

from tests.crash.test_stale_holder import _workers
from tests.e2e.world import World, eventually
from tests.soak.samples import WAL_KIB, Tolerance, descriptors, rss_kib, series

_TABLES = 200
_BYTES_A_RUN = 4_096
"""Run, commit and the answers of two operations in the catalog, with their indexes."""


@dataclass(frozen=True, slots=True)
class Look:
    """One look. Sizes in KiB."""

    second: float
    daemon_rss: int
    daemon_fds: int
    workers: int
    workers_rss: int
    """Of the largest of them."""
    workers_fds: int
    """Of the one with most."""
    series: int
    wal: int
    catalog: int
    runs: int
    staged: int
    lake_files: int


# A small catalog lies in memory whole, in the caches (32 MiB at most) of writer and readers: the
# daemon's memory may grow by twice what the file does. That it stays is what the month shows.
TOLERANCES = {
    "daemon_rss": Tolerance(1.05, 3 * 1024),
    "daemon_fds": Tolerance(1.0, 12),  # three for each run under way at that moment
    "workers": Tolerance(1.0, 2),
    "workers_rss": Tolerance(1.15, 16 * 1024),
    "workers_fds": Tolerance(1.0, 6),
    "series": Tolerance(1.02, 20),  # some are there while a pipeline waits, others while it runs
    "staged": Tolerance(1.0, 16),
}


def config() -> str:
    """Half of them into one DuckDB file, half into a lake, `every 1s` to `every 10s`."""
    head = (
        '[connections.src]\nconnector = "sql"\nurl = "sqlite:///source.db"\n'
        '[connections.duck]\nconnector = "duckdb"\npath = "out.duckdb"\n'
        '[connections.lake]\nconnector = "parquet"\npath = "lake"\n'
        '[defaults]\ncursor = ["id"]\n'
    )
    return head + "".join(
        f'[pipelines.p{n}]\nsource = "src"\ndestination = "{_destination(n)}"\n'
        f'schedule = "every {1 + n % 10}s"\nmode = "append"\n[pipelines.p{n}.streams.t{n}]\n'
        for n in range(_TABLES)
    )


def _destination(n: int) -> str:
    return "duck" if n < _TABLES // 2 else "lake"


class Trickle:
    """Adds a row to some table, a few times a second."""

    def __init__(self, source: Path) -> None:
        self._source, self._over = source, threading.Event()
        with sqlite3.connect(source) as db:
            db.execute("pragma journal_mode = wal")
            for n in range(_TABLES):
                db.execute(f"create table t{n} (id integer primary key, name text)")
                db.execute(f"insert into t{n} (name) values ('first')")
        db.close()
        self._thread = threading.Thread(target=self._serve)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._over.set()
        self._thread.join()

    def _serve(self) -> None:
        chance, db = random.Random(0), sqlite3.connect(self._source, timeout=30)
        while not self._over.wait(0.2):
            with db:
                db.execute(f"insert into t{chance.randrange(_TABLES)} (name) values ('more')")
        db.close()


def serve(
    folder: Path, seconds: float, tell: Callable[[Look], None] = lambda _: None
) -> tuple[list[Look], list[str]]:
    """Serve for so long; what was seen, and what went wrong in the end."""
    world = World(folder)
    trickle = Trickle(world.source)
    world.write_config(config(), lease_ttl="30s")
    try:
        daemon = world.start()
        url = daemon.wait_ready()
        # The first batches of 200 tables are another matter than what follows for ever.
        eventually(lambda: _missing(world) == [], "all is loaded once", patience=600)
        trickle.start()
        looks, began = [], time.monotonic()
        try:
            for number in range(1, 31):
                time.sleep(max(began + seconds * number / 30 - time.monotonic(), 0))
                looks.append(_look(folder, daemon.process.pid, url, time.monotonic() - began))
                tell(looks[-1])
        finally:
            trickle.stop()
        eventually(lambda: _missing(world) == [], "all rows arrive", patience=300)
        problems = [f"exit code {code}"] if (code := daemon.stop()) else []
        failed = [e for e in daemon.events if _is_bad(e)]
        problems += [f"a run did not succeed: {event}" for event in failed[:3]]
        left = _files(folder, ".staged")
        return looks, problems + [f"{left} staged files are left over"] * bool(left)
    finally:
        world.close()


def _is_bad(event: dict[str, Any]) -> bool:
    """That a hundred wait for one DuckDB file may take too long for one, which tries again."""
    busy = "publishes at this moment" in str(event.get("reason", ""))
    return event.get("outcome") in ("failed", "held") and not busy


def _look(folder: Path, pid: int, url: str, second: float) -> Look:
    with urllib.request.urlopen(f"{url}metrics", timeout=60) as answer:
        scrape: bytes = answer.read()
    workers = [_of(worker) for worker in _workers(pid)]
    catalog = folder / "state" / "catalog.db"
    return Look(
        second=second,
        daemon_rss=rss_kib(pid),
        daemon_fds=descriptors(pid),
        workers=len(workers),
        workers_rss=max((rss for rss, _ in workers), default=0),
        workers_fds=max((fds for _, fds in workers), default=0),
        series=series(scrape),
        wal=catalog.with_name("catalog.db-wal").stat().st_size // 1024,
        catalog=catalog.stat().st_size // 1024,
        runs=_runs(scrape),
        staged=_files(folder, ".staged"),
        lake_files=_files(folder / "lake", ".parquet"),
    )


def _files(folder: Path, ending: str) -> int:
    """How many there are; folders may go while they are counted."""
    return sum(n.endswith(ending) for _, _, names in os.walk(folder) for n in names)


def _of(worker: int) -> tuple[int, int]:
    try:
        return rss_kib(worker), descriptors(worker)
    except OSError:  # it ended meanwhile
        return 0, 0


def _runs(scrape: bytes) -> int:
    lines = scrape.decode().splitlines()
    return round(sum(float(x.rsplit(" ", 1)[1]) for x in lines if x.startswith(_RUNS)))


_RUNS = "reconciler_runs_total{"


def _missing(world: World) -> list[int]:
    """Tables whose rows are not all at their destination, each once."""
    source = sqlite3.connect(world.source)
    missing = []
    try:
        with duckdb.connect(str(world.folder / "out.duckdb"), read_only=True) as db:
            for n in range(_TABLES):
                (there,) = source.execute(f"select count(*) from t{n}").fetchone()
                files = f"read_parquet('{world.folder}/lake/t{n}/*.parquet')"
                place = f"t{n}" if _destination(n) == "duck" else files
                found = db.execute(f"select count(*), count(distinct id) from {place}").fetchone()
                if found != (there, there):
                    missing.append(n)
    except (duckdb.CatalogException, duckdb.IOException):  # not made yet, or being written
        return [-1]
    finally:
        source.close()
    return missing


def judge(looks: Sequence[Look]) -> list[str]:
    """What is not flat once the first third is over, in which caches fill."""
    steady = looks[len(looks) // 3 :]
    half = len(steady) // 2
    found = []
    cached = 2 * (steady[-1].catalog - steady[0].catalog)
    for name, tolerance in TOLERANCES.items():
        early = max(getattr(look, name) for look in steady[:half])
        late = max(getattr(look, name) for look in steady[half:])
        more = tolerance.more + (cached if name == "daemon_rss" else 0)
        if late > early * tolerance.factor + more:
            found.append(f"{name} grew from {early} to {late}")
    first, last = steady[0], steady[-1]
    grown = (last.catalog - first.catalog) * 1024 / max(last.runs - first.runs, 1)
    if grown > _BYTES_A_RUN:
        found.append(f"the catalog grew by {grown:.0f} bytes for each run")
    if last.wal > WAL_KIB:
        found.append(f"the catalog's log came to {last.wal} KiB")
    return found

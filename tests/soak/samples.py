"""What is measured, and when it counts as flat."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import apsw

from catalog.sqlite.database import Tuning
from catalog.sqlite.queries import SQL

WRITER_HELD_MS = 10.0
"""No transaction of retention may keep the writer for longer."""

WAL_KIB = Tuning().truncate_bytes // 1024 + 8 * 1024
"""The log is cut when it is longer than the first part; the rest is written until that is done."""


class Holds:
    """How long retention's transactions kept the write lock, by the write connection's own word."""

    def __init__(self) -> None:
        self.deleting: list[tuple[float, float]] = []
        """Seconds of wall time, and of the thread's own processor time."""
        self._began = (0.0, 0.0)
        self._deletes = False

    def watch(self, db: apsw.Connection) -> None:
        """A hook for new connections."""
        db.trace_v2(apsw.SQLITE_TRACE_PROFILE, self._ended)

    def _ended(self, event: dict[str, Any]) -> None:
        """A statement is done."""
        sql = event["sql"]
        if sql == "begin immediate":
            self._began, self._deletes = _now(), False
        elif sql == SQL["drop_old_edits"]:
            self._deletes = True
        elif sql == "commit" and self._deletes:
            self._deletes = False
            wall, cpu = _now()
            self.deleting.append((wall - self._began[0], cpu - self._began[1]))


def _now() -> tuple[float, float]:
    return time.perf_counter(), time.thread_time()


@dataclass(frozen=True, slots=True)
class Sample:
    """One look. Sizes in KiB, waits in milliseconds since the look before."""

    day: float
    rss: int
    file: int
    wal: int
    fds: int
    threads: int
    series: int
    holders: int
    commits: int
    p50: float
    p99: float
    held_p50: float
    held_p99: float
    held_cpu: float
    """The most processor time that one transaction of retention took: what it needs on a machine
    that has nothing else to do."""


def take(
    day: float,
    state: Path,
    size: int,
    exposition: bytes,
    waits: dict[str, list[float]],
    holds: Holds,
) -> Sample:
    """Look at this process, its catalog and what was waited for since the last look.

    ``size``: bytes that the catalog says it has, wherever they are by now: how far the log has been
    copied into the file is the scheduling of two threads.
    """
    commits = [*waits.get("commit", ()), *waits.get("finish", ()), *waits.get("claim", ())]
    for each in waits.values():
        each.clear()
    walls = [wall for wall, _ in holds.deleting]
    cpu = max((cpu for _, cpu in holds.deleting), default=0.0)
    holds.deleting.clear()
    return Sample(
        day=day,
        rss=rss_kib(os.getpid()),
        file=size // 1024,
        wal=_kib(state / "catalog.db-wal"),
        fds=descriptors(os.getpid()),
        threads=threading.active_count(),
        series=series(exposition),
        holders=len(list((state / "holders").iterdir())),
        commits=len(commits),
        p50=1e3 * _quantile(commits, 0.5),
        p99=1e3 * _quantile(commits, 0.99),
        held_p50=1e3 * _quantile(walls, 0.5),
        held_p99=1e3 * _quantile(walls, 0.99),
        held_cpu=1e3 * cpu,
    )


def rss_kib(pid: int) -> int:
    """Resident memory of a process."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") // 1024


def descriptors(pid: int) -> int:
    """How many files a process has open."""
    return sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())


def series(exposition: bytes) -> int:
    """How many series a scrape brings."""
    return sum(1 for line in exposition.splitlines() if line and not line.startswith(b"#"))


def _kib(path: Path) -> int:
    return path.stat().st_size // 1024 if path.exists() else 0


def _quantile(values: Sequence[float], share: float) -> float:
    return sorted(values)[int(len(values) * share)] if values else 0.0


@dataclass(frozen=True, slots=True)
class Tolerance:
    """The later half may exceed the earlier one by this factor and this much more."""

    factor: float
    more: float


TOLERANCES: Mapping[str, Tolerance] = {
    "rss": Tolerance(1.05, 3 * 1024),
    "file": Tolerance(1.05, 128),
    "fds": Tolerance(1.0, 4),  # SQLite closes a file late when another connection has locks on it
    "threads": Tolerance(1.0, 2),
    "series": Tolerance(1.0, 0),
    "holders": Tolerance(1.5, 3),
    "p50": Tolerance(1.5, 0.5),
    "p99": Tolerance(2.0, 5.0),
}
"""Waits have wide ones: the machine has other work, too."""
_WAITS = ("p50", "p99")
_FLOORS = ("fds", "threads")
"""Who comes by opens some for a moment: a leak is what stays."""


def judge(samples: Sequence[Sample], after: float, *, waits: bool = True) -> list[str]:
    """What is not flat from day ``after`` on, once retention has begun to take away.

    Sizes are compared by the greatest of each half, what visitors open by the least, waits by the
    median. The log has a limit and no trend: how far it comes below that is the scheduling of two
    threads. How long the writer was kept is judged by processor time, and by the clock where it
    says more than who else was at work: ``held_p99`` is for people.
    """
    steady = [sample for sample in samples if sample.day > after]
    half = len(steady) // 2
    found = []
    for name, tolerance in TOLERANCES.items():
        if name in _WAITS and not waits:
            continue
        measure = _median if name in _WAITS else min if name in _FLOORS else max
        early = measure([getattr(s, name) for s in steady[:half]])
        late = measure([getattr(s, name) for s in steady[half:]])
        if late > early * tolerance.factor + tolerance.more:
            found.append(f"{name} grew from {early:.6g} to {late:.6g}")
    log = max(sample.wal for sample in samples)
    if log > WAL_KIB:
        found.append(f"wal came to {log} KiB")
    for name in ("held_p50", "held_cpu"):
        longest = max(getattr(sample, name) for sample in samples)
        if waits and longest > WRITER_HELD_MS:
            found.append(f"retention kept the writer: {name} {longest:.3g} ms")
    return found


def _median(values: Sequence[float]) -> float:
    return sorted(values)[len(values) // 2]


def head(of: type[Any]) -> str:
    """Names over the lines of ``line``."""
    return " ".join(f"{f.name:>11}" for f in fields(of))


def line(sample: Any) -> str:
    """A sample in a line."""
    return " ".join(f"{getattr(sample, f.name):>11.5g}" for f in fields(sample))

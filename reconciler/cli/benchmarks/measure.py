"""A measured figure, its floor and its goal; and the few statistics that the benchmarks share."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Measure:
    """One line of the benchmark."""

    name: str
    value: float
    unit: str
    goal: str
    met: bool
    floor: float | None = None
    """What the machine itself takes, in the same unit, measured just before or after."""
    floor_is: str = ""
    note: str = ""


def percentile(samples: Sequence[float], share: float) -> float:
    """The value below which ``share`` (0 to 1) of the samples lie."""
    ordered = sorted(samples)
    return ordered[min(int(len(ordered) * share), len(ordered) - 1)]


def median(samples: Sequence[float]) -> float:
    return percentile(samples, 0.5)


def timed(call: Callable[[], object], times: int) -> list[float]:
    """Seconds that each of ``times`` calls took."""
    took = []
    for _ in range(times):
        started = time.perf_counter()
        call()
        took.append(time.perf_counter() - started)
    return took


def flush_floor(folder: Path, times: int = 400) -> list[float]:
    """Seconds for a 4 KiB append and fdatasync: what one durable write costs here at least."""
    block = os.urandom(4096)
    fd = os.open(folder / "floor", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def write() -> None:
        os.write(fd, block)
        os.fdatasync(fd)

    try:
        return timed(write, times)
    finally:
        os.close(fd)
        (folder / "floor").unlink()

"""Time as a parameter.

Two clocks, never mixed: ``boot_ns`` (CLOCK_BOOTTIME: goes on in suspend, never jumps) decides when
a lease may be taken over; ``wall_us`` is for people and for schedules. Neither is trusted for
safety: that is what epochs are for (rule 1, A6).
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Protocol


class Clock(Protocol):
    """What the catalog and the daemon know about time."""

    @property
    def boot_id(self) -> str:
        """Identity of this boot of this machine; ``boot_ns`` compares only within one."""
        ...

    def boot_ns(self) -> int:
        """Nanoseconds since boot, suspend included."""
        ...

    def wall_us(self) -> int:
        """Microseconds since 1970-01-01 UTC."""
        ...


class SystemClock:
    """The machine's own clocks."""

    def __init__(self) -> None:
        path = Path("/proc/sys/kernel/random/boot_id")
        # macOS has no boot id; one fixed value keeps leases comparable there (development only).
        self._boot_id = path.read_text().strip() if path.exists() else "one-boot"
        self._clock = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)

    @property
    def boot_id(self) -> str:
        return self._boot_id

    def boot_ns(self) -> int:
        return time.clock_gettime_ns(self._clock)

    def wall_us(self) -> int:
        return time.time_ns() // 1_000


class ManualClock:
    """A clock that stands still until told otherwise; for tests and simulations."""

    def __init__(
        self,
        *,
        boot_id: str = "boot-1",
        boot_ns: int = 10**12,
        wall_us: int = 1_790_000_000 * 10**6,
    ) -> None:
        self.boot_id = boot_id
        self._boot_ns = boot_ns
        self._wall_us = wall_us

    def boot_ns(self) -> int:
        return self._boot_ns

    def wall_us(self) -> int:
        return self._wall_us

    def advance(self, seconds: float) -> None:
        """Let time pass on both clocks."""
        self._boot_ns += round(seconds * 1e9)
        self._wall_us += round(seconds * 1e6)

    def jump_wall(self, seconds: float) -> None:
        """Move the wall clock alone, as an administrator or NTP does."""
        self._wall_us += round(seconds * 1e6)

    def reboot(self, boot_id: str) -> None:
        """A new boot: boot time starts again near zero."""
        self.boot_id = boot_id
        self._boot_ns = 10**9

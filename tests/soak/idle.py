"""An event loop that never waits for time: when nothing is left to do, the next timer is due.

Threads are real, so real work is waited for: while a call of ``in_flight`` is under way the loop
blocks until something happens, and its time stands still.
"""

from __future__ import annotations

import asyncio
import selectors
from time import perf_counter
from typing import Any

from catalog.clock import ManualClock


class IdleLoop(asyncio.SelectorEventLoop):
    """Its time is its own; ``in_flight`` counts what threads are at work on."""

    def __init__(self) -> None:
        self.now = 0.0
        self.in_flight = 0
        super().__init__(_Selector(self))

    def time(self) -> float:
        return self.now


class _Selector(selectors.DefaultSelector):
    def __init__(self, loop: IdleLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        events = super().select(0)
        if events or timeout == 0:
            return events
        if timeout is None or self._loop.in_flight:
            return super().select(None)
        self._loop.now += timeout
        return []


class LoopClock(ManualClock):
    """Boot time is the loop's; the wall clock runs ``speed`` times faster."""

    def __init__(self, loop: IdleLoop, speed: float) -> None:
        super().__init__(boot_id="soak")
        self._loop, self._speed = loop, speed

    def boot_ns(self) -> int:
        return super().boot_ns() + round(self._loop.now * 1e9)

    def wall_us(self) -> int:
        return super().wall_us() + round(self._loop.now * self._speed * 1e6)

    def passed_s(self) -> float:
        """Seconds of the wall clock since the beginning."""
        return self._loop.now * self._speed


class InFlight:
    """A catalog whose calls the loop waits for; how long each took, in seconds, is kept by verb."""

    def __init__(self, catalog: Any, loop: IdleLoop, waits: dict[str, list[float]]) -> None:
        self._catalog, self._loop, self._waits = catalog, loop, waits

    async def wait_changed(self, after: int, timeout: float) -> bool:
        """Nobody else's changes are waited for."""
        del after
        await asyncio.sleep(timeout)
        return False

    def __getattr__(self, name: str) -> Any:
        verb = getattr(self._catalog, name)
        if not callable(verb):
            return verb
        waits = self._waits.setdefault(name, [])
        loop = self._loop

        async def call(*args: Any, **kwargs: Any) -> Any:
            loop.in_flight += 1
            began = perf_counter()
            try:
                return await verb(*args, **kwargs)
            finally:
                waits.append(perf_counter() - began)
                loop.in_flight -= 1

        return call

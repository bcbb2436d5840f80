"""The catalog as a process meets it on a bad day: slow, away, and answers that get lost.

Every transaction is still one moment of the reference model. What fails is around it: the time
before and after, ``Unavailable`` (it did not happen) and ``Unknown`` (it did, or it did not). After
each transaction the history is told what changed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import anyio

from catalog.errors import Unavailable, Unknown
from catalog.memory import MemoryCatalog, MemoryStore
from tests.simulation.vtime import Crash, Node, NodeClock, World

_READS = frozenset(
    [
        "pipeline",
        "changed",
        "cursor",
        "streams",
        "run",
        "runs",
        "commits",
        "schemas",
        "decisions",
        "files",
        "edits",
        "holders",
        "stats",
        "check",
    ]
)
_WRITES = frozenset(["claim", "renew", "commit", "finish", "edit", "retain"])


@dataclass(slots=True)
class Weather:
    """How the catalog behaves; one for all, changed by the story."""

    slow: float = 0.0
    """Mean seconds that a write takes more."""
    unknown: float = 0.0
    """Share of writes whose answer is lost; half of them happened."""
    away_until: float = 0.0
    """Until then every call is ``Unavailable``."""
    crash: float = 0.0
    """Share of writes at which the process that makes them ends, before or after."""


class News:
    """Wakes those who wait for what other processes change."""

    def __init__(self) -> None:
        self.waiting: dict[SimCatalog, asyncio.Event] = {}

    def tell(self) -> None:
        """Something changed."""
        for told in tuple(self.waiting.values()):
            told.set()


@dataclass(slots=True)
class Around:
    """What all handles share."""

    store: MemoryStore
    weather: Weather
    told: Callable[[Node, str, tuple[Any, ...], Any], None]
    """Of each transaction: by whom, which verb, its arguments, its answer."""
    crash: Callable[[Node], None]
    news: News = field(default_factory=News)
    by_the_dead: int = 0
    """The last change that a process made which has ended since."""
    under_way: int = 0
    """Writes that have begun and not ended."""


class SimCatalog:
    """A handle on the store for one process; implements ``catalog.port.Catalog``."""

    def __init__(self, node: Node, clock: NodeClock, around: Around) -> None:
        self._node, self._world, self._around = node, node.world, around
        self._inner = MemoryCatalog(clock, around.store)
        for verb in _READS:
            setattr(self, verb, self._reading(getattr(self._inner, verb)))
        for verb in _WRITES:
            setattr(self, verb, self._writing(verb, getattr(self._inner, verb)))

    @property
    def id(self) -> str:
        return self._inner.id

    def forget(self) -> None:
        """Its process is gone: what it wrote is news to all."""
        last = self._around.store.changed_by.pop(self._inner, 0)
        self._around.by_the_dead = max(self._around.by_the_dead, last)

    async def aclose(self) -> None:
        """Nothing is open."""

    def _live(self) -> None:
        if not self._node.alive:
            raise Crash

    def _there(self) -> None:
        self._live()
        if self._world.now < self._around.weather.away_until:
            raise Unavailable("the catalog is away")

    def _reading(self, verb: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def read(*args: Any, **kwargs: Any) -> Any:
            self._there()
            slow = self._around.weather.slow
            if slow and self._world.random.random() < 0.2:
                await asyncio.sleep(0.01 * slow)
                self._there()
            return await verb(*args, **kwargs)

        return read

    def _writing(
        self, name: str, verb: Callable[..., Awaitable[Any]]
    ) -> Callable[..., Awaitable[Any]]:
        world: World = self._world
        chance = world.random

        async def write(*args: Any, **kwargs: Any) -> Any:
            self._around.under_way += 1
            try:
                return await attempt(*args, **kwargs)
            finally:
                self._around.under_way -= 1

        async def attempt(*args: Any, **kwargs: Any) -> Any:
            weather = self._around.weather
            self._there()
            pause = 0.002 + (chance.expovariate(1 / weather.slow) if weather.slow else 0.0)
            await asyncio.sleep(pause * chance.random())  # queued: may be withdrawn
            self._there()
            with anyio.CancelScope(shield=True):
                lost = bool(weather.unknown) and chance.random() < weather.unknown
                crash = bool(weather.crash) and chance.random() < weather.crash
                if (lost or crash) and chance.random() < 0.5:
                    self._fail(name, crash)
                answer = await self._carry_out(name, verb, args, kwargs)
                if lost or crash:
                    self._fail(name, crash)
                await asyncio.sleep(pause * chance.random())
                self._live()
                return answer

        return write

    def _fail(self, name: str, crash: bool) -> None:
        if crash:
            self._world.say(f"{self._node.name} ends within its {name}")
            self._around.crash(self._node)
            raise Crash
        self._world.say(f"{self._node.name}: the answer to its {name} is lost")
        raise Unknown(f"the answer to {name} was lost")

    async def _carry_out(
        self, name: str, verb: Callable[..., Awaitable[Any]], args: Any, kwargs: Any
    ) -> Any:
        before = self._around.store.change
        answer = await verb(*args, **kwargs)
        self._live()
        if self._around.store.change > before:
            self._around.news.tell()
        self._around.told(self._node, name, args, answer)
        return answer

    async def wait_changed(self, after: int, timeout: float) -> bool:
        """As the port says; what this handle wrote itself is no news."""
        self._there()
        here, waiting = asyncio.get_running_loop(), self._around.news.waiting
        until = here.time() + timeout
        while not self._others_changed(after) and here.time() < until:
            waiting[self] = told = asyncio.Event()
            alarm = here.call_at(until, told.set)
            try:
                await told.wait()
            finally:
                alarm.cancel()
                waiting.pop(self, None)
            await asyncio.sleep(0.05)
        self._there()
        return self._others_changed(after)

    def _others_changed(self, after: int) -> bool:
        changed = self._around.store.changed_by.items()
        others = (at for handle, at in changed if handle is not self._inner)
        return max(others, default=0) > after or self._around.by_the_dead > after

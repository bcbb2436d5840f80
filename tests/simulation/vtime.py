"""Virtual time: a world whose clock jumps to the next event, and processes that live in it.

Each process (a ``Node``) has an asyncio loop of its own with its own monotonic time, so that one of
them can be stopped, suspended or killed while the others go on, as the kernel would do it. Nothing
sleeps and nothing runs beside anything else: the same seed gives the same history.
"""

from __future__ import annotations

import asyncio
import contextvars
import heapq
import itertools
import math
import random
from collections import deque
from collections.abc import Callable, Coroutine, Generator
from typing import Any

from tests.simulation.wrong import Rule, Wrong

START_US = 1_790_000_000 * 10**6
"""The wall clock at the world's beginning."""


_TASKS = 200
_TURNS = 20_000
"""So many turns at one moment are a loop that nothing ends."""


def _on_grid(seconds: float) -> float:
    """The next multiple of about a microsecond: sums and differences of such are exact."""
    return math.ceil(seconds * 1048576) / 1048576


class Crash(BaseException):
    """Raised inside a process that ends here, at once."""


class Machine:
    """The clocks that all processes of one machine share."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.boots = 1
        self.booted_at = -1000.0
        self.wall_off = 0.0

    def reboot(self) -> None:
        """A new boot: boot time begins anew."""
        self.boots += 1
        self.booted_at = self._world.now - 1.0

    def clock(self, skew: float = 0.0) -> NodeClock:
        """A process's view of the clocks; ``skew`` is of its wall clock, in seconds."""
        return NodeClock(self, self._world, skew)


class NodeClock:
    """Implements ``catalog.clock.Clock``."""

    def __init__(self, machine: Machine, world: World, skew: float) -> None:
        self._machine, self._world = machine, world
        self.skew = skew
        self.boot_id = f"boot-{machine.boots}"
        self._booted_at = machine.booted_at

    def boot_ns(self) -> int:
        return round((self._world.now - self._booted_at) * 1e9)

    def wall_us(self) -> int:
        return START_US + round((self._world.now + self._machine.wall_off + self.skew) * 1e6)


class _Handle:
    """A callback that waits for its turn: what of ``asyncio.TimerHandle`` anybody asks for."""

    __slots__ = ("args", "callback", "context", "off", "when_")

    def __init__(
        self, callback: Any, args: Any, context: contextvars.Context | None, when: float
    ) -> None:
        self.callback, self.args = callback, args
        self.context = contextvars.copy_context() if context is None else context
        self.when_ = when
        self.off = False

    def cancel(self) -> None:
        self.off = True
        self.callback = self.args = None

    def cancelled(self) -> bool:
        return self.off

    def when(self) -> float:
        return self.when_


class NodeLoop(asyncio.AbstractEventLoop):
    """One process's event loop; the world turns it."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.lost = 0.0
        """Seconds that the monotonic clock did not see (suspend)."""
        self.ready: deque[_Handle] = deque()
        self.timers: list[tuple[float, int, _Handle]] = []
        self.tasks: list[asyncio.Task[Any]] = []
        """In their order; those that are done are dropped now and then."""
        self.faults: list[BaseException] = []
        self.stopped = False

    def time(self) -> float:
        return self._world.now - self.lost

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return True

    def is_closed(self) -> bool:
        return False

    def call_soon(
        self, callback: Any, *args: Any, context: contextvars.Context | None = None
    ) -> Any:
        handle = _Handle(callback, args, context, 0.0)
        self.ready.append(handle)
        return handle

    call_soon_threadsafe = call_soon

    def call_later(
        self, delay: float, callback: Any, *args: Any, context: contextvars.Context | None = None
    ) -> Any:
        return self.call_at(self.time() + delay, callback, *args, context=context)

    def call_at(
        self, when: float, callback: Any, *args: Any, context: contextvars.Context | None = None
    ) -> Any:
        handle = _Handle(callback, args, context, when)
        heapq.heappush(self.timers, (when, self._world.count(), handle))
        return handle

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self)

    def create_task(
        self,
        coro: Generator[Any, None, Any] | Coroutine[Any, Any, Any],
        *,
        name: str | None = None,
        context: contextvars.Context | None = None,
    ) -> asyncio.Task[Any]:
        task: asyncio.Task[Any] = asyncio.Task(coro, loop=self, name=name, context=context)  # type: ignore[arg-type]
        self.tasks.append(task)
        if len(self.tasks) > _TASKS:
            self.tasks = [other for other in self.tasks if not other.done()]
        return task

    def get_task_factory(self) -> None:
        return None

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        error = context.get("exception")
        self.faults.append(error or RuntimeError(context.get("message", "")))

    # -- the world's side -----------------------------------------------------------------------

    def next_timer(self) -> float | None:
        """The world's time of the next timer."""
        timers = self.timers
        while timers and timers[0][2].off:
            heapq.heappop(timers)
        return timers[0][0] + self.lost if timers else None

    def due_timers(self) -> None:
        """Timers whose time has come become ready."""
        timers, now = self.timers, self._world.now
        while timers and timers[0][0] + self.lost <= now:  # rounded as in ``next_timer``
            handle = heapq.heappop(timers)[2]
            if not handle.off:
                self.ready.append(handle)

    def turn(self) -> None:
        """Run what is ready now, once each."""
        ready = self.ready
        asyncio._set_running_loop(self)
        try:
            for _ in range(len(ready)):
                if self.stopped:  # its process ended in the turn before this
                    return
                handle = ready.popleft()
                if handle.off:
                    continue
                try:
                    handle.context.run(handle.callback, *handle.args)
                except (KeyboardInterrupt, SystemExit):
                    raise
                except BaseException as error:
                    self.faults.append(error)
        finally:
            asyncio._set_running_loop(None)


class Node:
    """A process with an event loop."""

    def __init__(self, world: World, name: str) -> None:
        self.world, self.name = world, name
        self.loop = NodeLoop(world)
        self.frozen_until = self._asleep_until = 0.0
        self.alive = True
        world.nodes.append(self)

    def spawn(self, work: Coroutine[Any, Any, Any], name: str = "") -> asyncio.Task[Any]:
        """Start a task in this process."""
        return self.loop.create_task(work, name=name or None)

    def freeze(self, seconds: float) -> None:
        """As SIGSTOP, and SIGCONT later: nothing of it runs, its clocks go on."""
        self.frozen_until = max(self.frozen_until, self.world.now + seconds)

    def suspend(self, seconds: float) -> None:
        """The machine sleeps: the monotonic clock does not see it, the boot clock does."""
        self.freeze(_on_grid(seconds))
        self.loop.lost += self.frozen_until - max(self.world.now, self._asleep_until)
        self._asleep_until = self.frozen_until

    def thaw(self) -> None:
        """Go on now, from whatever stopped it."""
        if self._asleep_until > self.world.now:
            self.loop.lost -= self._asleep_until - self.world.now
        self.frozen_until = self._asleep_until = min(self.frozen_until, self.world.now)

    def bury(self) -> None:
        """End the process at once; then let its tasks end where nothing can hear them."""
        self.alive, self.loop.stopped = False, True
        self.world.nodes.remove(self)
        self.world.graveyard.append(self.loop)

    def next_event(self) -> float | None:
        """When it has something to do: now if something is ready."""
        timer = self.world.now if self.loop.ready else self.loop.next_timer()
        if timer is None or timer >= self.frozen_until:
            return timer
        return self.frozen_until


class World:
    """The clock, the order of events, and chance."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.random = random.Random(seed)
        self.now = 0.0
        self.nodes: list[Node] = []
        self.graveyard: list[NodeLoop] = []
        self._events: list[tuple[float, int, Callable[[], None], bool]] = []
        self.count = itertools.count().__next__
        self.steps = 0
        self.fault: Wrong | None = None
        """What a rule found, in case the code that it was raised in went on."""
        self.idle: Callable[[], float | None] = lambda: None
        """When nothing but polling is under way: until when nothing will be. None: it is not."""
        self.trace: Callable[[str], None] | None = None

    def say(self, text: str) -> None:
        """Into the story that ``--verbose`` tells."""
        if self.trace is not None:
            self.trace(f"{self.now:10.3f} {text}")

    def at(self, when: float, event: Callable[[], None], *, unseen: bool = False) -> None:
        """Let ``event`` happen at ``when``, or now if that is past. ``unseen``: by no daemon."""
        heapq.heappush(self._events, (max(when, self.now), self.count(), event, unseen))

    def after(self, seconds: float, event: Callable[[], None], *, unseen: bool = False) -> None:
        self.at(self.now + seconds, event, unseen=unseen)

    def run(self, until: float) -> None:
        """Let time pass until ``until``."""
        while True:
            self._turn_ready()
            when = self._next(until)
            if when >= until:
                self.now = max(self.now, _on_grid(until))
                return
            self.now = max(self.now, _on_grid(when))
            seen = not self._happen()
            if seen or self.idle() is None:
                for node in self.nodes:
                    if node.frozen_until <= self.now:
                        node.loop.due_timers()
            self.bury()

    def _happen(self) -> bool:
        """Let happen what is due. True: something did, and nothing that a daemon could see."""
        unseen = False
        while self._events and self._events[0][0] <= self.now:
            _, _, event, unseen = heapq.heappop(self._events)
            event()
            if not unseen:
                return False
        return unseen

    def _turn_ready(self) -> None:
        turns = 0
        while True:
            busy = [n for n in self.nodes if n.loop.ready and n.frozen_until <= self.now]
            if not busy:
                return
            for node in busy:
                if node.frozen_until <= self.now:
                    node.loop.turn()
                if self.fault is not None:
                    raise self.fault
                if node.loop.faults and node.alive:
                    raise node.loop.faults[0]
            self.steps += 1
            turns += 1
            if turns > _TURNS:
                raise Wrong(Rule.ALIVE, "the world turns and turns and no time passes")

    def _next(self, until: float) -> float:
        event = min(self._events[0][0], until) if self._events else until
        poll = math.inf
        for node in self.nodes:
            when = node.next_event()
            if when is not None and when < poll:
                poll = when
        if poll >= event:
            return event
        skip = self.idle()
        return poll if skip is None else min(max(skip, poll), event)

    def bury(self) -> None:
        """Let the tasks of dead processes end: whatever they call is dead with them."""
        while self.graveyard:
            loop = self.graveyard.pop()
            loop.faults.clear()
            loop.stopped = False
            for task in loop.tasks:
                task.cancel()
            for _ in range(200):
                loop.turn()
                for _, _, handle in loop.timers:
                    handle.cancel()
                loop.timers.clear()
                if not loop.ready:
                    break
            loop.faults.clear()

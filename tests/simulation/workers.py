"""Workers without processes: the real run code in fibers, behind the interface of the pool.

A worker executes ``reconciler.run.execute`` as the process does; its line to the daemon carries
the same frames. It can be killed or stopped (SIGSTOP) at every step of a connector and at every
named point; its death is seen by the daemon as end-of-file.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, cast

import anyio

from catalog.records import Batch, FileEntry
from reconciler.connectors.ports import Destination, Source
from reconciler.run import messages as m
from reconciler.run import worker as real
from reconciler.run.link import LeaseOver
from reconciler.run.pool import LeaseRanOut, WorkerGone
from reconciler.schema.model import Schema
from tests.simulation.fiber import Fiber, Killed
from tests.simulation.vtime import Machine, Node, World

LATENCY = 0.001
"""Seconds that a message takes between daemon and worker."""


class Places:
    """Where a worker finds what its order names; and what befalls workers."""

    def source(self, worker: SimWorker, name: str) -> Source:
        raise NotImplementedError

    def destination(self, worker: SimWorker, name: str) -> Destination:
        raise NotImplementedError

    def begins(self, worker: SimWorker) -> None:
        """Called when a worker takes up a run."""

    def fate(self, worker: SimWorker, step: str) -> None:
        """Called at every step: may crash, freeze or slow the worker."""


class SimWorker:
    """One worker process, and the daemon's end of the line to it."""

    current: SimWorker | None = None
    """Whose code runs now, if any."""

    def __init__(self, world: World, node: Node, machine: Machine, places: Places) -> None:
        self.world, self.node, self.machine, self.places = world, node, machine, places
        self.clock = machine.clock()
        self.alive = True
        self.runs = 0
        self.frozen_until = 0.0
        self.link = SimLink(self)
        self.epoch = 0
        self._fibers: list[Fiber] = []
        """Of its run: the first carries out the order, others are its lanes."""
        self._running: Fiber | None = None
        self._joined: dict[Fiber, Fiber] = {}
        """Who waits for a lane's end."""
        self._inbox: deque[m.ToDaemon] = deque()
        self._reader: asyncio.Future[None] | None = None
        self._last_arrival = 0.0
        self._sleeping: object = None
        self._connections = SimConnections(self)
        self._ended = ""
        self._lease_ran_out = False
        self.pid = world.count()

    # -- the daemon's side ----------------------------------------------------------------------

    async def send(self, message: m.ToWorker) -> None:
        """As ``Worker.send``."""
        await anyio.lowlevel.checkpoint()
        if not self.alive:
            raise self._gone()
        body = m.frame(message)[4:]
        self._last_arrival = max(self.world.now + LATENCY, self._last_arrival)
        self.world.at(self._last_arrival, lambda: self._arrive(body))

    async def receive(self) -> m.ToDaemon:
        """As ``Worker.receive``: what was sent before the end still comes."""
        while not self._inbox:
            if not self.alive:
                raise self._gone()
            self._reader = asyncio.get_running_loop().create_future()
            try:
                await self._reader
            finally:
                self._reader = None
        return self._inbox.popleft()

    def _gone(self) -> WorkerGone:
        return LeaseRanOut() if self._lease_ran_out else WorkerGone(self._ended)

    def begin(self) -> None:
        self.runs += 1

    def printed(self) -> bytes:
        return b""

    def kill(self) -> None:
        """SIGKILL."""
        self.end("the worker was killed by SIGKILL")

    # -- the worker's side ----------------------------------------------------------------------

    @property
    def is_at_work(self) -> bool:
        """It lives and has not come to the end of its order."""
        return self.alive and bool(self._fibers) and not self._fibers[0].over

    def end(self, how: str) -> None:
        """The process ends here, wherever it is."""
        if not self.alive:
            return
        self.alive, self._ended = False, how
        self.places.destination_free(self)  # type: ignore[attr-defined]
        running = self._running if SimWorker.current is self else None
        for fiber in reversed(self._fibers):
            if fiber is not running and not fiber.over:
                self._turn(fiber, fiber.kill)
        self._wake_reader()

    def freeze(self, seconds: float) -> None:
        """SIGSTOP, and SIGCONT later."""
        self.frozen_until = max(self.frozen_until, self.world.now + seconds)

    def _arrive(self, body: bytes) -> None:
        if not self.alive:
            return
        if self.frozen_until > self.world.now:
            self._last_arrival = max(self._last_arrival, self.frozen_until)
            self.world.at(self.frozen_until, lambda: self._arrive(body))
            return
        message = m.for_worker(body)
        if isinstance(message, m.RunOrder):
            self.link.begin(message)
            self.epoch = message.epoch
            order = message
            self._fibers = [Fiber(lambda: self._serve(order))]
            self.places.begins(self)
            self._continue(self._fibers[0])
        elif fiber := self.link.take(message):
            self._continue(fiber)

    def _serve(self, order: m.RunOrder) -> None:
        try:
            done = real._run(order, cast(Any, self.link), cast(Any, self._connections))
        except LeaseOver:
            self._lease_ran_out = True
            self.end("its lease ran out")
            return
        self.say(done)

    def say(self, message: m.ToDaemon) -> None:
        """Send to the daemon."""
        self._must_live()
        self._inbox.append(m.for_daemon(m.frame(message)[4:]))
        self._wake_reader()

    def _wake_reader(self) -> None:
        if self._reader is not None and not self._reader.done() and self.node.alive:
            self._reader.set_result(None)

    def _must_live(self) -> None:
        if not self.alive:
            raise Killed

    def branch(self, work: Callable[[], None]) -> Fiber:
        """Start a lane of the run."""
        fiber = Fiber(work)
        self._fibers.append(fiber)
        self.world.after(0.0, lambda: self._continue(fiber))
        return fiber

    def join(self, fiber: Fiber) -> None:
        """Wait, in the worker, for a lane's end."""
        while not fiber.over:
            self._joined[fiber] = self.running
            self.park()

    @property
    def running(self) -> Fiber:
        """Whose turn it is."""
        assert self._running is not None
        return self._running

    def park(self) -> None:
        """Wait, in the worker, until an answer or a timer lets it go on."""
        self.running.park()
        self._must_live()

    def _continue(self, fiber: Fiber) -> None:
        if self.alive:
            if self.frozen_until > self.world.now:
                self.world.at(self.frozen_until, lambda: self._continue(fiber))
                return
            self._turn(fiber, fiber.go)
            if fiber.over and (waits := self._joined.pop(fiber, None)):
                self._continue(waits)

    def _turn(self, fiber: Fiber, what: Callable[[], None]) -> None:
        before = SimWorker.current, self._running
        SimWorker.current, self._running = self, fiber
        try:
            what()
        finally:
            SimWorker.current, self._running = before

    def sleep(self, seconds: float) -> None:
        """Let time pass, in the worker."""
        fiber = self.running
        self.world.after(seconds, lambda: self._continue(fiber))
        self.park()
        while self.frozen_until > self.world.now:
            self.world.at(self.frozen_until, lambda: self._continue(fiber))
            self.park()

    def step(self, name: str, seconds: float = 0.0) -> None:
        """A connector does something that others could see: fate may strike before."""
        self._must_live()
        self.places.fate(self, name)
        self._must_live()
        if seconds and self.world.random.random() < 0.5:
            self.sleep(self.world.random.random() * 2 * seconds)
        self._must_live()


class SimLink:
    """The worker's end of the line: the interface of ``reconciler.run.link.Link``."""

    def __init__(self, worker: SimWorker) -> None:
        self._worker = worker
        self._next_id = 0
        self._asked: dict[int, Fiber] = {}
        self._answers: dict[int, m.ToWorker] = {}
        self.cancelled = False
        self.deadline_ns = self.epoch = 0

    def begin(self, order: m.RunOrder) -> None:
        self.cancelled, self.deadline_ns = False, order.deadline_ns
        self.epoch = order.epoch
        self._asked.clear()
        self._answers.clear()

    def take(self, message: m.ToWorker) -> Fiber | None:
        """Take a message in; who waits for it, if it is an answer."""
        match message:
            case m.Deadline():
                self.deadline_ns = message.deadline_ns
            case m.Cancel():
                self.cancelled = True
            case m.Verdict() | m.Committed() | m.NotCommitted() | m.Ledger():
                if fiber := self._asked.pop(message.id, None):
                    self._answers[message.id] = message
                return fiber
            case _:
                raise AssertionError(message)
        return None

    def say(self, message: m.ToDaemon) -> None:
        self._worker.say(message)

    def _ask(self, build: Callable[[int], m.ToDaemon]) -> m.ToWorker:
        self._next_id += 1
        number = self._next_id
        self._asked[number] = self._worker.running
        self._worker.say(build(number))
        while number not in self._answers:
            self._worker.park()
        return self._answers.pop(number)

    def propose(self, stream: str, schema: Schema) -> m.Verdict:
        return cast(m.Verdict, self._ask(lambda id_: m.Propose(id_, stream, schema)))

    def ledger(self, stream: str) -> tuple[FileEntry, ...]:
        return cast(m.Ledger, self._ask(lambda id_: m.AskLedger(id_, stream))).files

    def commit(
        self, batches: tuple[Batch, ...], published: dict[str, int]
    ) -> m.Committed | m.NotCommitted:
        answer = self._ask(lambda id_: m.AskCommit(id_, batches, published, self.epoch))
        return cast(m.Committed | m.NotCommitted, answer)

    @contextlib.contextmanager
    def pulse(self) -> Iterator[None]:
        yield

    def check_lease(self) -> None:
        self._worker._must_live()
        if self._worker.clock.boot_ns() > self.deadline_ns:
            raise LeaseOver


class Lanes:
    """The module ``threading`` as a run sees it: threads that take turns with the world."""

    Lock = contextlib.nullcontext

    class Thread:
        def __init__(self, target: Callable[..., None], args: tuple[Any, ...] = ()) -> None:
            assert SimWorker.current is not None
            self._worker, self._work = SimWorker.current, partial(target, *args)

        def start(self) -> None:
            self._fiber = self._worker.branch(self._work)

        def join(self) -> None:
            self._worker.join(self._fiber)


class SimConnections:
    """As ``Connections``: what the order names, kept between runs."""

    def __init__(self, worker: SimWorker) -> None:
        self._worker = worker

    def lane(self, number: int) -> SimConnections:
        return self

    def source(self, order: m.ConnectionOrder) -> Source:
        return self._worker.places.source(self._worker, order.name)

    def destination(self, order: m.ConnectionOrder) -> Destination:
        return self._worker.places.destination(self._worker, order.name)

    def forget(self, order: m.ConnectionOrder) -> None:
        """Nothing is kept open."""


class SimPool:
    """As ``WorkerPool``."""

    def __init__(self, node: Node, machine: Machine, places: Places) -> None:
        self._node, self._machine, self._places = node, machine, places
        self._idle: list[SimWorker] = []
        self.workers: list[SimWorker] = []
        """All that live."""

    async def acquire(self) -> SimWorker:
        await anyio.lowlevel.checkpoint()
        while self._idle:
            worker = self._idle.pop()
            if worker.alive:
                worker.begin()
                return worker
            self.workers.remove(worker)
        world = self._node.world
        await anyio.sleep(0.2)
        if world.random.random() < self._places.start_fails:  # type: ignore[attr-defined]
            raise WorkerGone("the worker ended by itself with exit code 1")
        worker = SimWorker(world, self._node, self._machine, self._places)
        self.workers.append(worker)
        worker.begin()
        return worker

    async def release(self, worker: SimWorker, *, healthy: bool) -> None:
        if healthy and worker.alive:
            self._idle.append(worker)
            return
        worker.kill()
        if worker in self.workers:
            self.workers.remove(worker)

    async def trim(self) -> None:
        """Few are idle."""

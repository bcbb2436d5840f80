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
        self._fiber: Fiber | None = None
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
        return self.alive and self._fiber is not None and not self._fiber.over

    def end(self, how: str) -> None:
        """The process ends here, wherever it is."""
        if not self.alive:
            return
        self.alive, self._ended = False, how
        self.places.destination_free(self)  # type: ignore[attr-defined]
        if SimWorker.current is not self and self._fiber is not None and not self._fiber.over:
            self._turn(self._fiber.kill)
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
            self._fiber = Fiber(lambda: self._serve(order))
            self.places.begins(self)
            self._continue()
        elif self.link.take(message):
            self._continue()

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

    def park(self) -> None:
        """Wait, in the worker, until an answer or a timer lets it go on."""
        assert self._fiber is not None
        self._fiber.park()
        self._must_live()

    def _continue(self) -> None:
        if self.alive and self._fiber is not None:
            if self.frozen_until > self.world.now:
                self.world.at(self.frozen_until, self._continue)
                return
            self._turn(self._fiber.go)

    def _turn(self, what: Callable[[], None]) -> None:
        before, SimWorker.current = SimWorker.current, self
        try:
            what()
        finally:
            SimWorker.current = before

    def sleep(self, seconds: float) -> None:
        """Let time pass, in the worker."""
        self.world.after(seconds, self._continue)
        self.park()
        while self.frozen_until > self.world.now:
            self.world.at(self.frozen_until, self._continue)
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
        self._answer: m.ToWorker | None = None
        self._asked = 0
        self.cancelled = False
        self.deadline_ns = self.epoch = 0

    def begin(self, order: m.RunOrder) -> None:
        self.cancelled, self.deadline_ns = False, order.deadline_ns
        self.epoch = order.epoch

    def take(self, message: m.ToWorker) -> bool:
        """Take a message in; True: it is the answer that the worker waits for."""
        match message:
            case m.Deadline():
                self.deadline_ns = message.deadline_ns
            case m.Cancel():
                self.cancelled = True
            case m.Verdict() | m.Committed() | m.NotCommitted() | m.Ledger():
                self._answer = message
                return message.id == self._asked
            case _:
                raise AssertionError(message)
        return False

    def say(self, message: m.ToDaemon) -> None:
        self._worker.say(message)

    def _ask(self, build: Callable[[int], m.ToDaemon]) -> m.ToWorker:
        self._next_id += 1
        self._asked, self._answer = self._next_id, None
        self._worker.say(build(self._next_id))
        while self._answer is None:
            self._worker.park()
        self._asked = 0
        return self._answer

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

    def may_go_on(self) -> None:
        self._worker._must_live()
        if self._worker.clock.boot_ns() > self.deadline_ns:
            raise LeaseOver


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

"""The worker process: reads, seals and publishes for one run at a time.

Started by the daemon as ``python -m reconciler.run.worker FD``, FD being its end of a socket pair.
It dies with the daemon in three ways, each enough (A8): end-of-file on the socket, watched in a
thread of its own so that a busy or stuck main thread does not matter; the parent-death signal,
with the parent checked after it was set; and its deadline, past which it writes nothing.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import queue
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast

from catalog.clock import SystemClock
from catalog.records import Batch, ErrorClass, FileEntry
from reconciler.connectors.ports import ConnectorError, Finding
from reconciler.run import messages as m
from reconciler.run.connections import Connections
from reconciler.schema.model import Schema

_PR_SET_PDEATHSIG = 1
PULSE_SECONDS = 5.0
"""How often a worker says that it works on something that moves no rows."""


class LeaseOver(BaseException):
    """The deadline passed without word from the daemon: stop, and discard nothing (A8).

    Not an ``Exception``: nothing on the way out may catch it and carry on.
    """


class Link:
    """The worker's end of the socket: asks, and is answered; knows whether it may go on."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._clock = SystemClock()
        self._sending = threading.Lock()
        self._waiting: dict[int, queue.SimpleQueue[m.ToWorker]] = {}
        self._next_id = 0
        self.orders: queue.SimpleQueue[m.RunOrder | m.InspectOrder] = queue.SimpleQueue()
        self.deadline_ns = 0
        self.cancelled = False

    # The daemon's voice: runs in a thread of its own for the life of the process.

    def listen(self) -> None:
        """Take in messages until the daemon is gone, then end the process at once."""
        try:
            while True:
                self._take(m.for_worker(self._read(m.frame_length(self._read(4)))))
        except (OSError, EOFError):
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(3)

    def _read(self, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            part = self._sock.recv(size - len(data))
            if not part:
                raise EOFError
            data += part
        return bytes(data)

    def _take(self, message: m.ToWorker) -> None:
        match message:
            case m.RunOrder() | m.InspectOrder():
                self.cancelled = False
                if isinstance(message, m.RunOrder):
                    self.deadline_ns = message.deadline_ns
                self.orders.put(message)
            case m.Deadline():
                self.deadline_ns = message.deadline_ns
            case m.Cancel():
                self.cancelled = True
            case m.Verdict() | m.Committed() | m.NotCommitted() | m.Ledger():
                self._waiting.pop(message.id).put(message)

    # The worker's voice: any thread.

    def say(self, message: m.ToDaemon) -> None:
        """Send without waiting for an answer."""
        with self._sending:
            self._sock.sendall(m.frame(message))

    def _ask(self, build: Callable[[int], m.ToDaemon]) -> m.ToWorker:
        answer: queue.SimpleQueue[m.ToWorker] = queue.SimpleQueue()
        with self._sending:
            self._next_id += 1
            self._waiting[self._next_id] = answer
            self._sock.sendall(m.frame(build(self._next_id)))
        return answer.get()

    def propose(self, stream: str, schema: Schema) -> m.Verdict:
        """Ask how to go on with this schema (F)."""
        return cast(m.Verdict, self._ask(lambda id_: m.Propose(id_, stream, schema)))

    def ledger(self, stream: str) -> tuple[FileEntry, ...]:
        """The files read before (C6)."""
        return cast(m.Ledger, self._ask(lambda id_: m.AskLedger(id_, stream))).files

    def commit(
        self, batches: tuple[Batch, ...], published: dict[str, int]
    ) -> m.Committed | m.NotCommitted:
        """Ask for the commit. The answer may be that nobody knows."""
        answer = self._ask(lambda id_: m.AskCommit(id_, batches, published))
        return cast(m.Committed | m.NotCommitted, answer)

    @contextlib.contextmanager
    def pulse(self, stream: str) -> Iterator[None]:
        """While a step of its own is under way that reads nothing (a seal, a publish): tell the
        daemon that the process works, as long as it does, so that it is not taken for stalled.

        Work is processor time or bytes through the kernel; a process that only waits is silent.
        """
        over = threading.Event()

        def beat() -> None:
            done = _work_done()
            while not over.wait(PULSE_SECONDS):
                before, done = done, _work_done()
                if done != before:
                    self.say(m.Moved(stream, 0, 0))

        thread = threading.Thread(target=beat, name="pulse", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def may_go_on(self) -> None:
        """Called before each step that others could see. Raises ``LeaseOver``."""
        if self._clock.boot_ns() > self.deadline_ns:
            raise LeaseOver


def _work_done() -> tuple[int, str]:
    """Tenths of processor seconds, and the kernel's counters of bytes."""
    try:
        moved = Path("/proc/self/io").read_text()
    except OSError:
        moved = ""
    return int(time.process_time() * 10), moved


def die_with_parent(parent: int) -> None:
    """Ask the kernel to kill this process when its parent dies; exit if it already has (A8)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(0)


def _inspect(order: m.InspectOrder, connections: Connections) -> m.Inspected:
    try:
        if order.role == "destination":
            return m.Inspected(tuple(connections.destination(order.connection).check()))
        source = connections.source(order.connection)
        if order.discover:
            return m.Inspected(streams=tuple(source.discover(order.select, order.named)))
        found = source.discover(order.select, {}) if order.select else []
        streams = {stream.name: order.defaults for stream in found}
        return m.Inspected(tuple(source.check({**streams, **order.named})))
    except ConnectorError as error:
        return m.Inspected((Finding("problem", str(error)),))


def _run(order: m.RunOrder, link: Link, connections: Connections) -> m.Done:
    from reconciler.run.execute import execute

    try:
        return execute(order, link, connections)
    except ConnectorError as error:
        return m.Done((), {}, failure=str(error), error=error.error, retry_after=error.retry_after)
    except Exception as error:
        traceback.print_exc()  # to the run's log; the person gets the sentence
        text = f"the worker met a fault of its own: {type(error).__name__}: {error}"
        return m.Done((), {}, failure=text, error=ErrorClass.TRANSIENT)


def main() -> None:
    """Serve orders until the daemon is gone."""
    fd, parent = int(sys.argv[1]), int(sys.argv[2])
    die_with_parent(parent)
    # Ctrl-C in a terminal reaches the whole group; when runs end is the daemon's to say.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    link = Link(socket.socket(fileno=fd))
    threading.Thread(target=link.listen, name="link", daemon=True).start()
    connections = Connections()
    # Arrow and what every run needs, while the daemon makes up its mind: warm means loaded.
    import reconciler.run.execute  # noqa: F401

    while True:
        order = link.orders.get()
        with contextlib.suppress(BrokenPipeError):
            try:
                answer = (
                    _run(order, link, connections)
                    if isinstance(order, m.RunOrder)
                    else _inspect(order, connections)
                )
            except LeaseOver:
                print("no word from the daemon within the lease: stopped", file=sys.stderr)  # noqa: T201
                sys.stderr.flush()
                os._exit(4)
            sys.stdout.flush()
            sys.stderr.flush()
            link.say(answer)


if __name__ == "__main__":
    main()

"""The worker's end of the line to the daemon: asks, is answered, and knows whether it may go on."""

from __future__ import annotations

import contextlib
import os
import queue
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast

from catalog.clock import SystemClock
from catalog.records import Batch, FileEntry
from reconciler.run import messages as m
from reconciler.schema.model import Schema

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
        self.deadline_ns = self.epoch = 0
        self.cancelled = False

    # The daemon's voice: runs in a thread of its own for the life of the process.

    def listen(self) -> None:
        """Take in messages until the daemon is gone, then end the process at once."""
        try:
            while True:
                self._take(m.for_worker(self._read(m.frame_length(self._read(4)))))
        except (OSError, EOFError):
            os._exit(0)
        except (m.BrokenPeer, KeyError) as error:  # KeyError: an answer to what was never asked
            print(f"the daemon sent what is no message: {error}", file=sys.stderr, flush=True)  # noqa: T201
            os._exit(3)
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
                    self.deadline_ns, self.epoch = message.deadline_ns, message.epoch
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
        while True:
            # A daemon that is stopped answers nothing, and its silence ends at the deadline (A8).
            with contextlib.suppress(queue.Empty):
                return answer.get(timeout=self._seconds_left())
            self.may_go_on()

    def _seconds_left(self) -> float:
        return max(self.deadline_ns - self._clock.boot_ns(), 0) / 1e9 + 0.01

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
        answer = self._ask(lambda id_: m.AskCommit(id_, batches, published, self.epoch))
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

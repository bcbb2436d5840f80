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
from functools import partial
from pathlib import Path
from typing import cast

from catalog.clock import SystemClock
from catalog.records import Batch, FileEntry
from reconciler.run import messages as m
from reconciler.schema.model import Schema

PULSE_SECONDS = 1.0
"""How often a worker that hands over no rows says that it gets on all the same."""
_TCP_INFO_SIZE = 136
_RECEIVED = slice(128, 136)
"""Where the kernel's ``struct tcp_info`` has the bytes received (Linux 4.1 and later)."""


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
        self._under_way = threading.Event()
        self._steps = 0
        """How many threads are at a step that reads nothing."""
        self._counting = threading.Lock()

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
            self.check_lease()

    def _seconds_left(self) -> float:
        return max(self.deadline_ns - self._clock.boot_ns(), 0) / 1e9 + 0.01

    def propose(self, stream: str, schema: Schema) -> m.Verdict:
        """Ask how to go on with this schema (F)."""
        return cast(m.Verdict, self._ask(lambda id_: m.Propose(id_, stream, schema)))

    def ledger(self, stream: str) -> tuple[FileEntry, ...]:
        """The files read before (C6)."""
        files: list[FileEntry] = []
        while True:
            after = files[-1].path if files else ""
            page = cast(m.Ledger, self._ask(partial(m.AskLedger, stream=stream, after=after)))
            files += page.files
            if not page.more:
                return tuple(files)

    def commit(
        self, batches: tuple[Batch, ...], published: dict[str, int]
    ) -> m.Committed | m.NotCommitted:
        """Ask for the commit. The answer may be that nobody knows."""
        answer = self._ask(lambda id_: m.AskCommit(id_, batches, published, self.epoch))
        return cast(m.Committed | m.NotCommitted, answer)

    @contextlib.contextmanager
    def under_way(self) -> Iterator[None]:
        """A run is carried out: ``beat`` has something to say."""
        self._under_way.set()
        try:
            yield
        finally:
            self._under_way.clear()

    @contextlib.contextmanager
    def pulse(self) -> Iterator[None]:
        """While a step of its own is under way that reads nothing (a seal, a publish) a process
        that works is not taken for stalled: work is processor time or bytes through the kernel."""
        self._count(1)
        try:
            yield
        finally:
            self._count(-1)

    def _count(self, by: int) -> None:
        with self._counting:
            self._steps += by

    def beat(self) -> None:
        """Tell the daemon as long as a run gets on without handing over rows: bytes arrive from
        the source, however slowly, or a step works. One that only waits is silent.

        Runs in a thread of its own for the life of the process.
        """
        with contextlib.suppress(OSError):  # the daemon is gone: ``listen`` ends the process
            while self._under_way.wait():
                before = self._signs()
                time.sleep(PULSE_SECONDS)
                if self._signs() != before:
                    self._say_alive()

    def _say_alive(self) -> None:
        with self._sending:  # what follows the end of a run is said after this
            if self._under_way.is_set():
                self._sock.sendall(m.frame(m.Moved("", 0, 0)))

    def _signs(self) -> tuple[int, tuple[int, str] | None]:
        return _received(), _work_done() if self._steps else None

    def check_lease(self) -> None:
        """Before each step that others could see: raises ``LeaseOver`` past the deadline (A8)."""
        if self._clock.boot_ns() > self.deadline_ns:
            raise LeaseOver


def _work_done() -> tuple[int, str]:
    """Tenths of processor seconds, and the kernel's counters of bytes."""
    try:
        moved = Path("/proc/self/io").read_text()
    except OSError:
        moved = ""
    return int(time.process_time() * 10), moved


def _received() -> int:
    """Bytes that came in by TCP, as the kernel counts them: a driver shows whole batches only."""
    if not hasattr(socket, "TCP_INFO"):
        return 0
    total = 0
    for fd in _descriptors():
        try:
            sock = socket.socket(fileno=fd)
        except OSError:
            continue  # no socket, or closed meanwhile
        try:
            info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_SIZE)
            total += int.from_bytes(info[_RECEIVED], sys.byteorder)
        except OSError:
            continue  # not TCP
        finally:
            sock.detach()
    return total


def _descriptors() -> list[int]:
    try:
        return [int(name) for name in os.listdir("/proc/self/fd")]  # noqa: PTH208 - names alone
    except OSError:
        return []

"""Worker processes out of a warm pool, and the daemon's end of the line to each.

A worker serves one run at a time, so that its crash, leak or hang costs one run. What it and the
libraries in it print goes to an unlinked file of its own, from which the run's part is cut.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import IO

import anyio
import anyio.lowlevel

from reconciler.run import messages as m

RUNS_PER_WORKER = 5_000
"""Then it is replaced: a leak in some library stays small."""
STARTING_AT_ONCE = max(1, (os.cpu_count() or 1) // 2)
"""More would only keep each other, and the runs under way, off the processors."""
START_WITHIN = 120.0
"""Seconds in which a worker is to be ready; one that hangs would keep all others from starting."""
_FORCED_AFTER = 200
"""Looks, of 5 ms each, at a process that is to end by itself."""
LOG_LIMIT = 1024 * 1024
"""Bytes kept of what one run printed: its end, where the reason is."""


class WorkerGone(Exception):
    """The process ended. ``str()`` says how, for a person."""


class LeaseRanOut(WorkerGone):
    """The worker stopped by itself, as it must without word of a renewed lease (A8)."""

    def __init__(self) -> None:
        super().__init__(
            "the worker stopped by itself: its lease ran out before it heard that it was renewed, "
            "as when a machine sleeps"
        )


class Worker:
    """One worker process as the daemon sees it."""

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        line: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        output: IO[bytes],
        env: Mapping[str, str],
    ) -> None:
        """``env``: the environment that it was started with."""
        self.env = env
        self._process = process
        # asyncio's own streams: they stay registered with the selector between messages, which
        # saves a third of the system calls that one message costs through anyio's.
        self._reader, self._writer = line
        self._begun = 0
        """The length of a message of which the head was read and the body was not."""
        self._output = output
        self._oom_kills = _oom_kills()
        self._output_start = 0
        self.runs = 0

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    async def send(self, message: m.ToWorker) -> None:
        """Raises ``WorkerGone``.

        Whether it is read is not waited for: a worker that hangs would keep who speaks to it, and
        that is also who renews the leases of all runs. What is not read stays in memory, and is
        little: each answer was asked for.
        """
        if self._writer.is_closing():
            raise await self._gone()
        self._writer.write(m.frame(message))

    async def receive(self) -> m.ToDaemon:
        """The next message. Raises ``WorkerGone``; a worker that sends rubbish is ended first.

        May be cut off and called again: it goes on in the midst of a message.
        """
        try:
            if not self._begun:
                self._begun = m.frame_length(await self._reader.readexactly(4))
            body = await self._reader.readexactly(self._begun)
            self._begun = 0
            return m.for_daemon(body)
        except (asyncio.IncompleteReadError, OSError):
            raise await self._gone() from None
        except m.BrokenPeer as error:
            self.kill()
            raise WorkerGone(f"the worker sent what is no message: {error}") from None

    def begin(self) -> None:
        """A run starts: what is printed from now on is its own."""
        self.runs += 1
        self._output_start = os.fstat(self._output.fileno()).st_size
        if self._output_start > LOG_LIMIT:
            os.ftruncate(self._output.fileno(), 0)
            self._output_start = 0

    def printed(self) -> bytes:
        """What was printed since ``begin``: the last whole lines in ``LOG_LIMIT`` bytes.

        Whole, so that no part of a secret is left that would not be known for one.
        """
        end = os.fstat(self._output.fileno()).st_size
        start = max(self._output_start, end - LOG_LIMIT)
        found = os.pread(self._output.fileno(), end - start, start) if end > start else b""
        return found if start == self._output_start else found.partition(b"\n")[2]

    def kill(self) -> None:
        """End the process and all that it started, at once."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)

    async def _gone(self) -> WorkerGone:
        how = await self.how_it_ended()
        return LeaseRanOut() if self._process.returncode == m.LEASE_OVER_EXIT else WorkerGone(how)

    async def how_it_ended(self) -> str:
        """Wait for the exit, which is due, and put it into words. One that does not come is forced;
        where not even the kernel can (a disk that does not answer), it keeps nobody but its run.
        """
        with anyio.CancelScope(shield=True):
            waited = 0
            while self.alive:
                if waited == _FORCED_AFTER:
                    self.kill()
                waited += 1
                await anyio.sleep(0.005)
        return _ending(self._process.returncode, oom=_oom_kills() > self._oom_kills)

    async def aclose(self) -> None:
        """Close the line, which ends an idle worker, and collect the process."""
        with anyio.CancelScope(shield=True):
            self._writer.close()
            with contextlib.suppress(OSError):
                await self._writer.wait_closed()
            await self.how_it_ended()
            self._output.close()


def _oom_kills() -> int:
    """How many processes the kernel has killed for want of memory since boot."""
    with contextlib.suppress(OSError), Path("/proc/vmstat").open() as lines:
        for line in lines:
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    return 0


def _ending(code: int | None, *, oom: bool) -> str:
    if code == -signal.SIGKILL and oom:
        return "the worker was killed by SIGKILL, by the kernel for want of memory as it seems"
    if code is not None and code < 0:
        return f"the worker was killed by {signal.Signals(-code).name}"
    return f"the worker ended by itself with exit code {code}"


class WorkerPool:
    """Starts workers when asked, keeps a few idle ones warm, ends them all on close."""

    def __init__(
        self, *, inherit: Iterable[int] = (), hidden_env: Iterable[str] = (), keep: int = 2
    ) -> None:
        self._inherit = tuple(inherit)
        hidden = set(hidden_env)
        self._env = {k: v for k, v in os.environ.items() if k not in hidden}
        self._keep = keep
        self._idle: list[Worker] = []
        self._busy: set[Worker] = set()
        self._starting: set[asyncio.Task[None]] = set()
        self._waiting: deque[asyncio.Future[Worker]] = deque()

    def hide(self, names: Collection[str]) -> None:
        """These variables hold secrets, as a reload says: who has them serves no other run."""
        if not self._env.keys().isdisjoint(names):
            self._env = {k: v for k, v in self._env.items() if k not in names}

    def _is_of_use(self, worker: Worker) -> bool:
        return worker.alive and worker.env is self._env and worker.runs < RUNS_PER_WORKER

    @property
    def idle(self) -> int:
        return len(self._idle)

    @property
    def busy(self) -> int:
        return len(self._busy)

    def busy_workers(self) -> tuple[Worker, ...]:
        """Workers with a run: ``bench`` looks at their memory."""
        return tuple(self._busy)

    async def warm(self) -> None:
        """Have at least one worker ready, or getting ready: its process runs when this returns."""
        if not self._idle and not self._under_way():
            self._start_one()
            await anyio.lowlevel.checkpoint()  # lets the task come as far as the process

    async def acquire(self) -> Worker:
        """A worker for one run: whichever is first, one set free or a new one that is ready.

        Whoever asks also limits how many run at once. Raises ``WorkerGone`` when a new worker
        ended before it was ready, ``OSError`` when none could be started.
        """
        while self._idle:
            worker = self._idle.pop()
            if self._is_of_use(worker):
                return self._take(worker)
            await worker.aclose()
        if self._under_way() < STARTING_AT_ONCE:
            self._start_one()
        turn: asyncio.Future[Worker] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            return self._take(await turn)
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled() and turn.exception() is None:
                self._offer(turn.result())
            raise

    def _take(self, worker: Worker) -> Worker:
        self._busy.add(worker)
        worker.begin()
        return worker

    def _offer(self, worker: Worker) -> None:
        """To who waits longest, else it is idle."""
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(worker)
                return
        self._idle.append(worker)

    def _under_way(self) -> int:
        """How many workers are being started. Who waits for one runs before the set forgets it."""
        return sum(not task.done() for task in self._starting)

    def _start_one(self) -> None:
        task = asyncio.get_running_loop().create_task(self._start_and_offer())
        self._starting.add(task)
        task.add_done_callback(self._starting.discard)

    async def _start_and_offer(self) -> None:
        try:
            worker = await _start(self._inherit, self._env)
            try:
                with anyio.move_on_after(START_WITHIN) as patience:
                    first = await worker.receive()
                if patience.cancelled_caught:
                    raise WorkerGone(f"the worker was not ready within {START_WITHIN:g} s")
                if not isinstance(first, m.Ready):
                    raise WorkerGone(f"the worker began with {type(first).__name__!r}")
            except BaseException:
                worker.kill()
                await worker.aclose()
                raise
        except (WorkerGone, OSError) as error:
            self._refuse(error)
        else:
            self._offer(worker)
        if self._waiting and self._under_way() <= STARTING_AT_ONCE:  # this task is one of them
            self._start_one()

    def _refuse(self, error: WorkerGone | OSError) -> None:
        """To who waits longest: the worker that it waited for never came to be."""
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_exception(error)
                return

    async def release(self, worker: Worker, *, healthy: bool) -> None:
        """Give a worker back. An unhealthy one is killed; so is one past its share of runs."""
        self._busy.discard(worker)
        if healthy and self._is_of_use(worker):
            self._offer(worker)
            return
        worker.kill()
        await worker.aclose()  # shielded
        if self._waiting and not self._under_way():
            self._start_one()  # those who wait counted on this one

    async def trim(self) -> None:
        """Let go of idle workers beyond the few that are kept warm."""
        while len(self._idle) > self._keep:
            await self._idle.pop(0).aclose()

    async def aclose(self) -> None:
        """End every worker, the busy ones too."""
        starting = tuple(self._starting)
        for task in starting:
            task.cancel()
        if starting:
            await asyncio.wait(starting)
        for worker in (*self._busy, *self._idle):
            worker.kill()
            await worker.aclose()
        self._busy.clear()
        self._idle.clear()


def printed_to() -> IO[bytes]:
    """An unlinked file for what a worker prints. The worker's stdout and stderr share it, and it is
    truncated between runs: what is written goes to its end, wherever that is.
    """
    try:
        output = _unlinked()
    except FileNotFoundError:  # the folder that was found once was removed since: find another
        tempfile.tempdir = None
        output = _unlinked()
    flags = fcntl.fcntl(output.fileno(), fcntl.F_GETFL)
    fcntl.fcntl(output.fileno(), fcntl.F_SETFL, flags | os.O_APPEND)  # mode "a" would not set it
    return output


def _unlinked() -> IO[bytes]:
    return tempfile.TemporaryFile("w+b", buffering=0, prefix="reconciler-worker-")


async def _start(inherit: tuple[int, ...], env: Mapping[str, str]) -> Worker:
    ours, theirs = socket.socketpair()
    with contextlib.ExitStack() as undone, theirs:
        undone.callback(ours.close)
        output = printed_to()
        undone.callback(output.close)
        arguments = (str(theirs.fileno()), str(os.getpid()))
        process = subprocess.Popen(  # noqa: ASYNC220 - returns at exec; its end is seen on the socket
            [sys.executable, "-P", "-m", "reconciler.run.worker", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            pass_fds=(theirs.fileno(), *inherit),
            env=env,
            process_group=0,
        )
        undone.callback(process.wait)
        undone.callback(process.kill)
        line = await asyncio.open_unix_connection(sock=ours)
        undone.pop_all()
    return Worker(process, line, output, env)

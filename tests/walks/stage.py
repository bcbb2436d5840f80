"""Commands of the program, each in a process of its own that is forked off one which has loaded all
already: real processes with real workers, which really die, at a tenth of the price.
"""

from __future__ import annotations

import asyncio
import gc
import importlib
import multiprocessing
import os
import signal
import socket
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection
from types import TracebackType
from typing import IO, NamedTuple

from reconciler.cli.main import main
from reconciler.connectors import killpoints
from reconciler.connectors.sources import sqlite
from reconciler.run import pool, stream, worker

KILLED = -signal.SIGKILL
_LOADED = (
    "adbc_driver_manager.dbapi",
    "adbc_driver_postgresql.dbapi",
    "adbc_driver_sqlite.dbapi",
    "anyio._backends._asyncio",
    "anyio._core._signals",
    "anyio.to_thread",
    "catalog.sqlite.backend",
    "duckdb",
    "pyarrow.csv",
    "pyarrow.parquet",
    "reconciler.cli.app",
    "reconciler.cli.arrival",
    "reconciler.cli.progress",
    "reconciler.cli.running",
    "reconciler.config.kept",
    "reconciler.config.loading",
    "reconciler.connectors.registry",
    "reconciler.connectors.destinations.duckdb",
    "reconciler.connectors.destinations.parquet",
    "reconciler.connectors.sources.files",
    "reconciler.connectors.sources.postgres",
    "reconciler.connectors.sources.sqlite",
    "reconciler.daemon.once",
    "reconciler.run.worker",
)


class Said(NamedTuple):
    """How a command ended: its exit code, ``KILLED`` among them, and what it said."""

    code: int
    out: str
    err: str


class Stage:
    """The process that commands are forked off. It alone has no threads, and opens nothing."""

    def __init__(self, first: Callable[[], None] | None = None) -> None:
        """``first``: done in that process before all, and so to all that comes of it."""
        context = multiprocessing.get_context("spawn")
        self._line, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, first), name="stage")
        self._process.start()
        theirs.close()

    def do(self, *commands: Sequence[str], kill_at: str = "") -> list[Said]:
        """Carry out the commands, all at once. ``kill_at``: ``point:nth``, for each of them."""
        self._line.send((commands, kill_at))
        answers: list[Said] = self._line.recv()
        return answers

    def __enter__(self) -> Stage:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._line.close()
        self._process.join()


def _serve(line: Connection, first: Callable[[], None] | None) -> None:
    if first is not None:
        first()
    for name in _LOADED:
        importlib.import_module(name)
    pool._start = _fork_worker
    # Runs of some dozens of rows have several batches, each committed for itself.
    sqlite._BATCH_BYTES = stream.SEAL_BYTES = 1
    gc.collect()
    gc.freeze()
    while True:
        try:
            commands, kill_at = line.recv()
        except EOFError:
            return
        line.send(_carry_out(commands, kill_at))


def _carry_out(commands: Sequence[Sequence[str]], kill_at: str) -> list[Said]:
    under_way = []
    for command in commands:
        out, err = _output(), _output()
        pid = os.fork()
        if pid == 0:
            _be_the_command(command, kill_at, out, err)
        under_way.append((pid, out, err))
    said = []
    for pid, out, err in under_way:
        _, status = os.waitpid(pid, 0)
        said.append(Said(os.waitstatus_to_exitcode(status), _text(out), _text(err)))
    return said


def _output() -> IO[bytes]:
    return tempfile.TemporaryFile("w+b")


def _text(file: IO[bytes]) -> str:
    with file:
        file.seek(0)
        return file.read().decode()


def _be_the_command(command: Sequence[str], kill_at: str, out: IO[bytes], err: IO[bytes]) -> None:
    name, _, nth = kill_at.partition(":")
    killpoints._kill, killpoints._left = name, int(nth or 1)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(out.fileno(), 1)
    os.dup2(err.fileno(), 2)
    code = 70
    try:
        code = main(command)
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


class _Forked:
    """What the pool wants of a ``Popen``, of a process that was forked."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode


async def _fork_worker(inherit: tuple[int, ...], env: Mapping[str, str]) -> pool.Worker:
    """In the place of ``pool._start``. The lock of who holds the leases is inherited by a fork."""
    ours, theirs = socket.socketpair()
    output, parent = pool.printed_to(), os.getpid()
    pid = os.fork()
    if pid == 0:
        os.setpgid(0, 0)
        ours.close()
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
        os.environ.clear()
        os.environ.update(env)
        sys.argv = ["worker", str(theirs.fileno()), str(parent)]
        try:
            worker.main()
        finally:
            os._exit(70)
    theirs.close()
    line = await asyncio.open_unix_connection(sock=ours)
    return pool.Worker(_Forked(pid), line, output, env)  # type: ignore[arg-type]

"""The worker pool: warm means ready, and a run goes to whichever worker is free first."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import tempfile
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from catalog.records import FileEntry
from reconciler.run import messages as m
from reconciler.run import pool as run_pool
from reconciler.run.pool import LOG_LIMIT, Worker, WorkerGone, WorkerPool, printed_to
from tests.patience import PATIENCE

pytestmark = pytest.mark.anyio
_NOWHERE = m.InspectOrder(m.ConnectionOrder("x", "none", {}, {}), "source")


@pytest.fixture
async def pool() -> AsyncIterator[WorkerPool]:
    pool = WorkerPool()
    yield pool
    await pool.aclose()


async def test_a_run_goes_to_a_freed_worker_before_a_new_one_is_ready(pool: WorkerPool) -> None:
    first = await pool.acquire()
    got: list[Worker] = []

    async def wait_for_one() -> None:
        got.append(await pool.acquire())

    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wait_for_one)
            await anyio.lowlevel.checkpoint()
            await pool.release(first, healthy=True)
    assert got == [first]
    await pool.release(first, healthy=True)


async def test_a_worker_that_serves_answers_and_goes_on(pool: WorkerPool) -> None:
    worker = await pool.acquire()
    for _ in range(2):
        await worker.send(_NOWHERE)
        answer = await worker.receive()
        assert isinstance(answer, m.Inspected)
        assert answer.findings[0].level == "problem"
    await pool.release(worker, healthy=True)
    assert (pool.idle, pool.busy) == (1, 0)


async def test_a_killed_worker_is_named_by_its_signal_and_never_handed_out_again(
    pool: WorkerPool,
) -> None:
    worker = await pool.acquire()
    os.kill(worker.pid, signal.SIGKILL)
    with pytest.raises(WorkerGone, match="SIGKILL"):
        await worker.receive()
    await pool.release(worker, healthy=False)
    other = await pool.acquire()
    assert other.pid != worker.pid
    await pool.release(other, healthy=True)


async def test_a_wait_that_is_cut_off_in_the_midst_of_a_message_goes_on_there(
    pool: WorkerPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = await pool.acquire()
    line, message = asyncio.StreamReader(), m.Moved("t", 1, 2)
    monkeypatch.setattr(worker, "_reader", line)
    data = m.frame(message)
    line.feed_data(data[:6])
    with anyio.move_on_after(0.01) as cut:
        await worker.receive()
    assert cut.cancelled_caught
    line.feed_data(data[6:] + data)
    assert [await worker.receive(), await worker.receive()] == [message, message]
    await pool.release(worker, healthy=False)


async def test_who_no_longer_waits_gets_no_worker(pool: WorkerPool) -> None:
    with anyio.move_on_after(0.01):
        await pool.acquire()
    with anyio.fail_after(PATIENCE):
        worker = await pool.acquire()
    assert pool.busy == 1
    await pool.release(worker, healthy=True)


async def test_closing_ends_every_worker(pool: WorkerPool) -> None:
    busy = await pool.acquire()
    await pool.warm()
    await pool.aclose()
    assert not busy.alive
    assert (pool.idle, pool.busy) == (0, 0)


def test_what_is_kept_of_a_long_output_begins_with_a_whole_line() -> None:
    """Half a secret would not be known for one."""
    with printed_to() as output:
        nothing: Any = None
        worker = Worker(nothing, (nothing, nothing), output, {})
        worker.begin()
        output.write(b"half of a secret\n" * (LOG_LIMIT // 17 + 2))
        assert worker.printed().startswith(b"half of a secret\n")
        worker.begin()
        output.write(b"short\n")
        assert worker.printed() == b"short\n"


async def test_another_worker_is_started_for_who_asks_right_after_the_first_came(
    pool: WorkerPool,
) -> None:
    with anyio.fail_after(PATIENCE):
        first, second = await pool.acquire(), await pool.acquire()
    assert first.pid != second.pid


async def test_a_worker_is_started_when_the_folder_of_temporary_files_was_removed(
    pool: WorkerPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "removed"))
    assert (await pool.acquire()).alive


async def test_a_variable_that_a_reload_names_as_a_secret_is_in_no_worker_that_serves_a_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SHOP_PASSWORD", "hunter2")
    pool = WorkerPool()
    try:
        idle, busy = await pool.acquire(), await pool.acquire()
        await pool.release(idle, healthy=True)
        pool.hide({"SHOP_PASSWORD", "NOT_SET"})
        await pool.release(busy, healthy=True)
        worker = await pool.acquire()
        assert worker.pid not in (idle.pid, busy.pid)
        assert "SHOP_PASSWORD" not in worker.env
        assert worker.env.items() < os.environ.items()
        await pool.release(worker, healthy=True)
        pool.hide({"SHOP_PASSWORD"})
        assert await pool.acquire() is worker, "it never had it"
    finally:
        await pool.aclose()


async def test_a_worker_that_never_gets_ready_is_given_up(
    pool: WorkerPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Few start at once: it would keep all others from starting."""
    hung = tmp_path / "python"
    hung.write_text("#!/bin/sh\nexec sleep 600\n")
    hung.chmod(0o700)
    with monkeypatch.context() as patch, anyio.fail_after(PATIENCE):
        patch.setattr(run_pool, "START_WITHIN", 0.1)
        patch.setattr(sys, "executable", str(hung))
        with pytest.raises(WorkerGone, match=r"not ready within 0\.1 s"):
            await pool.acquire()
    worker = await pool.acquire()
    await pool.release(worker, healthy=True)


async def test_a_worker_that_hangs_keeps_nobody_who_speaks_to_it(pool: WorkerPool) -> None:
    """Such as who renews all leases, and tells each worker."""
    worker = await pool.acquire()
    os.kill(worker.pid, signal.SIGSTOP)
    files = tuple(FileEntry(f"{n}.csv", n, 1, 1, 1, "h" * 64) for n in range(20_000))
    with anyio.fail_after(PATIENCE):
        await worker.send(m.Ledger(1, files))  # more than the line holds
        await worker.send(m.Deadline(1))
        await pool.release(worker, healthy=False)


class _InTheKernel:
    """A process that no signal ends as long as a disk does not answer."""

    def __init__(self, process: Any) -> None:
        self.pid, self.returncode, self._process = process.pid, None, process
        self.answered = False

    def poll(self) -> int | None:
        return self._process.poll() if self.answered else None

    def wait(self) -> int:
        raise AssertionError("all would wait with who waits here")


async def test_a_worker_that_cannot_be_killed_keeps_only_who_waits_for_its_end(
    pool: WorkerPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = await pool.acquire()
    stuck = _InTheKernel(worker._process)
    monkeypatch.setattr(worker, "_process", stuck)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(partial(pool.release, worker, healthy=False))
        await anyio.sleep(1.5)  # longer than it is given to end by itself
        stuck.answered = True
    assert pool.busy == 0

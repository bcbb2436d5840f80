"""The worker pool: warm means ready, and a run goes to whichever worker is free first."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest

from catalog.records import FileEntry
from reconciler.run import messages as m
from reconciler.run import pool as run_pool
from reconciler.run.pool import LOG_LIMIT, LeaseRanOut, Worker, WorkerGone, WorkerPool, printed_to
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
        assert len(worker.printed()) <= LOG_LIMIT
        worker.begin()
        assert os.fstat(output.fileno()).st_size == 0, "the disk is not filled"
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


@contextmanager
def impostors(folder: Path, code: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Inside, worker processes are this in place of what they are. ``line``: the daemon's end."""
    program = folder / "python"
    program.write_text(f"#!{sys.executable}\nimport os, sys, time\nline = int(sys.argv[4])\n{code}")
    program.chmod(0o700)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "executable", str(program))
        yield


async def test_a_worker_that_never_gets_ready_is_given_up_and_all_that_it_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Few start at once: it would keep all others from starting."""
    ours, theirs = os.pipe()
    pool = WorkerPool(inherit=(theirs,))
    code = f"os.fork()\nos.write({theirs}, b'.')\ntime.sleep(600)"
    monkeypatch.setattr(run_pool, "START_WITHIN", 1.0)
    with impostors(tmp_path, code, monkeypatch), anyio.fail_after(PATIENCE):
        with pytest.raises(WorkerGone, match="not ready within 1 s"):
            await pool.acquire()
        os.close(theirs)
        while await anyio.to_thread.run_sync(os.read, ours, 100, abandon_on_cancel=True):
            pass
    os.close(ours)
    assert pool.busy == 0
    await pool.aclose()


@pytest.mark.parametrize(
    ("code", "error", "words"),
    [
        (f"sys.exit({m.LEASE_OVER_EXIT})", LeaseRanOut, "its lease ran out"),
        ("os.close(line)\ntime.sleep(600)", WorkerGone, "killed by SIGKILL"),
        ("os.write(line, bytes(8))", WorkerGone, "sent what is no message"),
        (f"os.write(line, {m.frame(m.Moved('', 0, 0))!r})", WorkerGone, "began with 'Moved'"),
    ],
)
async def test_how_a_worker_ended_is_told_to_who_waits_for_it(
    pool: WorkerPool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    code: str,
    error: type[WorkerGone],
    words: str,
) -> None:
    with impostors(tmp_path, code, monkeypatch), anyio.fail_after(PATIENCE):
        with pytest.raises(error, match=words) as told:
            await pool.acquire()
        assert type(told.value) is error


async def test_a_program_that_cannot_be_started_is_told_to_who_waits_for_it(
    pool: WorkerPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "none"))
    with anyio.fail_after(PATIENCE), pytest.raises(FileNotFoundError):
        await pool.acquire()


READY = f"os.write(line, {m.frame(m.Ready())!r})\nos.read(line, 1)"


async def test_a_worker_that_served_its_share_or_is_not_well_serves_no_other_run(
    pool: WorkerPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_pool, "RUNS_PER_WORKER", 2)
    with impostors(tmp_path, READY, monkeypatch), anyio.fail_after(PATIENCE):
        first = await pool.acquire()
        await pool.release(first, healthy=True)
        assert await pool.acquire() is first
        await pool.release(first, healthy=True)
        assert (first.alive, pool.idle, pool.busy) == (False, 0, 0)
        second = await pool.acquire()
        await pool.release(second, healthy=False)
        assert (second.alive, pool.idle, pool.busy) == (False, 0, 0)


async def test_all_who_wait_get_a_worker_though_few_start_at_once(
    pool: WorkerPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_pool, "STARTING_AT_ONCE", 1)
    with impostors(tmp_path, READY, monkeypatch), anyio.fail_after(PATIENCE):
        got = await asyncio.gather(*(pool.acquire() for _ in range(3)))
    assert len({worker.pid for worker in got}) == pool.busy == 3


async def test_a_worker_is_started_without_what_is_hidden_from_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHOP_PASSWORD", "hunter2")
    pool = WorkerPool(hidden_env={"SHOP_PASSWORD"})
    code = "sys.exit(7 if 'SHOP_PASSWORD' in os.environ else 8)"
    gone = pytest.raises(WorkerGone, match="exit code 8")
    with impostors(tmp_path, code, monkeypatch), anyio.fail_after(PATIENCE), gone:
        await pool.acquire()
    await pool.aclose()


async def test_a_worker_that_came_for_who_has_just_left_is_not_lost(
    pool: WorkerPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with impostors(tmp_path, READY, monkeypatch), anyio.fail_after(PATIENCE):
        first = await pool.acquire()
        asks = asyncio.create_task(pool.acquire())
        await anyio.lowlevel.checkpoint()
        await pool.release(first, healthy=True)
        asks.cancel()
        await asyncio.wait((asks,))
        assert await pool.acquire() is first


async def test_of_idle_workers_a_few_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = WorkerPool(keep=1)
    with impostors(tmp_path, READY, monkeypatch), anyio.fail_after(PATIENCE):
        first, second = await pool.acquire(), await pool.acquire()
        for worker in (first, second):
            await pool.release(worker, healthy=True)
        await pool.trim()
        assert (pool.idle, first.alive, second.alive) == (1, False, True)
        await pool.warm()
        assert await pool.acquire() is second
        assert (pool.idle, pool.busy) == (0, 1)
        await pool.aclose()
        assert not second.alive


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

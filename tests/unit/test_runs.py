"""How a run ends in the daemon: what the catalog is told, and what no fault of one run does."""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest

from catalog.records import Claimed, ErrorClass, Finish, Outcome, Run, StreamResult
from reconciler.config.desired import Project, SecretRef
from reconciler.daemon import runlogs
from reconciler.daemon.runs import conclude
from reconciler.run import messages as m
from reconciler.run.conduct import Ended
from tests.loop_kit import World, pipeline, project, until

pytestmark = pytest.mark.anyio
NOW = 10**15
GOOD = StreamResult("good", Outcome.SUCCEEDED, "3 rows", rows=3)
Make = Callable[[Project], World]


@pytest.fixture
def world(tmp_path: Path) -> Make:
    return lambda project: World(project, tmp_path)


@pytest.fixture
async def claimed(world: Make) -> Claimed:
    return await world(project()).claim("a")


def bad(error: ErrorClass) -> StreamResult:
    return StreamResult("bad", Outcome.FAILED, "it broke", error=error)


def told(claimed: Claimed, *streams: StreamResult, failures: int = 0, **more: Any) -> Finish:
    """What the catalog is told of a run whose worker said that, after so many that failed."""
    before = msgspec.structs.replace(claimed.pipeline, failures=failures)
    claimed = msgspec.structs.replace(claimed, pipeline=before)
    ended = Ended(m.Done(streams, {"good": 4}, **more))
    return conclude(claimed, pipeline("a", retries=5), ended, NOW)


async def test_the_streams_that_failed_are_tried_again_and_no_other(claimed: Claimed) -> None:
    finish = told(claimed, GOOD, bad(ErrorClass.TRANSIENT), retry_after=77.0)
    assert (finish.outcome, finish.published) == (Outcome.FAILED, (("good", 4),))
    assert finish.retry_at is not None
    assert finish.retry_at >= NOW + 77 * 10**6, "so long the source is to be left alone"
    assert finish.retry_streams == ("bad",)


async def test_a_run_that_failed_as_a_whole_is_tried_again_as_a_whole(claimed: Claimed) -> None:
    broken = bad(ErrorClass.TRANSIENT)
    finish = told(claimed, GOOD, broken, failure="the worker ended", error=ErrorClass.TRANSIENT)
    assert (finish.outcome, finish.reason) == (Outcome.FAILED, "the worker ended")
    assert finish.retry_at is not None
    assert finish.retry_streams == ()


async def test_when_no_retry_is_left_the_next_trigger_is_for_all_streams(claimed: Claimed) -> None:
    finish = told(claimed, GOOD, bad(ErrorClass.TRANSIENT), failures=5)
    assert (finish.retry_at, finish.retry_streams, finish.park) == (None, (), "")


async def test_a_stream_that_will_not_mend_parks_its_pipeline_if_no_other_gets_on(
    claimed: Claimed,
) -> None:
    """Where trying again may do harm, it does so even then."""
    broken = bad(ErrorClass.PERMANENT)
    assert "3 runs in a row" in told(claimed, broken, failures=2).park
    assert told(claimed, GOOD, broken, failures=2).park == ""
    quiet = msgspec.structs.replace(GOOD, outcome=Outcome.NOTHING_NEW)
    assert told(claimed, quiet, broken, failures=2).park == ""
    assert "sign-in was refused" in told(claimed, GOOD, bad(ErrorClass.AUTH_EXPIRED)).park


async def test_a_run_that_was_told_to_end_says_why(claimed: Claimed) -> None:
    ended = Ended(m.Done((), {}, failure="ann said so"), Outcome.CANCELLED)
    finish = conclude(claimed, pipeline("a"), ended, NOW)
    assert (finish.outcome, finish.reason, finish.error) == (
        *(Outcome.CANCELLED, "ann said so"),
        None,
    )


# -- in the daemon -----------------------------------------------------------------------------


async def its_end(here: World) -> Run:
    async with here.served():
        await here.crew.begun("a")
        here.crew.end("a")
        return await here.ended("a")


async def test_a_secret_that_a_worker_repeats_is_in_neither_the_catalog_nor_a_log(
    world: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SHELF_PASSWORD", "hunter2")
    wanted = project(pipeline("a"))
    secrets = {"password": SecretRef("env", "SHELF_PASSWORD")}
    shelf = replace(wanted.connections["shelf"], secrets=secrets)
    here = world(replace(wanted, connections={**wanted.connections, "shelf": shelf}))
    here.crew.says = m.Done((), {}, failure="no user hunter2", error=ErrorClass.TRANSIENT)
    here.crew.prints = b"hunter2 is not known"
    run = await its_end(here)
    assert (run.outcome, run.reason) == (Outcome.FAILED, "no user [secret]")
    path = runlogs.path(tmp_path, "a", run.epoch)
    assert path.read_text() == "[secret] is not known"


async def test_a_log_that_cannot_be_kept_costs_no_run(world: Make, tmp_path: Path) -> None:
    (tmp_path / "logs").touch()
    here = world(project(pipeline("a")))
    here.crew.prints = b"words"
    assert (await its_end(here)).outcome is Outcome.NOTHING_NEW


@pytest.mark.parametrize("what", ["worker", "secret"])
async def test_what_cannot_be_had_for_one_run_costs_that_run(
    world: Make, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    wanted = project(pipeline("a"))
    if what == "secret":
        secrets = {"password": SecretRef("env", "NOT_SET_ANYWHERE")}
        shelf = replace(wanted.connections["shelf"], secrets=secrets)
        wanted = replace(wanted, connections={**wanted.connections, "shelf": shelf})
    here = world(wanted)

    async def none() -> Any:
        raise OSError(errno.EAGAIN, "too many processes", "python")

    monkeypatch.setattr(here.crew, "acquire", none)
    async with here.served():
        await here.shown("a", "the last run failed")
    run = await here.ended("a")
    assert (run.outcome, run.error) == (Outcome.FAILED, ErrorClass.TRANSIENT)
    assert ("too many processes (python)" if what == "worker" else "NOT_SET") in run.reason


async def test_a_lease_that_an_older_run_lost_ends_no_newer_one(world: Make) -> None:
    here = world(project(pipeline("a")))
    async with here.served():
        await here.crew.begun("a")
        conduct = here.runs.conducting["a"]
        lease = conduct.lease
        here.runs.lost(msgspec.structs.replace(lease, epoch=lease.epoch - 1))
        await anyio.wait_all_tasks_blocked()
        assert here.runs.conducting["a"] is conduct
        here.runs.lost(lease)
        await until(lambda: here.runs.conducting.get("a") is not conduct)
        run = await here.other.run(lease.epoch)
        assert run is not None
        assert run.outcome is Outcome.FENCED


async def test_all_runs_are_waited_for(world: Make) -> None:
    here = world(project(pipeline("a"), pipeline("b")))
    async with here.served():
        await here.crew.begun("a", "b")
        over: list[bool] = []

        async def wait() -> None:
            await here.runs.wait_idle()
            over.append(True)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wait)
            await anyio.wait_all_tasks_blocked()
            here.crew.end("a")
            await here.ended("a")
            await anyio.wait_all_tasks_blocked()
            assert not over
            here.crew.end("b")

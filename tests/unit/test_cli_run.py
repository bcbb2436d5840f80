"""``run`` with a daemon up: ask, wait, and say what came of it. The daemon is played by a thread
that does what one would do through the catalog's port."""

from __future__ import annotations

import asyncio
import os
import re
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from catalog.port import Catalog, new_operation_id
from catalog.records import Finish, Hold, HoldKind, Outcome, Pause, RequestRun, StreamResult
from reconciler.cli import waiting
from reconciler.cli.arrival import look_command
from reconciler.cli.desk import Place
from reconciler.cli.failure import Exit
from reconciler.cli.progress import Progress
from reconciler.config.desired import Connection
from tests.cli_kit import Result, Shop, claim, commit, finish, make_shop, ran
from tests.patience import PATIENCE


@pytest.fixture
def shop(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Shop:
    shop = make_shop(tmp_path, capsys)
    shop.on(ran)
    return shop


class Said:
    """What the command said while it waited; ``event`` is set by the first of it."""

    def __init__(self) -> None:
        self.event = threading.Event()
        self.text = ""

    def say(self, text: str) -> None:
        self.text += text
        self.event.set()


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> Said:
    """The command looks around at once, and what it says is caught."""
    said = Said()
    monkeypatch.setattr(waiting, "_LOOK_AROUND", 0.0)
    monkeypatch.setattr(Progress, "say", said.say)
    return said


async def request_of(catalog: Catalog) -> str:
    """Wait until the command line has asked for a run."""
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        state = await catalog.pipeline("shop")
        if state.request is not None:
            return state.request.id
        await asyncio.sleep(0.01)
    raise AssertionError("nobody asked for a run")


@contextmanager
def daemon(shop: Shop, work: Callable[[Catalog], Awaitable[object]]) -> Iterator[None]:
    """A daemon is up, and once a run is asked for it does ``work``."""
    failures: list[BaseException] = []

    async def play(catalog: Catalog) -> None:
        await request_of(catalog)
        await work(catalog)

    def serve() -> None:
        try:
            shop.on(play)
        except BaseException as error:
            failures.append(error)

    with shop.daemon_lock():
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield
        finally:
            thread.join(PATIENCE)
    assert failures == []
    assert not thread.is_alive()


def run_with(shop: Shop, work: Callable[[Catalog], Awaitable[object]], *args: str) -> Result:
    with daemon(shop, work):
        return shop.cli("run", *(args or ("shop",)))


Work = Callable[[Catalog], Awaitable[object]]


def ends(outcome: Outcome, *results: StreamResult, reason: str = "") -> Work:
    async def work(catalog: Catalog) -> None:
        await finish(catalog, await claim(catalog), outcome, *results, reason=reason)

    return work


@pytest.mark.parametrize(
    ("outcome", "code"),
    [
        (Outcome.SUCCEEDED, Exit.GOOD),
        (Outcome.NOTHING_NEW, Exit.GOOD),
        (Outcome.HELD, Exit.HELD),
        (Outcome.FAILED, Exit.FAILED),
        (Outcome.CANCELLED, Exit.FAILED),
    ],
)
def test_the_exit_code_is_the_outcome(shop: Shop, outcome: Outcome, code: Exit) -> None:
    result = run_with(shop, ends(outcome), "shop", "--json")
    assert result.code == code
    assert result.json["outcome"] == outcome
    assert result.json["trigger"]["kind"] == "request"


def test_nothing_new_is_one_line(shop: Shop) -> None:
    result = run_with(shop, ends(Outcome.NOTHING_NEW, reason="nothing new"))
    assert result.out.startswith("shop: nothing new in ")
    assert result.out.count("\n") == 1
    assert result.err == ""


def test_nothing_new_that_may_surprise_is_explained(shop: Shop) -> None:
    why = "a: nothing new: 2 files were written to just now, and wait"
    assert run_with(shop, ends(Outcome.NOTHING_NEW, reason=why)).out.endswith(f"\n{why}\n")


def test_what_arrived_is_said_with_where_and_how_to_look(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(shop.folder)

    async def work(catalog: Catalog) -> None:
        claimed = await claim(catalog)
        await commit(catalog, claimed, rows=1234, at=20)
        result = StreamResult("orders", Outcome.SUCCEEDED, rows=1234, rejected=2)
        clean = StreamResult("lines", Outcome.SUCCEEDED, rows=3)
        await finish(catalog, claimed, Outcome.SUCCEEDED, result, clean)

    result = run_with(shop, work)
    assert "1,234" in result.out
    assert "raw.orders in shop.duckdb" in result.out
    assert "2, in orders__rejected" in result.out
    assert "lines__rejected" not in result.out
    assert "from raw.orders limit 5" in result.out
    assert "with the next run" not in result.out


def test_a_config_that_was_spoilt_meanwhile_is_no_failure_of_the_run(
    shop: Shop, said: Said
) -> None:
    config = shop.folder / "config.toml"
    config.write_text(config.read_text() + "schedul = 1\n")

    async def work(catalog: Catalog) -> None:
        await asyncio.to_thread(said.event.wait, PATIENCE)
        claimed = await claim(catalog)
        await commit(catalog, claimed, at=20)
        result = StreamResult("orders", Outcome.SUCCEEDED, rows=3)
        await finish(catalog, claimed, Outcome.SUCCEEDED, result, reason="3 rows in 1 stream")

    result = run_with(shop, work)
    assert (result.code, result.out.splitlines()[1:]) == (Exit.GOOD, ["3 rows in 1 stream"])
    assert "has a mistake" in said.text


def test_a_parquet_table_is_said_to_be_where_its_folder_is() -> None:
    lake = Connection("lake", "parquet", {"path": str(Path.cwd() / "lake")})
    assert "lake/a%20b/**/*.parquet" in look_command(lake, "a b")


def test_a_held_stream_is_said_with_its_answers(shop: Shop) -> None:
    hold = Hold(HoldKind.NULL_KEY, "3 rows have no key.", 1, ("retry", "refresh"))
    held = StreamResult("orders", Outcome.HELD, hold.reason, hold=hold)
    result = run_with(shop, ends(Outcome.HELD, held))
    assert result.code == Exit.HELD
    assert "shop.orders is held: 3 rows have no key." in result.out
    assert "reconciler retry shop.orders" in result.out


def test_a_failure_is_said_with_its_reason_and_next_steps(shop: Shop) -> None:
    result = run_with(shop, ends(Outcome.FAILED, reason="the source is away"))
    assert result.code == Exit.FAILED
    assert "the source is away" in result.out
    assert "reconciler why shop" in result.out
    assert "reconciler logs shop" in result.out


def test_each_stream_that_failed_is_said_once(shop: Shop) -> None:
    failures = [StreamResult(s, Outcome.FAILED, f"no table {s}") for s in ("one", "two")]
    result = run_with(shop, ends(Outcome.FAILED, *failures, reason="2 failed; one: no table one"))
    assert result.out.count("no table one") == 1
    assert "shop.two: no table two" in result.out


def test_a_run_whose_rows_were_all_set_aside_says_where(shop: Shop) -> None:
    aside = StreamResult("orders", Outcome.SUCCEEDED, rejected=2)

    async def work(catalog: Catalog) -> None:
        claimed = await claim(catalog)
        await commit(catalog, claimed, rows=0, at=20, rejected=2)
        await finish(catalog, claimed, Outcome.SUCCEEDED, aside)

    assert "2, in orders__rejected" in run_with(shop, work).out


def test_rows_of_a_run_that_failed_are_not_said_to_be_there_already(shop: Shop) -> None:
    """They are committed; it may have failed to publish them."""
    busy = StreamResult("orders", Outcome.FAILED, "process 7 has it open", rows=3)

    async def work(catalog: Catalog) -> None:
        claimed = await claim(catalog)
        await commit(catalog, claimed, at=20)
        await finish(catalog, claimed, Outcome.FAILED, busy, reason="process 7 has it open")

    later = "What of this is not in its table yet comes there with the next run."
    assert later in run_with(shop, work).out


def test_one_stream_is_asked_for_alone(shop: Shop) -> None:
    result = run_with(shop, ends(Outcome.NOTHING_NEW), "shop.orders", "--json")
    assert result.json["trigger"]["streams"] == ["orders"]


def test_a_stream_that_is_not_there_is_code_5(shop: Shop) -> None:
    result = run_with(shop, ends(Outcome.NOTHING_NEW), "shop.ordres")
    assert result.code == Exit.NOTHING
    assert result.err == "shop reads no stream of the name 'ordres'.\n"
    found = StreamResult("orders", Outcome.NOTHING_NEW)
    assert run_with(shop, ends(Outcome.NOTHING_NEW, found), "shop.orders").code == Exit.GOOD


def test_an_interrupted_run_leaves_the_request_to_the_next(shop: Shop) -> None:
    async def work(catalog: Catalog) -> None:
        await finish(catalog, await claim(catalog), Outcome.INTERRUPTED)
        await finish(catalog, await claim(catalog), Outcome.NOTHING_NEW)

    result = run_with(shop, work, "shop", "--json")
    assert result.code == Exit.GOOD
    assert result.json["outcome"] == "nothing_new"


def test_a_run_under_way_is_waited_for_and_said(shop: Shop, said: Said) -> None:
    earlier = shop.on(claim)

    async def work(catalog: Catalog) -> None:
        await asyncio.to_thread(said.event.wait, PATIENCE)
        await finish(catalog, earlier, Outcome.NOTHING_NEW)
        await finish(catalog, await claim(catalog), Outcome.SUCCEEDED)

    result = run_with(shop, work)
    assert f"Run {earlier.lease.epoch} of shop is under way" in said.text
    assert re.search(rf"succeeded in \S+, run {earlier.lease.epoch + 1}\b", result.out)


def test_a_run_that_does_not_start_is_explained(shop: Shop, said: Said) -> None:

    async def work(catalog: Catalog) -> None:
        await asyncio.to_thread(said.event.wait, PATIENCE)
        await finish(catalog, await claim(catalog), Outcome.NOTHING_NEW)

    assert run_with(shop, work).code == Exit.GOOD
    assert "Waiting: asked for by" in said.text


def test_a_pipeline_that_is_not_in_the_config_is_not_waited_for(shop: Shop, said: Said) -> None:
    shop.on(lambda catalog: ran(catalog, "old"))
    with shop.daemon_lock():
        result = shop.cli("run", "old")
    assert result.code == Exit.NOTHING
    assert "old is not in the config" in result.err


def test_a_paused_pipeline_is_refused_with_code_3(shop: Shop) -> None:
    shop.on(lambda c: c.edit(new_operation_id(), "ann@host", "move", Pause("shop")))
    with shop.daemon_lock():
        result = shop.cli("run", "shop")
    assert result.code == Exit.HELD
    assert "paused by ann@host: move" in result.err
    assert f"reconciler resume shop --config {shop.folder}/config.toml\n" in result.err
    assert shop.on(lambda c: c.pipeline("shop")).request is None


def test_a_pause_while_waiting_ends_the_wait(shop: Shop) -> None:
    result = run_with(shop, lambda c: c.edit(new_operation_id(), "ann@host", "", Pause("shop")))
    assert result.code == Exit.HELD


def test_another_request_in_its_place_ends_the_wait(shop: Shop) -> None:
    result = run_with(
        shop, lambda c: c.edit(new_operation_id(), "ann@host", "", RequestRun("shop", "other"))
    )
    assert result.code == Exit.FAILED
    assert "took the place" in result.err


def test_a_daemon_that_goes_away_ends_the_wait(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "_LOOK_AROUND", 0.0)
    answers = iter([True])
    monkeypatch.setattr("reconciler.cli.desk.Place.daemon_up", lambda self: next(answers, False))
    result = shop.cli("run", "shop")
    assert result.code == Exit.FAILED
    assert "the next daemon answers it" in result.err
    assert shop.on(lambda c: c.pipeline("shop")).request is not None


def test_a_daemon_that_is_killed_in_the_midst_of_the_run_ends_the_wait(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting, "_LOOK_AROUND", 0.0)
    up = [True]
    monkeypatch.setattr("reconciler.cli.desk.Place.daemon_up", lambda self: up[0])

    async def begin_and_die(catalog: Catalog) -> None:
        await claim(catalog, ttl=0.2)
        up[0] = False

    result = run_with(shop, begin_and_die)
    assert result.code == Exit.FAILED
    assert "The daemon went away. The request stays" in result.err


def test_a_parked_pipeline_runs_when_it_is_asked_for(shop: Shop) -> None:
    async def park(catalog: Catalog) -> None:
        ended = Finish(Outcome.FAILED, "gave up", park="too many failures")
        await catalog.finish(new_operation_id(), (await claim(catalog)).lease, ended)

    shop.on(park)
    assert run_with(shop, ends(Outcome.SUCCEEDED)).code == Exit.GOOD


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_root_leaves_nothing_at_a_destination_that_the_services_user_cannot_write(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Place, "daemon_up", lambda _: False)
    os.chown(shop.folder / "state" / "catalog.db", 61234, 61234)
    done = shop.cli("run", "shop")
    assert (done.code, done.out) == (Exit.USAGE, "")
    assert "The catalog belongs to user 61234" in done.err
    assert "setpriv --reuid 61234 --regid 61234 --clear-groups reconciler run shop" in done.err


def test_dry_run_says_who_would_run_it(shop: Shop) -> None:
    assert "by this process" in shop.cli("run", "shop", "--dry-run").out
    assert shop.cli("pause", "shop").code == Exit.GOOD
    assert "But it is paused by " in shop.cli("run", "shop", "--dry-run").out
    with shop.daemon_lock():
        assert shop.cli("run", "shop", "--dry-run", "--json").json["by"] == "daemon"
    assert shop.on(lambda c: c.pipeline("shop")).request is None

"""The command line as a person meets it: real processes and a source, with and without a daemon."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shlex
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from catalog.clock import SystemClock
from catalog.open import open_catalog
from catalog.records import PipelineState
from reconciler.config import resolve_secret
from reconciler.config.desired import SecretRef
from reconciler.daemon import secrecy
from reconciler.lease.locks import HolderLock, new_holder
from tests.e2e.world import PATIENCE, RECONCILER, World, eventually

BODY = """
[connections.shop_db]
connector = "sql"
url = "sqlite:///source.db"

[connections.warehouse]
connector = "duckdb"
path = "out.duckdb"
schema = "raw"

[pipelines.shop]
source = "shop_db"
destination = "warehouse"
select = ["*"]
cursor = ["updated_at"]
settle = "0s"
stamped_by = "application"
"""
ROWS = [(n, f"2026-01-01 00:00:{n:02}", f"name {n}") for n in range(1, 4)]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path)
    world.write_config(BODY)
    world.fill("orders", ROWS)
    yield world
    world.close()


def steps(text: str) -> list[str]:
    """The commands that an answer says to type."""
    return [line.strip() for line in text.splitlines() if line.startswith("  ")]


def test_from_nothing_to_rows_without_a_daemon(world: World) -> None:
    assert "All in order." in world.cli("check")
    said = world.cli("run", "shop")
    assert re.match(r"shop: succeeded in .*, run 1\n", said)
    assert re.search(r"^(main\.)?orders +3 +raw\.orders in ", said, re.MULTILINE)
    command = shlex.split(steps(said)[-1])
    shown = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=True)
    assert "name 3" in shown.stdout
    again = json.loads(world.cli("run", "shop", "--json"))
    assert again["outcome"] == "nothing_new"
    assert again["holder"].startswith("cli-")
    runs = json.loads(world.cli("runs", "shop", "--json"))
    assert [run["outcome"] for run in runs] == ["nothing_new", "succeeded"]
    assert runs[1]["rows"] == 3


def test_where_no_daemon_ever_is_each_run_forgets_what_is_too_old(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.write_config(f'{BODY}\n[retention]\nruns = "60s"\n')
    world.cli("run", "shop")
    now = SystemClock.wall_us
    monkeypatch.setattr(SystemClock, "wall_us", lambda self: now(self) + 61 * 10**6)
    world.do("run", "shop")
    assert [run["epoch"] for run in json.loads(world.do("runs", "shop", "--json"))] == [2]


def test_a_table_that_is_gone_stops_no_other_one(world: World) -> None:
    world.write_config(f'{BODY}\n[pipelines.shop.streams.gone]\nmode = "append"\n')
    for number in range(1, 4):  # a pipeline of this stream alone would be parked now
        world.fill("orders", [(10 + number, f"2026-01-02 00:00:0{number}", "late")])
        assert "there is no table 'gone'" in world.cli("run", "shop", code=1)
    standing = json.loads(world.cli("status", "shop", "--json"))
    assert (standing["parked"], standing["failures"]) == (None, 3)
    rows = {stream["stream"]: stream["rows"] for stream in standing["streams"]}
    assert rows["orders"] == len(ROWS) + 3


def test_discover_prints_config_that_runs(world: World) -> None:
    found = world.cli("discover", "shop_db")
    assert 'cursor = ["updated_at"]' in found
    assert "updated_at (index)" in found
    assert "# key: id" in found
    pasted = found.replace("DESTINATION", "warehouse")
    world.write_config(BODY.partition("[pipelines")[0] + pasted)
    assert "succeeded" in world.cli("run", "shop_db")
    assert world.cli("discover", "shop_db", "--select", "nothing*", code=5) == ""


def test_check_looks_at_the_projects_own_history_and_makes_no_catalog(world: World) -> None:
    world.write_config(BODY + '[connections.own]\nconnector = "history"\n')
    before = json.loads(world.cli("check", "--json"))["findings"]["own"]
    assert [f["level"] for f in before] == ["ok"]
    assert not (world.folder / "state").exists()
    world.cli("run", "shop")
    after = json.loads(world.cli("check", "--json"))["findings"]["own"]
    assert [f["level"] for f in after] == ["ok"]
    assert after != before


def test_check_names_the_connection_with_a_problem(world: World) -> None:
    world.write_config(BODY.replace("source.db", "not_there.db"))
    said = json.loads(world.cli("check", "--json", code=1))
    assert said["problems"] >= 1
    assert any(f["level"] == "problem" for f in said["findings"]["shop_db"])
    world.write_config(BODY.replace("warehouse", "nowhere", 1))
    world.cli("check", code=2)


def test_a_daemon_that_is_up_does_the_run(world: World) -> None:
    daemon = world.start()
    daemon.wait_ready()
    said = json.loads(world.cli("run", "shop", "--json"))
    assert said["outcome"] == "succeeded"
    assert said["holder"].startswith("daemon-")
    assert said["rows"] == 3
    status = json.loads(world.cli("status", "--json"))
    assert status["daemon_up"] is True
    assert status["pipelines"][0]["last_outcome"] == "succeeded"
    world.cli("pause", "shop")
    world.cli("run", "shop", code=3)
    world.cli("resume", "shop")
    assert "nothing new" in world.cli("run", "shop")
    assert daemon.stop() == 0
    assert json.loads(world.cli("status", "--json"))["daemon_up"] is False


def test_a_paused_pipeline_is_not_run_here_either(world: World) -> None:
    world.cli("run", "shop")
    world.cli("pause", "shop")
    assert world.cli("run", "shop", code=3) == ""
    assert len(json.loads(world.cli("runs", "--json"))) == 1


def test_a_secret_in_the_environment_is_not_in_the_workers(world: World) -> None:
    probe = world.folder / "sitecustomize.py"
    probe.write_text(
        "import os, pathlib, sys\n"
        "kind = 'worker' if 'reconciler.run.worker' in sys.orig_argv else 'cli'\n"
        "with open(pathlib.Path(__file__).with_name(kind), 'w') as file:\n"
        "    print(dict(os.environ), file=file)\n"
    )
    world.write_config(
        BODY + '[connections.other]\nconnector = "sql"\n'
        'url = "postgresql://reader@localhost/x"\npassword = "env:OTHER_PASSWORD"\n'
    )
    world.cli("run", "shop", OTHER_PASSWORD="hunter2", PYTHONPATH=str(world.folder))
    assert "hunter2" in (world.folder / "cli").read_text()
    worker = (world.folder / "worker").read_text()
    assert "PYTHONPATH" in worker
    assert "hunter2" not in worker


def test_a_failed_run_says_why_and_what_to_type(world: World) -> None:
    world.source.unlink()
    said = world.cli("run", "shop", code=1)
    assert "shop: failed" in said
    assert f"reconciler why shop --config {world.config}" in steps(said)


def state_of(world: World) -> PipelineState:
    async def read() -> PipelineState:
        async with open_catalog(f"sqlite:///{world.folder}/state/catalog.db") as catalog:
            return await catalog.pipeline("shop")

    return asyncio.run(read())


def test_a_secret_that_is_renewed_at_this_moment_is_waited_for(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its file is not there, or empty, for as long as it is written; no person has to act."""
    world.write_config(
        BODY.replace('source = "shop_db"', 'source = "db"')
        + '[connections.db]\nconnector = "sql"\n'
        'url = "postgresql://reader@localhost/x"\npassword = "file:secret"\n'
    )
    secret = world.folder / "secret"
    secret.write_text("hunter2")

    def read_while_it_is_written(ref: SecretRef) -> str:
        secret.unlink(missing_ok=True)
        return resolve_secret(ref)

    monkeypatch.setattr(secrecy, "resolve_secret", read_while_it_is_written)
    world.do("run", "shop", code=1)
    state = state_of(world)
    assert f"{secret} cannot be read" in state.last_reason
    assert state.parked is None
    assert state.retry_at is not None


def test_ctrl_c_ends_the_wait_and_leaves_the_run_to_the_daemon(world: World) -> None:
    world.cli("run", "shop")
    lock = HolderLock(world.folder / "state", new_holder("daemon"))
    waiting = subprocess.Popen(
        [RECONCILER, "run", "shop", "--config", str(world.config)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "RECONCILER_DEBUG": ""},
    )
    try:
        eventually(lambda: state_of(world).request is not None, "a run is asked for")
        waiting.send_signal(signal.SIGINT)
        _, said = waiting.communicate(timeout=PATIENCE)
    finally:
        waiting.kill()
        lock.close()
    assert waiting.returncode == 130
    assert "The daemon goes on with shop" in said
    assert "reconciler cancel shop" in said
    assert "Traceback" not in said
    assert state_of(world).request is not None


_ENDLESS = """
[pipelines.endless]
source = "shop_db"
destination = "warehouse"
[pipelines.endless.streams.numbers]
mode = "replace"
query = "with recursive n(i) as (select 1 union all select i + 1 from n) select i from n"
"""


@pytest.mark.parametrize(("by", "code"), [("ctrl-c", 130), ("cancel", 1)])
def test_a_run_done_here_can_be_ended_and_is_closed(world: World, by: str, code: int) -> None:
    world.write_config(BODY + _ENDLESS)
    running = subprocess.Popen(
        [RECONCILER, "run", "endless", "--config", str(world.config)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )

    def staged() -> bool:
        return any(p.stat().st_size for p in world.folder.rglob("*.staged"))

    try:
        eventually(staged, "the worker writes what it reads")
        if by == "cancel":
            world.cli("cancel", "endless")
        else:
            running.send_signal(signal.SIGINT)
        _, said = running.communicate(timeout=PATIENCE)
    finally:
        running.kill()
    assert running.returncode == code
    assert ("What it committed stays" in said) == (by == "ctrl-c")
    (run,) = json.loads(world.cli("runs", "endless", "--json"))
    assert run["outcome"] == "cancelled"
    states = json.loads(world.cli("status", "--json"))["pipelines"]
    assert [(s["state"], s["request"]) for s in states if s["pipeline"] == "endless"] == [
        ("idle", None)
    ]


def test_a_broken_catalog_is_a_sentence(world: World) -> None:
    (world.folder / "state").mkdir()
    (world.folder / "state" / "catalog.db").write_text("this is no database" * 100)
    done = subprocess.run(
        [RECONCILER, "status", "--config", str(world.config)],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 1
    assert "catalog.db" in done.stderr
    assert "Traceback" not in done.stderr

"""A source that is restarted, cut off, silent or slow while it is written to; then all is right.

Each trouble fails a run with its class and a sentence that says what happened; no person does
anything, and in the end destination equals source row for row.

Longer: ``RECONCILER_TEST_SECONDS=600 pytest -m slow tests/crash/test_postgres_trouble.py``.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.e2e.proxy import Proxy
from tests.e2e.test_postgres_writers import _CONFIG, _TABLES, Writers, _events, _there
from tests.e2e.world import Daemon, World, eventually
from tests.servers import PrivateServer, private_postgres

pytestmark = pytest.mark.postgres
_STALL = "no bytes moved for 4 s, the pipeline's `stall_timeout`"
_PIPELINES = ("merged", "added")
_GONE = "refused|reset|closed the connection|terminat|starting up|shutting down|server running"


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path)
    yield world
    world.close()


@pytest.fixture(scope="module")
def server() -> Iterator[PrivateServer]:
    with private_postgres() as server:
        yield server


class Stubborn(Writers):
    """Writers that connect again when their server went away."""

    def _work(self, number: int, what: Any) -> None:
        while not self._over.is_set():
            with suppress(psycopg.OperationalError, psycopg.InterfaceError):
                super()._work(number, what)
            self._over.wait(0.1)

    def stop(self) -> None:
        super().stop()
        with self._server.connect(database=self._database) as db:
            self._decide(db)

    def _prepared(self, db: Any, number: int, chance: random.Random) -> None:
        self._decide(db)
        super()._prepared(db, number, chance)

    @staticmethod
    def _decide(db: Any) -> None:
        """What was prepared when its connection was lost keeps the bound back."""
        sql = "select gid from pg_prepared_xacts where database = current_database()"
        for (gid,) in db.execute(sql).fetchall():
            db.execute(f"commit prepared '{gid}'")


class Scene:
    """A source behind a proxy, writers at the source, a daemon that loads it."""

    def __init__(self, world: World, server: PrivateServer, host: str = "127.0.0.1") -> None:
        self.world, self.server = world, server
        self.name = server.new_database("trouble")
        server.execute(*_TABLES, database=self.name)
        self.proxy = Proxy(server.port, host)
        url = f"postgresql://postgres@{host}:{self.proxy.port}/{self.name}"
        config = _CONFIG.format(url=url)
        world.write_config(
            config.replace("[defaults]", '[defaults]\nretries = 100\nstall_timeout = "4s"')
        )
        self.daemon: Daemon = world.start()
        self.writers = Stubborn(server, self.name)

    def fails(self, why: str, after: int) -> None:
        """A run of each pipeline fails for that reason."""
        for pipeline in _PIPELINES:
            failed = self.daemon.wait_for(
                "run_finished",
                lambda e, of=pipeline: e["pipeline"] == of and e["outcome"] == "failed",
                after=after,
            )
            assert re.search(why, failed["reason"]), failed

    def heals(self, after: int) -> None:
        for pipeline in _PIPELINES:
            self.daemon.finished(pipeline, "succeeded", after=after)


Trouble = Callable[[Scene], None]


def restarted(scene: Scene) -> None:
    seen = len(scene.daemon.events)
    scene.server.stop(signal.SIGQUIT)
    try:
        scene.fails(_GONE, seen)
    finally:
        scene.server.start()


def cut_off(scene: Scene) -> None:
    seen = len(scene.daemon.events)
    scene.proxy.cut()
    scene.fails("refused|reset|closed the connection|server running", seen)
    scene.proxy.mend()


def silent(scene: Scene) -> None:
    seen = len(scene.daemon.events)
    scene.proxy.stall()
    scene.fails(re.escape(_STALL), seen)
    scene.proxy.mend()


def slow(scene: Scene) -> None:
    """Byte by byte, for much longer than `stall_timeout`: slow is not silent. The first run has as
    much to bring as a second makes, the next what came while that one took its time."""
    seen = len(scene.daemon.events)

    def long() -> set[str]:
        found = [e for e in scene.daemon.events[seen:] if e["event"] == "run_finished"]
        return {e["pipeline"] for e in found if e["seconds"] > 6}

    scene.proxy.slow(0.001)
    end = time.monotonic() + 30  # how long it is slow at most
    while len(long()) < len(_PIPELINES) and time.monotonic() < end:
        time.sleep(0.1)
    scene.proxy.mend()
    for pipeline in _PIPELINES:
        scene.daemon.wait_for(
            "run_finished",
            lambda e, of=pipeline: e["pipeline"] == of and e["seconds"] > 6,
            after=seen,
        )
    assert not [e for e in scene.daemon.events[seen:] if e.get("outcome") == "failed"]


def _prove(world: World, server: PrivateServer, troubles: list[Trouble]) -> None:
    _play(Scene(world, server), troubles)


def _play(scene: Scene, troubles: list[Trouble]) -> None:
    try:
        scene.daemon.wait_ready()
        scene.writers.start()
        try:
            for trouble in troubles:
                scene.heals(len(scene.daemon.events))
                trouble(scene)
            scene.heals(len(scene.daemon.events))
        finally:
            scene.writers.stop()
        _is_equal(scene)
    finally:
        scene.proxy.close()


def _is_equal(scene: Scene) -> None:
    world, server = scene.world, scene.server
    events = server.execute("select id, writer from events order by id", database=scene.name)
    sql = "select id, writer, value from accounts order by id"
    accounts = server.execute(sql, database=scene.name)
    eventually(lambda: _events(world) == events, "each event is there once")
    eventually(lambda: _there(world, sql) == accounts, "each account is there, in its newest form")
    assert scene.daemon.stop() == 0
    said = scene.daemon.events
    assert not [e for e in said if e.get("outcome") == "held"]
    assert not [e for e in said if "fault of its own" in str(e.get("reason", ""))]
    assert not [e for e in said if e["event"] in ("text", "pipeline_parked")]
    failed = [run for run in json.loads(world.do("runs", "--json")) if run["outcome"] == "failed"]
    assert {run["error"] for run in failed} <= {"transient"}


def test_a_source_that_is_restarted_costs_runs_and_no_row(
    world: World, server: PrivateServer
) -> None:
    _prove(world, server, [restarted])


@pytest.mark.slow
@pytest.mark.parametrize("trouble", [cut_off, silent, slow])
def test_a_line_in_trouble_costs_runs_and_no_row(
    world: World, server: PrivateServer, trouble: Trouble
) -> None:
    _prove(world, server, [trouble])


class Cable:
    """A network of its own for the daemon; one cable leads out of it. Needs root's rights."""

    host = "10.213.77.1"

    def __init__(self) -> None:
        self._space, self._near = f"reconciler-{os.getpid()}", f"rc{os.getpid() % 10**9}"
        self.within = ("ip", "netns", "exec", self._space)
        if shutil.which("ip") is None:
            pytest.skip("needs `ip` (Debian: iproute2)")
        far = f"{self._near}x"
        for command in (
            f"netns add {self._space}",
            f"link add {self._near} type veth peer name {far} netns {self._space}",
            f"addr add {self.host}/30 dev {self._near}",
            f"link set {self._near} up",
            f"-n {self._space} addr add 10.213.77.2/30 dev {far}",
            f"-n {self._space} link set {far} up",
            f"-n {self._space} link set lo up",
        ):
            if why := self._ip(command):
                self.close()
                pytest.skip(f"needs the right to make network namespaces: {why}")

    def _ip(self, words: str) -> str:
        done = subprocess.run(
            ["ip", *words.split()], capture_output=True, text=True, check=False, timeout=30
        )
        return done.stderr.strip() if done.returncode else ""

    def pull(self) -> None:
        self._ip(f"link set {self._near} down")

    def plug_in(self) -> None:
        self._ip(f"link set {self._near} up")

    def close(self) -> None:
        self._ip(f"netns del {self._space}")
        self._ip(f"link del {self._near}")


@pytest.mark.slow
def test_a_cable_that_is_pulled_costs_runs_and_no_row(world: World, server: PrivateServer) -> None:
    cable = Cable()
    try:
        world.within = cable.within

        def pulled(scene: Scene) -> None:
            seen = len(scene.daemon.events)
            cable.pull()
            scene.fails(f"{re.escape(_STALL)}|No route to host|unreachable|timed out", seen)
            cable.plug_in()

        _play(Scene(world, server, cable.host), [pulled])
    finally:
        world.close()
        cable.close()


@pytest.mark.slow
def test_one_trouble_after_another(world: World, server: PrivateServer) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")  # noqa: T201 - shown when it fails
    chance = random.Random(seed)
    count = max(2, round(float(os.environ.get("RECONCILER_TEST_SECONDS", "60")) / 15))
    kinds: list[Trouble] = [restarted, cut_off, silent, slow]
    _prove(world, server, [chance.choice(kinds) for _ in range(count)])

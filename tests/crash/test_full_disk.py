"""A disk that is full, for real: a small tmpfs under the destination, under the catalog, and the
catalog's own ceiling (D1). The daemon stays up, says so, and goes on by itself once there is room.
"""

from __future__ import annotations

import os
import signal
import subprocess
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import anyio
import pytest

from catalog.clock import SystemClock
from catalog.errors import Full
from catalog.open import open_catalog
from catalog.port import new_operation_id
from catalog.records import Pause, Retention
from tests.crash.test_stale_holder import _stopped, _workers
from tests.e2e.world import World, eventually
from tests.patience import PATIENCE

_CONFIG = """
[connections.src]
connector = "sql"
url = "sqlite:///source.db"
[connections.dst]
connector = "{connector}"
path = "{path}"
[pipelines.p]
source = "src"
destination = "dst"
schedule = "{schedule}"
mode = "append"
[pipelines.p.streams."orders"]
cursor = ["id"]
"""


def config(connector: str, path: str, schedule: str = "every 1s") -> str:
    return _CONFIG.format(connector=connector, path=path, schedule=schedule)


PATHS = {"parquet": "lake", "duckdb": "out.duckdb"}


class Disk:
    """A small file system of its own."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._ballast = path / "ballast"

    def fill(self) -> None:
        """Leave no room at all."""
        with suppress(OSError), self._ballast.open("ab", buffering=0) as file:
            while True:
                file.write(bytes(4096))

    def free(self) -> None:
        self._ballast.unlink()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    path = tmp_path / "disk"
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(path)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a tmpfs takes rights that are not here")
    yield Disk(path)
    subprocess.run(["umount", "--lazy", str(path)], check=True)


@pytest.fixture
def world(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[World]:
    if "disk" in request.fixturenames:
        request.getfixturevalue("disk")  # first: it goes when the daemon is gone
    world = World(tmp_path)
    yield world
    world.close()


def rows(world: World, connector: str, folder: str = ".") -> list[tuple[Any, ...]]:
    if connector == "duckdb":
        return world.duckdb_rows("orders", f"{folder}/out.duckdb")
    return world.parquet_rows("orders", f"{folder}/lake")


def orders(first: int, last: int) -> Iterator[tuple[int, str, str]]:
    return ((n, f"2026-01-01 00:00:{n % 60:02d}", f"n{n}" * 20) for n in range(first, last + 1))


def ready(url: str) -> tuple[int, str]:
    """The status of ``/readyz``, and what it says."""
    try:
        with urllib.request.urlopen(f"{url}readyz", timeout=PATIENCE) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def metric(url: str, name: str) -> float:
    with urllib.request.urlopen(f"{url}metrics", timeout=PATIENCE) as answer:
        lines = answer.read().decode().splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name))


def arrived(world: World, connector: str, folder: str = ".") -> Callable[[], bool]:
    return lambda: rows(world, connector, folder) == world.source_rows("orders")


@pytest.mark.parametrize("connector", ["duckdb", pytest.param("parquet", marks=pytest.mark.slow)])
def test_a_full_destination_costs_runs_and_no_row(connector: str, world: World, disk: Disk) -> None:
    world.fill("orders", orders(1, 200))
    world.write_config(config(connector, f"disk/{PATHS[connector]}"))
    daemon = world.start()
    url = daemon.wait_ready()
    daemon.finished("p", "succeeded")
    seen = len(daemon.events)
    disk.fill()
    world.fill("orders", orders(201, 3_000))
    failed = daemon.finished("p", "failed", after=seen)
    assert str(disk.path) in failed["reason"]
    assert "No space left" in failed["reason"]
    assert ready(url)[0] == 200  # other pipelines are none the worse
    assert metric(url, 'reconciler_runs_total{pipeline="p",outcome="failed"') > 0
    assert len(rows(world, connector, "disk")) == 200
    disk.free()
    eventually(arrived(world, connector, "disk"), "all rows are there")
    assert daemon.stop() == 0


def test_a_full_disk_under_the_catalog_is_waited_for(world: World, disk: Disk) -> None:
    """Nothing else is due: that the catalog is well again is found out all the same."""
    world.fill("orders", orders(1, 200))
    world.write_config(config("parquet", "lake", schedule="every 30d"), lease_ttl="30s")
    text = world.config.read_text()
    world.config.write_text(text.replace("[daemon]", f'state_dir = "{disk.path}"\n[daemon]'))
    daemon = world.start(RECONCILER_TEST_PAUSE_AT="worker.published")
    url = daemon.wait_ready()
    pid = daemon.process.pid
    eventually(lambda: any(map(_stopped, _workers(pid))), "the worker stops once it has published")
    (worker,) = [child for child in _workers(pid) if _stopped(child)]
    disk.fill()
    os.kill(worker, signal.SIGCONT)
    trouble = daemon.wait_for("catalog_unavailable")
    assert "catalog.db" in trouble["reason"]
    status, why = ready(url)
    assert status == 503
    assert "catalog.db" in why
    assert metric(url, "reconciler_catalog_up") == 0
    disk.free()
    daemon.wait_for("catalog_recovered")
    eventually(lambda: ready(url)[0] == 200, "it is ready")
    assert metric(url, "reconciler_catalog_up") == 1
    daemon.finished("p", "succeeded")
    assert arrived(world, "parquet")()
    assert daemon.stop() == 0
    assert "No damage" in world.do("catalog", "check")


def test_at_its_ceiling_the_catalog_takes_no_run_until_there_is_room(
    world: World, tmp_path: Path
) -> None:
    """What it holds is safe, what ends and shortens still goes, and retention makes room."""
    world.fill("orders", orders(1, 200))
    world.write_config(config("parquet", "lake", schedule="every 30d"))
    text = world.config.read_text()
    world.config.write_text(text.replace("[daemon]", 'catalog_limit = "1MiB"\n[daemon]'))
    url = f"sqlite:///{tmp_path / 'state' / 'catalog.db'}"
    before = anyio.run(fill_up, url)
    daemon = world.start()
    web = daemon.wait_ready()
    trouble = daemon.wait_for("catalog_unavailable")
    assert "ceiling" in trouble["reason"]
    status, why = ready(web)
    assert status == 503
    assert "catalog_limit" in why
    assert daemon.process.poll() is None
    anyio.run(make_room, url, before)
    daemon.wait_for("catalog_recovered")
    daemon.finished("p", "succeeded")
    eventually(lambda: ready(web)[0] == 200, "it is ready")
    assert arrived(world, "parquet")()
    assert daemon.stop() == 0
    assert "No damage" in world.do("catalog", "check")


async def fill_up(url: str) -> int:
    """Make the catalog and write into it until it is full; the time then."""
    async with open_catalog(url, limit_bytes=1 << 20) as catalog:
        while True:
            try:
                await catalog.edit(new_operation_id(), "ann", "x" * 4_000, Pause("other"))
            except Full:
                return SystemClock().wall_us()


async def make_room(url: str, before: int) -> None:
    """What another process does: retention."""
    async with open_catalog(url, limit_bytes=1 << 20) as catalog:
        keep = Retention(runs_before=before, operations_before=before, limit=100)
        while await catalog.retain(new_operation_id(), keep):
            pass

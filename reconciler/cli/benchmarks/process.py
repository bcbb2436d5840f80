"""Whole processes: commands from a shell, the daemon's start and its memory at rest."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from reconciler.cli.benchmarks.measure import Measure, median

_PROGRAM = [sys.executable, "-m", "reconciler"]
_HEAD = """project = "bench"
[daemon]
listen = "127.0.0.1:0"
[connections.inbox]
connector = "files"
path = "inbox"
[connections.lake]
connector = "parquet"
path = "lake"
[defaults]
mode = "append"
"""


def _config(folder: Path, pipelines: int) -> Path:
    """A config whose pipelines are not due during the measurement, but for the first."""
    (folder / "inbox").mkdir(exist_ok=True)
    (folder / "inbox" / "one.csv").write_text("id,name\n1,a\n2,b\n")
    blocks = [_HEAD]
    for number in range(pipelines):
        schedule = "" if number == 0 else 'schedule = "0 3 1 1 *"\n'
        blocks.append(
            f'[pipelines.p{number:06}]\nsource = "inbox"\ndestination = "lake"\n{schedule}'
            f'[pipelines.p{number:06}.streams.s{number:06}]\npath = "*.csv"\nsettle = "0s"\n'
        )
    path = folder / "config.toml"
    path.write_text("\n".join(blocks))
    return path


@contextmanager
def _daemon(config: Path) -> Iterator[tuple[int, float]]:
    """A running daemon: its pid, and the seconds from exec to ready."""
    started = time.perf_counter()
    process = subprocess.Popen(
        [*_PROGRAM, "serve", "--config", str(config)], stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    try:
        lines = (json.loads(line) for line in process.stderr if line.startswith("{"))
        if not any(line["event"] == "daemon_ready" for line in lines):
            raise RuntimeError("the daemon ended before it was ready")
        yield process.pid, time.perf_counter() - started
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)


def _rss_mib(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    return 0.0


def _run_seconds(config: Path, times: int = 7) -> float:
    command = [*_PROGRAM, "run", "p000000", "--config", str(config)]
    environment = {**os.environ, "NO_COLOR": "1"}
    subprocess.run(command, capture_output=True, check=True, env=environment)  # brings the rows
    took = []
    for _ in range(times):
        started = time.perf_counter()
        subprocess.run(command, capture_output=True, check=True, env=environment)
        took.append(time.perf_counter() - started)
    return median(took)


def measure(folder: Path) -> Iterator[Measure]:
    """Commands, start-up and memory."""
    few, small, large = folder / "few", folder / "small", folder / "large"
    few.mkdir()
    config = _config(few, 10)
    down = _run_seconds(config)
    with _daemon(config):
        up = _run_seconds(config)
    small.mkdir()
    with _daemon(_config(small, 1_000)) as (pid, ready):
        time.sleep(3.0)
        rest = _rss_mib(pid)
    yield Measure("`run` from a shell, nothing new, daemon up", up, "s", "under 0.3 s", up < 0.3)
    yield Measure("the same, daemon down", down, "s", "under 0.6 s", down < 0.6)
    yield Measure("`serve` to ready, 1,000 pipelines", ready, "s", "under 1.5 s", ready < 1.5)
    yield Measure("daemon at rest, 1,000 pipelines", rest, "MiB RSS", "at most 60", rest <= 60)
    large.mkdir()
    with _daemon(_config(large, 100_000)) as (pid, ready):
        time.sleep(5.0)
        rest = _rss_mib(pid)
    yield Measure(
        "daemon at rest, 100,000 pipelines", rest, "MiB RSS", "at most 200", rest <= 200,
        note=f"ready after {ready:.1f} s",
    )  # fmt: skip

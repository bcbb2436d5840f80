"""Each call to the disk about DuckDB's own file and log fails in turn, once and for good (B5, B8).

DuckDB makes these calls itself, so they fail below it: in a process with a library that stands
before the C library. A publish that meets the fault says so, as something that may be tried again;
what is there then is whole batches; and once the disk is well the same process publishes on, each
row once.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import preload

_SOURCE = Path(__file__).with_name("disk_faults.c")


@pytest.mark.slow
@pytest.mark.parametrize("long_log", ["16MB", "1KB"])
def test_each_call_about_duckdbs_own_file_fails(long_log: str, tmp_path: Path) -> None:
    """``1KB``: each transaction ends with a checkpoint."""
    library = preload.build(_SOURCE, tmp_path, "what lets DuckDB's calls fail")
    command = [sys.executable, "-m", "tests.crash.duckdb_faults", str(tmp_path / "db"), long_log]
    env = {**os.environ, "LD_PRELOAD": str(library), "FAULTY_FILE": "shop.duckdb"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    told = done.stdout.splitlines()
    wrong = [f"{told[n - 1]}: {line}" for n, line in enumerate(told) if line.startswith("wrong")]
    assert wrong == []
    assert told[-1:] == ["to the end"], (told[-1:], done.stderr[-1000:])
    assert len(told) > 60

"""What runs printed, as it is kept: whole, without secrets, for as long as runs are."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from reconciler.daemon import runlogs

_KEEP = """
import sys
from pathlib import Path
from reconciler.daemon import runlogs
runlogs.keep(Path(sys.argv[1]), "shop", 7, b"\\xe2\\x98\\x83 hunter2", lambda t: t[:-7])
"""


def test_what_a_run_printed_is_kept_whatever_the_locale(tmp_path: Path) -> None:
    """A letter that the locale lacks ended the daemon."""
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    subprocess.run(
        [sys.executable, "-c", _KEEP, str(tmp_path)], env={**os.environ, **ascii_only}, check=True
    )
    ((run, path),) = runlogs.newest_first(tmp_path)
    assert (run, path) == (7, runlogs.path(tmp_path, "shop", 7))
    assert path.read_bytes() == "☃ ".encode()


def test_of_what_is_kept_the_newest_run_comes_first_and_what_is_old_goes(tmp_path: Path) -> None:
    for pipeline, run, age in (("shop", 9, 30), ("lake", 10, 10), ("shop", 11, 20)):
        runlogs.keep(tmp_path, pipeline, run, b"words", str)
        os.utime(runlogs.path(tmp_path, pipeline, run), (100 - age, 100 - age))
    (tmp_path / "logs" / "shop" / "note.log").touch()
    assert [run for run, _ in runlogs.newest_first(tmp_path)] == [11, 10, 9]
    runlogs.forget_before(tmp_path, 80.0)
    assert [run for run, _ in runlogs.newest_first(tmp_path)] == [11, 10]

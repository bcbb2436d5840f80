"""Libraries in C that stand before the C library of a process under test (``LD_PRELOAD``)."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest


def build(source: Path, folder: Path, what: str) -> Path:
    """The library, built in ``folder``; the test is skipped where it cannot be.

    ``what``: for the reason, such as "what moves a process's clocks".
    """
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip(f"needs a C compiler (gcc), to build {what}")
    library = folder / f"{source.stem}.so"
    command = [compiler, "-O1", "-shared", "-fPIC", "-o", str(library), str(source)]
    command += ["-ldl", "-pthread"]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    if built.returncode != 0:
        pytest.skip(f"{what} could not be built: {built.stderr[:200]}")
    return library

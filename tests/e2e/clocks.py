"""A machine's clocks that a test moves under running processes: wall and boot, not monotonic."""

from __future__ import annotations

import shutil
import struct
import subprocess
from pathlib import Path

import pytest

_SHIM = Path(__file__).with_name("clock_shim.c")


class Clocks:
    """The clocks of every process that is started with ``env``; moved for all of them at once."""

    def __init__(self, folder: Path) -> None:
        compiler = shutil.which("gcc") or shutil.which("cc")
        if compiler is None:
            pytest.skip("needs a C compiler (gcc), to build what moves a process's clocks")
        library = folder / "clock_shim.so"
        command = [compiler, "-O1", "-shared", "-fPIC", "-o", str(library), str(_SHIM), "-ldl"]
        built = subprocess.run(command, capture_output=True, text=True, check=False)
        if built.returncode != 0:
            pytest.skip(f"what moves a process's clocks could not be built: {built.stderr[:200]}")
        self._file = folder / "clocks"
        self._wall_s = self._boot_s = 0.0
        self._file.write_bytes(struct.pack("<qq", 0, 0))
        self.env = {"LD_PRELOAD": str(library), "RECONCILER_TEST_CLOCK": str(self._file)}

    def move(self, wall_s: float, boot_s: float = 0.0) -> None:
        """Move the clocks from where they stand now."""
        self._wall_s += wall_s
        self._boot_s += boot_s
        offsets = (round(self._wall_s * 1e9), round(self._boot_s * 1e9))
        with self._file.open("r+b", buffering=0) as file:
            file.write(struct.pack("<qq", *offsets))

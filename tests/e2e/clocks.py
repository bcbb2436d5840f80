"""A machine's clocks that a test moves under running processes: wall and boot, not monotonic."""

from __future__ import annotations

import struct
from pathlib import Path

from tests import preload

_SHIM = Path(__file__).with_name("clock_shim.c")


class Clocks:
    """The clocks of every process that is started with ``env``; moved for all of them at once."""

    def __init__(self, folder: Path) -> None:
        library = preload.build(_SHIM, folder, "what moves a process's clocks")
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

"""The destinations' way to the disk, of which the n-th call fails because a test wants it to."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Any

from reconciler.connectors.destinations.files import DISK, Sink


class Fault(Enum):
    """What a call comes to."""

    EIO = errno.EIO
    ENOSPC = errno.ENOSPC
    SHORT = -1
    """Half of a write arrives, and then there is no room."""


_NEED_ROOM = {"create", "mkdir", "write", "sync", "rename", "exchange", "sync_file", "sync_dir"}


def faults_of(call: str) -> tuple[Fault, ...]:
    """The faults that a call of this name can meet."""
    if call == "write":
        return tuple(Fault)
    return (Fault.EIO, Fault.ENOSPC) if call in _NEED_ROOM else (Fault.EIO,)


class FaultyFiles:
    """The real disk, with the methods of ``Files``. While ``armed``, ``calls`` names the calls,
    ``paths`` what they are about, and ``struck`` those that failed.
    """

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.paths: list[Path] = []
        self.struck: list[str] = []
        self._at, self._fault, self._lasting, self._armed = 0, Fault.EIO, False, False

    def arm(self, at: int, fault: Fault, *, lasting: bool) -> None:
        """Count from now on; call ``at`` fails (0: none), ``lasting`` also those after it."""
        self.calls, self.paths, self.struck, self._armed = [], [], [], True
        self._at, self._fault, self._lasting = at, fault, lasting

    def heal(self) -> None:
        self._armed = False

    def steps(self, *, whole: bool) -> list[tuple[int, str]]:
        """Number and name of the calls. Unless ``whole`` those that stand for all: of the many
        writes to one file, which end alike, the first, the middle one and the last."""
        if whole:
            return list(enumerate(self.calls, start=1))
        writes: dict[Path, list[int]] = {}
        for number, (call, path) in enumerate(zip(self.calls, self.paths, strict=True), start=1):
            if call == "write":
                writes.setdefault(path, []).append(number)
        few = {at for all_ in writes.values() for at in (all_[0], all_[len(all_) // 2], all_[-1])}
        return [
            (number, call)
            for number, call in enumerate(self.calls, start=1)
            if call != "write" or number in few
        ]

    def meet(self, call: str, path: Path) -> bool:
        """Count a call and raise if it fails; True: half of it is to be done first."""
        if not self._armed:
            return False
        self.calls.append(call)
        self.paths.append(path)
        number = len(self.calls)
        hit = number == self._at or (self._lasting and 0 < self._at < number)
        if not hit or self._fault not in faults_of(call):
            return False
        self.struck.append(f"{call} {path}")
        if self._fault is Fault.SHORT:
            return True
        raise OSError(self._fault.value, os.strerror(self._fault.value), str(path))

    def create(self, path: Path) -> Sink:
        self.meet("create", path)
        return _FaultySink(self, path)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        real: Callable[..., Any] = getattr(DISK, name)

        def call(path: Path, *more: Any) -> Any:
            self.meet(name, path)
            return real(path, *more)

        return call


class _FaultySink(Sink):
    def __init__(self, files: FaultyFiles, path: Path) -> None:
        super().__init__(path)
        self._files = files

    def write(self, data: bytes) -> int:
        if self._files.meet("write", self.path):
            super().write(bytes(data)[: len(data) // 2])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
        return super().write(data)

    def sync(self) -> None:
        self._files.meet("sync", self.path)
        super().sync()

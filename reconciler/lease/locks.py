"""Holder locks: how a restart goes on at once and not after a TTL (A7).

Each holder keeps an flock on ``<state_dir>/holders/<holder id>`` for life, and its workers inherit
the descriptor. Whoever can take that lock knows that the holder and all its workers are dead for
ever. The lock only shortens a wait: acquiring a lease never needs it, and the epoch fences
regardless.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import socket
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from catalog.errors import CannotOpen
from catalog.records import Holder


def new_holder(kind: str) -> Holder:
    """A holder with an id that was never used: ``daemon-…`` or ``cli-…``."""
    return Holder(f"{kind}-{secrets.token_hex(8)}", socket.gethostname(), os.getpid())


class HolderLock:
    """This process's lock, held until ``close``, and a look at those of others.

    Raises ``CannotOpen`` where the state directory takes no file: read-only, full, another's.
    """

    def __init__(self, state_dir: Path, holder: Holder) -> None:
        self._folder = state_dir / "holders"
        self._path = self._folder / holder.id
        self._known_dead: set[str] = set()
        self.needed = True
        """A lease may be left that whoever finds this lock free is to take over at once."""
        try:
            self._lock(holder)
        except OSError as error:
            raise CannotOpen(
                f"the state directory {state_dir} takes no lock file ({error.strerror}); see that "
                "it is on a disk with room, and that this user may write it"
            ) from None

    def _lock(self, holder: Holder) -> None:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Locked before it has its name, so that nobody finds it unlocked while we live.
        new = self._folder / f".{holder.id}"
        while True:
            self.fd = os.open(new, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            fcntl.flock(self.fd, fcntl.LOCK_EX)
            try:
                new.rename(self._path)
            except FileNotFoundError:  # another process removed it as free before it was locked
                os.close(self.fd)
            else:
                return

    def dead(self, holders: Collection[str]) -> set[str]:
        """Those of ``holders`` that are certainly dead. An id without a file may live elsewhere."""
        for holder in holders:
            ours = holder == self._path.name
            if not ours and holder not in self._known_dead and _free(self._folder / holder):
                self._known_dead.add(holder)
        return self._known_dead & set(holders)

    def forget(self, known: Collection[str]) -> None:
        """Remove files of dead holders that the catalog no longer knows."""
        for path in self._folder.iterdir():
            name = path.name.removeprefix(".")
            if name not in known and path != self._path and _free(path):
                path.unlink(missing_ok=True)

    def close(self) -> None:
        """Let the lock go; workers that still live keep it until they end. One that is not needed
        leaves no file: where no daemon sees to that, each run from the command line left one."""
        if not self.needed:
            with suppress(OSError):
                self._path.unlink()
        os.close(self.fd)


def living(state_dir: Path) -> list[str]:
    """Holders of this state directory that live, or of whom a worker does: daemons, and runs of the
    command line. One whose lock this user may not try is among them."""
    folder = state_dir / "holders"
    paths = [p for p in folder.iterdir() if not p.name.startswith(".")] if folder.is_dir() else []
    return sorted(path.name for path in paths if path.exists() and not _free(path))


def daemon_alive(state_dir: Path) -> bool:
    """A daemon serves the project of this state directory on this machine."""
    folder = state_dir / "holders"
    names = [p for p in folder.iterdir() if p.name.startswith("daemon-")] if folder.is_dir() else []
    return any(path.exists() and not _free(path) for path in names)


def _free(path: Path) -> bool:
    """The lock at ``path`` can be taken. False too when there is no such file, it is another user's
    (root's own commands beside a service), or it cannot be opened: what cannot be known is not
    called dead."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    else:
        return True
    finally:
        os.close(fd)

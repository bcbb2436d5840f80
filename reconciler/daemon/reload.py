"""Takes up an edited config: all of it or nothing (rule 8)."""

from __future__ import annotations

import glob
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from itertools import chain
from pathlib import Path

import anyio
from anyio import to_thread

from catalog.clock import Clock
from reconciler.config import ConfigError, changes, keep
from reconciler.config.apart import load_apart
from reconciler.config.desired import Project
from reconciler.telemetry import logs
from reconciler.telemetry.events import Event
from reconciler.telemetry.metrics import Metrics

LOOK_EVERY = 1.0
"""Seconds between two looks at the files' times."""
REJECTED_EVERY = 30.0
"""Seconds after which a config that was rejected is read again: what it lacked may be there now, a
secret's file for one, and no edit tells."""
_TICK_NS = 20_000_000
"""By how much the kernel's clock for files may be behind ours."""


class Reloader:
    """Watches the config's files and hands a valid, different project on."""

    def __init__(
        self,
        path: Path,
        project: Project,
        adopt: Callable[[Project], Awaitable[None]],
        clock: Clock,
        metrics: Metrics,
        read_ns: int,
    ) -> None:
        """``read_ns``: the wall clock when ``project`` began to be read; what was edited since is
        read again."""
        self._path, self._project, self._adopt = path, project, adopt
        self._clock, self._metrics = clock, metrics
        self._log = logs.get_logger()
        self._at_fault: tuple[Path, ...] = ()
        """Files named by the problems of a config that was rejected: mending one is an edit too."""
        self.rejected = ""
        """Why the config was rejected, said once; empty: it was not."""
        self._read_at = time.monotonic()
        self._seen = self._times()
        self._asked = anyio.Event()
        if any(changed >= read_ns - _TICK_NS for _, _, changed, *_ in self._seen):
            self._asked.set()

    def ask(self) -> None:
        """Look now (SIGHUP)."""
        self._asked.set()

    async def watch(self) -> None:
        """Reload when asked or when a file changed, for ever."""
        while True:
            with anyio.move_on_after(LOOK_EVERY):
                await self._asked.wait()
            times = self._times()
            again = self.rejected and time.monotonic() - self._read_at > REJECTED_EVERY
            if not (self._asked.is_set() or again) and times == self._seen:
                continue
            self._asked = anyio.Event()
            self._seen = times
            await self._reload()

    def _times(self) -> tuple[tuple[str, int, int, int, int], ...]:
        """Of each file what tells whether it was edited. What puts files in place may keep the time
        of their content, and a new file may get the inode of one removed: hence ctime and size."""
        found = []
        for path in sorted(self._watched()):
            try:
                stat = path.stat()
            except OSError:
                continue
            times = (stat.st_mtime_ns, stat.st_ctime_ns)
            found.append((str(path), *times, stat.st_ino, stat.st_size))
        return tuple(found)

    def _watched(self) -> set[Path]:
        matching = chain.from_iterable(
            glob.iglob(pattern, recursive=True)  # noqa: PTH207 - takes absolute patterns
            for pattern in self._project.include
        )
        return {self._path, *self._project.files, *self._at_fault, *map(Path, matching)}

    async def _reload(self) -> None:
        now, self._read_at = self._clock.wall_us(), time.monotonic()
        try:
            new = await to_thread.run_sync(load_apart, self._path)
        except ConfigError as error:
            self._metrics.config_read(False, now)
            self._at_fault = tuple(p.file for p in error.problems if p.file is not None)
            if str(error) != self.rejected:
                self._log.error(Event.CONFIG_REJECTED, reason=str(error))
            self.rejected = str(error)
            return
        self._metrics.config_read(True, now)
        mended = self.rejected
        self._at_fault, self.rejected = (), ""
        old, fixed = self._project, self._keep_fixed(new)
        await to_thread.run_sync(keep, fixed)
        if fixed == old:
            if mended:  # the log's last word on the file was that it has mistakes
                good = "Its mistakes are gone; nothing else changed."
                self._log.info(Event.CONFIG_RELOADED, subject=old.name, change=good)
            return
        self._project = fixed
        for change in changes(old, fixed):
            self._log.info(
                Event.CONFIG_RELOADED,
                subject=change.subject,
                **({"key": change.key, "old": change.old, "new": change.new} if change.key else {}),
                change=change.effect,
            )
        await self._adopt(fixed)

    def _keep_fixed(self, new: Project) -> Project:
        """What a running daemon cannot change stays as it was, and is said."""
        old = self._project
        fixed = {
            name: getattr(old, name)
            for name in ("name", "state_dir", "catalog")
            if getattr(old, name) != getattr(new, name)
        }
        daemon = replace(new.daemon, listen=old.daemon.listen, lease_ttl=old.daemon.lease_ttl)
        if fixed or daemon != new.daemon:
            self._log.warning(
                Event.CONFIG_REJECTED,
                reason="project, state_dir, catalog, listen and lease_ttl change only with a "
                "restart; the rest of the file took effect",
            )
        return replace(new, daemon=daemon, **fixed)

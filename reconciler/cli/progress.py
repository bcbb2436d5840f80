"""A progress line on a terminal for runs that take a while; nothing anywhere else."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Self

from reconciler.cli import output

if TYPE_CHECKING:
    from rich.progress import Progress as Bar
    from rich.progress import TaskID

    from reconciler.run.messages import Moved

_SHOW_AFTER = 0.5
"""Seconds: a run that is over sooner shows no bar, and does not pay for loading one."""


class Progress:
    """Shown on standard error from half a second on. Its total is not known beforehand."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._streams: dict[str, tuple[int, int]] = {}
        self._started = time.monotonic()
        self._wanted = sys.stderr.isatty()
        self._bar: Bar | None = None
        self._task: TaskID | None = None
        self._told = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def moved(self, moved: Moved) -> None:
        """A worker's sign of life: what one stream has read so far."""
        self._streams[moved.stream] = (moved.rows, moved.bytes)
        rows = sum(r for r, _ in self._streams.values())
        size = sum(b for _, b in self._streams.values())
        self.show(f"{output.count(rows, 'row')} read, {output.size(size)}")

    def show(self, text: str) -> None:
        """What is going on, in a few words."""
        if not self._wanted or time.monotonic() - self._started < _SHOW_AFTER:
            return
        if self._bar is None:
            self._open()
        assert self._bar is not None
        assert self._task is not None
        self._bar.update(self._task, status=text)

    def say(self, text: str) -> None:
        """A sentence that stays, once; also where there is no terminal."""
        if text == self._told:
            return
        self._told = text
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False)
        else:
            output.note(text)

    def _open(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as Bar

        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[status]}", markup=False),
            TimeElapsedColumn(),
        )
        self._bar = Bar(*columns, console=Console(stderr=True), transient=True)
        self._task = self._bar.add_task(self._name, total=None, status="")
        self._bar.start()

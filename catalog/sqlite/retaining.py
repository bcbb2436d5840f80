"""What retention may take away, found outside the writer's transaction and taken in portions.

To find it takes long, a quarter of a second at 100,000 pipelines; to take a portion away does not,
and nobody waits longer than for one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from msgspec.structs import replace

from catalog.records import Retention
from catalog.sqlite.readers import Readers
from catalog.sqlite.tables import Tables

_AT_ONCE = 100
"""Rows that one transaction deletes at most: each may lie on pages of its own."""
_FOUND_AT_ONCE = 5_000


@dataclass(frozen=True, slots=True)
class Old:
    """Rows that may go, oldest first: epochs of runs, numbers of commits."""

    runs: Sequence[int] = ()
    commits: Sequence[int] = ()


class Portions:
    """For one open catalog; each row is handed out once, and found again if it is still there."""

    def __init__(self, readers: Readers) -> None:
        self._readers = readers
        self._found = Old()
        self._of: Retention | None = None
        """Whose bounds those found are within; its limit does not count."""

    async def next(self, keep: Retention) -> tuple[Retention, Old]:
        """The next rows, and how many may go with them in all. Raises ``Unavailable``."""
        of = replace(keep, limit=0)
        if of != self._of or not (self._found.runs or self._found.commits):
            self._found = await self._readers.read(lambda tables: _find(tables, keep), near=False)
            self._of = of
        limit = min(keep.limit, _AT_ONCE)
        runs = self._found.runs[:limit]
        commits = self._found.commits[: limit - len(runs)]
        self._found = Old(self._found.runs[len(runs) :], self._found.commits[len(commits) :])
        return replace(keep, limit=limit), Old(runs, commits)


def _find(tables: Tables, keep: Retention) -> Old:
    runs = tables.old_runs(keep.runs_before, _FOUND_AT_ONCE)
    if len(runs) == _FOUND_AT_ONCE:  # commits go after their runs, and are found after them
        return Old(runs)
    before = (keep.runs_before, keep.operations_before)
    return Old(runs, tables.old_commits(*before, _FOUND_AT_ONCE, runs))

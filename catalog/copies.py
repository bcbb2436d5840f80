"""What backup and restore say they did; see ``catalog.open``."""

from __future__ import annotations

from msgspec import Struct


class Backup(Struct, frozen=True):
    """A copy of a catalog in one file."""

    path: str
    catalog: str
    """The catalog's id."""
    epoch: int
    """The last one that was issued when the copy was made."""
    size_bytes: int
    pipelines: int
    open_runs: int


class Restored(Struct, frozen=True):
    """A copy that was put in the catalog's place."""

    path: str
    source: str
    catalog: str
    """The catalog's id, which is the copy's."""
    epoch_of_source: int
    epoch: int
    """What the counter was raised to: above all that the lost catalog may have issued (A1)."""
    interrupted: tuple[int, ...]
    """Runs that were open in the copy."""
    replaced: str
    """Id of the catalog that stood there; empty: there was none that could be read."""
    kept: str
    """Where that is now; empty: there was none."""
    size_bytes: int

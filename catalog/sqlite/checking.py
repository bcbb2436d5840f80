"""What ``catalog check`` looks for: damage of the file, and rows that contradict each other."""

from __future__ import annotations

from collections.abc import Iterator

from catalog.sqlite.tables import Tables

_BETWEEN_ROWS = (
    "lease_without_open_run",
    "open_run_without_lease",
    "lease_without_heartbeat",
    "epoch_never_issued",
    "seq_of_stream",
    "published_past_the_last",
    "unpublished_not_recorded",
    "commit_out_of_line",
    "holds_of_pipeline",
    "commit_without_stream",
    "schema_of_stream",
)


def problems(tables: Tables) -> Iterator[str]:
    """A sentence for each thing that is wrong."""
    damage = [row[0] for row in tables.db.execute("pragma integrity_check") if row[0] != "ok"]
    yield from (f"the file is damaged: {what}" for what in damage)
    if not damage:
        for name in _BETWEEN_ROWS:
            yield from tables.sentences(name)

"""What ``catalog check`` looks for: damage of the file, and rows that contradict each other."""

from __future__ import annotations

from collections.abc import Iterator

import apsw

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
    try:
        damage = [row[0] for row in tables.db.execute("pragma integrity_check") if row[0] != "ok"]
    except apsw.CorruptError as error:
        damage = [str(error)]
    yield from (f"the file is damaged: {what}" for what in damage)
    if not damage:
        yield from _no_text(tables.db)
        for name in _BETWEEN_ROWS:
            yield from tables.sentences(name)


def _no_text(db: apsw.Connection) -> Iterator[str]:
    """SQLite does not look whether text is text; whoever reads such a row is stopped by it."""
    names = db.execute("select name from sqlite_schema where type = 'table'").fetchall()
    for (name,) in names:
        try:
            for _ in db.execute(f'select * from "{name}"'):
                pass
        except UnicodeDecodeError as error:
            found = error.object[:40]
            yield f"the file is damaged: table {name} holds text that is no UTF-8 ({found!r})"

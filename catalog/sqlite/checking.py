"""What ``catalog check`` looks for: damage of the file, and rows that contradict each other."""

from __future__ import annotations

from collections.abc import Iterator

from catalog.sqlite.tables import Tables


def problems(tables: Tables) -> Iterator[str]:
    """A sentence for each thing that is wrong."""
    for row in tables.db.execute("pragma integrity_check"):
        if row[0] != "ok":
            yield f"the file: {row[0]}"
    issued = tables.epoch()
    for state in tables.all_pipelines():
        run = tables.run(state.epoch) if state.epoch else None
        is_open = run is not None and run.outcome is None
        if bool(state.holder) != is_open:
            yield f"pipeline {state.name!r}: its lease and its run do not agree"
        if state.epoch > issued:
            yield f"pipeline {state.name!r}: epoch {state.epoch} was never issued"
        streams = tables.streams(state.name)
        held = tuple(sorted(name for name, stream in streams.items() if stream.hold))
        if held != state.held:
            yield f"pipeline {state.name!r}: held is {state.held}, its streams say {held}"
        for stream in streams.values():
            if stream.published > stream.seq:
                yield f"{state.name}.{stream.stream}: published past its last batch"

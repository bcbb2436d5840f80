"""Open runs that no claim will ever end: their holder stopped, and their pipeline was put aside, or
is not in the config any more. They would stay open for ever, and what exports ended runs in their
order waits for them.
"""

from __future__ import annotations

from contextlib import suppress

from catalog.errors import NotFound
from catalog.port import Catalog, new_operation_id
from catalog.records import CancelRun, RunQuery
from reconciler.config.desired import Project

_AT_ONCE = 1_000


async def end_left_open(catalog: Catalog, project: Project, by: str) -> None:
    """End them as interrupted, in the name of the holder ``by``: what they answered stands. Its own
    are left to it: a machine that slept finds their lease lapsed until it is renewed. Raises
    ``CatalogError``."""
    for run in await catalog.runs(RunQuery(open_only=True, limit=_AT_ONCE)):
        if run.holder == by:
            continue
        state = await catalog.pipeline(run.pipeline)
        aside = state.paused or state.parked or run.pipeline not in project.pipelines
        if aside and state.lapsed:
            why = f"its holder {run.holder} stopped, and nothing else would end it"
            with suppress(NotFound):  # it ended meanwhile, or another process did this
                await catalog.edit(new_operation_id(), by, why, CancelRun(run.pipeline, run.epoch))

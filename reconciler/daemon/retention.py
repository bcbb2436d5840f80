"""What the config's ``[retention]`` and two days of answers no longer keep, in the catalog and in
the state directory."""

from __future__ import annotations

from contextlib import suppress

import anyio

from catalog.port import new_operation_id
from catalog.records import Retention
from reconciler.config.desired import Project
from reconciler.daemon import runlogs
from reconciler.daemon.session import Session

_OPERATIONS_KEPT = 2 * 86_400
_PAUSE = 0.05


async def retain(session: Session, project: Project, *, portions: int | None = None) -> int:
    """Delete what may go, in small transactions with pauses between, at most ``portions`` of them
    if that is given. The number of rows that went. Raises ``CatalogError``."""
    keep = project.retention.runs
    now = session.clock.wall_us()
    limits = Retention(
        runs_before=now - round(keep * 1e6), operations_before=now - _OPERATIONS_KEPT * 10**6
    )
    total = done = 0
    while gone := await session.catalog.retain(new_operation_id(), limits):
        total, done = total + gone, done + 1
        if done == portions:
            break
        await anyio.sleep(_PAUSE)  # so that others may write
    known = {state.holder.id for state in await session.catalog.holders()}
    with suppress(OSError):  # what a bad disk keeps is removed in the next round
        session.keeper.lock.forget(known)
        runlogs.forget_before(project.state_dir, now / 1e6 - keep)
    return total

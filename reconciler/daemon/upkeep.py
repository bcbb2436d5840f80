"""What is done now and then: retention, idle workers, logs of old runs, numbers for the scrape."""

from __future__ import annotations

import time
from contextlib import suppress

import anyio

from catalog.errors import CatalogError
from catalog.port import new_operation_id
from catalog.records import Retention
from reconciler.daemon import runlogs
from reconciler.daemon.loop import Loop
from reconciler.daemon.session import Session
from reconciler.plan.schedule import forget_zones
from reconciler.telemetry import logs
from reconciler.telemetry.events import Event
from reconciler.telemetry.metrics import Metrics

RETAIN_EVERY = 600.0
"""Seconds between two rounds of retention."""
_OPERATIONS_KEPT = 2 * 86_400
_PAUSE = 0.05
_TRIM_EVERY = 60.0
_LAG_EVERY = 0.5
LAG_SAID = 1.0
"""Seconds by which the loop must be late to be worth a line in the log."""


async def retain(session: Session, loop: Loop) -> None:
    """Delete what may go, in small transactions with pauses between, and forget what may have
    changed, for ever."""
    while True:
        await anyio.sleep(RETAIN_EVERY)
        forget_zones()
        keep = loop.project.retention.runs
        now = session.clock.wall_us()
        limits = Retention(
            runs_before=now - round(keep * 1e6), operations_before=now - _OPERATIONS_KEPT * 10**6
        )
        try:
            gone = await _retain_all(session, limits)
            known = {state.holder.id for state in await session.catalog.holders()}
        except CatalogError:
            continue  # reported by those who need the catalog; the next round tries again
        if gone:
            logs.get_logger().info(Event.CATALOG_RETAINED, rows=gone)
        with suppress(OSError):  # what a bad disk keeps is removed in the next round
            session.keeper.lock.forget(known)
            runlogs.forget_before(loop.project.state_dir, now / 1e6 - keep)


async def _retain_all(session: Session, limits: Retention) -> int:
    total = 0
    while gone := await session.catalog.retain(new_operation_id(), limits):
        total += gone
        await anyio.sleep(_PAUSE)  # so that others may write
    return total


async def trim_workers(session: Session) -> None:
    """Let go of workers that a busy hour started, for ever."""
    while True:
        await anyio.sleep(_TRIM_EVERY)
        await session.pool.trim()


async def watch_lag(metrics: Metrics) -> None:
    """Measure how late the event loop is, for ever."""
    while True:
        before = time.perf_counter()
        await anyio.sleep(_LAG_EVERY)
        lag = max(time.perf_counter() - before - _LAG_EVERY, 0.0)
        metrics.loop_lagged(lag)
        if lag > LAG_SAID:
            logs.get_logger().warning(Event.LOOP_LAGGED, seconds=round(lag, 3))

"""What is done now and then, for as long as the daemon lives; each a task that never ends."""

from __future__ import annotations

import time
from contextlib import suppress

import anyio

from catalog.errors import CatalogError
from reconciler.config.desired import Cron
from reconciler.daemon import retention
from reconciler.daemon.leftovers import end_left_open
from reconciler.daemon.loop import Loop
from reconciler.daemon.session import Session
from reconciler.plan.schedule import follow_zones
from reconciler.telemetry import logs
from reconciler.telemetry.events import Event
from reconciler.telemetry.metrics import Metrics

RETAIN_EVERY = 600.0
"""Seconds between two rounds of retention."""
ZONES_EVERY = 600.0
"""Seconds between two looks at the rules of time zones."""
_TRIM_EVERY = 60.0
LEFT_OPEN_EVERY = 60.0
"""Seconds between two looks for runs that nobody ends."""
_LAG_EVERY = 0.5
LAG_SAID = 1.0
"""Seconds by which the loop must be late to be worth a line in the log."""


async def retain(session: Session, loop: Loop) -> None:
    """Delete what may go."""
    while True:
        await anyio.sleep(RETAIN_EVERY)
        try:
            gone = await retention.retain(session, loop.project)
        except CatalogError:
            continue  # reported by those who need the catalog; the next round tries again
        if gone:
            logs.get_logger().info(Event.CATALOG_RETAINED, rows=gone)


async def follow_time_zones(loop: Loop) -> None:
    """Take up new rules of the zones that schedules name: they are updated while a daemon runs."""
    while True:
        await anyio.sleep(ZONES_EVERY)
        schedules = (p.schedule for p in loop.project.pipelines.values())
        zones = {schedule.timezone for schedule in schedules if isinstance(schedule, Cron)}
        if follow_zones(zones):
            loop.look(loop.project.pipelines)


async def end_runs_left_open(session: Session, loop: Loop) -> None:
    """End what killed daemons left open where nothing runs any more."""
    while True:
        await anyio.sleep(LEFT_OPEN_EVERY)
        with suppress(CatalogError):  # as above
            await end_left_open(session.catalog, loop.project, session.keeper.holder.id)


async def trim_workers(session: Session) -> None:
    """Let go of workers that a busy hour started."""
    while True:
        await anyio.sleep(_TRIM_EVERY)
        await session.pool.trim()


async def watch_lag(metrics: Metrics) -> None:
    """Measure how late the event loop is."""
    while True:
        before = time.perf_counter()
        await anyio.sleep(_LAG_EVERY)
        lag = max(time.perf_counter() - before - _LAG_EVERY, 0.0)
        metrics.loop_lagged(lag)
        if lag > LAG_SAID:
            logs.get_logger().warning(Event.LOOP_LAGGED, seconds=round(lag, 3))

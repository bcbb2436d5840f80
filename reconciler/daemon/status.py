"""What the web part is told of the daemon."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable

from catalog.errors import CatalogError
from catalog.records import Micros
from reconciler import version
from reconciler.daemon.loop import Loop
from reconciler.daemon.session import Session
from reconciler.plan.plan import held_streams
from reconciler.plan.standing import fresh_at
from reconciler.telemetry.metrics import Metrics, PipelineView
from reconciler.web.status import PipelinePage, PipelineQuery, PipelineStatus, Summary

LOOP_PATIENCE = 10.0
"""Seconds without a turn of the loop after which the process ought to be restarted: the watchdog is
no longer fed."""


class Status:
    """Implements ``reconciler.web.status.StatusSource``."""

    def __init__(
        self, session: Session, loop: Loop, metrics: Metrics, rejected: Callable[[], str]
    ) -> None:
        """``rejected``: what is wrong with the config as it lies there; empty: nothing."""
        self._session, self._loop, self._metrics = session, loop, metrics
        self._rejected = rejected
        self._started_at = session.clock.wall_us()
        self._version = version()  # of what runs; another may be installed while it does

    def not_alive(self) -> str:
        silent = time.monotonic() - self._loop.beat_at
        # Told to stop it turns no more, and the runs have their grace, however long.
        if silent < LOOP_PATIENCE or self._loop.draining:
            return ""
        return f"the loop has not come round for {silent:.0f} s"

    def not_ready(self) -> tuple[str, ...]:
        reasons = []
        if self._loop.draining:
            reasons.append("draining: told to stop")
        if self._loop.last_trouble:
            reasons.append(f"the catalog: {self._loop.last_trouble}")
        keeper = self._session.keeper
        if keeper.held and not keeper.trusted():
            reasons.append("leases could not be renewed in time")
        return tuple(reasons)

    def summary(self) -> Summary:
        now = self._session.clock.wall_us()
        project = self._loop.project
        return Summary(
            project=project.name,
            version=self._version,
            holder=self._session.keeper.holder.id,
            started_at=self._started_at,
            catalog=project.catalog,
            runs_open=len(self._session.runs.conducting),
            runs_max=project.daemon.max_runs,
            states=Counter(view.state for view in self._loop.views),
            stale=sum(_is_stale(view, now) for view in self._loop.views),
            config_rejected=self._rejected(),
        )

    async def pipelines(self, query: PipelineQuery) -> PipelinePage:
        text = query.text.casefold()
        views = sorted(
            (
                view
                for view in self._loop.views
                if text in view.name.casefold() and query.state in (None, view.state)
            ),
            key=lambda view: view.name,
        )
        shown = views[query.offset : query.offset + query.limit]
        rows = [await self._row(view) for view in shown]
        return PipelinePage(len(views), tuple(rows))

    async def _row(self, view: PipelineView) -> PipelineStatus:
        try:
            state = await self._session.catalog.pipeline(view.name)
        except CatalogError as error:
            return PipelineStatus(view.name, view.state, f"the catalog: {error}")
        return PipelineStatus(
            name=view.name,
            state=view.state,
            reason=self._loop.views.reason(view.name),
            fresh_at=fresh_at(view.data_at, view.last_success_at),
            fresh_within=view.fresh_within,
            stale=_is_stale(view, self._session.clock.wall_us()),
            last_outcome=state.last_outcome.value if state.last_outcome else None,
            last_reason=state.last_reason,
            last_run=state.last_epoch or None,
            last_started_at=state.last_started_at,
            last_finished_at=state.last_finished_at,
            next_run_at=view.next_run_at,
            failures=state.failures,
            held=held_streams(self._loop.project.pipelines.get(view.name), state),
            rows=state.rows,
            rejected=state.rejected,
        )

    async def observe(self) -> None:
        session = self._session
        self._metrics.workers(idle=session.pool.idle, busy=session.pool.busy)
        self._metrics.leases_held(len(session.keeper.held))
        try:
            self._metrics.catalog_stats(await session.catalog.stats())
        except CatalogError:
            self._metrics.catalog_stats(None)


def _is_stale(view: PipelineView, now: Micros) -> bool:
    if view.fresh_within is None:
        return False
    reached = fresh_at(view.data_at, view.last_success_at)
    return reached is None or now - reached > view.fresh_within * 1e6

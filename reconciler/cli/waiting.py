"""Ask the daemon for a run, through the catalog, and wait until that run has finished."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field

from catalog.port import Catalog, new_operation_id
from catalog.records import Outcome, PipelineState, RequestRun, Run, RunQuery
from reconciler.cli import desk, output
from reconciler.cli.desk import Place
from reconciler.cli.failure import Exit, Failure
from reconciler.cli.progress import Progress
from reconciler.cli.target import Target

_BRISK = 1.0
"""Seconds during which the catalog is looked at every few milliseconds: most runs end in them."""
_BRISK_STEP = 0.005
_STEP = 0.1
_LOOK_AROUND = 1.0
"""Seconds between looks at the daemon and at why nothing starts."""
_UNANSWERED = (Outcome.INTERRUPTED, Outcome.FENCED)
"""Outcomes that leave a request standing: another run will answer it (A3)."""


async def ask_and_wait(place: Place, catalog: Catalog, target: Target, progress: Progress) -> Run:
    """Request a run of ``target`` and return it finished.

    Raises ``Failure`` when it cannot come about: paused, not in the config, the daemon gone, or
    another request took its place. A cancelled wait leaves the request and its run as they are.
    """
    state = await desk.must_know(place, catalog, target)
    _refuse_paused(state)
    request = new_operation_id()
    streams = (target.stream,) if target.stream else ()
    action = RequestRun(target.pipeline, request, streams)
    await catalog.edit(new_operation_id(), desk.who(), "run from the command line", action)
    return await _Wait(place, catalog, target, request, progress).until_finished()


@dataclass(slots=True)
class _Wait:
    place: Place
    catalog: Catalog
    target: Target
    request: str
    progress: Progress
    started: float = field(default_factory=time.monotonic)
    looked_at: float = field(default_factory=time.monotonic)

    async def until_finished(self) -> Run:
        seen = -1
        while True:
            state = await self.catalog.pipeline(self.target.pipeline)
            if state.version != seen:
                seen = state.version
                run = await self._answer(state)
                if run is not None:
                    return run
            if time.monotonic() - self.looked_at > _LOOK_AROUND:
                self.looked_at = time.monotonic()
                await self._look_around(state)
            brisk = time.monotonic() - self.started < _BRISK
            await asyncio.sleep(_BRISK_STEP if brisk else _STEP)

    async def _answer(self, state: PipelineState) -> Run | None:
        """The finished run that answers the request; None: not yet. Raises when none will."""
        run = await self._of_request(state)
        if run is not None and run.outcome is not None and run.outcome not in _UNANSWERED:
            return run
        if run is not None and run.outcome is None:
            return None
        if state.request is None or state.request.id != self.request:
            if run is not None:
                return run
            raise Failure(
                f"Another request for {self.target.pipeline} took the place of this one.",
                hint=f"See what runs: reconciler status {self.target.pipeline}",
            )
        _refuse_paused(state)
        return None

    async def _of_request(self, state: PipelineState) -> Run | None:
        """The newest run that was started for the request."""
        for epoch in (state.epoch, state.last_epoch):
            run = await self.catalog.run(epoch) if epoch else None
            if run is not None and run.trigger.request == self.request:
                return run
        if state.request is not None and state.request.id == self.request:
            return None
        recent = await self.catalog.runs(RunQuery(pipeline=state.name, limit=20))
        return next((r for r in recent if r.trigger.request == self.request), None)

    async def _look_around(self, state: PipelineState) -> None:
        # Of a holder that stopped nobody conducts the run: a daemon that is up takes it over.
        conducted = state.holder and not state.lapsed
        run = await self.catalog.run(state.epoch) if conducted else None
        if run is not None and run.trigger.request == self.request:
            await self._show(run)
        elif run is not None:
            self.progress.say(
                f"Run {run.epoch} of {state.name} is under way ({run.holder}); yours comes next."
            )
        elif not self.place.daemon_up():
            raise Failure(
                "The daemon went away. The request stays, and the next daemon answers it.",
                hint=f"Or run it here: reconciler run {self.target.typed}",
            )
        else:
            await self._explain(state)

    async def _show(self, run: Run) -> None:
        commits = await self.catalog.commits(run.pipeline, limit=100)
        rows = sum(c.rows for c in commits if c.epoch == run.epoch)
        self.progress.show(f"run {run.epoch}: {output.count(rows, 'row')} committed")

    async def _explain(self, state: PipelineState) -> None:
        """Nothing started: say why. Only now is the whole config worth reading."""
        from reconciler.cli.standing import plan_one
        from reconciler.config import ConfigError
        from reconciler.plan.plan import Code

        try:
            project = self.place.load()
        except ConfigError:
            self.progress.say(
                "Waiting. The config as it lies there has a mistake (reconciler check); the daemon "
                "goes on with the one that it has."
            )
            return
        states = await desk.all_states(self.catalog)
        action = plan_one(project, state, states, desk.now_us())
        if action.reason.code is Code.ORPHANED:
            raise Failure(
                f"{state.name} is {action.reason.text}. The request stays, for when it is.",
                Exit.NOTHING,
                "What is in it: reconciler config show",
            )
        self.progress.say(f"Waiting: {action.reason.text}")


def _refuse_paused(state: PipelineState) -> None:
    if state.paused is not None:
        why = f": {state.paused.why}" if state.paused.why else ""
        raise Failure(
            f"{state.name} is paused by {state.paused.by}{why}.",
            Exit.HELD,
            "" if state.is_vacant else f"First: reconciler resume {state.name}",
        )

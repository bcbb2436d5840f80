"""One run in this process, for ``reconciler run`` when no daemon serves the project."""

from __future__ import annotations

import signal
from collections.abc import Callable
from contextlib import suppress

import anyio
from anyio.abc import TaskStatus

from catalog.errors import CatalogError, Leased, NotFound
from catalog.port import new_operation_id
from catalog.records import (
    Candidate,
    Claimed,
    Outcome,
    RequestRun,
    Run,
    Trigger,
    TriggerKind,
)
from reconciler.config import keep
from reconciler.config.desired import Project
from reconciler.daemon.leftovers import end_left_open
from reconciler.daemon.renaming import take_over
from reconciler.daemon.retention import retain
from reconciler.daemon.runs import limits
from reconciler.daemon.session import Hands, Session, open_session
from reconciler.daemon.teller import Quiet
from reconciler.run.conduct import Conduct
from reconciler.run.messages import Moved

_LOOK_EVERY = 0.2
"""Seconds between two looks whether a person asked for the run to end."""


class IsPaused(Exception):
    """The pipeline is paused; ``renamed``: by a renaming, which no ``resume`` is for."""

    def __init__(self, text: str, *, renamed: bool) -> None:
        super().__init__(text)
        self.renamed = renamed


async def run_here(
    load: Callable[[], Project],
    hands: Hands,
    pipeline: str,
    streams: tuple[str, ...],
    *,
    by: str,
    on_moved: Callable[[Moved], None],
) -> Run:
    """Ask for a run, claim it, carry it out with a worker of our own, and return it closed.

    The worker starts first: it gets ready on another core while ``load`` reads the config.
    Raises what ``load`` raises, ``IsPaused``, ``Leased`` when another process holds the pipeline,
    ``NotFound`` when the run was taken over before it ended, ``CatalogError`` when the catalog
    cannot be used, ``KeyboardInterrupt`` when SIGINT or SIGTERM ended the run, which is closed.
    """
    await hands.pool.warm()
    project = load()
    async with open_session(project, "cli", Quiet(), hands=hands) as session:
        session.runs.on_moved = on_moved
        keep(project)
        claimed = await _claim(session, project, pipeline, streams, by)
        told: list[int] = []
        conduct = session.runs.begin(claimed, project)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(session.keeper.keep)
            tasks.start_soon(_end_when_cancelled, session, conduct)
            await tasks.start(_end_on_signal, conduct, told)
            try:
                run = await session.runs.carry_out(conduct)
            finally:
                tasks.cancel_scope.cancel()
        # Where no daemon ever is, nobody else sees to it. A failure is no failure of the run, which
        # is closed; the next one tries again.
        with suppress(CatalogError):
            await end_left_open(session.catalog, project, session.keeper.holder.id)
            await retain(session, project, portions=1)
    if run is None:
        raise NotFound(f"run {claimed.lease.epoch} was taken over by another holder")
    if told and run.outcome is Outcome.CANCELLED:
        raise KeyboardInterrupt
    return run


async def _end_when_cancelled(session: Session, conduct: Conduct) -> None:
    """Do what ``reconciler cancel`` asks for: no daemon is here to see it."""
    while True:
        await anyio.sleep(_LOOK_EVERY)
        with suppress(CatalogError):  # it is away for now: the keeper's business
            state = await session.catalog.pipeline(conduct.lease.pipeline)
            if state.cancel == conduct.lease.epoch:
                conduct.stop(Outcome.CANCELLED, "a person asked for it to end")
                return


async def _end_on_signal(
    conduct: Conduct, told: list[int], *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED
) -> None:
    """End the run as cancelled, so that nobody finds it open. A second signal ends the process."""
    with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        task_status.started()
        async for number in signals:
            told.append(number)
            conduct.stop(Outcome.CANCELLED, f"ended from the command line ({number.name})")
            break


async def _claim(
    session: Session, project: Project, name: str, streams: tuple[str, ...], by: str
) -> Claimed:
    settings = project.pipelines[name]
    if not await take_over(session.catalog, settings):
        was = settings.renamed_from
        raise Leased(f"pipeline {name!r} cannot be run here now: a run of {was!r} is under way")
    state = await session.catalog.pipeline(name)
    if (mark := state.paused) is not None:
        said = f"{name} is paused by {mark.by}{': ' if mark.why else ''}{mark.why}."
        raise IsPaused(said, renamed=state.is_vacant)
    request = new_operation_id()
    action = RequestRun(name, request, streams)
    await session.catalog.edit(new_operation_id(), by, "run from the command line", action)
    state = await session.catalog.pipeline(name)
    candidate = Candidate(
        name,
        state.version,
        Trigger(TriggerKind.REQUEST, request=request, streams=streams),
        f"asked for by {by}",
        (settings.source, settings.destination),
    )
    rivals = (state.holder,) if state.holder else ()
    (answer,) = await session.keeper.claim([candidate], limits(project), rivals)
    if isinstance(answer, Claimed):
        return answer
    raise Leased(
        f"pipeline {name!r} cannot be run here now: "
        + {
            "leased": f"{state.holder} holds its lease",
            "changed": "another process changed it at this moment",
            "connection_full": f"connection {answer.connection!r} has as many runs as it allows",
        }[answer.why]
        + "; the request stays, and the next daemon or run answers it"
    )

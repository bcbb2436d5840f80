"""Looking at connections without running anything: ``check`` and ``discover``."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import anyio
import msgspec

from reconciler.config import ConfigError
from reconciler.config.desired import Pipeline, Project
from reconciler.config.hiding import Hiding
from reconciler.config.rules import DESTINATIONS
from reconciler.connectors.ports import Finding, FoundStream
from reconciler.daemon.secrecy import reveal, secret_variables
from reconciler.run import messages as m
from reconciler.run.orders import connection_order
from reconciler.run.pool import WorkerGone, WorkerPool

PATIENCE = 60.0
"""Seconds a connection gets to answer."""


async def check(project: Project) -> dict[str, list[Finding]]:
    """Connect to everything the config names; findings by connection, in the config's order.

    No more at once than the daemon would: each takes a worker, and a place at its connection.
    """
    pool = WorkerPool(hidden_env=secret_variables(project))
    found: dict[str, list[Finding]] = {name: [] for name in project.connections}
    at_once = project.daemon.max_runs
    room = anyio.CapacityLimiter(at_once)

    async def look(place: anyio.CapacityLimiter, name: str, use: Pipeline | None) -> None:
        async with place, room:
            await _check(pool, project, name, use, found[name])

    try:
        async with anyio.create_task_group() as tasks:
            for name, connection in project.connections.items():
                place = anyio.CapacityLimiter(connection.max_runs or at_once)
                for use in _uses(name, project.pipelines.values()):
                    tasks.start_soon(look, place, name, use)
    finally:
        await pool.aclose()
    return found


async def discover(project: Project, connection: str, select: Iterable[str]) -> list[FoundStream]:
    """The streams a source has. Raises ``ConfigError`` for a missing secret, and ``WorkerGone``."""
    pool = WorkerPool(hidden_env=secret_variables(project))
    try:
        order = m.InspectOrder(
            connection_order(project, connection, reveal),
            "source",
            tuple(select) or ("*",),
            discover=True,
        )
        answer = await _asked(pool, order)
        if answer.findings:
            raise WorkerGone(answer.findings[0].text)
        return list(answer.streams)
    finally:
        await pool.aclose()


async def _check(
    pool: WorkerPool, project: Project, name: str, pipeline: Pipeline | None, found: list[Finding]
) -> None:
    """Check a connection as the source of ``pipeline``; None: as a destination, or unused."""
    try:
        said = (await _asked(pool, _check_order(project, name, pipeline))).findings
        found += [finding for finding in said if finding not in found]
    except ConfigError as error:
        found.append(Finding("problem", str(error)))
    except WorkerGone as error:
        found.append(Finding("problem", f"the check itself failed: {error}"))


async def _asked(pool: WorkerPool, order: m.InspectOrder) -> m.Inspected:
    """What a worker finds in time; else raises ``WorkerGone``."""
    try:
        with anyio.fail_after(PATIENCE):
            return await _ask(pool, order)
    except TimeoutError:  # an OSError too
        raise WorkerGone(f"no answer within {PATIENCE:g} s") from None
    except OSError as error:
        raise WorkerGone(f"no worker can be started: {error}") from None


async def _ask(pool: WorkerPool, order: m.InspectOrder) -> m.Inspected:
    worker = await pool.acquire()
    healthy = False
    try:
        await worker.send(order)
        answer = await worker.receive()
        healthy = True
    finally:
        with anyio.CancelScope(shield=True):
            await pool.release(worker, healthy=healthy)
    if not isinstance(answer, m.Inspected):
        raise WorkerGone("the worker answered something else")
    redact = Hiding(order.connection.secrets.values()).redact
    findings = tuple(replace(f, text=redact(f.text), hint=redact(f.hint)) for f in answer.findings)
    return msgspec.structs.replace(answer, findings=findings)


def _check_order(project: Project, name: str, pipeline: Pipeline | None) -> m.InspectOrder:
    order = connection_order(project, name, reveal)
    if pipeline is not None:
        return m.InspectOrder(order, "source", pipeline.select, pipeline.streams, pipeline.defaults)
    return m.InspectOrder(order, "destination" if order.connector in DESTINATIONS else "source")


def _uses(connection: str, pipelines: Iterable[Pipeline]) -> list[Pipeline | None]:
    """The pipelines that read from a connection, each with streams of its own to check; None for
    one that is written to, or not used at all."""
    readers: list[Pipeline | None] = [p for p in pipelines if p.source == connection]
    return readers or [None]

"""Looking at connections without running anything: ``check`` and ``discover``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import anyio

from reconciler.config import ConfigError
from reconciler.config.desired import Connection, Pipeline, Project, StreamSettings
from reconciler.connectors.ports import Finding, FoundStream
from reconciler.daemon.runs import reveal
from reconciler.run import messages as m
from reconciler.run.pool import WorkerGone, WorkerPool

PATIENCE = 60.0
"""Seconds a connection gets to answer."""


async def check(project: Project) -> dict[str, list[Finding]]:
    """Connect to everything the config names; findings by connection, in the config's order."""
    pool = WorkerPool()
    found: dict[str, list[Finding]] = {name: [] for name in project.connections}
    try:
        async with anyio.create_task_group() as tasks:
            for connection in project.connections.values():
                for order in _orders(connection, project.pipelines.values()):
                    tasks.start_soon(_check, pool, connection, order, found[connection.name])
    finally:
        await pool.aclose()
    return found


async def discover(project: Project, connection: str, select: Iterable[str]) -> list[FoundStream]:
    """The streams a source has. Raises ``ConfigError`` for a missing secret, and ``WorkerGone``."""
    pool = WorkerPool()
    try:
        order = m.InspectOrder(
            _order(project.connections[connection]),
            "source",
            tuple(select) or ("*",),
            discover=True,
        )
        answer = await _ask(pool, order)
        if answer.findings:
            raise WorkerGone(answer.findings[0].text)
        return list(answer.streams)
    finally:
        await pool.aclose()


async def _check(
    pool: WorkerPool,
    connection: Connection,
    role: tuple[str, Mapping[str, StreamSettings]],
    found: list[Finding],
) -> None:
    try:
        order = m.InspectOrder(_order(connection), role[0], named=role[1])
        with anyio.fail_after(PATIENCE):
            found += (await _ask(pool, order)).findings
    except ConfigError as error:
        found.append(Finding("problem", str(error)))
    except WorkerGone as error:
        found.append(Finding("problem", f"the check itself failed: {error}"))
    except TimeoutError:
        found.append(Finding("problem", f"no answer within {PATIENCE:g} s"))


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
    return answer


def _order(connection: Connection) -> m.ConnectionOrder:
    return m.ConnectionOrder(
        connection.name, connection.connector, connection.options, reveal(connection)
    )


def _orders(
    connection: Connection, pipelines: Iterable[Pipeline]
) -> list[tuple[str, Mapping[str, StreamSettings]]]:
    """In which roles the pipelines use a connection; an unused one is checked as a source if it
    can be one."""
    reads: dict[str, StreamSettings] = {}
    roles: dict[str, Mapping[str, StreamSettings]] = {}
    for pipeline in pipelines:
        if pipeline.source == connection.name:
            reads |= pipeline.streams
            for pattern in pipeline.select:
                reads.setdefault(pattern, pipeline.defaults)
            roles["source"] = reads
        if pipeline.destination == connection.name:
            roles["destination"] = {}
    if not roles:
        unused = "destination" if connection.connector in ("duckdb", "parquet") else "source"
        roles[unused] = {}
    return list(roles.items())

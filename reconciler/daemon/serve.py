"""The daemon: ordered start, guarded tasks, and a stop in two steps.

Start: config, catalog, holder, workers, web, then the loop; READY is said when runs may start.
Stop: no new runs; those under way get ``grace``; then they are cancelled, and their triggers stay
unconsumed, so that the next start goes on with them. Everything else ends in reverse.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

import anyio
from anyio.abc import TaskGroup, TaskStatus

from catalog.errors import CatalogError
from catalog.records import Outcome
from reconciler import version
from reconciler.config import ConfigError, keep
from reconciler.config.apart import load_apart
from reconciler.config.desired import Project
from reconciler.daemon import upkeep
from reconciler.daemon.loop import Loop
from reconciler.daemon.loud import Loud
from reconciler.daemon.notify import notify, watchdog_interval
from reconciler.daemon.reload import Reloader
from reconciler.daemon.secrecy import secret_variables
from reconciler.daemon.session import Session, open_session
from reconciler.daemon.status import Status
from reconciler.telemetry import logs
from reconciler.telemetry.events import Event
from reconciler.telemetry.measured import measured
from reconciler.telemetry.metrics import Metrics
from reconciler.web.app import build_app
from reconciler.web.server import CannotListen
from reconciler.web.server import serve as serve_web


def serve(config: Path) -> int:
    """Serve the project of this config file until SIGTERM or SIGINT; returns the exit code.

    Mistakes in the config, a catalog that cannot be opened and a port that is taken are said in
    sentences on stderr, with code 2 or 1.
    """
    read_ns = time.time_ns()
    try:
        project = load_apart(config)
    except ConfigError as error:
        print(error, file=sys.stderr)  # noqa: T201 - before there is a log
        return 2
    logs.configure("debug" if os.environ.get("RECONCILER_DEBUG") == "1" else "info")
    try:
        anyio.run(_serve, config, project, read_ns)
    except BaseExceptionGroup as group:
        return _failed(group)
    except (CatalogError, CannotListen) as error:
        logs.get_logger().error(Event.DAEMON_FAILED, reason=str(error))
        return 1
    return 0


async def _serve(config: Path, project: Project, read_ns: int) -> None:
    await _Daemon(config, project, read_ns).run()


def _failed(group: BaseExceptionGroup[BaseException]) -> int:
    expected, other = group.split((CatalogError, CannotListen))
    log = logs.get_logger()
    for error in _leaves(expected):
        log.error(Event.DAEMON_FAILED, reason=str(error))
    for error in _leaves(other):
        log.error(Event.DAEMON_FAILED, reason=str(error), exc_info=error)
    return 1


def _leaves(group: BaseExceptionGroup[BaseException] | None) -> list[BaseException]:
    found: list[BaseException] = []
    for error in group.exceptions if group else ():
        found += _leaves(error) if isinstance(error, BaseExceptionGroup) else [error]
    return found


class _Daemon:
    def __init__(self, config: Path, project: Project, read_ns: int) -> None:
        self._config, self._project, self._read_ns = config, project, read_ns
        self._metrics = Metrics(version())
        self._log = logs.get_logger()
        self._told_to_stop = anyio.Event()
        self._grace = anyio.CancelScope()
        self._reloader: Reloader | None = None

    async def run(self) -> None:
        project = self._project
        self._log.info(Event.DAEMON_STARTED, project=project.name, version=version())
        timed = partial(measured, metrics=self._metrics)
        async with open_session(project, "daemon", Loud(self._metrics), timed) as session:
            self._log.info(Event.CATALOG_OPENED, catalog=project.catalog)
            self._metrics.config_read(True, session.clock.wall_us())
            keep(project)
            loop = Loop(
                project,
                session.catalog,
                session.keeper,
                session.runs,
                session.clock,
                self._metrics,
            )
            self._metrics.observe_pipelines(lambda: loop.views)
            session.keeper.on_trouble = loop.trouble
            async with anyio.create_task_group() as background:
                await self._start(background, session, loop)
                await self._serve_until_told(session, loop)
                background.cancel_scope.cancel()
        self._log.info(Event.DAEMON_STOPPED, reason="told to stop")

    async def _start(self, tasks: TaskGroup, session: Session, loop: Loop) -> None:
        await tasks.start(self._signals)
        await session.pool.warm()

        async def adopt(project: Project) -> None:
            session.pool.hide(secret_variables(project))
            await loop.adopt(project)

        self._reloader = reloader = Reloader(
            self._config, self._project, adopt, session.clock, self._metrics, self._read_ns
        )
        await loop.observe_all()
        host, port = self._project.daemon.listen.rsplit(":", 1)
        host = host.strip("[]")
        status = Status(session, loop, self._metrics, lambda: reloader.rejected)
        app = build_app(status, self._metrics, host)
        bound = await tasks.start(serve_web, app, host, int(port))
        self._log.info(Event.WEB_LISTENING, url=f"http://{host}:{bound}/")
        eternal: dict[str, Callable[[], Awaitable[None]]] = {
            "keeper": session.keeper.keep,
            "follow": loop.follow,
            "mend": loop.mend,
            "rivals": loop.watch_rivals,
            "reload": reloader.watch,
            "retention": lambda: upkeep.retain(session, loop),
            "time zones": lambda: upkeep.follow_time_zones(loop),
            "left open": lambda: upkeep.end_runs_left_open(session, loop),
            "workers": lambda: upkeep.trim_workers(session),
            "lag": lambda: upkeep.watch_lag(self._metrics),
            "watchdog": lambda: _feed_watchdog(status),
        }
        for name, task in eternal.items():
            tasks.start_soon(_guard, name, task, name=name)

    async def _serve_until_told(self, session: Session, loop: Loop) -> None:
        async with anyio.create_task_group() as runs:
            runs.start_soon(loop.run, runs, name="loop")
            notify("READY=1")
            self._log.info(
                Event.DAEMON_READY,
                pipelines=len(self._project.pipelines),
                holder=session.keeper.holder.id,
            )
            await self._told_to_stop.wait()
            notify("STOPPING=1")
            under_way = len(session.runs.conducting)
            grace = loop.project.daemon.grace
            self._log.info(Event.DAEMON_DRAINING, runs=under_way, grace_seconds=grace)
            loop.drain()
            self._grace.deadline = anyio.current_time() + grace
            with self._grace:
                await session.runs.wait_idle()
            for name in tuple(session.runs.conducting):
                session.runs.stop(name, Outcome.INTERRUPTED, "the daemon was told to stop")

    async def _signals(self, *, task_status: TaskStatus[None]) -> None:
        with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
            task_status.started()
            async for number in signals:
                if number == signal.SIGHUP:
                    if self._reloader is not None:
                        self._reloader.ask()
                elif self._told_to_stop.is_set():
                    self._grace.cancel()  # asked twice: no grace
                else:
                    self._told_to_stop.set()


async def _feed_watchdog(status: Status) -> None:
    interval = watchdog_interval()
    while True:
        await anyio.sleep(min(interval / 3, 5.0) if interval else 5.0)
        if interval and not status.not_alive():
            notify("WATCHDOG=1")


async def _guard(name: str, task: Callable[[], Awaitable[None]]) -> None:
    """A task that is to go on for ever and ends is a fault: end the daemon, and say which."""
    await task()
    raise RuntimeError(f"the task {name!r} ended, which it must not")

"""Runs the web application inside the daemon's own event loop.

The daemon owns the signals and the end: this server installs no handlers, serves until it is
cancelled, and then closes its socket, giving requests under way a moment to finish.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import socket
from collections.abc import Callable, Iterator

import anyio
import uvicorn
from anyio.abc import TaskStatus
from starlette.types import ASGIApp

from reconciler.web.protocol import Bounded

CLOSE_S = 2.0
"""How long closing may take at most."""


class CannotListen(Exception):
    """The address cannot be listened on; the text says why and what to do."""


def bind(host: str, port: int) -> socket.socket:
    """A listening socket on ``host``; port 0 takes any free one. Raises ``CannotListen``."""
    shown = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        found = socket.getaddrinfo(
            host.strip("[]") or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except (OSError, UnicodeError) as error:
        raise CannotListen(
            f"[daemon] listen = {shown!r}: the host has no address here ({error}); "
            "use 127.0.0.1 for this machine only, or an address of this machine"
        ) from error
    family, kind, protocol, _, address = found[0]
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.listen(128)
        sock.setblocking(False)
    except OSError as error:
        sock.close()
        raise CannotListen(f"[daemon] listen = {shown!r}: {_why(error)}") from error
    return sock


def _why(error: OSError) -> str:
    match error.errno:
        case errno.EADDRINUSE:
            return (
                "another program listens there already; end it, or set another port "
                "(port 0 takes any free one)"
            )
        case errno.EACCES:
            return "this user may not use that port; set one from 1024 up"
        case errno.EADDRNOTAVAIL:
            return "this machine has no such address; use 127.0.0.1, or an address it has"
        case _:
            return error.strerror or str(error)


class _Server(uvicorn.Server):
    """Uvicorn without its hands on the process: no signals, no end of its own."""

    def __init__(self, config: uvicorn.Config, started: Callable[[], None]) -> None:
        super().__init__(config)
        self._started = started

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        await self.on_tick(0)
        self._started()

    async def main_loop(self) -> None:
        # Its tick only renews the Date header: once a second, not ten times.
        while True:
            await asyncio.sleep(1)
            await self.on_tick(0)


async def serve(
    app: ASGIApp,
    host: str,
    port: int,
    *,
    task_status: TaskStatus[int] = anyio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until cancelled; ``task_status`` gets the bound port once requests are taken.

    Raises ``CannotListen`` before that. Needs asyncio's event loop.
    """
    sock = bind(host, port)
    bound: int = sock.getsockname()[1]
    config = uvicorn.Config(
        app,
        http=Bounded,
        ws="none",
        lifespan="off",
        interface="asgi3",
        access_log=False,
        log_config=None,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=5,
        timeout_graceful_shutdown=1,
        limit_concurrency=100,
        h11_max_incomplete_event_size=16 * 1024,
    )
    # What peers send wrongly is answered, and no news: it would fill the log as fast as they like.
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
    server = _Server(config, lambda: task_status.started(bound))
    try:
        await server.serve([sock])
    finally:
        with anyio.move_on_after(CLOSE_S, shield=True):
            if server.started:
                await server.shutdown([sock])
        sock.close()

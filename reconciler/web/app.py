"""The HTTP side of the daemon: metrics, health, status and one page. It changes nothing.

Who may reach it is decided by where it listens: loopback unless the config says otherwise. On
loopback a request must also name a loopback host, so that a web page elsewhere cannot read this
one through a name it controls (DNS rebinding). No cross-origin access is granted.
"""

from __future__ import annotations

import ipaddress
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Final

import anyio.lowlevel
import msgspec
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from reconciler.plan.standing import State
from reconciler.telemetry.metrics import CONTENT_TYPE, Metrics
from reconciler.web.page import POLICY, render_page
from reconciler.web.status import PipelineQuery, PipelineStatus, StatusSource

MAX_PAGE: Final = 1_000
_PATHS: Final = ("/", "/metrics", "/healthz", "/readyz", "/api/status")
_HEADERS: Final = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}


def is_loopback(host: str) -> bool:
    """Whether ``host`` can be reached from this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def build_app(status: StatusSource, metrics: Metrics, host: str = "127.0.0.1") -> Starlette:
    """The ASGI application. ``host``: the one it will listen on, which decides the Host check."""
    app = _App(status, metrics)
    middleware = []
    if is_loopback(host):
        hosts = ["localhost", "127.0.0.1", "[::1]", "::1", host]
        middleware.append(
            Middleware(TrustedHostMiddleware, allowed_hosts=hosts, www_redirect=False)
        )
    return Starlette(
        routes=[
            Route(path, handler)
            for path, handler in zip(
                _PATHS,
                (app.page, app.metrics, app.healthz, app.readyz, app.api_status),
                strict=True,
            )
        ],
        middleware=middleware,
        exception_handlers={404: _not_found, 405: _not_allowed},
    )


async def _not_found(_request: Request, _error: Exception) -> Response:
    text = f"There is nothing at this path. What there is: {', '.join(_PATHS)}.\n"
    return PlainTextResponse(text, 404, _HEADERS)


async def _not_allowed(_request: Request, _error: Exception) -> Response:
    text = "Nothing can be changed here: only GET and HEAD are answered.\n"
    return PlainTextResponse(text, 405, {**_HEADERS, "Allow": "GET, HEAD"})


class _BadQuery(Exception):
    """A parameter out of range; the text says which and what is allowed."""


class _App:
    def __init__(self, status: StatusSource, metrics: Metrics) -> None:
        self._status = status
        self._metrics = metrics

    async def metrics(self, _request: Request) -> Response:
        self._metrics.ready(not self._status.not_ready())
        await self._status.observe()
        return StreamingResponse(self._pieces(), headers={**_HEADERS, "Content-Type": CONTENT_TYPE})

    async def _pieces(self) -> AsyncIterator[bytes]:
        for piece in self._metrics.chunks():
            yield piece
            # With many pipelines a scrape is long; the loop's own work goes between its pieces.
            await anyio.lowlevel.checkpoint()

    async def healthz(self, _request: Request) -> Response:
        why = self._status.not_alive()
        body = {"alive": not why, "reasons": [why] if why else []}
        return _json(body, 503 if why else 200)

    async def readyz(self, _request: Request) -> Response:
        reasons = self._status.not_ready()
        return _json({"ready": not reasons, "reasons": reasons}, 503 if reasons else 200)

    async def api_status(self, request: Request) -> Response:
        try:
            query = _query(request, default_limit=MAX_PAGE)
        except _BadQuery as error:
            return _json({"error": str(error)}, 400)
        summary = self._status.summary()
        page = await self._status.pipelines(query)
        return _json(
            {
                "project": summary.project,
                "version": summary.version,
                "holder": summary.holder,
                "started_at": _iso(summary.started_at),
                "catalog": summary.catalog,
                "ready": not self._status.not_ready(),
                "reasons": self._status.not_ready(),
                "runs_open": summary.runs_open,
                "runs_max": summary.runs_max,
                "states": {state.value: number for state, number in summary.states.items()},
                "stale": summary.stale,
                "config_rejected": summary.config_rejected,
                "total": page.total,
                "pipelines": [_pipeline(row) for row in page.rows],
            }
        )

    async def page(self, request: Request) -> Response:
        try:
            query = _query(request, default_limit=100)
        except _BadQuery as error:
            return PlainTextResponse(f"{error}\n", 400, _HEADERS)
        document = render_page(
            self._status.summary(),
            await self._status.pipelines(query),
            query,
            self._status.not_ready(),
            time.time_ns() // 1_000,
        )
        return HTMLResponse(document, headers={**_HEADERS, "Content-Security-Policy": POLICY})


def _query(request: Request, default_limit: int) -> PipelineQuery:
    asked = request.query_params
    state = asked.get("state", "")
    if state and state not in set(State):
        allowed = ", ".join(State)
        raise _BadQuery(f"state: found {state[:50]!r}, allowed is one of {allowed}")
    return PipelineQuery(
        text=asked.get("q", "")[:200],
        state=State(state) if state else None,
        offset=_number("offset", asked.get("offset", "0"), 0, 10**9),
        limit=_number("limit", asked.get("limit", str(default_limit)), 1, MAX_PAGE),
    )


def _number(name: str, text: str, low: int, high: int) -> int:
    if text.isascii() and text.isdigit() and len(text) < 12 and low <= int(text) <= high:
        return int(text)
    raise _BadQuery(f"{name}: found {text[:50]!r}, allowed is a whole number {low} to {high}")


def _pipeline(row: PipelineStatus) -> dict[str, object]:
    """The row's fields by name, times as ISO 8601 in UTC."""
    return {
        name: _iso(value) if name.endswith("_at") else value
        for name in PipelineStatus.__slots__
        for value in (getattr(row, name),)
    }


def _iso(micros: int | None) -> str | None:
    if micros is None:
        return None
    return datetime.fromtimestamp(micros / 1e6, UTC).isoformat().replace("+00:00", "Z")


_encode: Final = msgspec.json.Encoder().encode


def _json(body: object, code: int = 200) -> Response:
    return Response(_encode(body) + b"\n", code, _HEADERS, "application/json")

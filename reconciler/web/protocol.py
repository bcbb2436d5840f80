"""Uvicorn's HTTP protocol with bounds in time, and without tracebacks for what peers send.

A connection has a while to say its request, and a while to take the answer; then it is cut. Without
that, a hundred connections that say nothing would keep everybody else out for good.
"""

from __future__ import annotations

import asyncio

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

REQUEST_S = 10.0
"""How long a whole request may take to arrive; also how long a connection may stay idle."""
ANSWER_S = 60.0
"""How long an answer may take to be made and taken."""


class Bounded(H11Protocol):
    """One connection."""

    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """The request is awaited from now on."""
        super().connection_made(transport)
        self._within(REQUEST_S)

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing is awaited any more."""
        if self._deadline is not None:
            self._deadline.cancel()
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        """The next request is awaited."""
        self._within(REQUEST_S)
        super().on_response_complete()

    def handle_events(self) -> None:
        """A request that has arrived in full is given time for its answer; pieces give no more."""
        before = self.cycle
        super().handle_events()
        if self.cycle is not before and not self.cycle.response_complete:
            self._within(ANSWER_S)

    def send_400_response(self, msg: str) -> None:
        """Say so, unless an answer is under way already, and hang up."""
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True  # what would come of it has nowhere to go
            self.cycle.message_event.set()
        try:
            super().send_400_response(msg)
        except h11.LocalProtocolError:
            self.transport.close()

    def _within(self, seconds: float) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline = self.loop.call_later(seconds, self.transport.abort)

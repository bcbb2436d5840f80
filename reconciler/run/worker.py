"""The worker process: reads, seals and publishes for one run at a time.

Started by the daemon as ``python -m reconciler.run.worker FD``, FD being its end of a socket pair.
It dies with the daemon in three ways, each enough (A8): end-of-file on the socket, watched in a
thread of its own so that a busy or stuck main thread does not matter; the parent-death signal,
with the parent checked after it was set; and its deadline, past which it writes nothing.

Arrow and what every run needs are imported at once, while the daemon makes up its mind: a warm
worker is one that has loaded them.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import queue
import signal
import socket
import sys
import threading
import traceback

from reconciler.connectors.ports import ConnectorError, Finding
from reconciler.run import messages as m
from reconciler.run.connections import Connections
from reconciler.run.execute import execute
from reconciler.run.link import LeaseOver, Link

_PR_SET_PDEATHSIG = 1
_LOOK_SECONDS = 30.0
"""An idle worker wakes so often, to close what it does not use."""


def die_with_parent(parent: int) -> None:
    """Ask the kernel to kill this process when its parent dies; exit if it already has (A8)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(0)


def _inspect(order: m.InspectOrder, connections: Connections) -> m.Inspected:
    try:
        if order.role == "destination":
            return m.Inspected(tuple(connections.destination(order.connection).check()))
        source = connections.source(order.connection)
        if order.discover:
            return m.Inspected(streams=tuple(source.discover(order.select, order.named)))
        found = source.streams(order.select) if order.select else []
        findings = tuple(source.check({**dict.fromkeys(found, order.defaults), **order.named}))
        if order.select and not found:
            patterns = ", ".join(order.select)
            findings += (Finding("warning", f"no stream matches `select` ({patterns}) yet"),)
        return m.Inspected(findings)
    except ConnectorError as error:
        return m.Inspected((Finding("problem", str(error)),))


def _run(order: m.RunOrder, link: Link, connections: Connections) -> m.Done:
    try:
        return execute(order, link, connections)
    except ConnectorError as error:
        return m.failed(str(error), error.error, retry_after=error.retry_after, epoch=order.epoch)
    except Exception as error:
        traceback.print_exc()  # to the run's log; the person gets the sentence
        text = f"the worker met a fault of its own: {type(error).__name__}: {error}"
        return m.failed(text, epoch=order.epoch)


def _carry_out(
    order: m.RunOrder | m.InspectOrder, link: Link, connections: Connections
) -> m.Done | m.Inspected:
    if isinstance(order, m.InspectOrder):
        return _inspect(order, connections)
    with link.under_way():
        return _run(order, link, connections)


def next_order(
    link: Link, connections: Connections, look: float = _LOOK_SECONDS
) -> m.RunOrder | m.InspectOrder:
    """Wait for the next order; what is not used meanwhile is closed."""
    while True:
        connections.close_unused()
        with contextlib.suppress(queue.Empty):
            return link.orders.get(timeout=look)


def main() -> None:
    """Serve orders until the daemon is gone."""
    fd, parent = int(sys.argv[1]), int(sys.argv[2])
    die_with_parent(parent)
    # Ctrl-C in a terminal reaches the whole group; when runs end is the daemon's to say.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    link = Link(socket.socket(fileno=fd))
    threading.Thread(target=link.listen, name="link", daemon=True).start()
    threading.Thread(target=link.beat, name="pulse", daemon=True).start()
    connections = Connections()
    link.say(m.Ready())
    while True:
        order = next_order(link, connections)
        with contextlib.suppress(BrokenPipeError):
            try:
                answer = _carry_out(order, link, connections)
            except LeaseOver:
                print("no word from the daemon within the lease: stopped", file=sys.stderr)  # noqa: T201
                sys.stderr.flush()
                os._exit(m.LEASE_OVER_EXIT)
            sys.stdout.flush()
            sys.stderr.flush()
            link.say(answer)


if __name__ == "__main__":
    main()

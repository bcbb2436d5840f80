"""One run in the worker: settle what earlier runs left, then bring each stream up to date."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import TypeAlias

from catalog.records import Outcome, StreamResult, StreamState
from reconciler.config.desired import StreamSettings, selected
from reconciler.connectors.ports import Destination, Source
from reconciler.run import messages as m
from reconciler.run.connections import Connections
from reconciler.run.link import LeaseOver, Link
from reconciler.run.stream import Shared, StreamRun

_Work: TypeAlias = Iterator[tuple[str, StreamSettings, StreamState]]


def execute(order: m.RunOrder, link: Link, connections: Connections) -> m.Done:
    """Carry the order out and say how each stream ended.

    Raises ``ConnectorError`` when no stream could be tried (no connection), ``LeaseOver`` when the
    daemon fell silent.
    """
    destination = connections.destination(order.destination)
    discard_orphans(order, destination)
    work = list(_work(order, connections.source(order.source)))
    shared = Shared(published={}, notes=_gone(order, {name for name, _, _ in work}))
    results: dict[str, StreamResult] = {}

    def drain(lane: Connections, queue: _Work) -> None:
        for name, settings, state in queue:
            if link.cancelled:
                results[name] = StreamResult(name, Outcome.CANCELLED, "not started: cancelled")
                continue
            results[name] = StreamRun(order, link, lane, shared, settings, state).run()
            if results[name].outcome is Outcome.FENCED:
                return  # another holder took over: whatever we would do now is refused

    lanes = min(order.parallel, len(work))
    if lanes > 1:
        _in_parallel(drain, connections, iter(work), lanes)
    else:
        drain(connections, iter(work))
    return m.Done(
        streams=tuple(results[name] for name, _, _ in work if name in results),
        published=shared.published,
        notes=tuple(shared.notes),
        retry_after=shared.retry_after,
        epoch=order.epoch,
    )


def discard_orphans(order: m.RunOrder, destination: Destination) -> None:
    """Remove what older epochs of this pipeline sealed and nobody committed (B2 a).

    Staged under this catalog's id and this pipeline, an epoch below ours, and not among the
    commits that still wait to be published: then either it has no commit row, or the catalog has
    it marked as published and what is staged is a left-over. Everything else is left alone.
    """
    waiting = {(c.stream, c.epoch, c.seq) for c in order.unpublished}
    for name in destination.staged(order.catalog, order.origin):
        if name.epoch < order.epoch and (name.owner.stream, name.epoch, name.seq) not in waiting:
            destination.discard(name)


def _work(order: m.RunOrder, source: Source) -> _Work:
    states = {state.stream: state for state in order.streams}
    names = dict.fromkeys(order.named)
    if order.select:
        # Those named are not looked at here: one that is not there fails alone, when it is read.
        names |= dict.fromkeys(source.streams(order.select))
    for name in names:
        if order.only and name not in order.only:
            continue
        state = states.get(name) or StreamState(order.pipeline, name)
        yield name, order.named.get(name, order.defaults), state


def _gone(order: m.RunOrder, names: set[str]) -> list[tuple[str, str]]:
    """Said of streams that ``select`` took, and that the source has no more (rule 8)."""
    return [
        (state.stream, "the source has it no more: it is not read, and its rows stay as they are")
        for state in order.streams
        if not order.only and state.stream not in names and selected(state.stream, order.select)
    ]


def _in_parallel(
    drain: Callable[[Connections, _Work], None],
    connections: Connections,
    queue: _Work,
    lanes: int,
) -> None:
    """Drain one queue in so many threads, each with connections of its own."""
    taking = threading.Lock()
    over: list[BaseException] = []

    def take() -> _Work:
        while True:
            with taking:
                item = next(queue, None)
            if item is None:
                return
            yield item

    def serve(number: int) -> None:
        try:
            drain(connections.lane(number), take())
        except BaseException as error:
            over.append(error)

    running: list[threading.Thread] = []
    for number in range(lanes):
        thread = threading.Thread(target=serve, args=(number,))
        try:
            thread.start()
        except RuntimeError:  # there are as many threads as there may be: those that run do it all
            if not running:
                raise
            break
        running.append(thread)
    for thread in running:
        thread.join()
    if over:
        raise next((error for error in over if isinstance(error, LeaseOver)), over[0])

"""A worker's line: bytes that arrive slowly are a sign of life, silence is none (A8); a ledger of
any length comes through it.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from itertools import count

import pytest

from catalog.records import FileEntry
from reconciler.config.desired import StreamSettings
from reconciler.run import link as module
from reconciler.run import messages as m
from reconciler.run.link import LeaseOver, Link
from tests.e2e.world import eventually
from tests.patience import PATIENCE

pytestmark = pytest.mark.skipif(
    not hasattr(socket, "TCP_INFO"), reason="the kernel's count of bytes is Linux's"
)


@pytest.fixture
def daemon(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[socket.socket, Link]]:
    """The daemon's end, and the worker's link, whose pulse goes quickly."""
    monkeypatch.setattr(module, "PULSE_SECONDS", 0.02)
    near, far = socket.socketpair()
    with closing(near), closing(far):
        link = Link(far)
        thread = threading.Thread(target=link.beat, daemon=True)
        thread.start()
        yield near, link
        near.close()
        far.close()
        with link.under_way():
            threading.Event().wait(0)


def _hears(daemon: socket.socket, within: float) -> m.ToDaemon | None:
    daemon.settimeout(within)
    try:
        head = daemon.recv(4, socket.MSG_WAITALL)
    except TimeoutError:
        return None
    return m.for_daemon(daemon.recv(m.frame_length(head), socket.MSG_WAITALL))


def test_bytes_that_arrive_are_a_sign_of_life_and_silence_is_none(
    daemon: tuple[socket.socket, Link],
) -> None:
    near, link = daemon
    with socket.create_server(("127.0.0.1", 0)) as server:
        reader = socket.create_connection(server.getsockname())
        source, _ = server.accept()
        with closing(reader), closing(source), link.under_way():
            while _hears(near, 0.3) is not None:
                """The sockets themselves are news, once."""
            over = threading.Event()

            def dribble() -> None:
                while not over.wait(0.01):
                    source.sendall(b"x")

            thread = threading.Thread(target=dribble)
            thread.start()
            try:
                assert _hears(near, PATIENCE) == m.Moved("", 0, 0)
            finally:
                over.set()
                thread.join()


def _falls_silent(daemon: socket.socket) -> bool:
    """After what is on its way, and that a step ended."""
    return any(_hears(daemon, 0.3) is None for _ in range(3))


def test_work_is_a_sign_of_life_within_a_step_of_a_run_and_nowhere_else(
    daemon: tuple[socket.socket, Link], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that only waits for its source may be stalled, however busy the process is."""
    monkeypatch.setattr(time, "process_time", count().__next__)
    near, link = daemon
    with link.under_way():
        with link.pulse():
            assert [_hears(near, PATIENCE) for _ in range(4)] == [m.Moved("", 0, 0)] * 4
        assert _falls_silent(near)
    with link.pulse():
        assert _falls_silent(near)


def _order(epoch: int, deadline_ns: int) -> m.RunOrder:
    end = m.ConnectionOrder("x", "none", {}, {})
    return m.RunOrder(
        catalog="cat",
        pipeline="shop",
        origin="shop",
        epoch=epoch,
        deadline_ns=deadline_ns,
        source=end,
        destination=end,
        select=(),
        defaults=StreamSettings(),
        named={},
        only=(),
        parallel=1,
        streams=(),
        unpublished=(),
    )


def test_a_run_has_the_deadline_and_the_number_that_it_is_told(
    daemon: tuple[socket.socket, Link], monkeypatch: pytest.MonkeyPatch
) -> None:
    """(A8) What was asked of the run before is over with it."""
    near, link = daemon
    ended = threading.Event()
    monkeypatch.setattr(os, "_exit", lambda _: ended.set())
    threading.Thread(target=link.listen, daemon=True).start()
    past, future = 1, time.clock_gettime_ns(time.CLOCK_BOOTTIME) + 10**12
    near.sendall(m.frame(m.Cancel()))
    eventually(lambda: link.cancelled, "its end is asked for")
    near.sendall(m.frame(_order(7, future)))
    assert link.orders.get(timeout=PATIENCE)
    assert not link.cancelled
    link.check_lease()
    thread = threading.Thread(target=link.commit, args=((), {"orders": 1}))
    thread.start()
    asked = _hears(near, PATIENCE)
    assert isinstance(asked, m.AskCommit)
    assert (asked.epoch, asked.published) == (7, {"orders": 1})
    near.sendall(m.frame(m.Committed(asked.id)))
    thread.join(PATIENCE)
    assert not thread.is_alive()
    near.sendall(m.frame(m.Deadline(past)))
    eventually(lambda: link.deadline_ns == past, "it has the deadline")
    with pytest.raises(LeaseOver):
        link.check_lease()
    with pytest.raises(LeaseOver):  # nobody answers
        link.commit((), {})
    near.shutdown(socket.SHUT_RDWR)
    assert ended.wait(PATIENCE)


def test_a_ledger_is_asked_for_page_by_page_until_it_ends(
    daemon: tuple[socket.socket, Link], monkeypatch: pytest.MonkeyPatch
) -> None:
    near, link = daemon
    ended = threading.Event()
    monkeypatch.setattr(module.os, "_exit", lambda _: ended.set())
    threading.Thread(target=link.listen, daemon=True).start()
    link.deadline_ns = 2**62
    pages = [[FileEntry(f"{n}.csv", n, 1, 1, 1, "hash") for n in page] for page in ((1, 2), (3,))]
    asked = []

    def answer() -> None:
        for page in pages:
            message = _hears(near, PATIENCE)
            assert isinstance(message, m.AskLedger)
            asked.append((message.stream, message.after))
            near.sendall(m.frame(m.Ledger(message.id, tuple(page), page is not pages[-1])))

    thread = threading.Thread(target=answer)
    thread.start()
    assert link.ledger("orders") == (*pages[0], *pages[1])
    thread.join()
    assert asked == [("orders", ""), ("orders", "2.csv")]
    near.shutdown(socket.SHUT_RDWR)
    assert ended.wait(PATIENCE)

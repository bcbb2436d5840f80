"""Requests of any bytes: an answer that is no 5xx, nothing in the log, and the loop goes on."""

from __future__ import annotations

import logging
import re
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reconciler.telemetry.metrics import Metrics
from reconciler.web import protocol
from reconciler.web.app import build_app
from reconciler.web.server import serve
from tests.bad_input import DAMAGE, WIDE, Damage, damaged, examples
from tests.e2e.world import eventually
from tests.patience import PATIENCE
from tests.unit.test_web import Daemon

HOST = b"Host: 127.0.0.1\r\n\r\n"


class Loop:
    """The web part in an event loop of its own, which counts its turns."""

    def __init__(self) -> None:
        self.port = self.turns = 0
        self.stop: Callable[[], object] = lambda: None
        self._up = threading.Event()
        self._thread = threading.Thread(target=lambda: anyio.run(self._run))
        self._thread.start()
        assert self._up.wait(PATIENCE)

    async def _run(self) -> None:
        over = anyio.Event()
        app = build_app(Daemon(), Metrics("1"))
        async with anyio.create_task_group() as tasks, anyio.from_thread.BlockingPortal() as portal:
            self.port = await tasks.start(serve, app, "127.0.0.1", 0)
            self.stop = lambda: portal.start_task_soon(over.set)
            self._up.set()
            tasks.start_soon(self._turn)
            await over.wait()
            tasks.cancel_scope.cancel()

    async def _turn(self) -> None:
        while True:
            self.turns += 1
            await anyio.sleep(0.005)

    def close(self) -> None:
        self.stop()
        self._thread.join(PATIENCE)

    def answer(self, sent: bytes, *, hang_up: bool = True) -> bytes:
        """All that comes back until the other side hangs up, or until our patience ends."""
        with socket.create_connection(("127.0.0.1", self.port), PATIENCE) as sock:
            found = b""
            try:
                sock.sendall(sent)
                if hang_up:
                    with suppress(OSError):  # hung up on already; what it answered is here
                        sock.shutdown(socket.SHUT_WR)
                while part := sock.recv(65536):
                    found += part
            except ConnectionError:
                pass  # hung up on, with more of ours on the way
            return found


@pytest.fixture(scope="module")
def loop() -> Iterator[Loop]:
    loop = Loop()
    yield loop
    loop.close()


def statuses(answer: bytes) -> list[int]:
    """Of each answer that came."""
    return [int(code) for code in re.findall(rb"HTTP/1\.1 (\d{3}) ", answer)]


REQUESTS: dict[str, tuple[bytes, int]] = {
    "no HTTP": (b"\x00\xff\x16\x03\x01\r\n\r\n", 400),
    "TLS": (b"\x16\x03\x01\x02\x00\x01\x00", 400),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
    "no host": (b"GET / HTTP/1.1\r\n\r\n", 400),
    "another host": (b"GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n", 400),
    "two hosts": (b"GET / HTTP/1.1\r\nHost: evil.example\r\n" + HOST, 400),
    "NUL in the path": (b"GET /a\x00b HTTP/1.1\r\n" + HOST, 400),
    "NUL, encoded": (b"GET /%00 HTTP/1.1\r\n" + HOST, 404),
    "dots": (b"GET /../../etc/passwd HTTP/1.1\r\n" + HOST, 404),
    "dots, encoded": (b"GET /%2e%2e/%2e%2e/etc/passwd HTTP/1.1\r\n" + HOST, 404),
    "half an escape": (b"GET /%zz%f HTTP/1.1\r\n" + HOST, 404),
    "no UTF-8, encoded": (b"GET /%ff%fe HTTP/1.1\r\n" + HOST, 404),
    "no ASCII": (b"GET /\xc3\xa9 HTTP/1.1\r\n" + HOST, 400),
    "another site": (b"GET http://evil.example/ HTTP/1.1\r\n" + HOST, 404),
    "a tunnel": (b"CONNECT evil.example:80 HTTP/1.1\r\n" + HOST, 404),
    "a trace": (b"TRACE / HTTP/1.1\r\n" + HOST, 405),
    "no method": (b"FROB / HTTP/1.1\r\n" + HOST, 405),
    "a body": (b"POST / HTTP/1.1\r\nContent-Length: 3\r\n" + HOST + b"abc", 405),
    "a body without end": (b"PUT / HTTP/1.1\r\nContent-Length: 99999999999\r\n" + HOST, 405),
    "a body of no length": (b"GET / HTTP/1.1\r\nContent-Length: -1\r\n" + HOST, 400),
    "a body that breaks": (
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n" + HOST + b"zz\r\n",
        400,
    ),
    "a page, then a body that breaks": (
        b"GET /metrics HTTP/1.1\r\nTransfer-Encoding: chunked\r\n" + HOST + b"zz\r\n",
        400,
    ),
    "a header of no form": (b"GET / HTTP/1.1\r\nBad Header\r\n" + HOST, 400),
    "NUL in a header": (b"GET / HTTP/1.1\r\nX: a\0b\r\n" + HOST, 400),
    "a long path": (b"GET /" + b"a" * 10_000 + b" HTTP/1.1\r\n" + HOST, 404),
    "a state of no text": (b"GET /?state=%ff HTTP/1.1\r\n" + HOST, 400),
    "a limit said twice": (b"GET /?limit=1&limit=x HTTP/1.1\r\n" + HOST, 400),
    "a limit of another script": (b"GET /?limit=%d9%a3 HTTP/1.1\r\n" + HOST, 400),
    "an upgrade": (b"GET / HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n" + HOST, 200),
    "a search of no text": (b"GET /?q=%ff%00%0a HTTP/1.1\r\n" + HOST, 200),
}


@pytest.mark.parametrize("what", REQUESTS)
def test_a_bad_request_is_answered_in_a_sentence_and_leaves_nothing_in_the_log(
    loop: Loop, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    sent, code = REQUESTS[what]
    answer = loop.answer(sent)
    assert statuses(answer)[:1] == [code], answer
    if code >= 400:
        body = answer.partition(b"\r\n\r\n")[2]
        assert re.search(rb"\w+ \w+ \w+", body), body
    assert b"Traceback" not in answer
    assert b"root:" not in answer
    assert caplog.records == []


def test_a_header_without_end_is_hung_up_on(loop: Loop) -> None:
    """With more of it on the way, the answer may be lost where the kernel resets the connection."""
    answer = loop.answer(b"GET / HTTP/1.1\r\nX: " + b"a" * 2_000_000)
    assert statuses(answer) in ([], [400])
    assert statuses(loop.answer(b"GET /healthz HTTP/1.1\r\n" + HOST)) == [200]


GOOD = [
    b"GET / HTTP/1.1\r\nAccept: */*\r\n" + HOST,
    b"GET /metrics HTTP/1.1\r\n" + HOST,
    b"GET /api/status?q=p&state=idle&offset=0&limit=10 HTTP/1.1\r\n" + HOST,
    b"POST /healthz HTTP/1.1\r\nTransfer-Encoding: chunked\r\n" + HOST + b"3\r\nabc\r\n0\r\n\r\n",
    b"GET /readyz HTTP/1.1\r\nContent-Length: 4\r\n" + HOST + b"body",
]


def any_bytes(loop: Loop, requests: list[bytes], damage: list[Damage]) -> None:
    turns = loop.turns
    answer = loop.answer(damaged(b"".join(requests), damage))
    assert all(code < 500 for code in statuses(answer)), answer
    assert b"Traceback" not in answer
    assert statuses(loop.answer(b"GET /healthz HTTP/1.1\r\n" + HOST)) == [200]
    eventually(lambda: loop.turns > turns, "the loop turns")


ASKED = st.lists(st.sampled_from(GOOD), min_size=1, max_size=3)


@examples(30)
@given(requests=ASKED, damage=DAMAGE)
def test_any_bytes_are_answered_and_the_loop_goes_on(
    loop: Loop, requests: list[bytes], damage: list[Damage]
) -> None:
    any_bytes(loop, requests, damage)


@pytest.mark.slow
@examples(WIDE)
@given(requests=ASKED, damage=DAMAGE)
def test_requests_searched_widely(loop: Loop, requests: list[bytes], damage: list[Damage]) -> None:
    any_bytes(loop, requests, damage)


# -- those that take their time -------------------------------------------------------------------


@pytest.mark.parametrize(
    "piece", [b"", b"GET / HT", b"GET / HTTP/1.1\r\nX: y\r\n", b"GET /healthz HTTP/1.1\r\n" + HOST]
)
def test_peers_that_say_no_more_keep_nobody_else_out(
    loop: Loop, monkeypatch: pytest.MonkeyPatch, piece: bytes
) -> None:
    monkeypatch.setattr(protocol, "REQUEST_S", 0.3)
    held = [socket.create_connection(("127.0.0.1", loop.port), PATIENCE) for _ in range(120)]
    try:
        for sock in held:
            with suppress(ConnectionError):  # it was hung up on before all of them were there
                sock.sendall(piece)
        eventually(
            lambda: statuses(loop.answer(b"GET /healthz HTTP/1.1\r\n" + HOST)) == [200],
            "somebody else is answered",
        )
        for sock in held:
            ends(sock)
    finally:
        for sock in held:
            sock.close()


def test_a_request_that_comes_byte_by_byte_is_cut_off(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each byte is no new patience."""
    monkeypatch.setattr(protocol, "REQUEST_S", 0.3)
    with socket.create_connection(("127.0.0.1", loop.port), PATIENCE) as sock:

        def dropped() -> bool:
            try:
                sock.sendall(b"X")
            except ConnectionError:
                return True
            return False

        with suppress(ConnectionError):
            sock.sendall(b"GET / HTTP/1.1\r\nX: ")
        eventually(dropped, "the connection is cut")


def test_an_answer_that_nobody_takes_is_given_up(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "ANSWER_S", 0.3)
    given_up = threading.Event()
    lost = protocol.Bounded.connection_lost

    def noted(self: protocol.Bounded, error: Exception | None) -> None:
        lost(self, error)
        given_up.set()

    monkeypatch.setattr(protocol.Bounded, "connection_lost", noted)
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.connect(("127.0.0.1", loop.port))
        with suppress(ConnectionError):  # where less of it has room on the way
            sock.sendall((b"GET /api/status HTTP/1.1\r\n" + HOST) * 20_000)
        assert given_up.wait(PATIENCE)


def ends(sock: socket.socket) -> None:
    """Whatever it says, it hangs up."""
    try:
        while sock.recv(65536):
            pass
    except ConnectionError:
        pass

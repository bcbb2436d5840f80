"""The HTTP side, through its own front door: a real socket where that matters, ASGI elsewhere."""

from __future__ import annotations

import json
import re
import signal
import socket
from contextlib import suppress
from html.parser import HTMLParser

import anyio
import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from reconciler.plan.standing import State
from reconciler.telemetry.metrics import Metrics, PipelineView
from reconciler.web.app import build_app, is_loopback
from reconciler.web.server import CannotListen, serve
from reconciler.web.status import PipelinePage, PipelineQuery, PipelineStatus, Summary
from tests.patience import PATIENCE
from tests.replacing import replace

pytestmark = pytest.mark.anyio


class Daemon:
    """A daemon as the web part knows it, in whatever state the test says."""

    def __init__(self, count: int = 3) -> None:
        self.dead = ""
        self.unready: tuple[str, ...] = ()
        self.rejected = ""
        self.observed = 0
        self.rows = [
            PipelineStatus(f"p{number:04}", State.IDLE, "", rows=number, next_run_at=2_000_000)
            for number in range(count)
        ]

    def not_alive(self) -> str:
        return self.dead

    def not_ready(self) -> tuple[str, ...]:
        return self.unready

    def summary(self) -> Summary:
        states = {State.IDLE: len(self.rows)}
        return Summary(
            *("shop", "1.2.3", "h1", 1_000_000, "sqlite", 1, 8, states),
            stale=1,
            config_rejected=self.rejected,
        )

    async def pipelines(self, query: PipelineQuery) -> PipelinePage:
        found = [
            row
            for row in self.rows
            if query.text.lower() in row.name.lower() and query.state in (None, row.state)
        ]
        return PipelinePage(len(found), tuple(found[query.offset : query.offset + query.limit]))

    async def observe(self) -> None:
        self.observed += 1


def client(daemon: Daemon, metrics: Metrics | None = None, host: str = "127.0.0.1"):
    app = build_app(daemon, metrics or Metrics("1"), host)
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1:8790")


async def test_healthz_follows_the_heartbeat() -> None:
    daemon = Daemon()
    async with client(daemon) as http:
        assert (await http.get("/healthz")).status_code == 200
        daemon.dead = "the loop has not moved for 40 s"
        answer = await http.get("/healthz")
    assert answer.status_code == 503
    assert answer.json() == {"alive": False, "reasons": ["the loop has not moved for 40 s"]}


async def test_readyz_says_why_not() -> None:
    daemon = Daemon()
    async with client(daemon) as http:
        assert (await http.get("/readyz")).json() == {"ready": True, "reasons": []}
        daemon.unready = ("the catalog cannot be written: disk full",)
        answer = await http.get("/readyz")
    assert answer.status_code == 503
    assert answer.json() == {"ready": False, "reasons": list(daemon.unready)}


async def test_a_daemon_that_is_not_ready_is_alive_all_the_same() -> None:
    daemon = Daemon()
    daemon.unready = ("draining",)
    async with client(daemon) as http:
        assert (await http.get("/healthz")).status_code == 200


async def test_a_scrape_brings_gauges_up_to_date_first() -> None:
    daemon, metrics = Daemon(), Metrics("1")
    metrics.observe_pipelines(lambda: [PipelineView("shop", State.HELD)])
    daemon.unready = ("draining",)
    async with client(daemon, metrics) as http:
        answer = await http.get("/metrics")
    assert daemon.observed == 1
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    families = {f.name: f for f in text_string_to_metric_families(answer.text)}
    assert families["reconciler_ready"].samples[0].value == 0
    assert families["reconciler_pipeline_state"].samples[0].labels["state"] == "held"


async def test_api_status_has_iso_times_and_pages() -> None:
    async with client(Daemon(count=250)) as http:
        answer = (await http.get("/api/status?offset=240&limit=100")).json()
    assert (answer["project"], answer["total"], len(answer["pipelines"])) == ("shop", 250, 10)
    assert answer["started_at"] == "1970-01-01T00:00:01Z"
    assert answer["pipelines"][0] | {"rows": 0} == {
        "name": "p0240",
        "state": "idle",
        "reason": "",
        "fresh_at": None,
        "fresh_within": None,
        "stale": False,
        "last_outcome": None,
        "last_reason": "",
        "last_run": None,
        "last_started_at": None,
        "last_finished_at": None,
        "next_run_at": "1970-01-01T00:00:02Z",
        "failures": 0,
        "held": [],
        "rows": 0,
        "rejected": 0,
    }


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ("state=asleep", "allowed is one of idle, running"),
        ("offset=-1", "allowed is a whole number 0 to"),
        ("limit=0", "allowed is a whole number 1 to 1000"),
        ("limit=1e9", "found '1e9'"),
        ("limit=" + "9" * 5000, "allowed is a whole number"),
        ("offset=%C2%B2", "allowed is a whole number"),
    ],
)
async def test_a_wrong_parameter_is_refused_with_what_is_allowed(query: str, says: str) -> None:
    async with client(Daemon()) as http:
        for path in ("/", "/api/status"):
            answer = await http.get(f"{path}?{query}")
            assert answer.status_code == 400
            text = answer.text if path == "/" else answer.json()["error"]
            assert says in text


class Page(HTMLParser):
    """What a browser would make of the page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("href", "src")]

    def handle_data(self, data: str) -> None:
        self.words.append(data)


async def test_the_page_shows_a_table_in_pages() -> None:
    async with client(Daemon(count=1000)) as http:
        first = Page((await http.get("/")).text)
        assert first.tags.count("tr") == 101
        assert "1 to 100 of 1000" in first.words
        (link,) = first.links
        second = Page((await http.get("/" + link)).text)
        assert "101 to 200 of 1000" in second.words
        assert len(second.links) == 2
        found = Page((await http.get("/?q=P0999&state=idle")).text)
        assert found.tags.count("tr") == 2
        none = Page((await http.get("/?q=nothing")).text)
    assert "No pipeline matches." in none.words


async def test_the_page_shows_what_is_wrong_in_words() -> None:
    daemon = Daemon(count=0)
    daemon.unready = ("the catalog cannot be written",)
    daemon.rejected = "config.toml:3: unknown key\nconfig.toml:4: no table"
    daemon.rows = [
        PipelineStatus(
            "orders",
            State.PARKED,
            "5 attempts failed; reconciler retry orders",
            fresh_at=1_000_000,
            stale=True,
            last_outcome="failed",
            last_reason="no route to host",
            last_finished_at=1_000_000,
            failures=5,
            held=("orders.lines",),
            rows=7,
            rejected=1200,
        )
    ]
    async with client(daemon) as http:
        text = " ".join(Page((await http.get("/")).text).words)
    for part in (
        "Not ready: the catalog cannot be written",
        "parked",
        "reconciler retry orders",
        "held: orders.lines",
        "5 failed in a row",
        "stale",
        "no route to host",
        "1,200 set aside",
        "config.toml:3: unknown key (and 1 more: reconciler check)",
    ):
        assert part in text


ATTACK = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>"


async def test_nothing_that_data_says_becomes_markup() -> None:
    daemon = Daemon(count=0)
    daemon.unready, daemon.rejected = (ATTACK,), ATTACK
    row = PipelineStatus(ATTACK, State.IDLE, ATTACK, last_outcome=ATTACK, last_reason=ATTACK)
    daemon.rows = [replace(row, held=(ATTACK,), last_finished_at=1)] * 150
    async with client(daemon) as http:
        answer = await http.get("/", params={"q": ATTACK})
    page = Page(answer.text)
    assert not {"script", "img"} & set(page.tags)
    assert len(page.links) == 1
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert not re.search(r"https?://", answer.text)


async def test_the_style_is_the_one_its_policy_allows() -> None:
    import base64
    import hashlib

    async with client(Daemon()) as http:
        answer = await http.get("/")
    (style,) = re.findall(r"<style>(.*?)</style>", answer.text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert f"'sha256-{digest}'" in answer.headers["content-security-policy"]
    assert "style=" not in answer.text


@pytest.mark.parametrize(
    ("host", "code"),
    [
        ("127.0.0.1:8790", 200),
        ("localhost:1", 200),
        ("[::1]:8790", 200),
        ("evil.example", 400),
        ("127.0.0.1.evil.example:8790", 400),
        ("", 400),
    ],
)
async def test_on_loopback_only_loopback_names_are_answered(host: str, code: int) -> None:
    async with client(Daemon()) as http:
        for path in ("/", "/metrics", "/healthz", "/api/status"):
            assert (await http.get(path, headers={"host": host})).status_code == code


async def test_elsewhere_any_name_is_answered() -> None:
    async with client(Daemon(), host="0.0.0.0") as http:
        assert (await http.get("/healthz", headers={"host": "shop.internal"})).status_code == 200


@pytest.mark.parametrize("path", ["/", "/metrics", "/healthz", "/readyz", "/api/status"])
async def test_nothing_can_be_changed_and_no_other_origin_may_read(path: str) -> None:
    async with client(Daemon()) as http:
        for method in ("POST", "PUT", "PATCH", "DELETE"):
            assert (await http.request(method, path)).status_code == 405
        answer = await http.get(path, headers={"origin": "http://evil.example"})
    assert not [name for name in answer.headers if name.startswith("access-control")]
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True),
        ("127.8.8.8", True),
        ("::1", True),
        ("[::1]", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("10.0.0.1", False),
        ("localhost.evil.example", False),
    ],
)
def test_loopback_is_told_from_the_rest(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback


# -- the server ----------------------------------------------------------------------------------


async def test_it_serves_from_the_moment_it_says_so_until_cancelled() -> None:
    app = build_app(Daemon(), Metrics("1"))
    before = signal.getsignal(signal.SIGTERM)
    async with anyio.create_task_group() as tasks:
        port = await tasks.start(serve, app, "127.0.0.1", 0)
        assert signal.getsignal(signal.SIGTERM) is before
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as http:
            answer = await http.get("/readyz")
            assert answer.json() == {"ready": True, "reasons": []}
            assert "server" not in answer.headers
            assert "date" in answer.headers
            tasks.cancel_scope.cancel()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)


async def test_its_port_can_be_taken_again_at_once() -> None:
    app = build_app(Daemon(), Metrics("1"))
    port = 0
    for _ in range(2):
        async with anyio.create_task_group() as tasks:
            port = await tasks.start(serve, app, "127.0.0.1", port)
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as http:
                assert (await http.get("/healthz")).status_code == 200
            tasks.cancel_scope.cancel()


async def test_a_taken_port_is_said_in_a_sentence() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(CannotListen, match=rf"'127\.0\.0\.1:{port}': another program listens"):
            await serve(build_app(Daemon(), Metrics("1")), "127.0.0.1", port)


@pytest.mark.parametrize("host", ["192.0.2.1", "no.such.host.invalid"])
async def test_an_address_that_is_not_here_is_said_in_a_sentence(host: str) -> None:
    with pytest.raises(CannotListen, match=r"use 127\.0\.0\.1"):
        await serve(build_app(Daemon(), Metrics("1")), host, 0)


async def test_what_no_browser_sends_does_no_harm() -> None:
    async with anyio.create_task_group() as tasks:
        port = await tasks.start(serve, build_app(Daemon(), Metrics("1")), "127.0.0.1", 0)
        for sent in (b"\x00\xff\r\n\r\n", b"GET / HTTP/1.1\r\nX: " + b"a" * 50_000):
            stream = await anyio.connect_tcp("127.0.0.1", port)
            async with stream:
                # A kernel may reset a line with more of it on the way, and the answer with it.
                with suppress(anyio.BrokenResourceError):
                    await stream.send(sent)
                    assert (await stream.receive()).startswith(b"HTTP/1.1 400")
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as http:
            assert json.loads((await http.get("/healthz")).text)["alive"]
        tasks.cancel_scope.cancel()

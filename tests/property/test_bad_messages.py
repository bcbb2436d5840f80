"""A worker that says nonsense costs its run, which is recorded with the true reason; no more."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from catalog.records import ErrorClass, Outcome, StreamResult
from reconciler.run import messages as m
from reconciler.run.pool import WorkerGone, WorkerPool
from tests.bad_input import DAMAGE, WIDE, Damage, damaged, examples, is_plain
from tests.e2e.world import World
from tests.patience import PATIENCE

# -- decoding -------------------------------------------------------------------------------------

RESULT = StreamResult("orders", Outcome.FAILED, "away", ErrorClass.TRANSIENT, rows=5)
TO_DAEMON: list[m.ToDaemon] = [
    m.Ready(),
    m.Moved("orders", 5, 500),
    m.AskLedger(3, "orders"),
    m.AskCommit(4, (), {"orders": 2}, 9),
    m.Done((RESULT,), {"orders": 2}, (("orders", "a note"),), 3.5, "why", ErrorClass.PERMANENT, 9),
    m.Inspected(),
]
TO_WORKER: list[m.ToWorker] = [
    m.Deadline(5),
    m.Cancel(),
    m.Committed(1),
    m.NotCommitted(1, "fenced", "another took over", definite=True),
    m.Verdict(2),
    m.Ledger(3, ()),
    m.InspectOrder(m.ConnectionOrder("db", "sql", {"url": "x"}, {"password": "y"}), "source"),
]
ANY = st.recursive(
    st.one_of(
        *(st.none(), st.booleans(), st.integers(-(2**63), 2**64 - 1), st.floats()),
        *(st.text(max_size=5), st.binary(max_size=5)),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)


def reads_or_refuses(body: bytes) -> None:
    """Any other exception is a fault."""
    for decode in (m.for_daemon, m.for_worker):
        with contextlib.suppress(m.BrokenPeer):
            repr(decode(body))


def wide(data: st.DataObject) -> None:
    message = data.draw(st.sampled_from([*TO_DAEMON, *TO_WORKER]))
    body = m.frame(message)[4:]
    fields: dict[str, Any] = msgspec.msgpack.decode(body)
    kind = data.draw(st.sampled_from(["bytes", "field", "anything"]))
    if kind == "bytes":
        damage: list[Damage] = data.draw(DAMAGE)
        reads_or_refuses(damaged(body, damage))
    elif kind == "field":
        name = data.draw(st.one_of(st.sampled_from(sorted(fields)), st.text(max_size=5)))
        reads_or_refuses(msgspec.msgpack.encode(fields | {name: data.draw(ANY)}))
    else:
        reads_or_refuses(msgspec.msgpack.encode(data.draw(ANY)))


@examples(150)
@given(st.data())
def test_any_bytes_are_a_message_or_a_broken_peer(data: st.DataObject) -> None:
    wide(data)


@pytest.mark.slow
@examples(WIDE * 10)
@given(st.data())
def test_messages_searched_widely(data: st.DataObject) -> None:
    wide(data)


@pytest.mark.parametrize(
    "body",
    [b"\x81\xa1a" * 100_000, b"\x81\xa4type\xa5\xff\xfe\xfd\xfc\xfb", b"\xdd\xff\xff\xff\xff"],
)
def test_bodies_made_to_break_the_decoder_are_refused(body: bytes) -> None:
    with pytest.raises(m.BrokenPeer):
        m.for_daemon(body)
    with pytest.raises(m.BrokenPeer):
        m.for_worker(body)


def test_a_frame_longer_than_allowed_is_refused_before_it_is_read() -> None:
    with pytest.raises(m.BrokenPeer, match="4294967295 bytes; at most 67108864"):
        m.frame_length(b"\xff\xff\xff\xff")


# -- starting -------------------------------------------------------------------------------------


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("says", "words"),
    [
        ("import os; os._exit(7)", "exit code 7"),
        (
            "import os, sys; os.write(int(sys.orig_argv[-2]), b'GET / HTTP/1.1'); os._exit(0)",
            "what is no message: a frame of 1195725856 bytes",
        ),
        (
            "import os, sys; os.write(int(sys.orig_argv[-2]), "
            r"b'\0\0\0\x0b\x81\xa4type\xa5\xff\xfe\xfd\xfc\xfb'); os._exit(0)",
            "what is no message",
        ),
        (
            "import os, sys; from reconciler.run import messages as m; "
            "os.write(int(sys.orig_argv[-2]), m.frame(m.Inspected())); os._exit(0)",
            "began with 'Inspected'",
        ),
    ],
)
async def test_who_waits_for_a_worker_is_told_why_none_comes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, says: str, words: str
) -> None:
    custom = tmp_path / "sitecustomize.py"
    custom.write_text(f"import sys\nif 'reconciler.run.worker' in sys.orig_argv:\n    {says}\n")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join((str(tmp_path), *_path())))
    pool = WorkerPool()
    with anyio.fail_after(PATIENCE), pytest.raises(WorkerGone) as caught:
        await pool.acquire()
    await pool.aclose()
    assert words in str(caught.value)
    assert is_plain(str(caught.value))


def _path() -> tuple[str, ...]:
    return tuple(filter(None, [os.environ.get("PYTHONPATH", "")]))


# -- a daemon with broken workers -----------------------------------------------------------------

BROKEN = {
    "garbage": "the worker sent what is no message: ",
    "oversized": "a frame of 4294967295 bytes; at most 67108864 are allowed",
    "cut": "the worker ended by itself with exit code 0",
    "crashing": "the worker was killed by SIGABRT",
    "no_text": "the worker sent what is no message: ",
    "nested": "the worker sent what is no message: ",
    "wrong_types": "Expected `array`, got `str` - at `$.streams`",
    "endless_wait": "Expected `float` >= 0.0 - at `$.retry_after`",
    "negative": "moved -1 rows",
    "ready_again": "the worker said 'Ready' in the midst of a run",
    "another_run": "the worker answered for run ",
    "silent": "no bytes moved for 1 s, the pipeline's `stall_timeout`",
}


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path)
    world.fill("orders", ((n, f"2026-01-01 00:00:{n:02}", f"name {n}") for n in range(20)))
    pipelines = "".join(
        f'[pipelines.{name}]\nsource = "db"\ndestination = "lake"\nmode = "append"\nretries = 0\n'
        f'cursor = ["id"]\nschedule = "every 3650d"\n'
        + ('stall_timeout = "1s"\n' if name == "silent" else "")
        + f'[pipelines.{name}.streams.orders]\ntable = "{name}"\n'
        for name in (*BROKEN, "twice", "good")
    )
    world.write_config(
        f'[connections.db]\nconnector = "sql"\nurl = "sqlite:///{world.source}"\n'
        f'[connections.lake]\nconnector = "parquet"\npath = "lake"\n{pipelines}',
        lease_ttl="60s",  # one that lasts on a busy machine
    )
    yield world
    world.close()


def test_each_broken_worker_costs_its_run_and_is_named(world: World) -> None:
    """One daemon, one worker after another: every run is recorded as what it was."""
    here = str(Path(__file__).parent.parent / "broken_workers")
    daemon = world.start(PYTHONPATH=os.pathsep.join((here, *_path())))
    for name, words in BROKEN.items():
        failed = daemon.finished(name, "failed")
        assert words in failed["reason"], failed
        assert is_plain(failed["reason"])
    for name in ("twice", "good"):
        daemon.finished(name, "succeeded")
        assert world.parquet_rows(name) == world.source_rows("orders")
    for name in BROKEN:
        assert world.parquet_rows(name) == []
    assert daemon.process.poll() is None
    events = [event for event in daemon.events if event["event"] in ("text", "daemon_failed")]
    assert events == []
    assert daemon.stop() == 0
    runs = json.loads(world.do("runs", "--json"))
    assert {run["pipeline"] for run in runs} == {*BROKEN, "twice", "good"}
    for run in runs:
        assert BROKEN.get(run["pipeline"], "20 rows in 1 stream") in run["reason"]

"""``check`` finds rows that contradict each other, and a damaged file."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import apsw
import pytest

from catalog.clock import ManualClock
from catalog.errors import CannotOpen
from catalog.open import open_catalog
from catalog.port import new_operation_id as op
from catalog.records import (
    Batch,
    Candidate,
    Claimed,
    Finish,
    Hold,
    Holder,
    HoldKind,
    Outcome,
    SchemaVersion,
    StreamResult,
    Trigger,
    TriggerKind,
)
from catalog.sqlite.checking import _BETWEEN_ROWS
from catalog.sqlite.queries import SQL

pytestmark = pytest.mark.anyio
HOLDER = Holder("h", "host", 1)


async def fill(path: Path) -> None:
    """One pipeline at work with two unpublished batches, one that is done, one that is held."""
    async with open_catalog(f"sqlite:///{path}", clock=ManualClock()) as catalog:
        trigger = Trigger(TriggerKind.TICK, tick=1)
        candidates = [Candidate(name, 0, trigger, "due") for name in ("busy", "done", "held")]
        answers = await catalog.claim(op(), HOLDER, candidates, ttl=60, limits={})
        leases = [answer.lease for answer in answers if isinstance(answer, Claimed)]
        one = SchemaVersion(1, "f", "{}")
        for lease in leases:
            batches = [Batch(name, 0, "receipt", schema=one, rows=1) for name in "st"]
            await catalog.commit(op(), lease, batches, {})
        for follows in (1, 2):
            await catalog.commit(op(), leases[0], [Batch("s", follows, "receipt")], {"s": 1})
        both = (("s", 1), ("t", 1))
        await catalog.finish(op(), leases[1], Finish(Outcome.SUCCEEDED, "", published=both))
        hold = Hold(HoldKind.NULL_KEY, "null", 1, ())
        holds = tuple(StreamResult(name, Outcome.HELD, hold=hold) for name in "ts")
        held = Finish(Outcome.HELD, "", streams=holds, published=both)
        await catalog.finish(op(), leases[2], held)
        assert (await catalog.check()).problems == ()


async def problems(path: Path) -> tuple[str, ...]:
    async with open_catalog(f"sqlite:///{path}", clock=ManualClock()) as catalog:
        return (await catalog.check()).problems


NO_RUN = "pipeline 'busy': held under epoch 1, but that run is not open"
NO_LEASE = "run 1 of pipeline 'busy' is open, but its lease is gone"
DAMAGE = {
    "lease_without_open_run": [
        ("update runs set outcome = 'failed' where pipeline = 'busy'", {NO_RUN}),
        ("delete from runs where pipeline = 'busy'", {NO_RUN}),
    ],
    "open_run_without_lease": [
        ("update pipelines set holder = '' where name = 'busy'", {NO_LEASE}),
        ("delete from pipelines where name = 'busy'", {NO_LEASE}),
        (
            "update pipelines set epoch = 2 where name = 'busy'",
            {NO_LEASE, NO_RUN.replace("1", "2")},
        ),
        ("update runs set holder = 'other' where pipeline = 'busy'", {NO_LEASE, NO_RUN}),
        (
            "update runs set pipeline = 'done' where pipeline = 'busy'",
            {NO_LEASE.replace("busy", "done"), NO_RUN},
        ),
    ],
    "lease_without_heartbeat": [
        ("delete from holders", {"pipeline 'busy': its holder h has no heartbeat"}),
        ("update holders set id = 'i'", {"pipeline 'busy': its holder h has no heartbeat"}),
    ],
    "epoch_never_issued": [
        (
            "update meta set epoch = 2",
            {
                "pipeline 'held': epoch 3 was never issued, the last one is 2",
                "run 3 was never issued, the last epoch is 2",
            },
        ),
    ],
    "seq_of_stream": [
        (
            "update streams set seq = 0, published = 0 where pipeline = 'done'",
            {
                "done.s: its last batch is 0, but batch 1 is recorded",
                "done.t: its last batch is 0, but batch 1 is recorded",
            },
        ),
    ],
    "published_past_the_last": [
        (
            "update streams set published = 2 where pipeline = 'done' and stream = 's'",
            {
                "done.s: published up to 2, but its last batch is 1",
            },
        ),
    ],
    "unpublished_not_recorded": [
        (
            "delete from commits where pipeline = 'busy' and stream = 't'",
            {
                "busy.t: of 1 unpublished batches only 0 are recorded",
            },
        ),
        (
            "delete from commits where pipeline = 'busy' and stream = 's' and seq = 2",
            {
                "busy.s: of 2 unpublished batches only 1 are recorded",
                "busy.s: batch 1 is recorded, but no later one leads to it",
            },
        ),
    ],
    "commit_out_of_line": [
        (
            "update streams set last_commit = null where pipeline = 'done' and stream = 's'",
            {
                "done.s: batch 1 is recorded, but no later one leads to it",
            },
        ),
    ],
    "holds_of_pipeline": [
        (
            "update pipelines set held = '[\"s\"]' where name = 'done'",
            {
                "pipeline 'done': held is [\"s\"], its streams say []",
            },
        ),
        (
            "update pipelines set held = null where name = 'held'",
            {
                'pipeline \'held\': held is [], its streams say ["s","t"]',
            },
        ),
    ],
    "commit_without_stream": [
        (
            "delete from streams where pipeline = 'done' and stream = 's'",
            {
                "done.s: batch 1 is recorded, but the stream is not",
                "done.s: batch 1 is recorded, but no later one leads to it",
            },
        ),
    ],
    "schema_of_stream": [
        (
            "delete from schemas where pipeline = 'done' and stream = 't'",
            {
                "done.t: schema version 1 is in use, but not recorded",
            },
        ),
        (
            "update schemas set version = 2 where pipeline = 'done' and stream = 't'",
            {
                "done.t: schema version 1 is in use, but not recorded",
            },
        ),
    ],
}


def test_each_rule_is_checked_and_tried() -> None:
    assert set(_BETWEEN_ROWS) == set(DAMAGE)
    assert set(_BETWEEN_ROWS) <= set(SQL)


@pytest.mark.parametrize(
    ("damage", "expected"), [case for cases in DAMAGE.values() for case in cases]
)
async def test_a_broken_rule_is_found_and_what_broke_it_named(
    tmp_path: Path, damage: str, expected: set[str]
) -> None:
    path = tmp_path / "c.db"
    await fill(path)
    db = apsw.Connection(str(path))
    db.execute(damage)
    db.close()
    found = set(await problems(path))
    assert found == expected


async def test_a_lease_whose_heartbeat_is_gone_has_lapsed_and_may_be_taken(tmp_path: Path) -> None:
    path = tmp_path / "c.db"
    await fill(path)
    db = apsw.Connection(str(path))
    db.execute("delete from holders")
    db.close()
    async with open_catalog(f"sqlite:///{path}", clock=ManualClock()) as catalog:
        state = await catalog.pipeline("busy")
        assert (state.holder, state.lapsed, state.lease_expires_at) == ("h", True, None)
        (busy,) = [one for one in await catalog.changed(0) if one.name == "busy"]
        assert busy == state
        candidate = Candidate("busy", state.version, Trigger(TriggerKind.TICK, tick=1), "due")
        (answer,) = await catalog.claim(
            op(), Holder("i", "host", 2), [candidate], ttl=60, limits={}
        )
        assert isinstance(answer, Claimed)


async def test_damage_of_the_file_is_found(tmp_path: Path) -> None:
    path = tmp_path / "c.db"
    await fill(path)
    db = apsw.Connection(str(path))
    ((page,),) = db.execute("select rootpage from sqlite_schema where name = 'runs_by_pipeline'")
    db.close()
    content = bytearray(path.read_bytes())
    start = (int(page) - 1) * 4096
    content[start + 8 : start + 4096] = bytes(4088)
    path.write_bytes(content)
    found = await problems(path)
    assert found
    assert all(sentence.startswith("the file is damaged") for sentence in found)


async def test_damage_anywhere_is_found_and_stops_no_look_at_the_rest(tmp_path: Path) -> None:
    whole = tmp_path / "whole.db"
    await fill(whole)
    db = apsw.Connection(str(whole))
    rows = db.execute("select name, rootpage from sqlite_schema where rootpage > 0").fetchall()
    roots = {str(name): int(str(page)) for name, page in rows}
    db.close()
    found: dict[str, tuple[str, ...]] = {}
    for name, page in roots.items():
        content = bytearray(whole.read_bytes())
        content[(page - 1) * 4096 + 8 : page * 4096] = bytes(4088)
        if content == whole.read_bytes():  # there was nothing on it
            continue
        path = tmp_path / f"{page}.db"
        path.write_bytes(content)
        with suppress(CannotOpen):  # what is read at an opening
            found[name] = await problems(path)
    assert len(found) > len(roots) // 2
    for sentences in found.values():
        assert sentences
        assert all(sentence.startswith("the file is damaged: ") for sentence in sentences)


async def test_text_that_is_none_is_shown_by_its_beginning(tmp_path: Path) -> None:
    path = tmp_path / "c.db"
    await fill(path)
    db = apsw.Connection(str(path))
    db.execute("update runs set reason = cast(x'ff' || zeroblob(60) as text) where epoch = 1")
    db.close()
    shown = repr(b"\xff" + bytes(39))
    assert f"the file is damaged: table runs holds text that is no UTF-8 ({shown})" in (
        await problems(path)
    )

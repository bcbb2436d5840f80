"""``check`` finds rows that contradict each other, and a damaged file."""

from __future__ import annotations

from pathlib import Path

import apsw
import pytest

from catalog.clock import ManualClock
from catalog.open import open_catalog
from catalog.port import new_operation_id as op
from catalog.records import (
    Batch,
    Candidate,
    Claimed,
    Finish,
    Holder,
    Outcome,
    SchemaVersion,
    Trigger,
    TriggerKind,
)
from catalog.sqlite.checking import _BETWEEN_ROWS
from catalog.sqlite.queries import SQL

pytestmark = pytest.mark.anyio
HOLDER = Holder("h", "host", 1)


async def fill(path: Path) -> None:
    """One pipeline at work with an unpublished batch, one that is done."""
    async with open_catalog(f"sqlite:///{path}", clock=ManualClock()) as catalog:
        trigger = Trigger(TriggerKind.TICK, tick=1)
        candidates = [Candidate(name, 0, trigger, "due") for name in ("busy", "done")]
        answers = await catalog.claim(op(), HOLDER, candidates, ttl=60, limits={})
        for answer in answers:
            assert isinstance(answer, Claimed)
            batch = Batch("s", 0, "receipt", schema=SchemaVersion(1, "f", "{}"), rows=1)
            await catalog.commit(op(), answer.lease, [batch], {})
        done = Finish(Outcome.SUCCEEDED, "", published=(("s", 1),))
        await catalog.finish(op(), answers[1].lease, done)  # type: ignore[union-attr]
        assert (await catalog.check()).problems == ()


async def problems(path: Path) -> tuple[str, ...]:
    async with open_catalog(f"sqlite:///{path}", clock=ManualClock()) as catalog:
        return (await catalog.check()).problems


DAMAGE = {
    "lease_without_open_run": "update runs set outcome = 'failed' where pipeline = 'busy'",
    "open_run_without_lease": "update pipelines set holder = '' where name = 'busy'",
    "lease_without_heartbeat": "delete from holders",
    "epoch_never_issued": "update meta set epoch = 1",
    "seq_of_stream": "update streams set seq = 0, published = 0 where pipeline = 'done'",
    "published_past_the_last": "update streams set published = 2 where pipeline = 'done'",
    "unpublished_not_recorded": "delete from commits where pipeline = 'busy'",
    "commit_out_of_line": "update streams set last_commit = null where pipeline = 'done'",
    "holds_of_pipeline": "update pipelines set held = '[\"s\"]' where name = 'done'",
    "commit_without_stream": "delete from streams where pipeline = 'done'",
    "schema_of_stream": "delete from schemas where pipeline = 'done'",
}


def test_each_rule_is_checked_and_tried() -> None:
    assert set(_BETWEEN_ROWS) == set(DAMAGE)
    assert set(_BETWEEN_ROWS) <= set(SQL)


@pytest.mark.parametrize("broken", DAMAGE)
async def test_a_broken_rule_is_found_and_the_pipeline_named(tmp_path: Path, broken: str) -> None:
    path = tmp_path / "c.db"
    await fill(path)
    db = apsw.Connection(str(path))
    db.execute(DAMAGE[broken])
    expected = {str(row[0]) for row in db.execute(SQL[broken])}
    db.close()
    found = await problems(path)
    assert expected
    assert expected <= set(found)
    assert all("busy" in sentence or "done" in sentence or "2" in sentence for sentence in found)


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

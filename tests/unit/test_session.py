"""What a holder opens, and what it leaves behind."""

from __future__ import annotations

from pathlib import Path

import pytest

from catalog.records import Candidate, Claimed, Finish, Outcome, Trigger, TriggerKind
from reconciler.config.desired import Project
from reconciler.daemon.session import open_hands, open_session
from reconciler.daemon.teller import Quiet


@pytest.mark.anyio
async def test_a_holder_leaves_its_lock_file_only_where_a_lease_may_be_left(
    tmp_path: Path,
) -> None:
    def left() -> list[Path]:
        return list((tmp_path / "holders").iterdir())

    async with open_hands(tmp_path, "cli", ()):
        assert len(left()) == 1
    assert left() == [], "its config was wrong, as it were"

    project = Project("shop", tmp_path, f"sqlite:///{tmp_path}/catalog.db")
    due = Candidate("shop", 0, Trigger(TriggerKind.TICK, tick=1), "due", ("db", "lake"))
    async with open_session(project, "cli", Quiet()) as session:
        (claimed,) = await session.keeper.claim([due], {}, ())
        assert isinstance(claimed, Claimed)
        await session.keeper.finish(claimed.lease, Finish(Outcome.NOTHING_NEW, "nothing new"))
    assert left() == []

    async with open_session(project, "cli", Quiet()) as session:
        version = (await session.catalog.pipeline("shop")).version
        again = Candidate("shop", version, due.trigger, "due", due.connections)
        await session.keeper.claim([again], {}, ())
    assert len(left()) == 1

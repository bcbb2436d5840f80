"""A process that hammers a catalog: ``python -m tests.crash.sqlite_child FILE NAME COMMITS``.

It claims one pipeline for each of its workers and commits batch after batch. What was acknowledged
it prints, one ``pipeline seq`` a line, as soon as it knows; then it ends, unless it was killed.
"""

from __future__ import annotations

import os
import sys

import anyio

from catalog.open import open_catalog
from catalog.port import Catalog, new_operation_id
from catalog.records import Batch, Candidate, Claimed, Holder, Trigger, TriggerKind
from tests.crash.test_sqlite_power_loss import cursor

WORKERS = 8


async def work(catalog: Catalog, holder: Holder, name: str, commits: int) -> None:
    candidate = Candidate(name, 0, Trigger(TriggerKind.TICK, tick=1), "due")
    (claimed,) = await catalog.claim(new_operation_id(), holder, [candidate], ttl=60, limits={})
    assert isinstance(claimed, Claimed)
    for seq in range(commits):
        batch = Batch("s", seq, "receipt", cursor(seq + 1), rows=1)
        await catalog.commit(new_operation_id(), claimed.lease, [batch], {"s": seq})
        os.write(1, f"{name} {seq + 1}\n".encode())


async def main(path: str, name: str, commits: int) -> None:
    async with open_catalog(f"sqlite:///{path}") as catalog, anyio.create_task_group() as tasks:
        for number in range(WORKERS):
            holder = Holder(name, "host", os.getpid())
            tasks.start_soon(work, catalog, holder, f"{name}{number}", commits)


if __name__ == "__main__":
    anyio.run(main, sys.argv[1], sys.argv[2], int(sys.argv[3]))

"""A process that hammers a catalog and keeps its own record of what it asked and was told.

``python -m tests.crash.hammer FILE LOG SEED SECONDS``. Each task of it is a holder of its own that
claims any pipeline, commits, renews, sleeps through its lease, writes late, and ends runs or walks
away. Each call is written to LOG before it is made, and its answer after, with the machine's
monotonic time; what a kill cuts off has no answer. It only acts: judging is for who reads the logs.
"""

from __future__ import annotations

import json
import os
import random
import secrets
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

import anyio

from catalog import position
from catalog.errors import CatalogError
from catalog.open import open_catalog
from catalog.port import Catalog, new_operation_id
from catalog.records import (
    Batch,
    Candidate,
    Claimed,
    Cursor,
    CursorKind,
    Finish,
    Holder,
    Lease,
    Outcome,
    Trigger,
    TriggerKind,
)

PIPELINES = ("a", "b", "c")
STREAM = "s"
_TASKS = 3


class Log:
    """Lines on disk before anything follows from them."""

    def __init__(self, path: str) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def write(self, **entry: Any) -> None:
        os.write(self._fd, json.dumps(entry).encode() + b"\n")


class Hand:
    """One holder and what it does."""

    def __init__(self, catalog: Catalog, log: Log, chance: random.Random) -> None:
        self._catalog, self._log, self._chance = catalog, log, chance
        self._holder = Holder(f"hand-{secrets.token_hex(6)}", "host", os.getpid())
        self._former: dict[str, Lease] = {}

    async def _call(
        self, kind: str, ask: Callable[[], Awaitable[Any]], say: Callable[[Any], Any], **what: Any
    ) -> Any:
        """Make one call between its two lines; the answer, or None for an error."""
        number = secrets.token_hex(8)
        self._log.write(call=number, kind=kind, at=time.monotonic_ns(), **what)
        try:
            answer = await ask()
        except CatalogError as error:
            self._log.write(answer=number, at=time.monotonic_ns(), error=error.code)
            return None
        self._log.write(answer=number, at=time.monotonic_ns(), said=say(answer))
        return answer

    async def once(self) -> None:
        """Look, claim, and write until the run is over in some way."""
        name = self._chance.choice(PIPELINES)
        state = await self._call(
            "look", lambda: self._catalog.pipeline(name), lambda s: s.epoch, pipeline=name
        )
        candidate = Candidate(name, state.version, Trigger(TriggerKind.TICK, tick=1), "due")
        ttl = self._chance.choice((0.02, 0.05, 0.2))
        op = new_operation_id()
        answers = await self._call(
            "claim",
            lambda: self._catalog.claim(op, self._holder, [candidate], ttl=ttl, limits={}),
            lambda found: [a.lease.epoch for a in found if isinstance(a, Claimed)],
            pipeline=name,
        )
        if answers and isinstance(answers[0], Claimed):
            await self._work(answers[0], ttl)
        else:
            await anyio.sleep(self._chance.random() * 0.01)

    async def _work(self, claimed: Claimed, ttl: float) -> None:
        lease = claimed.lease
        seq = next((s.seq for s in claimed.streams if s.stream == STREAM), 0)
        for _ in range(self._chance.randint(1, 40)):
            match self._chance.random():
                case x if x < 0.1:
                    await anyio.sleep(ttl * self._chance.uniform(0.5, 3))  # it may lapse
                case x if x < 0.2:
                    renewal = await self._renew(lease, ttl)
                    if renewal is None or renewal.lost:
                        break
                case x if x < 0.3:
                    await self._read(lease.pipeline)
                case x if x < 0.35 and seq:
                    await self._commit(lease, seq - 1)  # a second attempt at what is there
                case x if x < 0.4 and lease.pipeline in self._former:
                    await self._commit(self._former[lease.pipeline], seq)
                case _:
                    # Late ones too: a holder that was taken over from does not know it.
                    seq += await self._commit(lease, seq)
        self._former[lease.pipeline] = lease
        if self._chance.random() < 0.8:
            finish = Finish(Outcome.SUCCEEDED, "done", published=((STREAM, seq),))
            await self._call(
                "finish",
                lambda: self._catalog.finish(new_operation_id(), lease, finish),
                lambda run: run.outcome,
                pipeline=lease.pipeline,
                epoch=lease.epoch,
            )

    async def _renew(self, lease: Lease, ttl: float) -> Any:
        return await self._call(
            "renew",
            lambda: self._catalog.renew(new_operation_id(), self._holder, [lease], ttl=ttl),
            lambda renewal: len(renewal.lost),
            pipeline=lease.pipeline,
            epoch=lease.epoch,
        )

    async def _read(self, name: str) -> None:
        async def seq() -> int:
            return next((s.seq for s in await self._catalog.streams(name)), 0)

        await self._call("read", seq, lambda found: found, pipeline=name)

    async def _commit(self, lease: Lease, follows: int) -> bool:
        """Commit one batch, now and then twice with the same operation id."""
        op = new_operation_id()
        place = position.encode("int", follows + 1)
        cursor = Cursor(CursorKind.MONOTONIC, "n", place)
        batch = Batch(STREAM, follows, op, cursor, rows=1)

        async def ask() -> Any:
            return await self._catalog.commit(op, lease, [batch], {STREAM: follows})

        what = {"pipeline": lease.pipeline, "epoch": lease.epoch, "batch": op, "follows": follows}
        done = await self._call("commit", ask, lambda found: [c.seq for c in found], **what)
        if done is not None and self._chance.random() < 0.2:
            again = await self._call("resend", ask, lambda found: [c.seq for c in found], **what)
            if again != done:
                self._log.write(fault=f"{op} was answered {done}, then {again}")
        return done is not None


async def main(path: str, log: Log, seed: int, seconds: float) -> None:
    async with open_catalog(f"sqlite:///{path}") as catalog, anyio.create_task_group() as tasks:

        async def serve(number: int) -> None:
            hand = Hand(catalog, log, random.Random(f"{seed} {number}"))
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                await hand.once()

        for number in range(_TASKS):
            tasks.start_soon(serve, number)


if __name__ == "__main__":
    anyio.run(main, sys.argv[1], Log(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]))

"""A catalog with something for each verb to do, and each verb with something to do in it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from catalog.clock import ManualClock
from catalog.conformance.kit import ALPHA, BETA, TTL, batch, cursor, op, schema, schema_hold, tick
from catalog.port import Catalog
from catalog.records import (
    Adopt,
    AnswerSchema,
    CancelRun,
    Candidate,
    Claimed,
    Decision,
    EditAction,
    FileEntry,
    Finish,
    Lease,
    Outcome,
    Pause,
    Refresh,
    Release,
    RequestRun,
    Resume,
    Retention,
    SetCursor,
    StreamResult,
)
from catalog.sqlite.backend import SqliteCatalog
from catalog.sqlite.database import Tuning

LIMIT = 1 << 30
FILE = "catalog.db"
LATER = 1_000.0
"""Seconds from the beginning to where the verbs are sent."""


def clock() -> ManualClock:
    """The time at which the verbs are sent."""
    now = ManualClock()
    now.advance(LATER)
    return now


@dataclass(frozen=True)
class Base:
    """The catalog's file as the verbs find it, and who holds what in it."""

    content: bytes
    leases: Mapping[str, Lease]

    def lay(self, folder: Path) -> Path:
        """A copy of the file in a new folder."""
        folder.mkdir()
        path = folder / FILE
        path.write_bytes(self.content)
        return path


async def base(folder: Path) -> Base:
    """Make it. ``shop``, ``mine`` and ``busy`` are ALPHA's, ``lost`` was BETA's, whose time is
    over; ``till`` is free and its stream is held; all have a past that retention may take.
    """
    now = ManualClock()
    catalog = await SqliteCatalog.open(folder / FILE, now, LIMIT, Tuning(synchronous="OFF"))
    for name in ("shop", "till", "lost"):
        lease = await claim(catalog, name)
        entries = (FileEntry("a.csv", 1, 2, 3, 4, "h"),)
        first = batch(0, cursor=cursor(1), schema=schema(1), files=entries)
        await catalog.commit(op(), lease, [first], {})
        held = StreamResult("orders", Outcome.HELD, "so", hold=schema_hold())
        is_till = name == "till"
        results = (held,) if is_till else (StreamResult("orders", Outcome.SUCCEEDED, "so"),)
        outcome = Outcome.HELD if is_till else Outcome.SUCCEEDED
        done = Finish(outcome, "so", streams=results, published=(("orders", 1),))
        await catalog.finish(op(), lease, done)
        await catalog.edit(op(), "ann", "because", Pause(name))
        await catalog.edit(op(), "ann", "because", Resume(name))
        now.advance(1)
    lost = await catalog.claim(op(), BETA, [await candidate(catalog, "lost")], ttl=TTL, limits={})
    now.advance(LATER - 3)
    leases = {name: await claim(catalog, name) for name in ("shop", "mine", "busy")}
    follows = {"shop": 1, "mine": 0, "busy": 0}
    for name, lease in leases.items():
        await catalog.commit(op(), lease, [batch(follows[name], cursor=cursor(2))], {})
    assert isinstance(lost[0], Claimed)
    await catalog.aclose()
    return Base((folder / FILE).read_bytes(), {**leases, "lost": lost[0].lease})


async def candidate(catalog: Catalog, name: str) -> Candidate:
    return Candidate(name, (await catalog.pipeline(name)).version, tick(1), "due", ("db",))


async def claim(catalog: Catalog, name: str) -> Lease:
    wanted = [await candidate(catalog, name)]
    (answer,) = await catalog.claim(op(), ALPHA, wanted, ttl=TTL, limits={})
    assert isinstance(answer, Claimed)
    return answer.lease


# -- the verbs -----------------------------------------------------------------------------------

Ask = Callable[[Catalog, str], Awaitable[Any]]
"""Sends one verb under the operation id."""


def edit(action: EditAction) -> Ask:
    return lambda catalog, id_: catalog.edit(id_, "ann", "because", action)


def verbs(base: Base) -> dict[str, Ask]:
    """Each mutating verb of the port, and each action of ``edit``."""
    shop, mine = base.leases["shop"], base.leases["mine"]
    change = Decision("orders", 1, "f2", "approved", "[]", "policy", "widen")
    full = batch(
        2,
        cursor=cursor(3),
        schema=schema(2),
        decisions=(change,),
        files=(FileEntry("b.csv", 1, 2, 3, 4, "h"),),
        forgotten=("a.csv",),
        receipt="x" * 9_000,
    )
    results = (StreamResult("orders", Outcome.SUCCEEDED, "so"),)
    finish = Finish(Outcome.SUCCEEDED, "so", streams=results, published=(("orders", 2),))
    before = clock().wall_us() - round(LATER / 2) * 1_000_000
    keep = Retention(before, operations_before=before, limit=100)

    async def claim(catalog: Catalog, id_: str) -> Any:
        wanted = [await candidate(catalog, name) for name in ("till", "lost", "new", "shop")]
        return await catalog.claim(id_, ALPHA, wanted, ttl=TTL, limits={"db": 5})

    return {
        "claim": claim,
        "renew": lambda catalog, id_: catalog.renew(id_, ALPHA, [shop], ttl=TTL),
        "commit": lambda catalog, id_: catalog.commit(id_, shop, [full], {"orders": 2}),
        "commit the next": lambda catalog, id_: catalog.commit(
            id_, mine, [batch(1, cursor=cursor(3))], {"orders": 1}
        ),
        "finish": lambda catalog, id_: catalog.finish(id_, shop, finish),
        "retain": lambda catalog, id_: catalog.retain(id_, keep),
        "pause": edit(Pause("shop")),
        "resume": edit(Resume("shop")),
        "request a run": edit(RequestRun("new", "r1")),
        "cancel": edit(CancelRun("shop")),
        "answer a schema hold": edit(AnswerSchema("till", "orders", "f2", "approved")),
        "refresh": edit(Refresh("till", "orders")),
        "set a cursor": edit(SetCursor("till", "orders", cursor(9), 7, adopt=True)),
        "adopt": edit(Adopt("till", "orders")),
        "release": edit(Release("till", "orders")),
        "release what lapsed": edit(Release("lost", "orders")),
    }

"""What every process that may hold leases needs, opened in order and closed in reverse.

The composition root: only here are catalog, holder lock, keeper and worker pool put together, for
the daemon and for a single run from the command line alike.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Collection
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from catalog.clock import Clock, SystemClock
from catalog.open import open_catalog
from catalog.port import Catalog
from catalog.records import Holder
from reconciler.config.desired import Project
from reconciler.daemon.runs import Runs
from reconciler.daemon.secrecy import secret_variables
from reconciler.daemon.teller import Teller
from reconciler.lease.keeper import Keeper
from reconciler.lease.locks import HolderLock, new_holder
from reconciler.run.pool import WorkerPool


@dataclass(frozen=True, slots=True)
class Session:
    """An open catalog with a holder of our own."""

    catalog: Catalog
    keeper: Keeper
    pool: WorkerPool
    runs: Runs
    clock: Clock


@dataclass(frozen=True, slots=True)
class Hands:
    """A holder's lock, and the workers that inherit it: what can be ready before the config is."""

    holder: Holder
    lock: HolderLock
    pool: WorkerPool


@asynccontextmanager
async def open_hands(state_dir: Path, kind: str, hidden: Collection[str]) -> AsyncIterator[Hands]:
    """Become a holder. ``hidden``: environment variables that workers do not get (rule 9)."""
    holder = new_holder(kind)
    lock = HolderLock(state_dir, holder)
    lock.needed = False  # until there is a session
    pool = WorkerPool(inherit=(lock.fd,), hidden_env=hidden)
    try:
        yield Hands(holder, lock, pool)
    finally:
        await pool.aclose()
        lock.close()


@asynccontextmanager
async def open_session(
    project: Project,
    kind: str,
    teller: Teller,
    watched: Callable[[Catalog], Catalog] = lambda catalog: catalog,
    hands: Hands | None = None,
) -> AsyncIterator[Session]:
    """Open all that runs need. ``kind``: ``daemon`` or ``cli``. Raises ``CatalogError``.

    ``watched`` may put something that times its calls before the catalog. ``hands`` that are
    there already are used, and stay their opener's to close.
    """
    clock = SystemClock()
    async with AsyncExitStack() as stack:
        opened = await stack.enter_async_context(
            open_catalog(project.catalog, clock=clock, limit_bytes=project.catalog_limit)
        )
        catalog = watched(opened)
        if hands is None:
            new = open_hands(project.state_dir, kind, secret_variables(project))
            hands = await stack.enter_async_context(new)
        keeper = Keeper(catalog, hands.holder, hands.lock, clock, project.daemon.lease_ttl)
        runs = Runs(catalog, keeper, hands.pool, clock, teller, project.state_dir)
        keeper.on_lost = runs.lost
        keeper.on_renewed = runs.extend
        hands.lock.needed = True
        try:
            yield Session(catalog, keeper, hands.pool, runs, clock)
        finally:
            hands.lock.needed = keeper.may_hold()

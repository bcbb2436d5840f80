"""What every process that may hold leases needs, opened in order and closed in reverse.

The composition root: only here are catalog, holder lock, keeper and worker pool put together, for
the daemon and for a single run from the command line alike.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from catalog.clock import Clock, SystemClock
from catalog.open import open_catalog
from catalog.port import Catalog
from reconciler.config.desired import Project
from reconciler.daemon.runs import Runs
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


@asynccontextmanager
async def open_session(
    project: Project,
    kind: str,
    teller: Teller,
    watched: Callable[[Catalog], Catalog] = lambda catalog: catalog,
) -> AsyncIterator[Session]:
    """Open all that runs need. ``kind``: ``daemon`` or ``cli``. Raises ``CatalogError``.

    ``watched`` may put something that times its calls before the catalog.
    """
    clock = SystemClock()
    async with open_catalog(
        project.catalog, clock=clock, limit_bytes=project.catalog_limit
    ) as opened:
        catalog = watched(opened)
        holder = new_holder(kind)
        lock = HolderLock(project.state_dir, holder)
        pool = WorkerPool(inherit=(lock.fd,), hidden_env=_secret_names(project))
        try:
            keeper = Keeper(catalog, holder, lock, clock, project.daemon.lease_ttl)
            runs = Runs(catalog, keeper, pool, clock, teller, project.state_dir)
            keeper.on_lost = runs.lost
            keeper.on_renewed = runs.extend
            yield Session(catalog, keeper, pool, runs, clock)
        finally:
            await pool.aclose()
            lock.close()


def _secret_names(project: Project) -> set[str]:
    """Environment variables that hold secrets: workers get them by the pipe alone (rule 9)."""
    refs = (ref for c in project.connections.values() for ref in c.secrets.values())
    return {ref.name for ref in refs if ref.scheme == "env"}

"""A catalog whose calls are timed: the same port, with each answer's wait in the metrics."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Any, Final, cast

from catalog.port import Catalog
from reconciler.telemetry.metrics import Metrics

READS: Final = frozenset(
    {
        *("pipeline", "changed", "cursor", "streams", "run", "runs", "commits", "schemas"),
        *("decisions", "files", "edits", "holders", "stats"),
    }
)
WRITES: Final = frozenset({"claim", "renew", "commit", "finish", "edit", "retain"})


def measured(catalog: Catalog, metrics: Metrics) -> Catalog:
    """``catalog`` behind a stopwatch. Failures count as waits too; waiting on purpose
    (``wait_changed``) and the long work of upkeep (``check``, ``aclose``) do not."""
    return cast(Catalog, _Measured(catalog, metrics))


class _Measured:
    def __init__(self, catalog: Catalog, metrics: Metrics) -> None:
        self._catalog = catalog
        for name in READS:
            setattr(self, name, _timed(getattr(catalog, name), metrics.catalog_was_read))
        for name in WRITES:
            setattr(self, name, _timed(getattr(catalog, name), metrics.catalog_committed))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._catalog, name)


def _timed(
    verb: Callable[..., Awaitable[Any]], observe: Callable[[float], None]
) -> Callable[..., Awaitable[Any]]:
    async def call(*args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        try:
            return await verb(*args, **kwargs)
        finally:
            observe(time.perf_counter() - start)

    return call

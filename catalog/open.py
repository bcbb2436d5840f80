"""From a URL to an open catalog. The only module that knows the backends."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from catalog.clock import Clock, SystemClock
from catalog.errors import CannotOpen
from catalog.port import Catalog

LIMIT_BYTES = 10 * 1024**3


@asynccontextmanager
async def open_catalog(
    url: str, *, clock: Clock | None = None, limit_bytes: int = LIMIT_BYTES
) -> AsyncIterator[Catalog]:
    """The catalog at ``url``, closed at the end: ``sqlite:///path`` or ``memory:``.

    A relative path is taken from the working directory (``sqlite:///state/catalog.db``), an
    absolute one has a fourth slash. ``limit_bytes``: the ceiling past which growing is ``Full``.
    Raises ``CannotOpen`` or ``Unavailable`` with a sentence that says what to do.
    """
    catalog = await _open(url, clock or SystemClock(), limit_bytes)
    try:
        yield catalog
    finally:
        await catalog.aclose()


def is_made(url: str) -> bool:
    """Whether opening ``url`` finds a catalog, or something else; False: it would make a file."""
    file = url.removeprefix("sqlite:///")
    return file == url or Path(file).exists()


async def _open(url: str, clock: Clock, limit_bytes: int) -> Catalog:
    if url == "memory:":
        from catalog.memory import MemoryCatalog

        return MemoryCatalog(clock)
    scheme, slashes, path = url.partition(":///")
    if scheme == "sqlite" and slashes and path:
        from catalog.sqlite.backend import SqliteCatalog

        return await SqliteCatalog.open(Path(path), clock, limit_bytes)
    raise CannotOpen(
        f"{url!r} is no catalog this program knows; allowed are sqlite:///relative/path, "
        "sqlite:////absolute/path and memory: (kept nowhere)"
    )

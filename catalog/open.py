"""From a URL to an open catalog. The only module that knows the backends."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from catalog.clock import Clock, SystemClock
from catalog.copies import Backup, Restored
from catalog.errors import CannotOpen
from catalog.port import Catalog
from catalog.records import Micros

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
    if (file := _file(url)) is None:
        return True
    path = file.resolve()
    # A file by the second name says that a restore was cut short.
    return path.exists() or path.with_name(f"{path.name}.restoring").exists()


def owner(url: str) -> int | None:
    """The user whose file the catalog at ``url`` is; None: it is no file, or not made yet."""
    file = _file(url)
    return file.stat().st_uid if file is not None and file.exists() else None


def back_up(url: str, target: Path, *, force: bool = False, dry_run: bool = False) -> Backup:
    """Copy the catalog at ``url`` to one file, whole and durable, while others go on writing.

    ``force``: a file that is there is replaced. ``dry_run``: only look whether it could be done.
    Blocks. Raises ``CannotOpen`` or ``Unavailable``; then there is no such file, or the old one.
    """
    from catalog.sqlite.backing_up import back_up
    from catalog.sqlite.database import Location, Tuning

    location = Location.of(_must_be_file(url), Tuning())
    return back_up(location, target.absolute(), force=force, dry_run=dry_run)


def restore(
    url: str, source: Path, *, by: str, why: str = "", dry_run: bool = False, now: Micros = 0
) -> Restored:
    """Put a copy in the place of the catalog at ``url``, which no process may have open.

    The counter of epochs is raised above all that the lost catalog may have issued (A1), open runs
    end as ``interrupted``, the audit says so with ``by`` and ``why``, and what stood there is kept
    beside. ``dry_run``: try all of it and keep nothing. ``now``: the wall clock's microseconds; 0:
    the system's. Blocks. Raises ``CannotOpen`` or ``Unavailable``; then nothing has changed.
    """
    from catalog.sqlite.database import Location, Tuning
    from catalog.sqlite.restoring import Asked, restore

    asked = Asked(source.absolute(), by, why, now or SystemClock().wall_us())
    return restore(Location.of(_must_be_file(url), Tuning()), asked, dry_run=dry_run)


def _file(url: str) -> Path | None:
    """Of a catalog in a file; None: it is none."""
    path = url.removeprefix("sqlite:///")
    return Path(path) if path not in ("", url) else None


def _must_be_file(url: str) -> Path:
    if (file := _file(url)) is not None:
        return file
    raise CannotOpen(
        f"{url!r} is no catalog in a file; only those of sqlite:///path are backed up and restored "
        "by this program"
    )


async def _open(url: str, clock: Clock, limit_bytes: int) -> Catalog:
    if url == "memory:":
        from catalog.memory import MemoryCatalog

        return MemoryCatalog(clock)
    if (file := _file(url)) is not None:
        from catalog.sqlite.backend import SqliteCatalog

        return await SqliteCatalog.open(file, clock, limit_bytes)
    raise CannotOpen(
        f"{url!r} is no catalog this program knows; allowed are sqlite:///relative/path, "
        "sqlite:////absolute/path and memory: (kept nowhere)"
    )

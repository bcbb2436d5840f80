"""What a command works with: the config's place, the catalog, and who is asking.

Commands speak with the catalog through its port and never with the daemon: they work the same
whether one is up or not, and the daemon notices by itself.
"""

from __future__ import annotations

import os
import pwd
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from catalog.port import Catalog
from catalog.records import Micros, PipelineState, StreamState
from reconciler.cli import output
from reconciler.cli.failure import Exit, Failure
from reconciler.cli.target import Target, parse, parse_stream, unmatched

if TYPE_CHECKING:
    from reconciler.config.desired import Project

T = TypeVar("T")
_PAGE = 1000
config_before_verb: ContextVar[Path | None] = ContextVar("config_before_verb", default=None)
"""``reconciler --config PATH verb``; a path given after the verb goes before it."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a project's state is, found without reading all of its config."""

    config: Path
    project: str
    state_dir: Path
    catalog: str
    catalog_limit: int

    def daemon_up(self) -> bool:
        """A daemon serves this project on this machine."""
        from reconciler.lease.locks import daemon_alive

        return daemon_alive(self.state_dir)

    def never_ran(self) -> bool:
        """The catalog is a file that nobody has made yet."""
        from catalog.open import is_made

        return not is_made(self.catalog)

    def load(self, *, secrets: bool = False) -> Project:
        """The whole config. ``secrets``: those it names must be there. Raises ``ConfigError``."""
        from reconciler.config import load

        return load(self.config, os.environ, secrets=secrets)


def find(explicit: Path | None) -> Place:
    """The place of the config that ``--config`` names, else of the first that is found."""
    from reconciler.config import ConfigError, find_config, load, locate

    named = explicit or config_before_verb.get()
    output.named_config.set(str(named) if named else "")
    path = find_config(named, os.environ)
    try:
        where = locate(path, os.environ)
    except ConfigError:
        # Says what is wrong with all of it, not with these keys alone.
        load(path, os.environ, secrets=False)
        raise
    return Place(path, where.project, where.state_dir, where.catalog, where.catalog_limit)


@asynccontextmanager
async def open_place(place: Place, *, changes: bool = False) -> AsyncIterator[Catalog]:
    """The place's catalog. One that is not there yet is made only by a command that ``changes``.

    Looking must not make it: its files would belong to whoever looked first.
    """
    from catalog.open import open_catalog

    empty = not changes and place.never_ran()
    url = "memory:" if empty else place.catalog
    async with open_catalog(url, limit_bytes=place.catalog_limit) as catalog:
        yield catalog


def with_catalog(
    place: Place, work: Callable[[Catalog], Awaitable[T]], *, changes: bool = False
) -> T:
    """Run ``work`` on the place's catalog, opened for it and closed after it."""
    import asyncio

    async def opened() -> T:
        async with open_place(place, changes=changes) as catalog:
            return await work(catalog)

    return asyncio.run(opened())


def who() -> str:
    """``user@host``, as edits record it."""
    uid = os.getuid()
    try:
        user = pwd.getpwuid(uid).pw_name
    except KeyError:  # a container's user without a name
        user = f"uid{uid}"
    return f"{user}@{socket.gethostname()}"


def now_us() -> Micros:
    """The wall clock, for display."""
    return time.time_ns() // 1_000


async def all_states(catalog: Catalog) -> dict[str, PipelineState]:
    """The state of every pipeline that the catalog knows, by name."""
    found: dict[str, PipelineState] = {}
    after = 0
    while page := await catalog.changed(after, _PAGE):
        found |= {state.name: state for state in page}
        after = page[-1].change
        if len(page) < _PAGE:
            break
    return dict(sorted(found.items()))


async def known_pipelines(place: Place, catalog: Catalog) -> set[str]:
    """Names that the config or the catalog knows; not those that renamed pipelines had."""
    states = await all_states(catalog)
    return {*place.load().pipelines, *(name for name, s in states.items() if not s.is_vacant)}


async def must_know(place: Place, catalog: Catalog, target: Target) -> PipelineState:
    """The target's pipeline; raises ``Failure`` with the nearest right word.

    The config is read only for a pipeline that the catalog has never seen.
    """
    state = await catalog.pipeline(target.pipeline)
    if state.version == 0 or state.is_vacant:
        known = await known_pipelines(place, catalog)
        if target.pipeline not in known:
            if state.paused is not None:
                raise Failure(f'"{target.pipeline}" was renamed: {state.paused.why}.', Exit.NOTHING)
            raise unmatched("pipeline", target.pipeline, known)
    return state


async def must_know_stream(place: Place, catalog: Catalog, target: Target) -> StreamState:
    """The catalog's record of the target's stream; raises ``Failure`` with the nearest name."""
    await must_know(place, catalog, target)
    streams = {s.stream: s for s in await catalog.streams(target.pipeline)}
    if target.stream not in streams:
        names = {f"{target.pipeline}.{name}" for name in streams}
        raise unmatched("stream", str(target), names)
    return streams[target.stream]


async def one_stream(place: Place, catalog: Catalog, text: str) -> StreamState:
    """The catalog's record of the stream named; a pipeline alone is told which streams it has."""
    target = parse(text)
    if not target.stream:
        await must_know(place, catalog, target)
        parse_stream(text, [s.stream for s in await catalog.streams(target.pipeline)])
    return await must_know_stream(place, catalog, target)

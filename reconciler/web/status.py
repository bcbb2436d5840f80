"""What the web part asks of the daemon: a few questions, answered from memory.

The daemon implements ``StatusSource``; nothing here can change anything. Times are microseconds
since 1970-01-01 UTC, as in ``catalog.records``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from catalog.records import Micros
from reconciler.plan.standing import State


@dataclass(frozen=True, slots=True)
class Summary:
    """The daemon as a whole."""

    project: str
    version: str
    holder: str
    """Id of this process instance, as in leases and runs."""
    started_at: Micros
    catalog: str
    """Backend and place, without secrets."""
    runs_open: int
    runs_max: int
    states: Mapping[State, int] = field(default_factory=dict)
    """How many pipelines are in each state."""
    stale: int = 0
    """Pipelines whose data is older than their ``fresh_within``."""
    config_rejected: str = ""
    """What is wrong with the config as it was edited; the one before is in force."""


@dataclass(frozen=True, slots=True)
class PipelineStatus:
    """One pipeline, as the page and ``/api/status`` show it."""

    name: str
    state: State
    reason: str
    """Why it is in this state: a sentence without secrets."""
    fresh_at: Micros | None = None
    """How far the data reaches: the later of newest cursor time and last run to its bound."""
    fresh_within: float | None = None
    """Seconds."""
    stale: bool = False
    last_outcome: str | None = None
    last_reason: str = ""
    last_run: int | None = None
    """Id of the run that ``last_outcome`` is of."""
    last_started_at: Micros | None = None
    last_finished_at: Micros | None = None
    next_run_at: Micros | None = None
    failures: int = 0
    held: tuple[str, ...] = ()
    """Streams that wait for a person's answer."""
    rows: int = 0
    rejected: int = 0


@dataclass(frozen=True, slots=True)
class PipelineQuery:
    """Which pipelines, by name."""

    text: str = ""
    """Part of the name, case ignored; empty: all."""
    state: State | None = None
    offset: int = 0
    limit: int = 100


@dataclass(frozen=True, slots=True)
class PipelinePage:
    """``rows`` of the ``total`` that match."""

    total: int
    rows: tuple[PipelineStatus, ...]


class StatusSource(Protocol):
    """Implemented by the daemon. What is not ``async`` answers at once, out of memory."""

    def not_alive(self) -> str:
        """Why the process ought to be restarted (its loop's heartbeat is too old); empty: no."""
        ...

    def not_ready(self) -> tuple[str, ...]:
        """Why no run could start now: catalog not writable, config not loaded, leases not
        renewed, draining. Each a sentence; empty: ready."""
        ...

    def summary(self) -> Summary: ...

    async def pipelines(self, query: PipelineQuery) -> PipelinePage:
        """A page of the pipelines that match, by name; read from the catalog as it is now."""
        ...

    async def observe(self) -> None:
        """Called before each scrape: bring gauges that are only read (catalog sizes) up to date.

        Must not raise; a catalog that does not answer is a gauge too.
        """
        ...

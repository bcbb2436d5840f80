"""What the daemon measures, for Prometheus.

One object, one registry of its own, no globals. Labels are few and closed (``outcome``, ``state``),
with ``pipeline`` on the per-pipeline series alone; no run id and no stream ever is a label.

Per-pipeline series are rendered at the scrape from compact state, so that a hundred thousand
pipelines cost no metric objects: gauges out of the daemon's own view, counters out of one small
record for each pipeline that has run in this process. Counters start at 0 with the process.
``docs/metrics.md`` lists every name; a test holds the two equal.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)

from catalog.records import CatalogStats, Micros, Outcome
from reconciler.plan.standing import State

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
_CHUNK_LINES: Final = 2_000


@dataclass(frozen=True, slots=True)
class PipelineView:
    """One pipeline as the metrics and the page need it, from when the loop last looked at it."""

    name: str
    state: State
    last_success_at: Micros | None = None
    data_at: Micros | None = None
    """Newest committed cursor time, where cursors are times."""
    fresh_within: float | None = None
    """Seconds."""
    next_run_at: Micros | None = None
    failures: int = 0
    held: int = 0
    """Streams that wait for a person's answer, also while the others are being run."""


_OUTCOMES: Final = tuple(outcome.value for outcome in Outcome)
_ALWAYS: Final = frozenset({"succeeded", "nothing_new", "failed"})
"""Outcomes whose counters are there from the start, as 0: a first failure must be an increase."""


class _Counts:
    """A pipeline's counters, one slot for each outcome: a list of them would be twice the size."""

    __slots__ = (*_OUTCOMES, "rejected", "rows")
    rejected: int
    rows: int

    def __init__(self) -> None:
        for name in self.__slots__:
            setattr(self, name, 0)


_NONE: Final = _Counts()


class Metrics:
    """Everything measured. Methods are called from the event loop's thread and take well under
    10 us; ``render`` and ``chunks`` take about 10 ms for 1,000 pipelines."""

    def __init__(self, version: str) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._registry = CollectorRegistry()
        self._counts: dict[str, _Counts] = {}
        self._views: Callable[[], Iterable[PipelineView]] = tuple
        ProcessCollector(registry=self._registry)
        GCCollector(registry=self._registry)
        self._make_daemon(version)
        self._make_runs()
        self._make_catalog()

    def _make_daemon(self, version: str) -> None:
        build = self._gauge("build_info", "Always 1; what runs here.", "version", "python")
        build.labels(version, platform.python_version()).set(1)
        self._ready = self._gauge("ready", "1 when /readyz answers 200, else 0.")
        self._tick = self._histogram("tick_duration_seconds", "One pass of the loop.", _SHORT)
        self._lag = self._histogram(
            "loop_lag_seconds", "How late the event loop was at its own timer.", _SHORT
        )
        self._workers = self._gauge("workers", "Worker processes.", "state")
        for state in ("idle", "busy"):
            self._workers.labels(state).set(0)
        self._reload_ok = self._gauge(
            "config_last_reload_successful", "1 when the last read of the config was accepted."
        )
        self._reload_at = self._gauge(
            "config_last_reload_timestamp_seconds", "When a config last took effect, Unix time."
        )

    def _make_runs(self) -> None:
        self._duration = self._histogram(
            "run_duration_seconds", "Claim to finish.", _LONG, "outcome"
        )
        self._delay = self._histogram("run_delay_seconds", "Due to started.", _LONG)
        self._leases = self._gauge("leases_held", "Leases this daemon holds.")
        self._lost = self._counter("leases_lost_total", "Leases that another daemon took over.")
        self._fenced = self._counter(
            "fenced_writes_total", "Writes refused because their epoch was not the current one."
        )

    def _make_catalog(self) -> None:
        self._commit = self._histogram(
            "catalog_commit_seconds", "A write to the catalog, waiting included.", _SHORT
        )
        self._read = self._histogram("catalog_read_seconds", "A read of the catalog.", _TINY)
        self._up = self._gauge("catalog_up", "1 when the catalog can be written.")
        self._size = self._gauge("catalog_size_bytes", "Size of the catalog.")
        self._limit = self._gauge("catalog_limit_bytes", "Ceiling of the catalog's size.")
        self._wal = self._gauge("catalog_wal_bytes", "Size of the catalog's write-ahead log.")
        self._grouped = (0, 0)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"reconciler_{name}", text, labels, registry=self._registry)

    def _counter(self, name: str, text: str) -> Counter:
        return Counter(f"reconciler_{name}", text, registry=self._registry)

    def _histogram(self, name: str, text: str, buckets: Sequence[float], *labels: str) -> Histogram:
        return Histogram(
            f"reconciler_{name}", text, labels, registry=self._registry, buckets=buckets
        )

    # -- runs ------------------------------------------------------------------------------------

    def run_started(self, pipeline: str, delay_s: float | None) -> None:
        """A run began, ``delay_s`` after it was due (None: nothing was due, a person asked)."""
        self._counts.setdefault(pipeline, _Counts())
        if delay_s is not None:
            self._delay.observe(delay_s)

    def run_finished(
        self,
        pipeline: str,
        outcome: Outcome,
        duration_s: float,
        rows: int,
        rejected: int,
    ) -> None:
        """A run ended; ``rows`` were committed by it and ``rejected`` set aside."""
        counts = self._counts.setdefault(pipeline, _Counts())
        setattr(counts, outcome.value, getattr(counts, outcome.value) + 1)
        counts.rows += rows
        counts.rejected += rejected
        self._duration.labels(outcome.value).observe(duration_s)

    def forget(self, pipeline: str) -> None:
        """The pipeline is no longer in the config: its counters go."""
        self._counts.pop(pipeline, None)

    def observe_pipelines(self, views: Callable[[], Iterable[PipelineView]]) -> None:
        """Say where the per-pipeline gauges come from; called once for each scrape."""
        self._views = views

    # -- leases ----------------------------------------------------------------------------------

    def leases_held(self, count: int) -> None:
        self._leases.set(count)

    def lease_lost(self) -> None:
        self._lost.inc()

    def write_fenced(self) -> None:
        self._fenced.inc()

    # -- the daemon ------------------------------------------------------------------------------

    def ready(self, ready: bool) -> None:  # noqa: FBT001 - the one thing it says
        self._ready.set(ready)

    def ticked(self, seconds: float) -> None:
        self._tick.observe(seconds)

    def loop_lagged(self, seconds: float) -> None:
        """How late a timer of the loop fired."""
        self._lag.observe(max(seconds, 0.0))

    def workers(self, *, idle: int, busy: int) -> None:
        self._workers.labels("idle").set(idle)
        self._workers.labels("busy").set(busy)

    def config_read(self, accepted: bool, at: Micros) -> None:  # noqa: FBT001 - as above
        """The config was read, at start or again; the time moves only when it took effect."""
        self._reload_ok.set(accepted)
        if accepted:
            self._reload_at.set(at / 1e6)

    # -- the catalog -----------------------------------------------------------------------------

    def catalog_committed(self, seconds: float) -> None:
        self._commit.observe(seconds)

    def catalog_was_read(self, seconds: float) -> None:
        self._read.observe(seconds)

    def catalog_stats(self, stats: CatalogStats | None) -> None:
        """Sizes as they are now; None: the catalog did not answer."""
        self._up.set(stats is not None and not stats.last_error)
        if stats is not None:
            self._grouped = (stats.writes, stats.groups)
            self._size.set(stats.size_bytes)
            self._limit.set(stats.limit_bytes)
            self._wal.set(stats.wal_bytes)

    # -- the scrape ------------------------------------------------------------------------------

    def render(self) -> bytes:
        """The whole exposition, in Prometheus' text format 0.0.4."""
        return b"".join(self.chunks())

    def chunks(self) -> Iterator[bytes]:
        """The exposition in pieces of a few milliseconds' work each, for a loop that must go on."""
        yield generate_latest(self._registry)
        yield _group_size(*self._grouped)
        views = list(self._views())
        for name, kind, text, lines in _families(views, self._counts):
            yield f"# HELP {name} {text}\n# TYPE {name} {kind}\n".encode()
            piece: list[str] = []
            for line in lines:
                piece.append(line)
                if len(piece) >= _CHUNK_LINES:
                    yield "".join(piece).encode()
                    piece.clear()
            yield "".join(piece).encode()


_TINY: Final = (5e-6, 1e-5, 2.5e-5, 5e-5, 1e-4, 2.5e-4, 1e-3, 0.01, 0.1, 1.0)
_SHORT: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 2.5, 10.0)
_LONG: Final = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0, 7200.0)


def _group_size(writes: int, groups: int) -> bytes:
    """Writes for each flush, out of the catalog's own two counters."""
    name = "reconciler_catalog_group_size"
    return (
        f"# HELP {name} Writes that shared one flush.\n# TYPE {name} summary\n"
        f"{name}_sum {writes}\n{name}_count {groups}\n"
    ).encode()


_Family = tuple[str, str, str, Iterator[str]]
_Reader = Callable[[PipelineView], float | None]


def _families(views: Sequence[PipelineView], counts: dict[str, _Counts]) -> Iterator[_Family]:
    """Each per-pipeline metric with its lines, not yet rendered."""
    # One list of labels is kept for the scrape, and no pairs: they would be 25 MB of a large one.
    labels = [_label(view.name) for view in views]
    state = "reconciler_pipeline_state"
    lines = (
        f'{state}{{{label},state="{view.state}"}} 1\n'
        for label, view in zip(labels, views, strict=True)
    )
    yield state, "gauge", "1 for the state the pipeline is in; the others are absent.", lines
    for part, text, read in _GAUGES:
        name = f"reconciler_pipeline_{part}"
        yield name, "gauge", text, _value_lines(name, labels, views, read)
    name = "reconciler_runs_total"
    yield name, "counter", "Runs that ended, by outcome.", _run_lines(name, labels, views, counts)
    totals: tuple[tuple[str, str, _Reader], ...] = (
        ("rows", "Rows committed.", lambda view: counts.get(view.name, _NONE).rows),
        ("rows_rejected", "Rows set aside.", lambda view: counts.get(view.name, _NONE).rejected),
    )
    for part, text, read in totals:
        name = f"reconciler_{part}_total"
        yield name, "counter", text, _value_lines(name, labels, views, read)


def _run_lines(
    name: str,
    labels: Sequence[str],
    views: Sequence[PipelineView],
    counts: dict[str, _Counts],
) -> Iterator[str]:
    for label, view in zip(labels, views, strict=True):
        count = counts.get(view.name, _NONE)
        for outcome in _OUTCOMES:
            number = getattr(count, outcome)
            if number or outcome in _ALWAYS:
                yield f'{name}{{{label},outcome="{outcome}"}} {number}\n'


_GAUGES: Final[tuple[tuple[str, str, _Reader], ...]] = (
    (
        "consecutive_failures",
        "Failed runs since the last that did not fail.",
        lambda view: view.failures,
    ),
    ("held_streams", "Streams that wait for a person's answer.", lambda view: view.held),
    (
        "last_success_timestamp_seconds",
        "When a run last read to its bound, Unix time; absent: never.",
        lambda view: None if view.last_success_at is None else view.last_success_at / 1e6,
    ),
    (
        "data_timestamp_seconds",
        "Newest committed cursor time, Unix time; absent: cursors are no times.",
        lambda view: None if view.data_at is None else view.data_at / 1e6,
    ),
    (
        "fresh_within_seconds",
        "How old the data may be, as the config says; absent: it says nothing.",
        lambda view: view.fresh_within,
    ),
    (
        "next_run_timestamp_seconds",
        "When the next run is due, Unix time; absent: none is planned.",
        lambda view: None if view.next_run_at is None else view.next_run_at / 1e6,
    ),
)


def _value_lines(
    name: str, labels: Sequence[str], views: Sequence[PipelineView], read: _Reader
) -> Iterator[str]:
    for label, view in zip(labels, views, strict=True):
        value = read(view)
        if value is not None:
            yield f"{name}{{{label}}} {value!r}\n"


def _label(pipeline: str) -> str:
    if "\\" in pipeline or '"' in pipeline or "\n" in pipeline:
        pipeline = pipeline.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
    return f'pipeline="{pipeline}"'

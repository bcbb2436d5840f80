"""Every value of a pipeline with where it comes from: what ``config show PIPELINE`` prints."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Literal, TypeAlias

from reconciler.config import words
from reconciler.config.desired import Cron, Every, Pipeline, StreamSettings
from reconciler.config.loading import open_config, refuse_problems
from reconciler.config.positions import KeyPath, dotted
from reconciler.config.problems import ConfigError, Place, Problem, listed, nearest
from reconciler.config.resolve import RUN_KEYS, Resolution, explicit
from reconciler.config.rules import KEYS_OF, NESTED
from reconciler.config.tables import ONLY_IN_STREAM, PIPELINE

OriginKind: TypeAlias = Literal["default", "[defaults]", "pipeline", "stream", "environment"]
_ORIGIN: dict[str, OriginKind] = {
    "default": "default",
    "defaults": "[defaults]",
    "pipeline": "pipeline",
    "stream": "stream",
}
_DURATIONS = frozenset({"stall_timeout", "timeout", "fresh_within", "settle", "max_wait"})


@dataclass(frozen=True, slots=True)
class Value:
    """One key as it holds: ``value`` is plain JSON, durations as the file would say them."""

    key: str
    value: Any
    origin: OriginKind
    place: Place
    """File and line, or environment variable; empty for a default."""


@dataclass(frozen=True, slots=True)
class Explained:
    """A pipeline's own values, and those of each stream that the config names."""

    pipeline: str
    values: tuple[Value, ...]
    streams: Mapping[str, tuple[Value, ...]]


def explain(path: Path, pipeline: str, env: Mapping[str, str]) -> Explained:
    """See ``reconciler.config.explain``."""
    resolution = open_config(path, env)
    project = resolution.project()
    refuse_problems(resolution.document)
    found = project.pipelines.get(pipeline)
    if found is None:
        place = Place(resolution.document.first.path)
        names = project.pipelines
        message = f'has no pipeline "{pipeline}"'
        hint = nearest(pipeline, names)
        raise ConfigError([Problem(place, "", message, allowed=listed(names), hint=hint)])
    return _Explainer(resolution, found).explained()


class _Explainer:
    def __init__(self, resolution: Resolution, pipeline: Pipeline) -> None:
        self.resolution = resolution
        self.pipeline = pipeline
        self.at = ("pipelines", pipeline.name)
        raw = resolution.settings.pipelines[pipeline.name]
        self.table = PIPELINE.validate_python(raw, context=resolution.document.first.base)
        kinds = resolution.kinds
        self.source, self.destination = kinds[pipeline.source], kinds[pipeline.destination]

    def explained(self) -> Explained:
        streams = {
            name: tuple(self._stream(settings, name))
            for name, settings in self.pipeline.streams.items()
        }
        own = (*self._own(), *self._stream(self.pipeline.defaults, ""))
        return Explained(self.pipeline.name, own, streams)

    def _own(self) -> Iterator[Value]:
        pipeline, given = self.pipeline, self.table.model_fields_set
        schedule = pipeline.schedule
        values: dict[str, object] = {
            "source": pipeline.source,
            "destination": pipeline.destination,
            "schedule": _schedule(schedule),
            "timezone": schedule.timezone if isinstance(schedule, Cron) else None,
            "after": pipeline.after,
            "select": pipeline.select,
            "renamed_from": pipeline.renamed_from or None,
        }
        for key, value in values.items():
            yield self._value((key,), value, "pipeline" if key in given else "default", "")
        defaults = self.resolution.settings.defaults.model_fields_set
        for key in RUN_KEYS:
            level = "pipeline" if key in given else "defaults" if key in defaults else "default"
            yield self._value((key,), getattr(pipeline, key), level, "")

    def _stream(self, settings: StreamSettings, stream: str) -> Iterator[Value]:
        own = explicit(self.table)
        inner = explicit(self.table.streams[stream]) if stream else ()
        resolved = self.resolution.resolver.resolve(self.source, self.destination, own, inner)
        for field in fields(StreamSettings):
            key = field.name
            if key not in KEYS_OF[self.source] or (not stream and key in ONLY_IN_STREAM):
                continue
            if key == "partition_by" and self.destination != "parquet":
                continue
            value = getattr(settings, key)
            if key not in NESTED:
                yield self._value((key,), value, resolved.origins.get((key,), "default"), stream)
                continue
            for name, item in _items(value):
                level = resolved.origins.get((key, name), "default")
                yield self._value((key, name), item, level, stream)

    def _value(self, key: KeyPath, value: object, level: str, stream: str) -> Value:
        tables: dict[str, KeyPath] = {
            "defaults": ("defaults",),
            "pipeline": self.at,
            "stream": (*self.at, "streams", stream),
        }
        place = Place()
        if level != "default":
            place = self.resolution.document.place((*tables[level], *key))
        origin: OriginKind = "environment" if place.variable else _ORIGIN[level]
        return Value(dotted(key), _plain(key[0], value), origin, place)


def _items(value: object) -> list[tuple[str, object]]:
    if is_dataclass(value):
        return [(f.name, getattr(value, f.name)) for f in fields(value)]
    assert isinstance(value, tuple)
    return list(value)


def _plain(key: str, value: object) -> object:
    if isinstance(value, float) and key == "lookback" and value % 1 == 0:
        # Whole numbers may be units of an integer cursor: shown as the number that both are.
        return int(value)
    if isinstance(value, float) and key in _DURATIONS:
        return words.duration_text(value)
    if isinstance(value, Enum):
        return value.value
    return list(value) if isinstance(value, tuple) else value


def _schedule(schedule: Every | Cron | None) -> str | None:
    match schedule:
        case Every(seconds):
            return f"every {words.duration_text(seconds)}"
        case Cron(line, _):
            return line
        case None:
            return None

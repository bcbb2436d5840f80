"""What an edit of the config does: the differences of two projects, each with its effect.

Pure. Used when the daemon reads the config again, and shown by ``plan``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from enum import Enum, StrEnum

from reconciler.config import words
from reconciler.config.desired import Connection, Every, Pipeline, Project, StreamSettings


class ChangeKind(StrEnum):
    """Kinds of edits, by what they do."""

    PIPELINE_ADDED = "pipeline_added"
    PIPELINE_REMOVED = "pipeline_removed"
    PIPELINE_RENAMED = "pipeline_renamed"
    SCHEDULE = "schedule"
    LIMITS = "limits"
    SOURCE = "source"
    DESTINATION = "destination"
    SELECT = "select"
    STREAM_ADDED = "stream_added"
    STREAM_REMOVED = "stream_removed"
    DEFINITION = "definition"
    TABLE = "table"
    FILES = "files"
    LAYOUT = "layout"
    POLICY = "policy"
    READING = "reading"
    CONNECTION_ADDED = "connection_added"
    CONNECTION_REMOVED = "connection_removed"
    CONNECTION_LIMIT = "connection_limit"
    CONNECTION_OPTIONS = "connection_options"
    DAEMON_LIMITS = "daemon_limits"
    RESTART = "restart"


EFFECTS = {
    ChangeKind.PIPELINE_ADDED: "It is planned from now on; its first run reads everything, or goes "
    "on where the catalog knows that it stood.",
    ChangeKind.PIPELINE_REMOVED: "It is planned no more; its data, cursors and history are kept, "
    "and it is shown as orphaned.",
    ChangeKind.PIPELINE_RENAMED: "It goes on where the old name stood, with its cursors and its "
    "history, as soon as no run by the old name is under way.",
    ChangeKind.SCHEDULE: "Takes effect at once; a run under way is left alone.",
    ChangeKind.LIMITS: "Takes effect at once; a run under way keeps the limits it began with.",
    ChangeKind.SOURCE: "Cursors belong to the old source: its streams are held with their choices, "
    "but those of mode `replace`, whose tables the next run replaces.",
    ChangeKind.DESTINATION: "The new destination has no marker of this pipeline: streams that "
    "have data are held with their choices.",
    ChangeKind.SELECT: "Streams that match now load beside the others; those that match no more "
    "keep their data and are shown as orphaned.",
    ChangeKind.STREAM_ADDED: "It loads from its beginning, beside the others.",
    ChangeKind.STREAM_REMOVED: "It is read no more; its data and cursor are kept, and it is shown "
    "as orphaned.",
    ChangeKind.DEFINITION: "The stream is held with its choices: its cursor and its rows were made "
    "by the old value. One whose mode was and is `replace` goes on: each read takes the place of "
    "the one before.",
    ChangeKind.TABLE: "The new table has no marker of this stream, so it is held with its choices; "
    "the old table stays.",
    ChangeKind.FILES: "Files that match now and were not read yet are read by the next run; rows "
    "of the others stay.",
    ChangeKind.LAYOUT: "The next batch is read and written so; what is there stays as it is, and "
    "a type that changes is a schema change.",
    ChangeKind.POLICY: "Answers the next schema change; a stream that is held waits on, "
    "until `retry`.",
    ChangeKind.READING: "Takes effect with the next run; a stream that is held waits on, "
    "until `retry`.",
    ChangeKind.CONNECTION_ADDED: "Nothing, until a pipeline uses it.",
    ChangeKind.CONNECTION_REMOVED: "Nothing: no pipeline uses it.",
    ChangeKind.CONNECTION_LIMIT: "Takes effect at once; runs under way go on.",
    ChangeKind.CONNECTION_OPTIONS: "The next run opens it anew; where it leads to another place, "
    "cursors and markers do not match, as with another `source` or `destination`.",
    ChangeKind.DAEMON_LIMITS: "Takes effect at once.",
    ChangeKind.RESTART: "The daemon goes on with the old value until it is started anew.",
}
"""What each kind of edit does, as a sentence."""

_PIPELINE_KEYS = {
    "schedule": ChangeKind.SCHEDULE,
    "catch_up": ChangeKind.SCHEDULE,
    "after": ChangeKind.SCHEDULE,
    "parallel": ChangeKind.LIMITS,
    "retries": ChangeKind.LIMITS,
    "stall_timeout": ChangeKind.LIMITS,
    "timeout": ChangeKind.LIMITS,
    "fresh_within": ChangeKind.LIMITS,
    "source": ChangeKind.SOURCE,
    "destination": ChangeKind.DESTINATION,
    "select": ChangeKind.SELECT,
}
_STREAM_KEYS = {
    "mode": ChangeKind.DEFINITION,
    "cursor": ChangeKind.DEFINITION,
    "key": ChangeKind.DEFINITION,
    "query": ChangeKind.DEFINITION,
    "table": ChangeKind.TABLE,
    "path": ChangeKind.FILES,
    "format": ChangeKind.LAYOUT,
    "columns": ChangeKind.LAYOUT,
    "partition_by": ChangeKind.LAYOUT,
    "schema_changes": ChangeKind.POLICY,
    "null_cursor": ChangeKind.READING,
    "changed": ChangeKind.READING,
    "lookback": ChangeKind.READING,
    "settle": ChangeKind.READING,
    "max_wait": ChangeKind.READING,
    "stamped_by": ChangeKind.READING,
    "allow_empty": ChangeKind.READING,
}


@dataclass(frozen=True, slots=True)
class ConfigChange:
    """One edit. Empty ``stream`` with a stream's key: of all streams the pipeline selects."""

    kind: ChangeKind
    pipeline: str = ""
    stream: str = ""
    connection: str = ""
    key: str = ""
    old: str = ""
    new: str = ""

    @property
    def effect(self) -> str:
        """What it does, as a sentence."""
        return EFFECTS[self.kind]

    @property
    def subject(self) -> str:
        """What was edited: ``pipeline.stream``, a connection, or the daemon."""
        if self.connection:
            return f"connection {self.connection}"
        if self.pipeline:
            return f"{self.pipeline}.{self.stream}" if self.stream else self.pipeline
        return "daemon"

    def __str__(self) -> str:
        edit = f" {self.key}: {self.old} -> {self.new}." if self.key else ""
        return f"{self.subject}: {self.kind.replace('_', ' ')}{edit} {self.effect}"


def changes(old: Project, new: Project) -> tuple[ConfigChange, ...]:
    """The edits that lead from ``old`` to ``new``: daemon, connections, then pipelines by name."""
    return (*_daemon(old, new), *_connections(old, new), *_pipelines(old, new))


def _daemon(old: Project, new: Project) -> Iterator[ConfigChange]:
    pairs: list[tuple[ChangeKind, str, object, object]] = [
        (ChangeKind.RESTART, "project", old.name, new.name),
        (ChangeKind.RESTART, "state_dir", old.state_dir, new.state_dir),
        (ChangeKind.RESTART, "catalog", old.catalog, new.catalog),
        (ChangeKind.RESTART, "catalog_limit", old.catalog_limit, new.catalog_limit),
        (ChangeKind.DAEMON_LIMITS, "retention.runs", old.retention.runs, new.retention.runs),
    ]
    for key in ("listen", "max_runs", "lease_ttl", "grace"):
        at_once = key in {"max_runs", "grace"}
        kind = ChangeKind.DAEMON_LIMITS if at_once else ChangeKind.RESTART
        pairs.append((kind, f"daemon.{key}", getattr(old.daemon, key), getattr(new.daemon, key)))
    for kind, key, before, after in pairs:
        if before != after:
            yield ConfigChange(kind, key=key, old=_text(before), new=_text(after))


def _connections(old: Project, new: Project) -> Iterator[ConfigChange]:
    for name in sorted({*old.connections, *new.connections}):
        before, after = old.connections.get(name), new.connections.get(name)
        if before is None:
            yield ConfigChange(ChangeKind.CONNECTION_ADDED, connection=name)
        elif after is None:
            yield ConfigChange(ChangeKind.CONNECTION_REMOVED, connection=name)
        elif before != after:
            yield from _connection(before, after)


def _connection(before: Connection, after: Connection) -> Iterator[ConfigChange]:
    was: dict[str, object] = {"connector": before.connector, **before.options, **before.secrets}
    now: dict[str, object] = {"connector": after.connector, **after.options, **after.secrets}
    kind = ChangeKind.CONNECTION_OPTIONS
    for key in sorted({*was, *now}):
        if was.get(key) != now.get(key):
            old, new = _text(was.get(key)), _text(now.get(key))
            yield ConfigChange(kind, connection=before.name, key=key, old=old, new=new)
    if before.max_runs != after.max_runs:
        yield ConfigChange(
            ChangeKind.CONNECTION_LIMIT,
            connection=before.name,
            key="max_runs",
            old=_text(before.max_runs),
            new=_text(after.max_runs),
        )


def _pipelines(old: Project, new: Project) -> Iterator[ConfigChange]:
    renamed = {
        after.renamed_from: name
        for name, after in new.pipelines.items()
        if name not in old.pipelines and after.renamed_from in old.pipelines
    }
    for name in sorted({*old.pipelines, *new.pipelines}):
        before, after = old.pipelines.get(name), new.pipelines.get(name)
        if after is not None and renamed.get(after.renamed_from) == name:
            was = after.renamed_from
            kind = ChangeKind.PIPELINE_RENAMED
            yield ConfigChange(kind, name, key="renamed_from", old="none", new=was)
            yield from _pipeline(old.pipelines[was], after)
        elif before is None:
            yield ConfigChange(ChangeKind.PIPELINE_ADDED, name)
        elif after is None:
            if name not in renamed:
                yield ConfigChange(ChangeKind.PIPELINE_REMOVED, name)
        elif before != after:
            yield from _pipeline(before, after)


def _pipeline(before: Pipeline, after: Pipeline) -> Iterator[ConfigChange]:
    for key, kind in _PIPELINE_KEYS.items():
        was, now = getattr(before, key), getattr(after, key)
        if was != now:
            yield ConfigChange(kind, after.name, key=key, old=_text(was), new=_text(now))
    if before.select and after.select:
        yield from _settings(after.name, "", before.defaults, after.defaults)
    for stream in dict.fromkeys((*before.streams, *after.streams)):
        had, has = before.reads(stream), after.reads(stream)
        if had and has:
            yield from _settings(
                after.name, stream, before.settings(stream), after.settings(stream)
            )
        elif has:
            yield ConfigChange(ChangeKind.STREAM_ADDED, after.name, stream)
        elif had:
            yield ConfigChange(ChangeKind.STREAM_REMOVED, after.name, stream)


def _settings(
    pipeline: str, stream: str, before: StreamSettings, after: StreamSettings
) -> Iterator[ConfigChange]:
    if before == after:
        return
    for key, kind in _STREAM_KEYS.items():
        was, now = getattr(before, key), getattr(after, key)
        if was != now:
            yield ConfigChange(kind, pipeline, stream, key=key, old=_text(was), new=_text(now))


def _text(value: object) -> str:
    """A value for people: only what differs matters, so records name their fields."""
    if value is None or value in ("", ()):
        return "none"
    if isinstance(value, Every):
        return f"every {words.duration_text(value.seconds)}"
    if isinstance(value, Enum):
        return str(value.value)
    if isinstance(value, tuple):
        return ", ".join(_text(v) if not isinstance(v, tuple) else " ".join(v) for v in value)
    if hasattr(value, "__dataclass_fields__") and type(value).__str__ is object.__str__:
        return ", ".join(f"{f.name} {_text(getattr(value, f.name))}" for f in fields(value))  # type: ignore[arg-type]
    return str(value)

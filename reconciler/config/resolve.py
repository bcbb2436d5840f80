"""From checked tables to desired state: connections by kind, pipelines level by level."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from reconciler.config import models, words
from reconciler.config.desired import (
    Connection,
    Daemon,
    Pipeline,
    Project,
    RetentionSettings,
    Schedule,
    SecretRef,
    StreamSettings,
    fold,
    table_name,
)
from reconciler.config.document import Document, RawTable
from reconciler.config.graph import check_after, check_renamed
from reconciler.config.locations import absolute, catalog_url
from reconciler.config.positions import KeyPath, dotted
from reconciler.config.problems import listed, nearest
from reconciler.config.rules import (
    DESTINATIONS,
    NESTED,
    SOURCES,
    Explicit,
    Flaw,
    Resolved,
    Resolver,
)
from reconciler.config.settings import Settings
from reconciler.config.tables import CONNECTION, PIPELINE, attempt, checked

STREAM_KEYS = frozenset(models.StreamTable.model_fields)
RUN_KEYS = tuple(key for key in models.RunKeys.model_fields if key not in STREAM_KEYS)


class Resolution:
    """One config on its way from tables to a ``Project``. Problems go to the document."""

    def __init__(self, document: Document, settings: Settings) -> None:
        self.document = document
        self.settings = settings
        self.resolver = Resolver(explicit(settings.defaults))
        self.kinds: dict[str, str] = {}
        """Connector of each connection whose connector is known, be the rest of it wrong."""
        self._tables: dict[tuple[str, str], tuple[str, str]] = {}
        self._no_streams: Mapping[str, StreamSettings] = {}
        self.state_dir, self.catalog = self._places()

    def project(self) -> Project:
        """The whole. Use it only if the document has no problems."""
        settings, daemon = self.settings, self.settings.daemon
        connections = self._connections()
        pipelines = self._pipelines()
        check_after(self.document, settings.pipelines, pipelines)
        check_renamed(self.document, settings.pipelines, pipelines)
        return Project(
            name=settings.project,
            state_dir=self.state_dir,
            catalog=self.catalog,
            catalog_limit=settings.catalog_limit,
            daemon=Daemon(daemon.listen, daemon.max_runs, daemon.lease_ttl, daemon.grace),
            retention=RetentionSettings(settings.retention.runs),
            connections=connections,
            pipelines=pipelines,
            files=tuple(source.path for source in self.document.sources),
            include=tuple(self.document.include),
        )

    def _places(self) -> tuple[Path, str]:
        base, settings = self.document.first.base, self.settings
        given = settings.state_dir
        state = attempt(self.document, ("state_dir",), lambda: absolute(given, base), given)
        state_dir = Path(state or base / "state")
        catalog = f"sqlite:///{state_dir}/catalog.db"
        if (url := settings.catalog) is not None:
            found = attempt(self.document, ("catalog",), lambda: catalog_url(url, base))
            catalog = found or catalog
        return state_dir, catalog

    # -- connections -----------------------------------------------------------------------------

    def _connections(self) -> dict[str, Connection]:
        found: dict[str, Connection] = {}
        for name, raw in self.settings.connections.items():
            at = ("connections", name)
            if not isinstance(raw, dict):
                self.document.add(at, "is no table", allowed=f"[connections.{name}] and its keys")
                continue
            if raw.get("connector") in SOURCES + DESTINATIONS:
                self.kinds[name] = raw["connector"]
            base = self.document.source(at).base
            table = checked(CONNECTION, raw, self.document, at, base)
            if table is not None:
                found[name] = self._connection(name, table)
        return found

    def _connection(self, name: str, table: models.AnyConnection) -> Connection:
        options: dict[str, str | int | float | bool] = {}
        secrets: dict[str, SecretRef] = {}
        match table:
            case models.SqlConnection():
                options = {"url": table.url}
                if table.password is not None:
                    secrets["password"] = table.password
                    if table.url.startswith("sqlite:"):
                        at = ("connections", name, "password")
                        self.document.add(at, "has no meaning: a SQLite file has no password")
            case models.DuckdbConnection():
                options = {"path": table.path, "schema": table.schema_}
            case models.FilesConnection() | models.ParquetConnection():
                options = {"path": table.path}
        return Connection(name, self.kinds[name], options, secrets, table.max_runs)

    # -- pipelines -------------------------------------------------------------------------------

    def _pipelines(self) -> dict[str, Pipeline]:
        found: dict[str, Pipeline] = {}
        for name, raw in self.settings.pipelines.items():
            at = ("pipelines", name)
            table = checked(PIPELINE, raw, self.document, at, self.document.first.base)
            if table is not None:
                pipeline = self._pipeline(name, table)
                if pipeline is not None:
                    found[name] = pipeline
            elif isinstance(raw, dict):
                self._check_roles(at, raw)
        return found

    def _check_roles(self, at: KeyPath, raw: RawTable) -> None:
        """Names of connections in a pipeline that has other problems: one look finds them all."""
        for key, kinds in (("source", SOURCES), ("destination", DESTINATIONS)):
            if isinstance(name := raw.get(key), str):
                self._role((*at, key), name, kinds)

    def _pipeline(self, name: str, table: models.PipelineTable) -> Pipeline | None:
        at = ("pipelines", name)
        source = self._role((*at, "source"), table.source, SOURCES)
        destination = self._role((*at, "destination"), table.destination, DESTINATIONS)
        schedule = self._schedule(at, table)
        if source is None or destination is None:
            return None
        self._check_streams(at, table, source)
        own = explicit(table)
        base = self.resolver.resolve(source, destination, own, ())
        if base.flaws:
            self._report(at, "", base, selecting=bool(table.select))
        return Pipeline(
            name=name,
            source=table.source,
            destination=table.destination,
            schedule=self.resolver.share(schedule) if schedule else None,
            after=self.resolver.share(table.after or ()),
            select=self.resolver.share(table.select or ()),
            renamed_from=table.renamed_from or "",
            defaults=base.settings,
            streams=self._streams(at, table, (source, destination), own),
            **self.run_values(table),
        )

    def run_values(self, table: models.RunKeys) -> dict[str, Any]:
        """Values of the keys of a run that the pipeline or [defaults] sets."""
        levels = (self.settings.defaults, table)
        return {
            key: value
            for level in levels
            for key in RUN_KEYS
            if (value := getattr(level, key)) is not None
        }

    def _role(self, at: KeyPath, name: str, kinds: tuple[str, ...]) -> str | None:
        """The connector of a pipeline's ``source`` or ``destination``; None: a problem."""
        kind = self.kinds.get(name)
        if kind in kinds:
            return kind
        fitting = [n for n, k in self.kinds.items() if k in kinds]
        what = at[-1]
        if kind is not None:
            message = f'names "{name}", whose connector {kind} is no {what}'
            self.document.add(at, message, allowed=listed(fitting))
        elif name not in self.settings.connections:
            message = f'names connection "{name}", which is not there'
            hint = nearest(name, fitting) or f"add [connections.{name}]"
            self.document.add(at, message, allowed=listed(fitting), hint=hint)
        return None  # Else the connection has problems of its own, noted there.

    def _schedule(self, at: KeyPath, table: models.PipelineTable) -> Schedule | None:
        text, zone = table.schedule, table.timezone
        if text is not None:
            found: Schedule | None = attempt(
                self.document, (*at, "timezone"), lambda: words.schedule(text, zone), zone
            )
            return found
        if zone is not None:
            self.document.add((*at, "timezone"), "is without a schedule that it could be for")
        return None

    def _check_streams(self, at: KeyPath, table: models.PipelineTable, source: str) -> None:
        selects = [p for p in table.select or () if not p.startswith("!")]
        if source == "files" and table.select:
            self.document.add(
                (*at, "select"),
                "has no meaning for a files source: files have no names of streams",
                hint=f'name each in [{dotted(at)}.streams.NAME] with path = "*.csv"',
            )
        elif table.select and not selects:
            self.document.add(
                (*at, "select"), "only takes away", hint='begin with what to take, such as "*"'
            )
        elif not table.select and not table.streams:
            self.document.add(
                at,
                "reads nothing: it names no stream and selects none",
                hint=f'say select = ["*"], or name streams in [{dotted(at)}.streams.NAME]',
            )
        if source == "history":
            for name in table.streams:
                if name != "runs":
                    self.document.add((*at, "streams", name), "is not there", allowed='"runs"')

    def _streams(
        self,
        at: KeyPath,
        table: models.PipelineTable,
        kinds: tuple[str, str],
        own: Explicit,
    ) -> Mapping[str, StreamSettings]:
        if not table.streams:
            return self._no_streams
        found: dict[str, StreamSettings] = {}
        for name, stream in table.streams.items():
            path = (*at, "streams", name)
            attempt(self.document, path, partial(words.stream_name, name), name)
            resolved = self.resolver.resolve(*kinds, own, explicit(stream))
            if resolved.flaws:
                self._report(at, name, resolved, selecting=True)
            settings = found[name] = resolved.settings
            if kinds[0] == "files":
                self._check_files_path(path, settings.path)
            self._claim_table(table.destination, settings.table or table_name(name), path)
        key = tuple(found.items())
        return self.resolver.share(_Streams(key)).mapping  # type: ignore[no-any-return]

    def _check_files_path(self, at: KeyPath, path: str) -> None:
        if not path:
            hint = 'a glob under the source\'s path, such as path = "*.csv"'
            self.document.add((*at, "path"), "is missing", hint=hint)
        elif path.startswith("/") or ".." in PurePosixPath(path).parts:
            self.document.add(
                (*at, "path"),
                "leads out of the source's directory",
                found=f'"{path}"',
                allowed="a glob under the source's path, without ..",
            )

    def _claim_table(self, destination: str, table: str, at: KeyPath) -> None:
        mine = (at[1], at[3])
        # DuckDB takes two names that differ in case alone for one; directories are two.
        place = fold(table) if self.kinds.get(destination) == "duckdb" else table
        other = self._tables.setdefault((destination, place), mine)
        if other != mine:
            self.document.add(
                at,
                f'writes to table "{table}" of {destination}, as {other[0]}.{other[1]} does',
                hint="give one of them another name with table = ...",
            )

    def _report(self, at: KeyPath, stream: str, resolved: Resolved, *, selecting: bool) -> None:
        inner = (*at, "streams", stream) if stream else at
        for flaw in resolved.flaws:
            if flaw.whole and not selecting:
                continue
            base = at if flaw.level == "pipeline" else inner
            self._add_flaw((*base, *flaw.key.split(".")), flaw)

    def _add_flaw(self, path: KeyPath, flaw: Flaw) -> None:
        message = flaw.message
        if flaw.level == "defaults":
            message += f" ([defaults], {self.document.place(('defaults', flaw.key))})"
        self.document.add(path, message, found=flaw.found, allowed=flaw.allowed, hint=flaw.hint)


class _Streams:
    """A mapping that can be shared: equal if it has the same entries in the same order."""

    __slots__ = ("key", "mapping")

    def __init__(self, key: tuple[tuple[str, StreamSettings], ...]) -> None:
        self.key = key
        self.mapping = dict(key)

    def __hash__(self) -> int:
        return hash(self.key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Streams) and self.key == other.key


def explicit(table: models.StreamKeys) -> Explicit:
    """The stream keys that the table sets, as something that can be remembered by."""
    keys = table.model_fields_set & STREAM_KEYS
    return tuple((key, _hashable(key, getattr(table, key))) for key in sorted(keys))


def _hashable(key: str, value: Any) -> Hashable:
    if key not in NESTED:
        return value  # type: ignore[no-any-return]
    if isinstance(value, dict):
        return tuple(value.items())
    return tuple((name, getattr(value, name)) for name in sorted(value.model_fields_set))

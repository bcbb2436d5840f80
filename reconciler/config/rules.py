"""What a stream's keys mean together: three levels laid over each other, then checked as one.

Pure, and remembered: many pipelines say the same, and equal settings are one record.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from reconciler.config.desired import FileFormat, Mode, SchemaPolicy, StreamSettings

Level: TypeAlias = Literal["default", "defaults", "pipeline", "stream"]
LEVELS: tuple[Level, ...] = ("defaults", "pipeline", "stream")
_RANK: dict[Level, int] = {level: rank for rank, level in enumerate(("default", *LEVELS))}
Explicit: TypeAlias = tuple[tuple[str, Hashable], ...]
"""The stream keys that one table of the file sets, with their values; sorted by key."""

SOURCES = ("sql", "files", "history")
DESTINATIONS = ("duckdb", "parquet")
NESTED = ("format", "schema_changes", "columns")
"""Keys that are tables: laid over each other key by key."""

_ANY = {"mode", "key", "table", "partition_by", "allow_empty", "schema_changes"}
KEYS_OF = {
    "sql": _ANY
    | {"cursor", "query", "lookback", "settle", "max_wait", "stamped_by", "null_cursor", "columns"},
    "files": _ANY | {"path", "format", "changed", "settle", "columns"},
    "history": _ANY,
}
_CSV_ONLY = ("delimiter", "quote", "header", "null")


@dataclass(frozen=True, slots=True)
class Flaw:
    """A rule that the keys of a stream break. ``level``: which table is to be mended."""

    level: Level
    key: str
    message: str
    found: str = ""
    allowed: str = ""
    hint: str = ""
    whole: bool = True
    """It concerns the stream as a whole; False: this key, wherever the table is used."""


@dataclass(frozen=True, slots=True)
class Resolved:
    """A stream's settings with where each came from, and what is wrong with them."""

    settings: StreamSettings
    origins: dict[tuple[str, ...], Level]
    flaws: tuple[Flaw, ...]


@dataclass
class Resolver:
    """Lays levels over each other; equal input gives the same record again."""

    defaults: Explicit = ()
    _known: dict[tuple[str, str, Explicit, Explicit], Resolved] = field(default_factory=dict)
    _shared: dict[Hashable, Any] = field(default_factory=dict)

    def resolve(
        self, source: str, destination: str, pipeline: Explicit, stream: Explicit
    ) -> Resolved:
        """The settings of a stream between two kinds of connector. Remembered."""
        key = (source, destination, pipeline, stream)
        if (known := self._known.get(key)) is None:
            known = _Layers(source, destination).resolve((self.defaults, pipeline, stream))
            settings = self.share(known.settings)
            known = self._known[key] = Resolved(settings, known.origins, known.flaws)
        return known

    def share(self, record: Any) -> Any:
        """The first record that was equal to this one."""
        return self._shared.setdefault((type(record), record), record)


class _Layers:
    def __init__(self, source: str, destination: str) -> None:
        self.source = source
        self.destination = destination
        self.values: dict[str, Any] = {}
        self.origins: dict[tuple[str, ...], Level] = {}
        self.flaws: list[Flaw] = []

    def resolve(self, levels: tuple[Explicit, Explicit, Explicit]) -> Resolved:
        for level, explicit in zip(LEVELS, levels, strict=True):
            self._lay(level, explicit)
        mode = self._mode()
        if mode is Mode.REPLACE:
            self._drop_reading_keys()
        self._check_reading(mode)
        self._check_format()
        return Resolved(self._settings(mode), self.origins, tuple(self.flaws))

    def _lay(self, level: Level, explicit: Explicit) -> None:
        for key, value in explicit:
            if not self._belongs(level, key):
                continue
            self.origins[(key,)] = level
            if key in NESTED:
                assert isinstance(value, tuple)
                inner = self.values.setdefault(key, {})
                for name, item in value:
                    inner[name] = item
                    self.origins[key, name] = level
            else:
                self.values[key] = value

    def _belongs(self, level: Level, key: str) -> bool:
        """A key of [defaults] that this source or destination does not have is passed over."""
        if key not in KEYS_OF[self.source]:
            readers = [s for s in SOURCES if key in KEYS_OF[s]]
            message = f"has no meaning for a {self.source} source"
            hint = f"it belongs to {' and '.join(readers)} sources; take it away here"
        elif key == "partition_by" and self.destination != "parquet":
            message = f"has no meaning for a {self.destination} destination"
            hint = "it belongs to parquet destinations; take it away here"
        else:
            return True
        if level != "defaults":
            self.flaws.append(Flaw(level, key, message, hint=hint, whole=False))
        return False

    def _level(self, *keys: str) -> Level:
        """The most specific level that set one of these keys."""
        return max((self.origins.get((k,), "default") for k in keys), key=_RANK.__getitem__)

    def _flaw(
        self,
        key: str,
        message: str,
        *,
        also: str = "",
        found: str = "",
        allowed: str = "",
        hint: str = "",
    ) -> None:
        """A flaw of the stream as a whole, to be mended where ``key`` or ``also`` was set last."""
        level = self._level(key, also) if also else self._level(key)
        self.flaws.append(Flaw(level, key, message, found, allowed, hint))

    def _mode(self) -> Mode:
        word = self.values.get("mode")
        if word is None and (self.source, self.destination) == ("sql", "parquet"):
            self._flaw(
                "mode",
                "is missing: a database's table has no usual way into Parquet",
                allowed='"append" (new and changed rows are added; needs a cursor) '
                'or "replace" (the whole table each time)',
            )
            return Mode.APPEND
        if word is None:
            return Mode.MERGE if self.source == "sql" else Mode.APPEND
        if word == "merge" and self.destination == "parquet":
            self._flaw(
                "mode",
                "cannot be had from a parquet destination: its files are never changed",
                found='"merge"',
                allowed="append, replace",
                hint="append, and read the generated view, which has the newest row per key",
            )
        return Mode(str(word))

    def _drop_reading_keys(self) -> None:
        """A replace reads the whole table: what a wider level says of cursors is moot."""
        mode_rank = _RANK[self._level("mode")]
        for key in ("cursor", "lookback", "null_cursor"):
            if key not in self.values:
                continue
            level = self._level(key)
            if _RANK[level] >= mode_rank and level != "defaults":
                self._flaw(
                    key,
                    'contradicts mode = "replace", which reads the whole table each time',
                    hint="take one of the two away",
                )
            del self.values[key]
            del self.origins[(key,)]

    def _check_reading(self, mode: Mode) -> None:
        values = self.values
        if any(flaw.key == "mode" for flaw in self.flaws):
            return
        if mode is Mode.APPEND:
            self._check_append()
        if values.get("null_cursor") == "reread" and mode is not Mode.MERGE:
            self._flaw(
                "null_cursor",
                f'cannot be "reread" with mode = "{mode}": the same rows would be there twice',
                allowed="hold, skip",
                also="mode",
            )
        has_no_key = self.source == "files" or values.get("query")
        if mode is Mode.MERGE and has_no_key and not values.get("key"):
            lacking = "files have" if self.source == "files" else "a query has"
            self._flaw(
                "key",
                f'is missing: mode = "merge" needs one, and {lacking} no primary key',
                also="mode",
                hint='name the columns, such as key = ["id"]',
            )
        if mode is Mode.MERGE and values.get("lookback") and not values.get("cursor"):
            self._flaw(
                "lookback",
                "has nothing to look back from: without a cursor the whole table is read",
                hint="name a cursor, or take lookback away",
            )

    def _check_append(self) -> None:
        values = self.values
        if self.source == "sql" and not values.get("cursor"):
            self._flaw(
                "mode",
                'cannot be "append" without a cursor: every run would add the whole table again',
                also="cursor",
                hint='name a cursor, such as cursor = ["updated_at"], or say mode = "replace"',
            )
        elif values.get("lookback"):
            self._flaw(
                "lookback",
                'cannot be had with mode = "append": the same rows would be there twice',
                also="mode",
                hint='say lookback = "0s", or mode = "merge" with a key',
            )
        if values.get("changed") == "reread":
            self._flaw(
                "changed",
                'cannot be "reread" with mode = "append": the file\'s rows would be there twice',
                allowed="hold",
                also="mode",
            )

    def _check_format(self) -> None:
        given = self.values.get("format", {})
        kind = given.get("type", "auto")
        for key in _CSV_ONLY:
            if key in given and kind not in {"csv", "auto"}:
                level = self.origins["format", key]
                message = f'has no meaning for type = "{kind}"'
                self.flaws.append(Flaw(level, f"format.{key}", message, whole=False))
        form = FileFormat(**given)
        if form.delimiter == form.quote:
            level = self.origins["format",]
            self.flaws.append(Flaw(level, "format.quote", "is the delimiter too", whole=False))

    def _settings(self, mode: Mode) -> StreamSettings:
        values = dict(self.values)
        values["mode"] = mode
        if "format" in values:
            values["format"] = FileFormat(**values["format"])
        if "schema_changes" in values:
            values["schema_changes"] = SchemaPolicy(**values["schema_changes"])
        if "columns" in values:
            values["columns"] = tuple(values["columns"].items())
        return StreamSettings(**values)

"""The small grammars of the config file: durations, sizes, schedules, types, partitions, names.

Each function takes what stood in the file and returns what it means, or raises ``Wrong``.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache
from typing import TYPE_CHECKING

from reconciler.config.problems import nearest

if TYPE_CHECKING:
    from reconciler.config.desired import Cron, Every, Schedule

NAME = r"^[a-z0-9][a-z0-9_-]{0,62}$"
NAME_ALLOWED = "1 to 63 of a-z, 0-9, _ and -, a letter or digit first"
DURATION = r"^(?=\d)(\d+d)?(\d+h)?(\d+m(?!s))?(\d+s)?(\d+ms)?$"
DURATION_ALLOWED = 'a duration such as "30s", "15m", "1h30m", "90d" or "500ms"'
SIZE = r"^\d+(MB|GB|TB|MiB|GiB|TiB)$"
SCHEDULE_ALLOWED = (
    '"every 15m", or five cron fields (minute, hour, day, month, weekday) such as "0 6 * * mon-fri"'
)
TYPE_WORDS = (
    *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("float32", "float64", "decimal(p,s)", "text", "binary", "date", "time", "timestamp"),
    *("naive_timestamp", "uuid", "json", "interval", "list<T>", "struct<name: T>"),
)
PARTITION_ALLOWED = "a column, day(column), month(column) or year(column)"

_UNITS = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
_LONGEST_NUMBER = 40
"""Characters of a duration or size; a longer one was not meant."""
_DEEPEST = 20
"""Levels of lists and structs in a type."""
_LONGEST = 100 * 365 * 86400.0
_SIZES = {
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "MiB": 2**20,
    "GiB": 2**30,
    "TiB": 2**40,
}
_PLAIN_TYPES = frozenset(w for w in TYPE_WORDS if w.isalnum() or w == "naive_timestamp")


class Wrong(ValueError):
    """A value that the grammar does not have. ``secret``: never show what was found."""

    def __init__(
        self, message: str, *, allowed: str = "", hint: str = "", secret: bool = False
    ) -> None:
        super().__init__(message)
        self.message = message
        self.allowed = allowed
        self.hint = hint
        self.secret = secret


@lru_cache(4096)
def duration(text: str) -> float:
    """Seconds. Units d, h, m, s, ms, whole numbers, largest first: ``1h30m``."""
    if len(text) > _LONGEST_NUMBER or not re.fullmatch(DURATION, text, re.ASCII):
        hint = "write its unit" if text.isdigit() else ""
        raise Wrong("is no duration", allowed=DURATION_ALLOWED, hint=hint)
    parts = re.findall(r"(\d+)(ms|[dhms])", text)
    seconds = sum(int(count) * _UNITS[unit] for count, unit in parts)
    if seconds > _LONGEST:
        raise Wrong("is longer than a hundred years", allowed=DURATION_ALLOWED)
    return round(seconds, 3)


def duration_text(seconds: float) -> str:
    """``seconds`` as the file would say them, to the millisecond."""
    rest = round(seconds * 1000)
    parts = []
    for unit, length in _UNITS.items():
        count, rest = divmod(rest, round(length * 1000))
        if count:
            parts.append(f"{count}{unit}")
    return "".join(parts) or "0s"


def size(text: str) -> int:
    """Bytes."""
    if len(text) > _LONGEST_NUMBER or not re.fullmatch(SIZE, text, re.ASCII):
        raise Wrong("is no size", allowed='a size such as "10GiB", "500MB" or "1TiB"')
    count, unit = re.findall(r"(\d+)(\w+)", text)[0]
    return int(count) * _SIZES[unit]


def name(text: str, what: str) -> str:
    """A name of a project, pipeline or connection."""
    if not re.fullmatch(NAME, text):
        raise Wrong(f"is no name for a {what}", allowed=NAME_ALLOWED)
    return text


def stream_name(text: str) -> str:
    """Free text of at most 200 characters; ``*`` stands for a whole pipeline in the catalog."""
    if text == "*":
        raise Wrong(
            "is no name for a stream", hint='to read every stream, say select = ["*"] instead'
        )
    return label(text, "stream")


def label(text: str, what: str) -> str:
    """One line of text, not empty, without control characters."""
    if 0 < len(text) <= 200 and text.isprintable():
        return text
    odd = any(unicodedata.category(c) in {"Cc", "Cs", "Zl", "Zp"} for c in text)
    if not text or len(text) > 200 or odd:
        raise Wrong(
            f"is no name for a {what}", allowed="1 to 200 characters, none of them a control one"
        )
    return text


def table(text: str) -> str:
    """A table's name at a destination, which may be a directory's name too."""
    if "/" in text or text.startswith((".", "_")):
        raise Wrong("is no name for a table", allowed='a name without "/", no "." or "_" first')
    return label(text, "table")


def schedule(text: str, timezone: str | None) -> Schedule:
    """``every DURATION`` or a cron line; the cron line must fire some day in its time zone."""
    if text.startswith("every ") or text == "every":
        if timezone is not None:
            raise Wrong(
                "has no meaning for a schedule of every ..., which is counted from the epoch",
                hint="take it away, or write a cron line",
            )
        return _every(text)
    return _cron(text, timezone or "UTC")


@lru_cache(4096)
def _every(text: str) -> Every:
    from reconciler.config.desired import Every

    rest = text.removeprefix("every").strip()
    try:
        seconds = duration(rest)
    except Wrong:
        raise Wrong("is no schedule", allowed=SCHEDULE_ALLOWED) from None
    if seconds < 0.1:
        raise Wrong("is too often", allowed="every 100ms and slower")
    return Every(seconds)


@lru_cache(4096)
def _cron(text: str, timezone: str) -> Cron:
    from datetime import datetime

    from cronsim import CronSim, CronSimError

    from reconciler.config.desired import Cron

    fields = text.split()
    if len(fields) != 5:
        hint = nearest(text, ["every 1h"]) if text.startswith("ev") else ""
        raise Wrong("is no schedule", allowed=SCHEDULE_ALLOWED, hint=hint)
    try:
        # Any fixed instant serves: the question is only whether there is a next one at all.
        next(CronSim(" ".join(fields), datetime(2024, 1, 1)))  # noqa: DTZ001
    except (CronSimError, ValueError) as error:  # a number of thousands of digits is the latter
        # The library also refuses a day that its month never has.
        raise Wrong(
            f"is no cron line that ever fires ({str(error).lower()})", allowed=SCHEDULE_ALLOWED
        ) from None
    except StopIteration:
        raise Wrong("is a cron line that never fires", allowed=SCHEDULE_ALLOWED) from None
    for field, most in zip(fields, (59, 23, 31, 12, 7), strict=True):
        # Taken for "once", which is hardly what was meant.
        if any(len(step) > 4 or int(step) > most for step in re.findall(r"/(\d+)", field)):
            raise Wrong(
                "is a cron line with a step that goes beyond its field",
                allowed=SCHEDULE_ALLOWED,
                hint='say a distance as such: "every 90m"',
            )
    return Cron(" ".join(fields), timezone)


@lru_cache(1024)
def timezone(text: str) -> str:
    """An IANA name that this machine (or the tzdata package) knows."""
    import zoneinfo

    try:
        zoneinfo.ZoneInfo(text)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        raise Wrong(
            "is no time zone",
            allowed='an IANA name such as "Europe/Berlin" or "UTC"',
            hint=nearest(text, zoneinfo.available_timezones()),
        ) from None
    return text


def partition(text: str) -> str:
    """A column, or ``day(column)``, ``month(column)``, ``year(column)``."""
    call = re.fullmatch(r"(\w+)\((.*)\)", text)
    if call is None:
        return label(text, "column")
    if call[1] not in {"day", "month", "year"} or not call[2]:
        raise Wrong("is no way to partition", allowed=PARTITION_ALLOWED)
    return f"{call[1]}({label(call[2].strip(), 'column')})"


@lru_cache(1024)
def type_word(text: str) -> str:
    """A column type in its canonical spelling."""
    word = text.strip()
    if word.count("<") > _DEEPEST:
        raise Wrong("is no type", allowed=f"lists and structs in at most {_DEEPEST} levels")
    if word in _PLAIN_TYPES:
        return word
    if found := re.fullmatch(r"decimal\(\s*([0-9]{1,2})\s*,\s*([0-9]{1,2})\s*\)", word):
        precision, scale = int(found[1]), int(found[2])
        if 1 <= precision <= 38 and scale <= precision:
            return f"decimal({precision},{scale})"
        raise Wrong("is no type", allowed="decimal(p,s) with 1 <= p <= 38 and s <= p")
    if found := re.fullmatch(r"list<(.+)>", word):
        return f"list<{type_word(found[1])}>"
    if found := re.fullmatch(r"struct<(.+)>", word):
        members = [_member(m) for m in _members(found[1])]
        if len({m.partition(":")[0].casefold() for m in members}) < len(members):
            raise Wrong("is no type", allowed="a struct whose names differ in more than case")
        return f"struct<{', '.join(members)}>"
    raise Wrong("is no type", allowed=", ".join(TYPE_WORDS), hint=_like(word))


def _like(word: str) -> str:
    usual = {
        "string": "text",
        "str": "text",
        "varchar": "text",
        "int": "int64",
        "integer": "int64",
        "bigint": "int64",
        "smallint": "int16",
        "float": "float64",
        "double": "float64",
        "boolean": "bool",
        "datetime": "naive_timestamp",
        "timestamptz": "timestamp",
        "numeric": "decimal(38,9)",
        "decimal": "decimal(38,9)",
        "bytes": "binary",
    }
    if other := usual.get(word.lower()):
        return f'did you mean "{other}"?'
    return nearest(word, _PLAIN_TYPES)


def _members(text: str) -> list[str]:
    """Split at the commas that stand in no bracket."""
    parts, depth = [""], 0
    for c in text:
        depth += (c in "<(") - (c in ">)")
        if c == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += c
    return parts


def _member(text: str) -> str:
    field, colon, word = text.partition(":")
    if not colon or not re.fullmatch(r"[A-Za-z_]\w*", field.strip()):
        raise Wrong("is no type", allowed="struct<name: T, name: T>, names of letters, digits, _")
    return f"{field.strip()}: {type_word(word)}"


def listen(text: str) -> str:
    """``host:port``; an IPv6 address stands in brackets; port 0 lets the system choose."""
    found = re.fullmatch(r"(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9.-]+):([0-9]{1,5})", text)
    if found is None or int(found[2]) > 65535:
        raise Wrong("is no address", allowed='host:port, such as "127.0.0.1:8790" or "[::1]:8790"')
    return text

"""How moments, spans and schedules read to a person. Pure."""

from __future__ import annotations

import datetime as dt
from functools import lru_cache

from catalog.records import Micros
from reconciler.config.desired import Cron, Every, Schedule

_UNITS = ((86_400, "d"), (3_600, "h"), (60, "m"), (1, "s"))


def when(t: Micros) -> str:
    """``2026-11-24 09:00:00Z``: to the second, always UTC."""
    return _to_the_second(t // 1_000_000)


@lru_cache(maxsize=4096)
def _to_the_second(seconds: int) -> str:
    moment = dt.datetime.fromtimestamp(seconds, dt.UTC)
    return moment.strftime("%Y-%m-%d %H:%M:%SZ")


def span(seconds: float) -> str:
    """``15m``, ``1h 30m``, ``2d 4h``: the two largest units; below a second ``0.5s``."""
    if seconds < 1:
        return f"{seconds:g}s"
    left = round(seconds)
    parts: list[str] = []
    for size, unit in _UNITS:
        count, left = divmod(left, size)
        if count:
            parts.append(f"{count}{unit}")
        elif parts:
            break
    return " ".join(parts[:2])


def since(t: Micros, now: Micros) -> str:
    """``2026-11-24 09:00:00Z (5m ago)``."""
    return f"{when(t)} ({_distance(t, now)})"


def _distance(t: Micros, now: Micros) -> str:
    seconds = (now - t) // 1_000_000
    if seconds == 0:
        return "now"
    return f"{span(seconds)} ago" if seconds > 0 else f"in {span(-seconds)}"


def schedule_words(schedule: Schedule) -> str:
    """As the config says it."""
    match schedule:
        case Every(seconds):
            return f"every {span(seconds)}"
        case Cron(line, timezone):
            return f"cron '{line}' in {timezone}"


def these(names: tuple[str, ...]) -> str:
    """``a``, ``a and b``, ``a, b and c``; beyond five the rest is counted."""
    if len(names) > 5:
        return f"{', '.join(names[:5])} and {len(names) - 5} more"
    if len(names) < 2:
        return "".join(names)
    return f"{', '.join(names[:-1])} and {names[-1]}"

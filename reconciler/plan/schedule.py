"""When a schedule is due. Pure: every moment is given in, in microseconds since 1970 UTC.

``Every`` ticks at a fixed distance from the epoch, shifted by an offset that follows from the
pipeline's name, so that a thousand pipelines of one interval spread over it and none drifts.

``Cron`` is a line of five fields read in its zone. Where the clocks change:

- A line that names hours (``30 2 * * *``, ``*/15 2,3 * * *``, ``0 */6 * * *``) follows the clock on
  the wall. Times that do not exist that day run once, at the first instant after the gap; a time
  that exists twice runs once, the first time.
- A line for every hour (``0 * * * *``, ``*/5 * * * *``) follows real time: each real hour has its
  runs, also the hour that the clock shows twice. Where a gap is no whole number of hours (Lord
  Howe) and swallows a run, it runs at the first instant after the gap.
"""

from __future__ import annotations

import copy
import datetime as dt
import hashlib
import io
import zoneinfo
from collections.abc import Iterable
from contextlib import suppress
from functools import lru_cache
from importlib import resources
from pathlib import Path
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from cronsim import CronSim, CronSimError

from catalog.records import Micros
from reconciler.config.desired import Cron, Every, Schedule

SECOND = 1_000_000
_MINUTE = 60
_HOUR = 3_600
_DAY = 86_400
_EPOCH = dt.datetime(1970, 1, 1)  # noqa: DTZ001 - a wall clock's reading has no zone
_QUIET = 6 * _HOUR
"""No zone changes its offset twice within this time, or by more than it but at a date line."""


class BadSchedule(ValueError):
    """A cron line that cannot be read, or never comes due. ``str()`` is a sentence."""


def latest_due(schedule: Schedule, name: str, after: Micros | None, now: Micros) -> Micros | None:
    """The latest tick in (``after``, ``now``], or None. All ticks up to it count as one.

    ``after`` None: any tick up to now. Costs the same however long ago ``after`` is: ticks between
    are not walked. Raises ``BadSchedule``.
    """
    match schedule:
        case Every(seconds):
            tick = _every_at_or_before(seconds, name, now)
        case Cron(line, zone):
            if after is not None and _cron_after(line, zone, after // SECOND) * SECOND > now:
                return None
            # Ticks are on whole minutes: what is asked within one has one answer, kept.
            tick = _cron_at_or_before(line, zone, now // SECOND // _MINUTE * _MINUTE) * SECOND
    return tick if after is None or tick > after else None


def next_after(schedule: Schedule, name: str, t: Micros) -> Micros:
    """The first tick after ``t``. Raises ``BadSchedule`` for a line that never comes due."""
    match schedule:
        case Every(seconds):
            return _every_at_or_before(seconds, name, t) + _interval(seconds)
        case Cron(line, zone):
            return _cron_after(line, zone, t // SECOND) * SECOND


def follow_zones(names: Iterable[str]) -> bool:
    """Take up the rules of zones as they are by now: they are updated while a daemon runs.

    True: some zone of ``names`` has others than before, so that what was agreed by them is to be
    looked at again. One that cannot be read at this moment, as while it is being replaced, leaves
    all as it was.
    """
    try:
        now = {name: _read(name) for name in names if name in _zones}
    except (OSError, ValueError, ZoneInfoNotFoundError):
        return False
    if changed := any(rules != _zones[name][0] for name, (rules, _) in now.items()):
        _zones.update(now)
        _cron_after.cache_clear()
        _cron_at_or_before.cache_clear()
    return changed


# -- zones -----------------------------------------------------------------------------------------


_zones: dict[str, tuple[bytes, ZoneInfo]] = {}
"""With what each was read from: the library keeps a few alone, and does not say which rules."""


def _zone(name: str) -> ZoneInfo:
    if name not in _zones:
        _zones[name] = _read(name)
    return _zones[name][1]


def _read(name: str) -> tuple[bytes, ZoneInfo]:
    rules = _rules(name)
    return rules, ZoneInfo.from_file(io.BytesIO(rules), key=name)


def _rules(name: str) -> bytes:
    """From where the library looks: the machine's folders, then the package."""
    for folder in zoneinfo.TZPATH:
        with suppress(FileNotFoundError, NotADirectoryError):
            return Path(folder, name).read_bytes()
    with suppress(FileNotFoundError):
        return resources.files("tzdata").joinpath("zoneinfo", *name.split("/")).read_bytes()
    raise ZoneInfoNotFoundError(f"no time zone of the name {name!r} is found")


# -- every -----------------------------------------------------------------------------------------


def _interval(seconds: float) -> Micros:
    return max(round(seconds * SECOND), 1)


def _every_at_or_before(seconds: float, name: str, t: Micros) -> Micros:
    interval = _interval(seconds)
    return t - (t - _offset(name, interval)) % interval


@lru_cache(maxsize=1 << 17)
def _offset(name: str, interval: Micros) -> Micros:
    digest = hashlib.blake2b(name.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") % interval


# -- cron ------------------------------------------------------------------------------------------
# Seconds since the epoch here. A *reading* is what a clock on the wall shows, as seconds too, as
# if it were UTC.


@lru_cache(maxsize=4096)
def _parsed(line: str) -> CronSim:
    if len(line.split()) != 5:
        raise BadSchedule(
            f"cron line {line!r} has {len(line.split())} fields; it needs five: "
            "minute hour day-of-month month day-of-week"
        )
    try:
        return CronSim(line, _EPOCH)
    except CronSimError as error:
        raise BadSchedule(f"cron line {line!r} is not understood: {error}") from None


def _first_reading(line: str, reading: int) -> int:
    """The first matching reading at or after ``reading``."""
    pattern = copy.copy(_parsed(line))  # parsing is most of the cost
    pattern.dt = _EPOCH + dt.timedelta(seconds=reading - 1)
    try:
        found = next(pattern)
    except StopIteration:
        raise BadSchedule(f"cron line {line!r} never comes due") from None
    return round((found - _EPOCH).total_seconds())


def _offset_at(zone: ZoneInfo, t: int) -> int:
    offset = dt.datetime.fromtimestamp(t, zone).utcoffset()
    assert offset is not None
    return offset // dt.timedelta(seconds=1)


@lru_cache(maxsize=4096)
def _cron_after(line: str, zone: str, t: int) -> int:
    """The first tick after ``t``."""
    every_hour = len(_parsed(line).hours) == 24
    return (_real_after if every_hour else _wall_after)(line, _zone(zone), t)


def _wall_after(line: str, zone: ZoneInfo, t: int) -> int:
    # Readings in order have instants in order, so the first whose instant is later is the answer.
    reading = t + _offset_at(zone, t)
    while True:
        reading = _first_reading(line, reading + 1)
        instant = _first_instant(zone, reading)
        if instant > t:
            return instant


def _first_instant(zone: ZoneInfo, reading: int) -> int:
    """When a clock first shows ``reading``; where it never does, the first instant after."""
    wall = (_EPOCH + dt.timedelta(seconds=reading)).replace(tzinfo=zone)
    before = wall.utcoffset()
    assert before is not None
    instant = reading - before // dt.timedelta(seconds=1)
    jump = reading - (instant + _offset_at(zone, instant))
    if jump == 0:
        return instant
    return _transition(zone, instant + jump, instant)


def _transition(zone: ZoneInfo, low: int, high: int) -> int:
    """The first instant after ``low`` whose offset is that of ``high``."""
    new = _offset_at(zone, high)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if _offset_at(zone, middle) == new else (middle, high)
    return high


def _real_after(line: str, zone: ZoneInfo, t: int) -> int:
    first = t + 1
    while True:
        offset = _offset_at(zone, first)
        tick = _first_reading(line, first + offset) - offset
        calm = first + _QUIET
        if _offset_at(zone, calm) != offset:
            change = _transition(zone, first, calm)
            if tick < change:
                return tick
            gap = _offset_at(zone, change) - offset
            if gap % _HOUR and tick < change + gap:
                return change
            first = change
        elif tick <= calm:
            return tick
        else:
            # Nothing for long: a day before is safe, since no change moves clocks by as much.
            first = max(calm, tick - _DAY)


@lru_cache(maxsize=4096)
def _cron_at_or_before(line: str, zone: str, t: int) -> int:
    """The latest tick at or before ``t``: found by halving, so what is next is all that is known.

    First back in growing steps until there is a tick, then forward in halves.
    """
    step, floor = _MINUTE, t - 60 * 366 * _DAY
    while (tick := _cron_after(line, zone, t - step)) > t:
        step *= 4
        if t - step < floor:
            raise BadSchedule(f"cron line {line!r} never comes due")
    end = t + 1
    while end - tick >= _MINUTE:
        middle = (tick + end) // 2
        found = _cron_after(line, zone, middle)
        tick, end = (found, end) if found <= t else (tick, middle)
    return tick

"""Schedules over every change of the clocks: nothing doubled, nothing lost."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from zoneinfo import ZoneInfo, available_timezones

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reconciler.config.desired import Cron, Every, Schedule
from reconciler.plan.schedule import SECOND, latest_due, next_after

MINUTE, HOUR, DAY = 60, 3_600, 86_400
START = int(dt.datetime(2020, 1, 1, tzinfo=dt.UTC).timestamp())
END = int(dt.datetime(2030, 1, 1, tzinfo=dt.UTC).timestamp())

ZONES = [
    "Africa/Cairo",
    "Africa/Casablanca",
    "Africa/El_Aaiun",
    "Africa/Lagos",
    "America/Asuncion",
    "America/Chicago",
    "America/Godthab",
    "America/Havana",
    "America/Los_Angeles",
    "America/Mexico_City",
    "America/Miquelon",
    "America/New_York",
    "America/Nuuk",
    "America/Santiago",
    "America/Sao_Paulo",
    "America/Scoresbysund",
    "America/St_Johns",
    "Antarctica/Casey",
    "Antarctica/Macquarie",
    "Antarctica/Troll",
    "Asia/Amman",
    "Asia/Beirut",
    "Asia/Damascus",
    "Asia/Gaza",
    "Asia/Hebron",
    "Asia/Jerusalem",
    "Asia/Kathmandu",
    "Asia/Kolkata",
    "Asia/Nicosia",
    "Asia/Tehran",
    "Asia/Tokyo",
    "Atlantic/Azores",
    "Australia/Adelaide",
    "Australia/Lord_Howe",
    "Australia/Sydney",
    "Europe/Berlin",
    "Europe/Chisinau",
    "Europe/Dublin",
    "Europe/London",
    "Europe/Volgograd",
    "Pacific/Auckland",
    "Pacific/Chatham",
    "Pacific/Easter",
    "Pacific/Fiji",
    "Pacific/Norfolk",
    "Pacific/Tongatapu",
    "UTC",
]


def offset(zone: ZoneInfo, t: int) -> int:
    found = dt.datetime.fromtimestamp(t, zone).utcoffset()
    assert found is not None
    return int(found.total_seconds())


def transitions(name: str) -> Iterator[int]:
    """Every instant in the decade at which the zone's offset changes."""
    zone = ZoneInfo(name)
    t = START
    while t < END:
        if offset(zone, t) != offset(zone, t + 6 * HOUR):
            low, high = t, t + 6 * HOUR
            while high - low > 1:
                middle = (low + high) // 2
                same = offset(zone, middle) == offset(zone, low)
                low, high = (middle, high) if same else (low, middle)
            yield high
        t += 6 * HOUR


def readings(zone: ZoneInfo, start: int, end: int) -> Iterator[tuple[int, dt.datetime]]:
    """What a clock on the wall shows at each minute: the oracle's only knowledge."""
    for t in range(start, end, MINUTE):
        yield t, dt.datetime.fromtimestamp(t, zone).replace(tzinfo=None)


def ticks(schedule: Schedule, start: int, end: int) -> list[int]:
    found: list[int] = []
    t = (start - 1) * SECOND
    while (t := next_after(schedule, "shop", t)) < end * SECOND:
        found.append(t // SECOND)
    return found


def first_shown(zone: ZoneInfo, start: int, end: int) -> list[tuple[int, dt.datetime]]:
    """Each reading's first moment; those never shown at the first moment that shows a later one."""
    one = dt.timedelta(minutes=1)
    found: list[tuple[int, dt.datetime]] = []
    step: dt.datetime | None = None
    for t, reading in readings(zone, start, end):
        step = step or reading
        while step <= reading:
            found.append((t, step))
            step += one
    return found


WALL_LINES = [
    ("30 2 * * *", {2}, {30}),
    ("0 0 * * *", {0}, {0}),
    ("59 23 * * *", {23}, {59}),
    ("15,45 0-3 * * *", {0, 1, 2, 3}, {15, 45}),
    ("*/20 1,2,3 * * *", {1, 2, 3}, {0, 20, 40}),
    ("10 */2 * * *", set(range(0, 24, 2)), {10}),
]


def check_wall_clock(name: str) -> None:
    zone = ZoneInfo(name)
    for change in transitions(name):
        start, end = change // MINUTE * MINUTE - 3 * HOUR, change + 5 * HOUR
        shown = first_shown(zone, start, end)
        for line, hours, minutes in WALL_LINES:
            expected = {t for t, r in shown if r.hour in hours and r.minute in minutes}
            assert ticks(Cron(line, name), start, end) == sorted(expected), (line, change)


def check_every_hour(name: str) -> None:
    zone = ZoneInfo(name)
    for change in transitions(name):
        start, end = change // MINUTE * MINUTE - 3 * HOUR, change + 5 * HOUR
        jump = offset(zone, change) - offset(zone, change - 1)
        shown = dict(readings(zone, start, end))
        for line, minutes in [("0 * * * *", {0}), ("*/15 * * * *", {0, 15, 30, 45})]:
            found = ticks(Cron(line, name), start, end)
            expected = {t for t, reading in shown.items() if reading.minute in minutes}
            odd_gap = jump > 0 and jump % HOUR != 0
            assert set(found) - expected <= ({change} if odd_gap else set()), (line, change)
            assert expected <= set(found), (line, change)
            if jump % HOUR == 0:  # each real hour as any other
                assert len(found) == len(range(start, end, HOUR)) * len(minutes)


@pytest.mark.parametrize("name", ZONES)
def test_a_line_that_names_hours_runs_each_wall_clock_time_once(name: str) -> None:
    check_wall_clock(name)


@pytest.mark.parametrize("name", ZONES)
def test_a_line_for_every_hour_runs_each_real_hour(name: str) -> None:
    check_every_hour(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(available_timezones()))
def test_every_zone_runs_every_time_once(name: str) -> None:
    check_wall_clock(name)
    check_every_hour(name)


schedules = st.one_of(
    st.floats(1, 90 * DAY).map(Every),
    st.builds(
        Cron,
        st.sampled_from(
            [line for line, _, _ in WALL_LINES]
            + ["* * * * *", "*/7 * * * *", "5 4 * * SUN", "0 12 1 */3 *", "0 0 29 2 *", "0 6 L * *"]
        ),
        st.sampled_from(ZONES),
    ),
)
moments = st.integers(START * SECOND, END * SECOND)


@given(schedules, moments)
def test_the_next_tick_is_later_and_none_lies_between(schedule: Schedule, now: int) -> None:
    following = next_after(schedule, "shop", now)
    assert following > now
    assert latest_due(schedule, "shop", now, following - 1) is None
    assert latest_due(schedule, "shop", now, following) == following


@given(schedules, moments)
def test_the_latest_tick_is_the_last_before_the_next(schedule: Schedule, now: int) -> None:
    latest = latest_due(schedule, "shop", None, now)
    assert latest is not None
    assert latest <= now < next_after(schedule, "shop", latest)


@given(schedules, moments, moments)
def test_what_was_consumed_is_never_due_again(schedule: Schedule, a: int, b: int) -> None:
    first, second = sorted((a, b))
    consumed = latest_due(schedule, "shop", None, first)
    due = latest_due(schedule, "shop", consumed, second)
    assert consumed is not None
    assert due is None or consumed < due <= second
    if due is not None:
        assert latest_due(schedule, "shop", due, second) is None


@given(st.floats(0.001, 400 * DAY), moments, st.text(min_size=1))
def test_every_ticks_at_one_distance_without_drift(seconds: float, now: int, name: str) -> None:
    interval = max(round(seconds * SECOND), 1)
    first = next_after(Every(seconds), name, now)
    assert first - now <= interval
    assert next_after(Every(seconds), name, first) == first + interval
    assert next_after(Every(seconds), name, first - 1) == first

"""When a schedule is due, in moments that a person would check by hand."""

from __future__ import annotations

import datetime as dt
import zoneinfo
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path

import pytest

from reconciler.config.desired import Cron, Every
from reconciler.plan import schedule as module
from reconciler.plan.schedule import SECOND, BadSchedule, latest_due, next_after

BERLIN = "Europe/Berlin"


def utc(text: str) -> int:
    return round(dt.datetime.fromisoformat(text + "+00:00").timestamp() * SECOND)


def following(cron: Cron, start: str, count: int) -> list[str]:
    t, found = utc(start), []
    for _ in range(count):
        t = next_after(cron, "shop", t)
        found.append(dt.datetime.fromtimestamp(t / SECOND, dt.UTC).strftime("%m-%d %H:%M"))
    return found


def test_cron_is_read_in_its_zone() -> None:
    assert following(Cron("30 9 * * MON-FRI", BERLIN), "2026-01-01T00:00", 3) == [
        "01-01 08:30",
        "01-02 08:30",
        "01-05 08:30",
    ]


def test_a_time_that_does_not_exist_runs_at_the_first_instant_after_the_gap() -> None:
    # 2026-03-29 in Berlin: 02:00 becomes 03:00, at 01:00 UTC.
    nightly = Cron("30 2 * * *", BERLIN)
    expected = ["03-28 01:30", "03-29 01:00", "03-30 00:30"]
    assert following(nightly, "2026-03-28T00:00", 3) == expected


def test_several_times_within_one_gap_run_once() -> None:
    line = Cron("0,15,30 2,3 * * *", BERLIN)
    expected = ["03-29 01:00", "03-29 01:15", "03-29 01:30", "03-30 00:00"]
    assert following(line, "2026-03-29T00:00", 4) == expected


def test_a_time_that_exists_twice_runs_once_the_first_time() -> None:
    # 2026-10-25 in Berlin: 03:00 becomes 02:00, at 01:00 UTC.
    nightly = Cron("30 2 * * *", BERLIN)
    expected = ["10-24 00:30", "10-25 00:30", "10-26 01:30"]
    assert following(nightly, "2026-10-24T00:00", 3) == expected


def test_an_hourly_line_runs_each_real_hour() -> None:
    hourly = Cron("5 * * * *", BERLIN)
    spring = ["03-29 00:05", "03-29 01:05", "03-29 02:05"]
    autumn = ["10-25 00:05", "10-25 01:05", "10-25 02:05"]
    assert following(hourly, "2026-03-29T00:00", 3) == spring
    assert following(hourly, "2026-10-25T00:00", 3) == autumn


def test_a_run_swallowed_by_half_an_hour_comes_right_after_it() -> None:
    # Lord Howe 2026-10-04: 02:00 becomes 02:30, at 15:30 UTC the day before.
    line = Cron("15 * * * *", "Australia/Lord_Howe")
    expected = ["10-03 14:45", "10-03 15:30", "10-03 16:15"]
    assert following(line, "2026-10-03T14:00", 3) == expected


def test_a_midnight_that_does_not_exist_is_not_lost() -> None:
    # Beirut 2026-03-29: 00:00 becomes 01:00, at 22:00 UTC the day before.
    daily = Cron("0 0 * * *", "Asia/Beirut")
    assert following(daily, "2026-03-28T12:00", 2) == ["03-28 22:00", "03-29 21:00"]


def test_years_of_downtime_are_not_walked(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = 0
    plain = module._first_reading

    def counted(line: str, reading: int) -> int:
        nonlocal asked
        asked += 1
        return plain(line, reading)

    monkeypatch.setattr(module, "_first_reading", counted)
    every_minute = Cron("* * * * *", "America/Chicago")
    now = utc("2026-11-24T12:00:30")
    assert latest_due(every_minute, "shop", utc("1999-01-01T00:00"), now) == now - 30 * SECOND
    assert asked < 50


def test_every_spreads_a_thousand_names_over_its_interval() -> None:
    hour = Every(3600)
    minutes = [next_after(hour, f"pipeline_{i}", 0) // SECOND // 60 for i in range(1000)]
    busiest = max(minutes.count(minute) for minute in range(61))
    assert busiest < 40


def test_every_keeps_its_offset_from_day_to_day() -> None:
    hour = Every(3600)
    assert next_after(hour, "shop", utc("2026-11-24T12:00")) % (3600 * SECOND) == next_after(
        hour, "shop", utc("2031-02-01T07:13")
    ) % (3600 * SECOND)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("* * * *", "has 4 fields; it needs five"),
        ("0 0 * * * *", "has 6 fields; it needs five"),
        ("61 * * * *", "Bad minute"),
        ("0 0 31 2 *", "Bad day"),
    ],
)
def test_a_line_that_is_none_is_refused_with_words(line: str, words: str) -> None:
    with pytest.raises(BadSchedule, match=words):
        next_after(Cron(line), "shop", 0)


@contextmanager
def zones_in(folder: Path) -> Iterator[None]:
    zoneinfo.reset_tzpath(to=[str(folder)])
    try:
        yield
    finally:
        zoneinfo.reset_tzpath()
        module._zones.clear()
        module._cron_after.cache_clear()


def test_rules_of_a_zone_that_were_updated_are_followed(tmp_path: Path) -> None:
    def update(like: str) -> None:
        rules = resources.files("tzdata").joinpath("zoneinfo", *like.split("/"))
        (tmp_path / "Capital").write_bytes(rules.read_bytes())

    noon = Cron("0 12 * * *", "Capital")
    with zones_in(tmp_path):
        update("Asia/Tokyo")
        assert following(noon, "2026-01-01T00:00", 1) == ["01-01 03:00"]
        assert not module.follow_zones(["Capital"]), "what was agreed stands"
        update("Asia/Kolkata")
        (tmp_path / "Capital").rename(tmp_path / "being replaced")
        assert not module.follow_zones(["Capital"])
        assert following(noon, "2026-01-01T00:00", 1) == ["01-01 03:00"]
        (tmp_path / "being replaced").rename(tmp_path / "Capital")
        assert module.follow_zones(["Capital"])
        assert following(noon, "2026-01-01T00:00", 1) == ["01-01 06:30"]

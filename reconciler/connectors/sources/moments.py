"""Instants as microseconds since 1970, and as databases write them."""

from __future__ import annotations

import datetime as dt

_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
SECOND = 1_000_000


def iso(micros: int, separator: str = " ") -> str:
    """``2026-01-31 13:45:00.000001``, in UTC, with a fraction only where there is one."""
    moment = (_EPOCH + dt.timedelta(microseconds=micros)).replace(tzinfo=None)
    return moment.isoformat(separator)


def micros(text: str) -> int | None:
    """The instant that an ISO text names, UTC where it names no zone; None if it is none."""
    try:
        moment = dt.datetime.fromisoformat(text)
    except ValueError:
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=dt.UTC)
    return (moment - _EPOCH) // dt.timedelta(microseconds=1)


def day(micros_: int) -> dt.date:
    """The UTC day of an instant."""
    return (_EPOCH + dt.timedelta(microseconds=micros_)).date()


def day_start(date: dt.date) -> int:
    """The instant at which a UTC day begins."""
    return (date - _EPOCH.date()).days * 86_400 * SECOND

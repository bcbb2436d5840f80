"""One value of any kind to one canonical type, or a reason why not.

The slow path of ``reconciler.connectors.arrow``: used for the few values that Arrow's own casts
refuse, so that the row can be set aside with a reason instead of the whole block failing.
"""

from __future__ import annotations

import datetime as dt
import json
import math
import re
import struct
import uuid
from collections.abc import Callable
from decimal import MAX_EMAX, MAX_PREC, MIN_EMIN, Context, Decimal, InvalidOperation
from typing import Any

import msgspec

_SHOWN = 80
_MOST_DIGITS = 30
_EXACT_IN_FLOAT32 = 2**24
_TRUE = frozenset({"1", "t", "true", "y", "yes", "on"})
_FALSE = frozenset({"0", "f", "false", "n", "no", "off"})
_DECIMAL = re.compile(r"decimal\((\d+),(\d+)\)")
# Python reads 1731120101234, which counts milliseconds, as 12:34 of a day in 1731, and 1700000000
# as a time: any character may stand between day and time, and none between hours and minutes.
_MOMENT = re.compile(r"\d{4}-\d\d-\d\d(?:[Tt ].+)?|\d{8}(?:[Tt].+)?")
_TIME = re.compile(r"\d\d:.+")
_EXACT = Context(prec=MAX_PREC, Emax=MAX_EMAX, Emin=MIN_EMIN)
_LIMITS = {f"int{w}": (-(2 ** (w - 1)), 2 ** (w - 1) - 1) for w in (8, 16, 32, 64)} | {
    f"uint{w}": (0, 2**w - 1) for w in (8, 16, 32, 64)
}


def parser(word: str) -> Callable[[Any], Any]:
    """A function from a Python value to one that Arrow takes for the type ``word``.

    The function raises ``ValueError`` with the value and what was wrong.
    """
    decimal = _DECIMAL.fullmatch(word)
    if decimal:
        return _decimal(int(decimal[1]), int(decimal[2]))
    if word in _LIMITS:
        return _integer(word)
    known = _PARSERS.get(word)
    if known is None:

        def refuse(value: Any) -> Any:
            raise ValueError(f"{shown(value)} is no {word}")

        return refuse
    return known


def shown(value: Any) -> str:
    """A value as a message shows it, cut short."""
    text = repr(value)
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "…"


def _as_written(value: Any) -> Any:
    """A text without its blanks. Raises ``ValueError`` for 1_000, a number to Python alone."""
    if not isinstance(value, str):
        return value
    if "_" in value:
        raise ValueError
    return value.strip()


def _integer(word: str) -> Callable[[Any], int]:
    low, high = _LIMITS[word]

    def convert(value: Any) -> int:
        try:
            number = Decimal(_as_written(value))
            if number and number.adjusted() > _MOST_DIGITS:  # written out, it would take for ever
                raise ValueError
            whole = int(number)
        except (InvalidOperation, OverflowError, TypeError, ValueError):
            raise ValueError(f"{shown(value)} is no {word}") from None
        if whole != number or not low <= whole <= high:
            raise ValueError(f"{shown(value)} is no {word} ({low} to {high})")
        return whole

    return convert


def _decimal(precision: int, scale: int) -> Callable[[Any], Decimal]:
    def convert(value: Any) -> Decimal:
        text = repr(value) if isinstance(value, float) else value
        try:
            number = Decimal(_as_written(text))
        except (InvalidOperation, TypeError, ValueError):
            raise ValueError(f"{shown(value)} is no number") from None
        if not number.is_finite():
            raise ValueError(f"{shown(value)} has no place in a decimal({precision},{scale})")
        if not number:  # 0e50 is one to Arrow in no decimal
            return Decimal(0)
        least = number.normalize(_EXACT)
        _, digits, exponent = least.as_tuple()
        assert isinstance(exponent, int)
        if -exponent > scale or len(digits) + exponent > precision - scale:
            raise ValueError(f"{shown(value)} does not fit decimal({precision},{scale})")
        return least

    return convert


def _float(value: Any) -> float:
    try:
        number = float(_as_written(value))
    except (TypeError, ValueError):
        raise ValueError(f"{shown(value)} is no number") from None
    if isinstance(value, str) and math.isinf(number) and "inf" not in value.lower():
        raise ValueError(f"{shown(value)} has no place in a float")
    if isinstance(value, int | Decimal) and value not in (
        Decimal(number),
        Decimal(repr(number)),
    ):
        raise ValueError(f"{shown(value)} has more digits than a float keeps")
    return number


def _float32(value: Any) -> float:
    number = _float(value)
    try:
        struct.pack("<f", number)
    except OverflowError:
        raise ValueError(f"{shown(value)} has no place in a float32") from None
    if isinstance(value, int) and abs(value) > _EXACT_IN_FLOAT32:
        raise ValueError(f"{shown(value)} has more digits than a float32 keeps")
    return number


def _bool(value: Any) -> bool:
    text = str(value).strip().lower()
    if text in _TRUE:
        return True
    if text in _FALSE:
        return False
    raise ValueError(f"{shown(value)} is no bool (true or false, 1 or 0)")


def _moment(value: Any) -> dt.datetime:
    if isinstance(value, dt.datetime):
        return value
    if isinstance(value, dt.date):
        return dt.datetime(value.year, value.month, value.day)  # noqa: DTZ001 - a wall clock's day
    if not isinstance(value, str):
        raise ValueError(f"{shown(value)} is no date and time")
    text = value.strip()
    try:
        if not _MOMENT.fullmatch(text):
            raise ValueError
        return dt.datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f"{shown(value)} is no date and time (like 2026-01-31 13:45:00)") from None


def _timestamp(value: Any) -> dt.datetime:
    moment = _moment(value)
    return moment.replace(tzinfo=dt.UTC) if moment.tzinfo is None else moment.astimezone(dt.UTC)


def _naive_timestamp(value: Any) -> dt.datetime:
    moment = _moment(value)
    return moment if moment.tzinfo is None else moment.astimezone(dt.UTC).replace(tzinfo=None)


def _date(value: Any) -> dt.date:
    try:
        moment = _moment(value)
    except ValueError:
        raise ValueError(f"{shown(value)} is no date (like 2026-01-31)") from None
    if moment.time() != dt.time():
        raise ValueError(f"{shown(value)} is more than a date")
    return moment.date()


def _time(value: Any) -> dt.time:
    if isinstance(value, dt.time):
        return value
    try:
        text = value.strip()
        if not _TIME.fullmatch(text):
            raise ValueError
        moment = dt.time.fromisoformat(text)
    except (AttributeError, ValueError):
        raise ValueError(f"{shown(value)} is no time (like 13:45:00)") from None
    if moment.tzinfo is not None:
        raise ValueError(f"{shown(value)} has a zone, which a time cannot keep")
    return moment


def _uuid(value: Any) -> bytes:
    try:
        if isinstance(value, bytes) and len(value) == 16:
            return value
        return uuid.UUID(value.strip()).bytes
    except (AttributeError, ValueError):
        raise ValueError(f"{shown(value)} is no uuid") from None


def _json(value: Any) -> str:
    if not isinstance(value, str):
        try:
            return json.dumps(value, default=str, allow_nan=False)
        except ValueError:
            raise ValueError(f"{shown(value)} is no JSON: it holds NaN or infinity") from None
    try:
        msgspec.json.decode(value)
    except (msgspec.DecodeError, RecursionError) as error:
        raise ValueError(f"{shown(value)} is no JSON: {error}") from None
    return value


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            raise ValueError(f"{shown(value)} is no UTF-8 text") from None
    if isinstance(value, dict | list):
        return json.dumps(value, default=str, ensure_ascii=False)
    return str(value)


def _binary(value: Any) -> bytes:
    if isinstance(value, bytes):
        return value
    if isinstance(value, str):
        return value.encode()
    raise ValueError(f"{shown(value)} is neither bytes nor text")


def _null(value: Any) -> None:
    raise ValueError(f"{shown(value)} in a column of NULLs")


_PARSERS: dict[str, Callable[[Any], Any]] = {
    "bool": _bool,
    "float32": _float32,
    "float64": _float,
    "timestamp": _timestamp,
    "naive_timestamp": _naive_timestamp,
    "date": _date,
    "time": _time,
    "uuid": _uuid,
    "json": _json,
    "text": _text,
    "binary": _binary,
    "null": _null,
}

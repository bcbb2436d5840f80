"""Cursor values as order-preserving bytes (C4).

``encode`` turns a value into a ``Position`` whose ``data`` compares bytewise as the values compare,
within one tag; equal values have equal bytes. ``decode`` gives the value back, ``parse`` reads what
a person typed. There are no floats: they have no exact text, and a rounded cursor loses rows.

How each tag is written:

- ``int``: one byte, 0x80 plus the magnitude's length (minus it if negative), then the magnitude,
  big-endian, its bits inverted if negative. ``snapshot`` likewise, but its order means nothing.
- ``decimal``: 0x80 for zero. Otherwise 0x81 or 0x7f by sign, the exponent of 0.d1d2d3... as eight
  biased bytes, the digits without trailing zeros in ASCII; if negative, inverted and ended by 0xff,
  so that a longer number sorts before its own beginning.
- ``timestamp`` and ``naive_timestamp``: microseconds since 1970 as eight biased bytes.
- ``date``: the day's proleptic ordinal in four bytes. ``uuid``: its sixteen bytes.
- ``text``: UTF-8, the order of ``COLLATE "C"``. ``token`` likewise; its order means nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from decimal import Decimal, InvalidOperation
from typing import Any, TypeAlias
from uuid import UUID

from catalog.records import Position

Value: TypeAlias = int | Decimal | date | UUID | str

MAX_INT_DIGITS = 40
"""Integers of more digits are refused; no database's integer or numeric(38) key needs them."""

_ZERO, _POSITIVE, _NEGATIVE = 0x80, 0x81, 0x7F
_BIAS = 1 << 63
_MICROSECOND = timedelta(microseconds=1)
_EPOCH = datetime(1970, 1, 1)  # noqa: DTZ001 - the arithmetic is on naive values
_LONGEST_PLAIN_EXPONENT = 60


_MOST_DIGITS = 200_000
"""More than any database keeps (PostgreSQL: 131,072); written out they would fill the memory."""


class BadPosition(ValueError):
    """A value or text that is no position of its tag. ``str()`` is a sentence for a person."""


def encode(tag: str, value: Value) -> Position:
    """The position of ``value``, which must be of the type that ``tag`` stands for.

    ``int``, ``snapshot``: int. ``decimal``: finite Decimal. ``timestamp``: int, microseconds since
    1970-01-01 UTC. ``naive_timestamp``: the same of a clock without a zone. ``date``: date.
    ``uuid``: UUID. ``text``, ``token``: str.

    Raises:
        BadPosition: says what was found and what is allowed.
    """
    codec = _codec(tag)
    # Exact types: a bool is no int, a datetime no date.
    if type(value) is not codec.type:
        raise BadPosition(
            f"a cursor of tag {tag!r} is a {codec.type.__name__}, "
            f"but the value is a {type(value).__name__}"
        )
    data, text = codec.encode(value)
    return Position(tag, data, text)


def decode(position: Position) -> Value:
    """The value of a position made by ``encode``; a decimal comes back without trailing zeros.

    Raises:
        BadPosition: the tag is unknown or the bytes are not a value of it.
    """
    try:
        return _codec(position.tag).decode(position.data)
    except BadPosition:
        raise
    except (ValueError, OverflowError, IndexError) as error:
        raise BadPosition(
            f"the stored cursor {position.data.hex()!r} is no {position.tag}: {error}"
        ) from error


def parse(tag: str, text: str) -> Position:
    """The position that a person means by ``text``: what ``Position.text`` shows, or ISO 8601.

    Raises:
        BadPosition: says what was found and what is allowed.
    """
    codec = _codec(tag)
    try:
        value = codec.parse(text)
    except BadPosition:
        raise
    except (ValueError, InvalidOperation):
        raise BadPosition(f"{text!r} is no {tag}; write it like {codec.example}") from None
    return encode(tag, value)


# -- int -----------------------------------------------------------------------------------------


def _encode_int(value: int) -> tuple[bytes, str]:
    magnitude = abs(value)
    if magnitude >= 10**MAX_INT_DIGITS:
        raise BadPosition(f"a cursor of tag 'int' has at most {MAX_INT_DIGITS} digits")
    raw = magnitude.to_bytes((magnitude.bit_length() + 7) // 8, "big")
    if value < 0:
        return bytes([_ZERO - len(raw)]) + _inverted(raw), str(value)
    return bytes([_ZERO + len(raw)]) + raw, str(value)


def _decode_int(data: bytes) -> int:
    size, raw = data[0] - _ZERO, data[1:]
    if abs(size) != len(raw):
        raise ValueError("its length is wrong")
    return -int.from_bytes(_inverted(raw), "big") if size < 0 else int.from_bytes(raw, "big")


# -- decimal -------------------------------------------------------------------------------------


def _encode_decimal(value: Decimal) -> tuple[bytes, str]:
    sign, digits, exponent = value.as_tuple()
    if not isinstance(exponent, int):
        raise BadPosition(f"a cursor of tag 'decimal' is a finite number, but the value is {value}")
    if value and abs(value.adjusted()) > _MOST_DIGITS:
        raise BadPosition(
            f"a cursor of tag 'decimal' has at most {_MOST_DIGITS} digits before and after its "
            f"point, but the value is {value!s:.40}"
        )
    text = "".join(map(str, digits)).lstrip("0")
    magnitude = exponent + len(text)
    significant = text.rstrip("0")
    if not significant:
        return bytes([_ZERO]), "0"
    body = (magnitude + _BIAS).to_bytes(8, "big") + significant.encode()
    canonical = _decimal(sign, significant, magnitude)
    is_short = abs(magnitude) <= _LONGEST_PLAIN_EXPONENT
    shown = f"{canonical:f}" if is_short else str(canonical)
    if sign:
        return bytes([_NEGATIVE]) + _inverted(body) + b"\xff", shown
    return bytes([_POSITIVE]) + body, shown


def _decode_decimal(data: bytes) -> Decimal:
    first, body = data[0], data[1:]
    if first == _ZERO and not body:
        return Decimal(0)
    if first not in (_POSITIVE, _NEGATIVE):
        raise ValueError("its first byte is wrong")
    if first == _NEGATIVE:
        body = _inverted(body[:-1])
    magnitude = int.from_bytes(body[:8], "big") - _BIAS
    return _decimal(int(first == _NEGATIVE), body[8:].decode("ascii"), magnitude)


def _decimal(sign: int, digits: str, magnitude: int) -> Decimal:
    """0.digits x 10^magnitude, exactly: a context would round it to its precision."""
    return Decimal((sign, tuple(map(int, digits)), magnitude - len(digits)))


# -- time ----------------------------------------------------------------------------------------


def _encode_timestamp(micros: int) -> tuple[bytes, str]:
    data, text = _encode_naive(micros)
    return data, text + "Z"


def _encode_naive(micros: int) -> tuple[bytes, str]:
    if not -_BIAS <= micros < _BIAS:
        raise BadPosition(f"a cursor of a time has 64 bits of microseconds, not {micros}")
    try:
        text = (_EPOCH + micros * _MICROSECOND).isoformat(sep=" ")
    except OverflowError:
        # Beyond the calendar of Python, not of databases.
        text = f"{micros} us "
    return (micros + _BIAS).to_bytes(8, "big"), text


def _decode_time(data: bytes) -> int:
    _check_size(data, 8)
    return int.from_bytes(data, "big") - _BIAS


def _parse_timestamp(text: str) -> int:
    moment = datetime.fromisoformat(text)
    offset = moment.utcoffset()
    if offset is None:
        raise BadPosition(
            f"{text!r} has no time zone; write it like 2026-01-31 12:00:00Z or with +01:00"
        )
    return (moment.replace(tzinfo=None) - _EPOCH - offset) // _MICROSECOND


def _parse_naive(text: str) -> int:
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is not None:
        raise BadPosition(f"{text!r} has a time zone, but this cursor's column has none")
    return (moment - _EPOCH) // _MICROSECOND


def _encode_date(value: date) -> tuple[bytes, str]:
    return value.toordinal().to_bytes(4, "big"), value.isoformat()


def _decode_date(data: bytes) -> date:
    _check_size(data, 4)
    return date.fromordinal(int.from_bytes(data, "big"))


# -- the rest ------------------------------------------------------------------------------------


def _encode_uuid(value: UUID) -> tuple[bytes, str]:
    return value.bytes, str(value)


def _decode_uuid(data: bytes) -> UUID:
    return UUID(bytes=data)


def _encode_text(value: str) -> tuple[bytes, str]:
    try:
        return value.encode(), value
    except UnicodeEncodeError:
        raise BadPosition(
            f"a cursor's text must be valid Unicode, but {value!a} holds a lone surrogate"
        ) from None


def _inverted(raw: bytes) -> bytes:
    return bytes(0xFF - byte for byte in raw)


def _check_size(data: bytes, size: int) -> None:
    if len(data) != size:
        raise ValueError(f"it has {len(data)} bytes instead of {size}")


@dataclass(frozen=True, slots=True)
class _Codec:
    type: type
    encode: Callable[[Any], tuple[bytes, str]]
    decode: Callable[[bytes], Value]
    parse: Callable[[str], Value]
    example: str


_CODECS = {
    "int": _Codec(int, _encode_int, _decode_int, int, "42"),
    "decimal": _Codec(Decimal, _encode_decimal, _decode_decimal, Decimal, "12.5"),
    "timestamp": _Codec(
        int, _encode_timestamp, _decode_time, _parse_timestamp, "2026-01-31 12:00:00Z"
    ),
    "naive_timestamp": _Codec(
        int, _encode_naive, _decode_time, _parse_naive, "2026-01-31 12:00:00"
    ),
    "date": _Codec(date, _encode_date, _decode_date, date.fromisoformat, "2026-01-31"),
    "uuid": _Codec(UUID, _encode_uuid, _decode_uuid, UUID, "123e4567-e89b-12d3-a456-426614174000"),
    "text": _Codec(str, _encode_text, bytes.decode, str, "any text"),
    "token": _Codec(str, _encode_text, bytes.decode, str, "any text"),
    "snapshot": _Codec(int, _encode_int, _decode_int, int, "42"),
}
TAGS = tuple(_CODECS)
"""The tags there are, in the order in which they are documented."""


def _codec(tag: str) -> _Codec:
    if tag not in _CODECS:
        raise BadPosition(f"no cursor has tag {tag!r}; there are {', '.join(TAGS)}")
    return _CODECS[tag]

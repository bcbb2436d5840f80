"""Structured logs: people read a terminal, machines read JSON, nobody reads a secret.

``configure`` is called once, by the composition root. Everything logs through ``get_logger`` with
a name out of ``reconciler.telemetry.events``; fields carry the rest. In a terminal an event is one
line of text, elsewhere one line of JSON with ``time``, ``level``, ``event`` and its fields.

Every finished line passes ``redact`` (rule 9; see ``reconciler.config.hiding``).
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import select
import sys
import traceback
from collections.abc import Callable, Mapping, MutableMapping
from datetime import UTC, datetime
from enum import Enum
from typing import Any, BinaryIO, Final, Literal, TypeAlias, cast

import msgspec
import structlog
from structlog.typing import FilteringBoundLogger

from reconciler.config.hiding import Hiding
from reconciler.telemetry.events import Event

Form: TypeAlias = Literal["auto", "console", "json"]
Level: TypeAlias = Literal["debug", "info", "warning", "error"]
LEVELS: Final[Mapping[str, int]] = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}
READER_MS = 1_000
"""Milliseconds for who reads the log to make room in its pipe."""
_PIECE = 4_096
"""Bytes that a pipe takes at once when it takes any."""
_secrets = Hiding()


def register_secret(value: str) -> None:
    """Never let ``value`` appear in a log line, in any of its forms."""
    _secrets.add(value)


def redact(text: str) -> str:
    """``text`` with every registered secret replaced; for whatever else may leave the process."""
    return _secrets.redact(text)


def get_logger(**fields: object) -> FilteringBoundLogger:
    """A logger whose events all carry ``fields``. Cheap; may be made before ``configure``."""
    return cast(FilteringBoundLogger, structlog.get_logger(**fields))


def configure(level: Level = "info", form: Form = "auto", stream: BinaryIO | None = None) -> None:
    """Set up logging for this process, Python's own included, writing to ``stream`` (stderr).

    ``auto`` is ``console`` when the stream is a terminal, else ``json``. Libraries that use
    ``logging`` come through as ``library_warning`` from level warning up.
    """
    out = stream or sys.stderr.buffer
    if form == "auto":
        form = "console" if out.isatty() else "json"
    render: Callable[[_Fields], bytes] = _render_json
    if form == "console":
        render = _Console(colour=_wants_colour(out))
    structlog.configure(
        processors=[_stamp, _explain_exception, _Redacted(render)],
        wrapper_class=structlog.make_filtering_bound_logger(LEVELS[level]),
        logger_factory=structlog.BytesLoggerFactory(cast(BinaryIO, _Unfailing(out))),
        cache_logger_on_first_use=True,
    )
    root = logging.getLogger()
    for handler in [h for h in root.handlers if isinstance(h, _FromLogging)]:
        root.removeHandler(handler)
    root.addHandler(_FromLogging(logging.WARNING))


class _Unfailing:
    """A stream whose reader may be gone or stand still, and whose disk may be full: such a line is
    lost, and nothing else. A log line must never be the reason that something else fails, nor waits
    for long: it is the event loop that writes it."""

    def __init__(self, out: BinaryIO) -> None:
        self._out = out
        self._room: select.poll | None = None
        with contextlib.suppress(OSError):  # no file: it takes all
            fd = out.fileno()
            self._room = select.poll()
            self._room.register(fd, select.POLLOUT)
        self._stuck = False
        """Its reader stood still at the last line."""

    def write(self, line: bytes) -> int:
        with contextlib.suppress(OSError):
            for at in range(0, len(line), _PIECE):
                if not self._has_room():
                    break
                self._out.write(line[at : at + _PIECE])
                self._out.flush()
        return len(line)

    def _has_room(self) -> bool:
        """Who stands still is waited for once; only when there is room again it counts as going."""
        if self._room is not None:
            self._stuck = not self._room.poll(0 if self._stuck else READER_MS)
        return not self._stuck

    def flush(self) -> None:
        """Each piece was."""


def _wants_colour(out: BinaryIO) -> bool:
    return out.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"


class _FromLogging(logging.Handler):
    """Brings what libraries say into the same stream."""

    def emit(self, record: logging.LogRecord) -> None:
        say = get_logger().error if record.levelno >= logging.ERROR else get_logger().warning
        say(
            Event.LIBRARY_WARNING,
            library=record.name,
            message=record.getMessage(),
            exc_info=record.exc_info,
        )


_Fields: TypeAlias = MutableMapping[str, Any]


def _stamp(_logger: object, method: str, fields: _Fields) -> _Fields:
    event = fields.pop("event")
    now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    head = {"time": now, "level": method, "event": str(event)}
    return {**head, **fields, **head}


def _explain_exception(_logger: object, _method: str, fields: _Fields) -> _Fields:
    info = fields.pop("exc_info", None)
    if not info:
        return fields
    if info is True:
        info = sys.exc_info()
    error = info if isinstance(info, BaseException) else info[1]
    if error is not None:
        fields["exception"] = "".join(traceback.format_exception(error)).rstrip()
    return fields


def _render_json(fields: _Fields) -> bytes:
    try:
        return _json.encode(fields)
    except (TypeError, ValueError, UnicodeError):
        # A log line must never be the reason that something else fails.
        plain = {str(key): _plain(value) for key, value in fields.items()}
        return json.dumps(plain, default=str).encode("ascii")


def _plain(value: object) -> object:
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)


_json = msgspec.json.Encoder(enc_hook=str)


class _Redacted:
    """A renderer whose finished line holds no registered secret, wherever it stood."""

    def __init__(self, render: Callable[[_Fields], bytes]) -> None:
        self._render = render

    def __call__(self, _logger: object, _method: str, fields: _Fields) -> bytes:
        return _secrets.redact_bytes(self._render(fields))


class _Console:
    """One event, one line: time, level, what happened, to which pipeline, and the fields."""

    _COLOURS: Final = {"debug": "2", "info": "32", "warning": "33", "error": "31"}

    def __init__(self, *, colour: bool) -> None:
        self._colour = colour

    def __call__(self, fields: _Fields) -> bytes:
        time = fields.pop("time")[11:19]
        level = fields.pop("level")
        sentence = fields.pop("event").replace("_", " ")
        exception = fields.pop("exception", "")
        pipeline = fields.pop("pipeline", "")
        parts = [self._paint("2", time), self._paint(self._COLOURS.get(level, "0"), f"{level:<7}")]
        parts.append(self._paint("1", f"{sentence:<20}"))
        if pipeline:
            parts.append(self._paint("36", _shown(pipeline)))
        for name, value in fields.items():
            parts.append(self._paint("2", name + "=") + _shown(value))
        line = " ".join(parts)
        if exception:
            line += "\n" + "\n".join("    " + _shown_line(part) for part in exception.split("\n"))
        return line.encode("utf-8", "backslashreplace")

    def _paint(self, code: str, text: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self._colour else text


def _shown(value: object) -> str:
    """A field's value on one line, unable to steer the terminal or to look like another field."""
    if isinstance(value, float):
        return f"{value:.3f}".rstrip("0").rstrip(".")
    text = str(value.value if isinstance(value, Enum) else value)
    if text and text.isprintable() and not any(mark in text for mark in ' ="'):
        return text
    return json.dumps(text, ensure_ascii=not text.isprintable())


def _shown_line(text: str) -> str:
    return text if text.isprintable() else text.encode("unicode_escape").decode("ascii")

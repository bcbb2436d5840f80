"""What a person in a terminal, a machine at the other end, and nobody at all gets to read."""

from __future__ import annotations

import io
import json
import logging
import os
import re
import select
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from reconciler.config.hiding import REDACTED, Hiding
from reconciler.telemetry import logs
from reconciler.telemetry.events import Event

ROOT = Path(__file__).parents[2]


class Terminal(io.BytesIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(logs, "_secrets", Hiding())
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    handlers = list(logging.getLogger().handlers)
    yield
    structlog.reset_defaults()
    logging.getLogger().handlers = handlers


def line(out: io.BytesIO) -> dict[str, object]:
    """The one JSON line that was logged."""
    (only,) = out.getvalue().decode().splitlines()
    found: dict[str, object] = json.loads(only)
    return found


def test_elsewhere_an_event_is_one_line_of_json_with_utc_time() -> None:
    logs.configure(stream=(out := io.BytesIO()))
    logs.get_logger(pipeline="shop").info(Event.RUN_FINISHED, rows=3, path=Path("/x"))
    found = line(out)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", str(found.pop("time")))
    assert found == {
        "level": "info",
        "event": "run_finished",
        "pipeline": "shop",
        "rows": 3,
        "path": "/x",
    }


def test_in_a_terminal_an_event_is_one_line_of_text() -> None:
    logs.configure(stream=(out := Terminal()))
    logs.get_logger().info(Event.RUN_FINISHED, pipeline="shop", rows=3, reason="as asked")
    text = re.sub(r"\x1b\[\d+m", "", out.getvalue().decode())
    assert re.fullmatch(
        r'\d\d:\d\d:\d\d info    run finished         shop rows=3 reason="as asked"\n', text
    )


def test_colour_is_for_terminals_that_want_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    logs.configure(stream=(out := Terminal()))
    logs.get_logger().info(Event.DAEMON_READY)
    assert b"\x1b" not in out.getvalue()


@pytest.mark.parametrize("form", ["console", "json"])
def test_data_can_neither_steer_the_terminal_nor_forge_a_line(form: logs.Form) -> None:
    logs.configure(form=form, stream=(out := io.BytesIO()))
    logs.get_logger().info(Event.RUN_NOTE, pipeline="a\nb", note="\x1b[2J\r\u202efake")
    text = out.getvalue().decode()
    assert text.count("\n") == 1
    assert "\x1b" not in text
    assert "\r" not in text


def test_a_level_silences_what_is_below_it() -> None:
    logs.configure("warning", stream=(out := io.BytesIO()))
    logs.get_logger().info(Event.RUN_STARTED)
    logs.get_logger().warning(Event.LEASE_LOST)
    assert line(out)["event"] == "lease_lost"


def test_an_exception_is_a_field_and_only_there() -> None:
    logs.configure(stream=(out := io.BytesIO()))
    try:
        raise ValueError("no such thing")
    except ValueError as error:
        logs.get_logger().error(Event.DAEMON_FAILED, exc_info=error)
    found = line(out)
    assert "Traceback" in str(found["exception"])
    assert str(found["exception"]).endswith("ValueError: no such thing")
    assert "exc_info" not in found


def test_what_json_cannot_say_is_said_as_text() -> None:
    logs.configure(stream=(out := io.BytesIO()))
    logs.get_logger().info(Event.RUN_NOTE, broken="\udcff", odd={1: {2}}, of=object)
    assert line(out)["event"] == "run_note"


def test_libraries_are_heard_from_warning_up() -> None:
    logs.configure(stream=(out := io.BytesIO()))
    logging.getLogger("some.library").info("chatter")
    logging.getLogger("some.library").warning("disk is %s", "slow")
    found = line(out)
    assert (found["event"], found["library"], found["message"]) == (
        "library_warning",
        "some.library",
        "disk is slow",
    )


SECRETS = ["hunter22", 'qu"ote\\d', "sp ace/and?", "pässwörd", "line\nbreak"]


@pytest.mark.parametrize("secret", SECRETS)
@pytest.mark.parametrize("form", ["console", "json"])
def test_a_registered_secret_never_shows(form: logs.Form, secret: str) -> None:
    from urllib.parse import quote

    logs.register_secret(secret)
    logs.configure(form=form, stream=(out := io.BytesIO()))
    try:
        raise ValueError(f"cannot log in with {secret}")
    except ValueError as error:
        logs.get_logger().error(
            Event.RUN_NOTE,
            plain=secret,
            url=f"postgresql://me:{quote(secret, safe='')}@host/db",
            deep=[{"at": (secret,)}],
            exc_info=error,
            **{secret: 1},
        )
    text = out.getvalue().decode()
    decoded = text.encode().decode("unicode_escape", "replace") + text
    for shape in (secret, quote(secret, safe=""), json.dumps(secret)[1:-1], repr(secret)[1:-1]):
        assert shape not in text
    assert secret not in decoded
    assert REDACTED in text


def test_other_text_can_be_redacted_too() -> None:
    logs.register_secret("hunter22")
    assert logs.redact("password=hunter22;") == "password=[secret];"


def test_a_secret_too_short_to_be_told_from_text_is_left_alone() -> None:
    logs.register_secret("a")
    assert logs.redact("a cat") == "a cat"


def test_the_docs_list_exactly_these_events() -> None:
    text = (ROOT / "docs/logging.md").read_text()
    documented = dict(re.findall(r"^\| `(\w+)` \| (.+) \|$", text, re.M))
    assert documented == {event.value: event.meaning for event in Event}


def test_every_event_is_logged_somewhere() -> None:
    code = "".join(
        path.read_text() for path in (ROOT / "reconciler").rglob("*.py") if path.name != "events.py"
    )
    assert not [event.name for event in Event if f"Event.{event.name}" not in code]


class Gone(io.BytesIO):
    """A pipe whose reader went away, or a file on a full disk."""

    def write(self, _: object) -> int:
        raise BrokenPipeError

    def flush(self) -> None:
        raise OSError(28, "No space left on device")


def test_a_line_that_cannot_be_written_is_lost_and_nothing_else() -> None:
    logs.configure(stream=Gone())
    logs.get_logger().info(Event.RUN_FINISHED, pipeline="shop")
    logging.getLogger("library").warning("said")


def test_a_reader_that_stands_still_is_waited_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The event loop writes these lines: it would stand still with who reads them."""
    monkeypatch.setattr(logs, "READER_MS", 10)
    reader, writer = os.pipe()
    with os.fdopen(writer, "wb") as stream, os.fdopen(reader, "rb") as other:
        logs.configure(stream=stream)
        for number in range(3_000):
            logs.get_logger().info(Event.RUN_FINISHED, run=number)
        while select.select([reader], [], [], 0)[0]:
            os.read(reader, 65_536)
        logs.get_logger().info(Event.RUN_FINISHED, run="again")
        assert b'"again"' in other.readline()

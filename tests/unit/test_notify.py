"""The service manager hears what it is told, and nothing else breaks when it does not listen."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from reconciler.daemon.notify import notify, watchdog_interval
from tests.patience import PATIENCE


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A socket as systemd opens it, named in the environment."""
    name = str(tmp_path / "n")
    shown = name
    if request.param == "abstract":
        name = f"\0reconciler-test-{os.getpid()}"
        shown = "@" + name[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(name)
        sock.settimeout(PATIENCE)
        monkeypatch.setenv("NOTIFY_SOCKET", shown)
        yield sock


def test_a_notice_arrives_as_one_datagram(manager: socket.socket) -> None:
    notify("READY=1\nSTATUS=8 runs")
    assert manager.recv(100) == b"READY=1\nSTATUS=8 runs"


@pytest.mark.parametrize("address", [None, "", "vsock:2:1", "/nowhere/at/all"])
def test_without_a_listening_manager_nothing_happens(
    monkeypatch: pytest.MonkeyPatch, address: str | None
) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    if address is not None:
        monkeypatch.setenv("NOTIFY_SOCKET", address)
    notify("READY=1")


def test_a_full_socket_does_not_block(manager: socket.socket) -> None:
    for _ in range(2_000):
        notify("STATUS=" + "x" * 1_000)


@pytest.mark.parametrize(
    ("usec", "pid", "expected"),
    [
        ("30000000", "", 15.0),
        ("30000000", "own", 15.0),
        ("30000000", "1", None),
        ("0", "", None),
        ("soon", "", None),
        (None, "", None),
    ],
)
def test_the_watchdog_is_fed_twice_in_its_time(
    monkeypatch: pytest.MonkeyPatch, usec: str | None, pid: str, expected: float | None
) -> None:
    pid = str(os.getpid()) if pid == "own" else pid
    for name, value in (("WATCHDOG_USEC", usec), ("WATCHDOG_PID", pid or None)):
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)
    assert watchdog_interval() == expected

"""Notices to the service manager (systemd's ``sd_notify`` protocol), without its library.

Outside a service manager every call does nothing. A notice that cannot be delivered is dropped:
the manager's watchdog exists to notice silence, and the daemon's work does not depend on it.
"""

from __future__ import annotations

import os
import socket


def notify(state: str) -> None:
    """Send one notice, such as ``READY=1`` or ``STATUS=...``; several are parted by newlines.

    ``STATUS`` is one line of text for ``systemctl status``; it must hold no secret.
    """
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    if address.startswith("@"):
        # An abstract socket: its name starts with a zero byte.
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
            sock.setblocking(False)
            sock.sendto(state.encode(), address)
    except OSError:
        return


def watchdog_interval() -> float | None:
    """Seconds between two ``WATCHDOG=1`` so that one may be late: half of what the manager waits.

    None: no watchdog watches this process.
    """
    pid = os.environ.get("WATCHDOG_PID", "")
    if pid and pid != str(os.getpid()):
        return None
    text = os.environ.get("WATCHDOG_USEC", "")
    if not text.isdecimal() or int(text) == 0:
        return None
    return int(text) / 2_000_000

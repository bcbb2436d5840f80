"""What ``check`` finds out about a folder that is written to."""

from __future__ import annotations

import os
from pathlib import Path

from reconciler.connectors.ports import Finding

_LITTLE = 1 << 30
_TOO_LITTLE = 64 << 20


def check_folder(path: Path) -> list[Finding]:
    """That ``path`` can be made or written, and how much room its disk has."""
    there = path
    while not there.exists():
        there = there.parent
    if not there.is_dir():
        return [Finding("problem", f"{there} is no folder", "name another `path`")]
    if not os.access(there, os.W_OK | os.X_OK):
        return [
            Finding(
                "problem",
                f"{there} cannot be written by this user (uid {os.getuid()})",
                f"give it the right, for example: chown {os.getuid()} {there}",
            )
        ]
    made = "is writable" if there == path else f"will be made in {there}"
    return [Finding("ok", f"{path} {made}"), _room(there)]


def _room(there: Path) -> Finding:
    disk = os.statvfs(there)
    if disk.f_files and not disk.f_favail:  # zero of zero: it makes them as they are needed
        return Finding("problem", f"no inode is free at {there}", "remove files; see df -i")
    free = disk.f_bavail * disk.f_frsize
    if free >= _LITTLE:
        return Finding("ok", f"{free / 2**30:.1f} GiB are free at {there}")
    level = "problem" if free < _TOO_LITTLE else "warning"
    return Finding(level, f"only {free / 2**20:.0f} MiB are free at {there}", "make room")

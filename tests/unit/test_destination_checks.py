"""``check`` says whether a folder's disk has room for what is to be written."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from reconciler.connectors.destinations.checks import check_folder
from reconciler.connectors.ports import Finding

_MIB = 1 << 20


@pytest.mark.parametrize(
    ("free", "inodes", "wanted"),
    [
        (1024 * _MIB, (10, 1), Finding("ok", "1.0 GiB are free at {}")),
        (1023 * _MIB, (10, 1), Finding("warning", "only 1023 MiB are free at {}", "make room")),
        (64 * _MIB, (10, 1), Finding("warning", "only 64 MiB are free at {}", "make room")),
        (63 * _MIB, (10, 1), Finding("problem", "only 63 MiB are free at {}", "make room")),
        (
            1024 * _MIB,
            (10, 0),
            Finding("problem", "no inode is free at {}", "remove files; see df -i"),
        ),
        # btrfs makes inodes as they are needed, and counts none.
        (1024 * _MIB, (0, 0), Finding("ok", "1.0 GiB are free at {}")),
    ],
)
def test_a_disk_without_room_is_told(
    free: int,
    inodes: tuple[int, int],
    wanted: Finding,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    all_, left = inodes
    disk = SimpleNamespace(f_bavail=free // 4096, f_frsize=4096, f_files=all_, f_favail=left)
    monkeypatch.setattr(os, "statvfs", lambda _: disk)
    text = wanted.text.format(tmp_path)
    to_be_made = tmp_path / "lake"
    assert check_folder(to_be_made) == [
        Finding("ok", f"{to_be_made} will be made in {tmp_path}"),
        Finding(wanted.level, text, wanted.hint),
    ]

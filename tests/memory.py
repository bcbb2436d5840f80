"""Temporary folders in memory, for tests that are not about a disk: its fsync would be most of
their time, and how long it takes is a matter of who else is writing."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

_ROOM = 1 << 30
_SHARED = Path("/dev/shm")
MEMORY = str(_SHARED) if _SHARED.is_dir() and shutil.disk_usage(_SHARED).free > _ROOM else None
"""A folder whose fsync waits for no disk; None, the ordinary one, where there is little room."""


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """As pytest's own, and gone with its test. The two folders above it are the test's, too."""
    with tempfile.TemporaryDirectory(
        prefix="reconciler-suite-", dir=MEMORY, ignore_cleanup_errors=True
    ) as folder:
        Path(folder).chmod(0o755)
        path = Path(folder) / "of" / "test"
        path.mkdir(parents=True)
        yield path

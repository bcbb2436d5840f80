"""Units are not about a disk."""

from tests.memory import tmp_path

__all__ = ["tmp_path"]

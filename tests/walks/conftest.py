"""Projects lie in memory: walks are about what is done, and not about a disk."""

from tests.memory import tmp_path

__all__ = ["tmp_path"]

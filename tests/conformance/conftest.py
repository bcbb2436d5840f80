"""The shipped suite's assertions explain themselves like those of any test module."""

import pytest

from tests.memory import tmp_path

__all__ = ["tmp_path"]

pytest.register_assert_rewrite("catalog.conformance")

"""The shipped suite's assertions explain themselves like those of any test module."""

import pytest

pytest.register_assert_rewrite("catalog.conformance")

"""The conformance suite: what a backend of the catalog port must do, as tests.

The suite is the specification. It asks a backend only for a way to open one catalog several times,
and never asks which backend it is on. Each test is named after the rule that it holds.

How to run it on a backend of your own: install ``hakiri-reconciler`` with pytest, put these two
files into a folder of your tests, and run pytest there.

``conftest.py``::

    import pytest

    pytest.register_assert_rewrite("catalog.conformance")

    @pytest.fixture
    def anyio_backend() -> str:
        return "asyncio"

``test_my_backend.py``::

    from contextlib import asynccontextmanager

    import pytest
    from catalog.conformance import *

    class MyStore:                              # see catalog.conformance.Store
        def __init__(self, path): self.path = path

        @asynccontextmanager
        async def open(self, clock):
            catalog = await my_backend.connect(self.path, clock=clock)
            yield catalog
            await catalog.aclose()

    @pytest.fixture
    def store(tmp_path):                        # a new, empty catalog for every test
        return MyStore(tmp_path / "catalog")

The star brings the ``world`` fixture and the test classes. A handle that ``open`` gives stands for
a process of its own: two at once are two processes, one after another a restart. The backend must
take its time from the ``clock`` it is given and from nowhere else, ``wait_changed`` apart.
"""

from catalog.conformance.claiming import TestClaim, TestTakingOver
from catalog.conformance.committing import TestCommit, TestPublishing
from catalog.conformance.editing import TestEdits, TestRenaming, TestStreamEdits
from catalog.conformance.fencing import TestFencing
from catalog.conformance.finishing import TestFinish, TestFolding
from catalog.conformance.keeping import TestCheck, TestRetention
from catalog.conformance.kit import Store, World, world
from catalog.conformance.operations import TestOperations
from catalog.conformance.positions import TestCursors, TestSchemas
from catalog.conformance.reading import TestFollowing, TestReading
from catalog.conformance.renewing import TestRenew

__all__ = [
    "Store",
    "TestCheck",
    "TestClaim",
    "TestCommit",
    "TestCursors",
    "TestEdits",
    "TestFencing",
    "TestFinish",
    "TestFolding",
    "TestFollowing",
    "TestOperations",
    "TestPublishing",
    "TestReading",
    "TestRenaming",
    "TestRenew",
    "TestRetention",
    "TestSchemas",
    "TestStreamEdits",
    "TestTakingOver",
    "World",
    "world",
]

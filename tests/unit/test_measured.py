"""A timed catalog is the same catalog, and every verb of the port is sorted."""

from __future__ import annotations

import inspect
import re

import pytest

from catalog.clock import ManualClock
from catalog.errors import NotFound
from catalog.memory import MemoryCatalog
from catalog.port import Catalog, new_operation_id
from catalog.records import Adopt, Pause
from reconciler.telemetry.measured import READS, WRITES, measured
from reconciler.telemetry.metrics import Metrics

pytestmark = pytest.mark.anyio


def count(metrics: Metrics, name: str) -> int:
    (found,) = re.findall(rf"^reconciler_{name}_count (\d+)", metrics.render().decode(), re.M)
    return int(found)


def test_every_verb_of_the_port_is_a_read_a_write_or_neither_on_purpose() -> None:
    verbs = {name for name, value in vars(Catalog).items() if inspect.iscoroutinefunction(value)}
    assert verbs == READS | WRITES | {"wait_changed", "check", "aclose"}


async def test_answers_and_refusals_pass_and_are_timed() -> None:
    metrics = Metrics("1")
    plain = MemoryCatalog(ManualClock())
    catalog = measured(plain, metrics)
    assert catalog.id == plain.id
    await catalog.edit(new_operation_id(), "me", "why not", Pause("shop"))
    with pytest.raises(NotFound):
        await catalog.edit(new_operation_id(), "me", "", Adopt("shop", "nowhere"))
    assert (await catalog.pipeline("shop")).paused is not None
    assert not await catalog.wait_changed(10**9, 0)
    assert count(metrics, "catalog_commit_seconds") == 2
    assert count(metrics, "catalog_read_seconds") == 1

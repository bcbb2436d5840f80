"""``check`` looks at all connections, and takes no more room for that than the daemon would."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import anyio
import anyio.lowlevel
import pytest

from reconciler.config.desired import Pipeline
from reconciler.daemon import inspect
from reconciler.run import messages as m
from reconciler.run.pool import WorkerGone, WorkerPool
from tests.crash.whole_world import PIPELINE, PROJECT

pytestmark = pytest.mark.anyio


async def test_a_thousand_pipelines_are_not_looked_at_all_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now, most = Counter[str](), Counter[str]()

    async def ask(_: WorkerPool, order: m.InspectOrder) -> m.Inspected:
        for key in (order.connection.name, "all"):
            now[key] += 1
            most[key] = max(most[key], now[key])
        await anyio.lowlevel.checkpoint()
        now.subtract((order.connection.name, "all"))
        return m.Inspected()

    monkeypatch.setattr(inspect, "_ask", ask)
    source = replace(PROJECT.connections[PIPELINE.source], max_runs=2)
    other = replace(source, name="other", max_runs=None)
    pipelines = {
        f"p{n}": Pipeline(f"p{n}", ("other", source.name)[n % 2], PIPELINE.destination)
        for n in range(1000)
    }
    project = replace(
        PROJECT,
        connections={**PROJECT.connections, source.name: source, "other": other},
        pipelines=pipelines,
        daemon=replace(PROJECT.daemon, max_runs=5),
    )
    await inspect.check(project)
    assert (most[source.name], most["all"]) == (2, 5)


@pytest.mark.parametrize(
    ("patience", "fault", "words"),
    [
        (0.01, None, "no answer within 0.01 s"),
        (60.0, OSError(11, "Resource temporarily unavailable"), "no worker can be started: "),
    ],
)
async def test_a_connection_that_hangs_and_a_worker_that_cannot_start_are_told(
    patience: float, fault: OSError | None, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def acquire(_: WorkerPool) -> None:
        if fault is not None:
            raise fault
        await anyio.sleep_forever()

    monkeypatch.setattr(inspect, "PATIENCE", patience)
    monkeypatch.setattr(WorkerPool, "acquire", acquire)
    with pytest.raises(WorkerGone, match=words):
        await inspect.discover(PROJECT, PIPELINE.source, [])
    for found in (await inspect.check(PROJECT)).values():
        assert [finding.text for finding in found if words in finding.text]

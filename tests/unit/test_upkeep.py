"""What the daemon does now and then, it does again and again, whatever became of the last time."""

from __future__ import annotations

import time
from asyncio import get_running_loop
from collections.abc import Callable, Coroutine, Sequence
from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import AsyncMock, Mock

import anyio
import pytest
from structlog.testing import capture_logs

from catalog.errors import Unavailable
from reconciler.config.desired import Cron
from reconciler.daemon import retention, upkeep
from reconciler.daemon.loop import Loop
from reconciler.daemon.session import Session
from reconciler.telemetry.metrics import Metrics
from tests.loop_kit import pipeline, project
from tests.patience import PATIENCE

pytestmark = pytest.mark.anyio

_PROJECT = project(
    pipeline("hourly"), pipeline("daily", schedule=Cron("0 6 * * *", "Europe/Berlin"))
)


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RETAIN_EVERY", "ZONES_EVERY", "_TRIM_EVERY", "LEFT_OPEN_EVERY"):
        assert getattr(upkeep, name) >= 60, "not so often as to be felt"
        monkeypatch.setattr(upkeep, name, 0.001)


class _Told:
    """Stands for what is called each time; ``answers`` in turn, the last of them for ever."""

    def __init__(self, *answers: Any) -> None:
        self._answers = list(answers)
        self.calls: list[Sequence[Any]] = []
        self.over = anyio.Event()

    async def __call__(self, *args: Any) -> Any:
        self.calls.append(args)
        if len(self.calls) > len(self._answers):
            self.over.set()
            await anyio.sleep_forever()
        answer = self._answers[len(self.calls) - 1]
        if isinstance(answer, Exception):
            raise answer
        return answer


async def _until(
    over: anyio.Event, task: Callable[..., Coroutine[Any, Any, None]], *args: Any
) -> None:
    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(task, *args)
            await over.wait()
            tasks.cancel_scope.cancel()


def _session(**fields: Any) -> Session:
    return cast(Session, SimpleNamespace(**fields))


async def test_retention_goes_on_after_trouble_and_says_what_went(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told = _Told(Unavailable("away"), 0, 3)
    monkeypatch.setattr(retention, "retain", told)
    session, loop = _session(), Mock(spec=Loop, project=_PROJECT)
    with capture_logs() as said:
        await _until(told.over, upkeep.retain, session, loop)
    assert told.calls == [(session, _PROJECT)] * 4
    assert [(line["event"], line["rows"]) for line in said] == [("catalog_retained", 3)]


async def test_pipelines_are_looked_at_when_the_rules_of_a_zone_changed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    changed = [False, True, False, False]
    asked: list[set[str]] = []
    over = anyio.Event()

    def follow(zones: set[str]) -> bool:
        asked.append(zones)
        if len(asked) == len(changed):
            over.set()
        return changed[len(asked) - 1]

    monkeypatch.setattr(upkeep, "follow_zones", follow)
    loop = Mock(spec=Loop, project=_PROJECT)
    await _until(over, upkeep.follow_time_zones, loop)
    assert asked == [{"Europe/Berlin"}] * 4
    loop.look.assert_called_once_with(_PROJECT.pipelines)


async def test_runs_left_open_are_looked_for_after_trouble_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told = _Told(Unavailable("away"))
    monkeypatch.setattr(upkeep, "end_left_open", told)
    keeper = SimpleNamespace(holder=SimpleNamespace(id="daemon-1"))
    session, loop = _session(catalog="catalog", keeper=keeper), Mock(spec=Loop, project=_PROJECT)
    await _until(told.over, upkeep.end_runs_left_open, session, loop)
    assert told.calls == [("catalog", _PROJECT, "daemon-1")] * 2


async def test_workers_that_a_busy_hour_left_are_let_go() -> None:
    told = _Told(None)
    await _until(told.over, upkeep.trim_workers, _session(pool=AsyncMock(trim=told)))


async def test_a_loop_that_is_late_is_measured_and_said_once_it_is_felt(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(upkeep, "_LAG_EVERY", 0.3)
    lags: list[float] = []
    felt = anyio.Event()

    def lagged(seconds: float) -> None:
        lags.append(seconds)
        if len(lags) == 1:
            get_running_loop().call_later(0.01, time.sleep, upkeep.LAG_SAID + 0.5)
        elif seconds > upkeep.LAG_SAID:
            felt.set()

    metrics = Mock(spec=Metrics, loop_lagged=lagged)
    with capture_logs() as said:
        await _until(felt, upkeep.watch_lag, cast(Metrics, metrics))
    assert [line["seconds"] for line in said] == [
        round(lag, 3) for lag in lags if lag > upkeep.LAG_SAID
    ]
    assert min(lags) < 0.3

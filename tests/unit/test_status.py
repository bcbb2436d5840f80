"""What the page is told of the daemon is of the daemon that runs."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import pytest

from catalog.clock import SystemClock
from reconciler import version
from reconciler.config.desired import Daemon
from reconciler.daemon import status
from reconciler.daemon.loop import Loop
from reconciler.daemon.session import Session
from reconciler.daemon.status import Status
from reconciler.telemetry.metrics import Metrics


def test_a_version_installed_meanwhile_is_not_the_one_that_runs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    holder = SimpleNamespace(holder=SimpleNamespace(id="daemon-1"))
    session = SimpleNamespace(
        clock=SystemClock(), keeper=holder, runs=SimpleNamespace(conducting={})
    )
    project = SimpleNamespace(name="shop", catalog="", daemon=Daemon())
    loop = SimpleNamespace(project=project, views=[])
    found = Status(cast(Session, session), cast(Loop, loop), Metrics("0"), str)
    monkeypatch.setattr(status, "version", lambda: "99")
    assert found.summary().version == version()

"""The alert rules fire when they should and are silent when they should be."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from catalog.records import CatalogStats
from reconciler.plan.standing import State
from reconciler.telemetry.metrics import Metrics, PipelineView

DEPLOY = Path(__file__).parents[2] / "deploy/prometheus"


def promtool(*arguments: str) -> None:
    program = shutil.which("promtool")
    if program is None:
        pytest.skip("promtool is not installed (Debian: prometheus)")
    done = subprocess.run(
        [program, *arguments], cwd=DEPLOY, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_alert_rules_do_as_their_tests_say() -> None:
    promtool("test", "rules", "alerts_test.yml")


def test_prometheus_takes_the_config() -> None:
    promtool("check", "config", "prometheus.yml")


def test_alerts_use_metrics_that_exist() -> None:
    metrics = Metrics("1")
    view = PipelineView("p", State.IDLE, 1, 1, 1.0, 1)
    metrics.observe_pipelines(lambda: [view])
    metrics.catalog_stats(CatalogStats("sqlite", 1, 1))
    exposed = set(re.findall(r"^(?!#)(\w+)", metrics.render().decode(), re.M))
    text = (DEPLOY / "alerts.yml").read_text()
    used = set(re.findall(r"\b(?:reconciler|process)_\w+", text))
    used.discard("reconciler_pipeline_")
    assert used
    assert used <= exposed


def test_alerts_name_only_states_that_exist() -> None:
    text = (DEPLOY / "alerts.yml").read_text()
    states = re.findall(r'state="(\w+)"|"state", "(\w+)"', text)
    assert {"".join(found) for found in states} == {State.PARKED, State.HELD}

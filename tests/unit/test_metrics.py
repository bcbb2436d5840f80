"""What Prometheus gets to see, read back with its own parser."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from catalog.records import CatalogStats, Outcome
from reconciler.plan.standing import State
from reconciler.telemetry.metrics import Metrics, PipelineView

ROOT = Path(__file__).parents[2]


def read(metrics: Metrics) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Every sample by name and labels; a series that comes twice is an error."""
    samples: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}
    for family in text_string_to_metric_families(metrics.render().decode()):
        for sample in family.samples:
            key = (sample.name, tuple(sorted(sample.labels.items())))
            assert key not in samples
            samples[key] = sample.value
    return samples


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return read(metrics).get((f"reconciler_{name}", tuple(sorted(labels.items()))))


def full() -> Metrics:
    """Metrics in which everything has happened once."""
    metrics = Metrics("1.2.3")
    metrics.observe_pipelines(
        lambda: [PipelineView("shop", State.IDLE, 1_000_000, 2_500_000, 60.0, 3_000_000, 2)]
    )
    metrics.run_started("shop", 0.2)
    for outcome in Outcome:
        metrics.run_finished("shop", outcome, 1.5, rows=10, rejected=1)
    metrics.leases_held(1)
    metrics.lease_lost()
    metrics.write_fenced()
    metrics.ready(True)
    metrics.ticked(0.001)
    metrics.loop_lagged(0.001)
    metrics.workers(idle=2, busy=1)
    metrics.config_read(True, 5_000_000)
    metrics.catalog_committed(0.001)
    metrics.catalog_was_read(0.00001)
    metrics.catalog_stats(CatalogStats("sqlite", 100, 1000, 10, writes=30, groups=3))
    return metrics


def test_a_pipelines_times_are_timestamps_in_seconds() -> None:
    metrics = full()
    assert value(metrics, "pipeline_last_success_timestamp_seconds", pipeline="shop") == 1.0
    assert value(metrics, "pipeline_data_timestamp_seconds", pipeline="shop") == 2.5
    assert value(metrics, "pipeline_next_run_timestamp_seconds", pipeline="shop") == 3.0
    assert value(metrics, "pipeline_fresh_within_seconds", pipeline="shop") == 60.0
    assert value(metrics, "pipeline_consecutive_failures", pipeline="shop") == 2.0


def test_what_is_not_known_is_absent_and_not_zero() -> None:
    metrics = Metrics("1")
    metrics.observe_pipelines(lambda: [PipelineView("new", State.WAITING)])
    names = {name for name, labels in read(metrics) if ("pipeline", "new") in labels}
    assert not [name for name in names if "timestamp" in name or "fresh" in name]


def test_only_the_current_state_has_a_series() -> None:
    state = State.PARKED
    metrics = Metrics("1")
    metrics.observe_pipelines(lambda: [PipelineView("p", state)])
    assert value(metrics, "pipeline_state", pipeline="p", state="parked") == 1
    state = State.RUNNING
    assert value(metrics, "pipeline_state", pipeline="p", state="running") == 1
    assert value(metrics, "pipeline_state", pipeline="p", state="parked") is None


def test_a_stream_stays_held_while_the_others_are_run() -> None:
    metrics = Metrics("1")
    metrics.observe_pipelines(lambda: [PipelineView("p", State.RUNNING, held=2)])
    assert value(metrics, "pipeline_held_streams", pipeline="p") == 2


def test_runs_and_rows_are_counted_by_pipeline() -> None:
    metrics = full()
    for outcome in Outcome:
        assert value(metrics, "runs_total", pipeline="shop", outcome=outcome.value) == 1
        assert value(metrics, "run_duration_seconds_count", outcome=outcome.value) == 1
    assert value(metrics, "rows_total", pipeline="shop") == 70
    assert value(metrics, "rows_rejected_total", pipeline="shop") == 7
    assert value(metrics, "run_delay_seconds_count") == 1


def test_usual_outcomes_are_there_as_zero_before_the_first_run() -> None:
    metrics = Metrics("1")
    metrics.observe_pipelines(lambda: [PipelineView("p", State.IDLE)])
    for outcome in ("succeeded", "nothing_new", "failed"):
        assert value(metrics, "runs_total", pipeline="p", outcome=outcome) == 0
    assert value(metrics, "runs_total", pipeline="p", outcome="fenced") is None


def test_a_pipeline_that_left_the_config_leaves_no_series() -> None:
    metrics = full()
    metrics.observe_pipelines(list)
    metrics.forget("shop")
    assert b"shop" not in metrics.render()


def test_names_are_escaped() -> None:
    name = 'a"b\\c\nd'
    metrics = Metrics("1")
    metrics.observe_pipelines(lambda: [PipelineView(name, State.IDLE)])
    assert value(metrics, "rows_total", pipeline=name) == 0


def test_a_catalog_that_does_not_answer_is_down_and_keeps_its_last_size() -> None:
    metrics = full()
    assert value(metrics, "catalog_up") == 1
    metrics.catalog_stats(None)
    assert value(metrics, "catalog_up") == 0
    assert value(metrics, "catalog_size_bytes") == 100
    metrics.catalog_stats(CatalogStats("sqlite", 100, 1000, last_error="disk full"))
    assert value(metrics, "catalog_up") == 0


def test_group_size_is_writes_over_flushes() -> None:
    metrics = full()
    assert value(metrics, "catalog_group_size_sum") == 30
    assert value(metrics, "catalog_group_size_count") == 3


def test_a_rejected_config_leaves_the_time_of_the_one_in_force() -> None:
    metrics = full()
    metrics.config_read(False, 9_000_000)
    assert value(metrics, "config_last_reload_successful") == 0
    assert value(metrics, "config_last_reload_timestamp_seconds") == 5.0


def test_two_daemons_in_one_process_do_not_share_metrics() -> None:
    one, two = full(), Metrics("1")
    one.lease_lost()
    assert value(one, "leases_lost_total") == 2
    assert value(two, "leases_lost_total") == 0


def test_pieces_are_small_and_whole_lines_however_many_pipelines() -> None:
    metrics = Metrics("1")
    views = [PipelineView(f"pipeline_{number}", State.IDLE, 1, 1, 1.0, 1) for number in range(5000)]
    metrics.observe_pipelines(lambda: views)
    pieces = list(metrics.chunks())
    assert max(len(piece) for piece in pieces) < 400_000
    assert all(piece.endswith(b"\n") for piece in pieces if piece)


def test_the_docs_list_exactly_these_metrics() -> None:
    documented = set(
        re.findall(r"^\| `(reconciler_\w+)`", (ROOT / "docs/metrics.md").read_text(), re.M)
    )
    exposed = set(re.findall(r"^# TYPE (reconciler_\w+)", full().render().decode(), re.M))
    assert documented == exposed


def test_promtool_finds_nothing_to_say() -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed (Debian: prometheus)")
    done = subprocess.run(
        [promtool, "check", "metrics"],
        input=full().render(),
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")

"""The example config is one that the program takes, and all it names is there."""

from __future__ import annotations

import csv
from pathlib import Path

from reconciler.config import load

ROOT = Path(__file__).parents[2]


def test_the_example_loads_and_reads_files_that_are_there() -> None:
    project = load(ROOT / "config.example.toml")
    assert set(project.pipelines) == {"flights", "weather", "history"}
    source = Path(str(project.connections["sample"].options["path"]))
    for pipeline in project.pipelines.values():
        for stream in pipeline.streams.values():
            assert pipeline.source != "sample" or list(source.glob(stream.path))


def test_the_samples_hold_the_columns_and_the_keys_that_the_example_names() -> None:
    project = load(ROOT / "config.example.toml")
    for pipeline in (project.pipelines["flights"], project.pipelines["weather"]):
        for stream in pipeline.streams.values():
            rows = [
                row
                for path in sorted((ROOT / "docs/sample-data").glob(stream.path))
                for row in csv.DictReader(path.read_text().splitlines())
            ]
            assert {name for name, _ in stream.columns} | set(stream.key) <= set(rows[0])
            keys = {tuple(row[name] for name in stream.key) for row in rows}
            assert not stream.key or len(keys) == len(rows)

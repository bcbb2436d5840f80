"""The simulation proves what it proves: a fault planted into the code is found, by its rule."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import structlog

from tests.simulation.plants import PLANTS, planted
from tests.simulation.play import play
from tests.simulation.wrong import Rule


def found(name: str, worlds: int) -> set[Rule | None]:
    """The rules that found the fault, world after world, until one of those that should did."""
    seen: set[Rule | None] = set()
    with planted(name):
        for seed in range(worlds):
            problem = play(seed)
            if problem is not None:
                seen.add(problem.rule)
            if seen & set(PLANTS[name].rules):
                break
    return seen


@pytest.fixture(autouse=True)
def _silent() -> Iterator[None]:
    before = structlog.get_config()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    yield
    structlog.configure(**before)


@pytest.mark.parametrize("name", [name for name, plant in PLANTS.items() if plant.often])
def test_a_planted_fault_is_found_by_its_rule_within_thirty_worlds(name: str) -> None:
    assert found(name, 30) & set(PLANTS[name].rules)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, plant in PLANTS.items() if not plant.often])
def test_a_planted_fault_that_few_worlds_meet_is_found_by_its_rule(name: str) -> None:
    assert found(name, 400) & set(PLANTS[name].rules)


def test_every_rule_has_a_fault_planted_that_it_finds() -> None:
    assert {rule for plant in PLANTS.values() for rule in plant.rules} == set(Rule)

"""How a pipeline stands: what the catalog says, and what the plan makes of it now."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from catalog.port import Catalog
from catalog.records import Micros, PipelineState
from reconciler.cli import desk, output
from reconciler.cli.desk import Place

if TYPE_CHECKING:
    from reconciler.config.desired import Pipeline, Project
    from reconciler.plan.plan import Action


@dataclass(frozen=True, slots=True)
class Standing:
    """One line of ``status``. ``word``: running, paused, parked, held, waiting, idle, orphaned."""

    state: PipelineState
    word: str
    reason: str
    next_at: Micros | None = None
    desired: Pipeline | None = None
    """None: the config has it not, or cannot be read."""

    def orphaned(self, stream: str) -> bool:
        """The catalog knows the stream, and its pipeline does not read it any more."""
        return self.desired is not None and not self.desired.reads(stream)

    def record(self) -> dict[str, Any]:
        """For ``--json``: the pipeline's record, with ``state``, ``why`` and ``next_at``."""
        return {
            "pipeline": self.state.name,
            "state": self.word,
            "why": self.reason,
            "next_at": output.iso(self.next_at),
            **output.plain(self.state),
        }


async def standings(place: Place, catalog: Catalog, only: str = "") -> list[Standing]:
    """Every pipeline of config and catalog by name, or ``only`` one.

    With a config that cannot be read the catalog's side is shown all the same, and the mistake is
    said: a daemon may be going on with the config that it has.
    """
    states = await desk.all_states(catalog)
    project = _project(place)
    names = {name for name, state in states.items() if name == only or not state.is_vacant}
    names |= set(project.pipelines if project else ())
    now = desk.now_us()
    return [
        _standing(states.get(name, PipelineState(name)), project, states, now)
        for name in sorted(names)
        if only in ("", name)
    ]


def _project(place: Place) -> Project | None:
    from reconciler.config import ConfigError

    try:
        return place.load()
    except ConfigError as error:
        output.note(f"{error}\nThe config cannot be read as it is; the catalog says:\n")
        return None


def _standing(
    state: PipelineState,
    project: Project | None,
    states: Mapping[str, PipelineState],
    now: Micros,
) -> Standing:
    from reconciler.plan.plan import Dispatch, held_streams
    from reconciler.plan.standing import State, next_run, state_of
    from reconciler.plan.words import these

    if project is None:
        return Standing(state, state_of(None, state, None), state.last_reason)
    pipeline = project.pipelines.get(state.name)
    action = plan_one(project, state, states, now)
    word = state_of(pipeline, state, action)
    reason = action.reason.text
    if word is State.HELD:
        reason = f"held: {these(held_streams(pipeline, state))}; {reason}"
    orphaned = pipeline is None and word is not State.RUNNING
    next_at = now if isinstance(action, Dispatch) else next_run(action)
    return Standing(state, "orphaned" if orphaned else word, reason, next_at, pipeline)


def plan_one(
    project: Project, state: PipelineState, states: Mapping[str, PipelineState], now: Micros
) -> Action:
    """What the plan says of one pipeline now, as one who only looks on sees it."""
    from reconciler.plan.plan import decide, orphaned

    pipeline = project.pipelines.get(state.name)
    if pipeline is None:
        return orphaned()
    news = {up: states[up].news if up in states else 0 for up in pipeline.after}
    return decide(pipeline, state, news, now, running=False)

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
    from reconciler.plan.plan import held_streams
    from reconciler.plan.words import these

    if project is None:
        return Standing(state, _word(None, state, None), state.last_reason)
    action = plan_one(project, state, states, now)
    pipeline = project.pipelines.get(state.name)
    word = _word(pipeline, state, action)
    reason = action.reason.text
    if word == "held":
        reason = f"held: {these(held_streams(pipeline, state))}; {reason}"
    return Standing(state, word, reason, _next_at(action, now), pipeline)


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


def _word(pipeline: Pipeline | None, state: PipelineState, action: Action | None) -> str:
    from reconciler.plan.plan import Code, Dispatch, held_streams

    if state.holder and not state.lapsed:
        return "running"
    if action is not None and action.reason.code is Code.ORPHANED:
        return "orphaned"
    if state.paused:
        return "paused"
    if state.parked:
        return "parked"
    if held_streams(pipeline, state):
        return "held"
    waiting = isinstance(action, Dispatch) or state.retry_at is not None
    return "waiting" if waiting else "idle"


def _next_at(action: Action, now: Micros) -> Micros | None:
    from reconciler.plan.plan import Code, Dispatch, Wait

    if isinstance(action, Wait):  # the end of another's lease is no run
        return None if action.reason.code is Code.LEASED else action.until
    return now if isinstance(action, Dispatch) else None

"""What the daemon remembers of each pipeline for metrics and the page: little, since there may be
a hundred thousand of them."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from catalog.records import PipelineState
from reconciler.config.desired import Pipeline
from reconciler.plan.plan import Action, Code, Wait, held_streams
from reconciler.plan.standing import next_run, state_of
from reconciler.telemetry.metrics import PipelineView


class Views:
    """The newest view of each pipeline that the loop has looked at."""

    def __init__(self) -> None:
        self._views: dict[str, PipelineView] = {}
        self._reasons: dict[str, str] = {}

    def __iter__(self) -> Iterator[PipelineView]:
        return iter(self._views.values())

    def __len__(self) -> int:
        return len(self._views)

    def reason(self, name: str) -> str:
        """Why the pipeline is where it is; empty where its state says all."""
        return self._reasons.get(name, "")

    def update(
        self, pipeline: Pipeline, state: PipelineState, action: Action, *, running: bool
    ) -> None:
        """Remember a pipeline as the loop just saw it."""
        # A hundred thousand sentences of "not due" would fill the memory, and say nothing.
        if isinstance(action, Wait) and action.reason.code is Code.NEXT_TICK:
            self._reasons.pop(pipeline.name, None)
        else:
            self._reasons[pipeline.name] = action.reason.text
        self._views[pipeline.name] = PipelineView(
            pipeline.name,
            state_of(pipeline, state, action, running=running),
            state.last_success_at,
            state.data_at,
            pipeline.fresh_within,
            next_run(action),
            state.failures,
            len(held_streams(pipeline, state)),
        )

    def keep_only(self, names: Collection[str]) -> None:
        """Forget pipelines that the config no longer has."""
        self._views = {name: view for name, view in self._views.items() if name in names}
        self._reasons = {name: text for name, text in self._reasons.items() if name in names}

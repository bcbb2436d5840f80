"""What pipelines say of each other: ``after``, ``renamed_from``."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from reconciler.config.desired import Pipeline
from reconciler.config.document import Document
from reconciler.config.problems import listed, nearest


def check_after(
    document: Document, known: Collection[str], pipelines: Mapping[str, Pipeline]
) -> None:
    """Note ``after`` that names no pipeline or leads in a circle."""
    for pipeline in pipelines.values():
        for other in pipeline.after:
            if other not in known:
                document.add(
                    ("pipelines", pipeline.name, "after"),
                    f'names pipeline "{other}", which is not there',
                    allowed=listed(known),
                    hint=nearest(other, known),
                )
    for circle in _circles(pipelines):
        document.add(
            ("pipelines", circle[0], "after"),
            f"leads in a circle: {' after '.join((*circle, circle[0]))}",
            hint="take one of these away",
        )


def check_renamed(
    document: Document, known: Collection[str], pipelines: Mapping[str, Pipeline]
) -> None:
    """Note ``renamed_from`` that names a pipeline of this config, or one that another names."""
    heirs: dict[str, str] = {}
    for pipeline in pipelines.values():
        was, at = pipeline.renamed_from, ("pipelines", pipeline.name, "renamed_from")
        if not was:
            continue
        if was in known:
            document.add(
                at,
                f'names pipeline "{was}", which is in this config',
                allowed="a name that no pipeline has any more",
                hint="take the line away once the new name is in use",
            )
        elif was in heirs:
            document.add(
                at,
                f'names "{was}", as pipeline "{heirs[was]}" does',
                allowed="one pipeline that goes on where another name stood",
            )
        heirs.setdefault(was, pipeline.name)


def _circles(pipelines: Mapping[str, Pipeline]) -> list[tuple[str, ...]]:
    """Each circle once, from the first of its pipelines that was met."""
    circles: list[tuple[str, ...]] = []
    done: set[str] = set()
    for start, pipeline in pipelines.items():
        if not pipeline.after or start in done:
            continue
        trail: list[str] = []
        pending = [(start, iter(pipeline.after))]
        trail.append(start)
        while pending:
            name, rest = pending[-1]
            following = next(rest, None)
            if following is None:
                done.add(name)
                trail.pop()
                pending.pop()
            elif following in trail:
                circles.append(tuple(trail[trail.index(following) :]))
            elif following not in done and following in pipelines:
                trail.append(following)
                pending.append((following, iter(pipelines[following].after)))
    return circles

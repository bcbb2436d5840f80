"""What a verb is about: ``pipeline`` or ``pipeline.stream``."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from catalog.records import StreamState
from reconciler.cli.failure import Exit, Failure


@dataclass(frozen=True, slots=True)
class Target:
    """A pipeline, and one stream of it where ``stream`` is not empty."""

    pipeline: str
    stream: str = ""

    def __str__(self) -> str:
        return f"{self.pipeline}.{self.stream}" if self.stream else self.pipeline

    @property
    def typed(self) -> str:
        """As a shell takes it: a stream's name may be any text."""
        return shlex.quote(str(self))


def name_of(stream: StreamState) -> Target:
    """``pipeline.stream``."""
    return Target(stream.pipeline, stream.stream)


def parse(text: str) -> Target:
    """Split at the first dot: pipelines have none in their names, streams may."""
    pipeline, dot, stream = text.partition(".")
    if not pipeline or (dot and not stream):
        raise Failure(
            f'"{text}" is neither a pipeline nor a pipeline.stream.',
            Exit.USAGE,
            "Write for example shop, or shop.public.orders.",
        )
    return Target(pipeline, stream)


def parse_pipeline(text: str) -> Target:
    """A target that must be a whole pipeline."""
    target = parse(text)
    if target.stream:
        raise Failure(
            f'"{text}" names a stream, but this is done to a whole pipeline.',
            Exit.USAGE,
            f"Write {target.pipeline}.",
        )
    return target


def parse_stream(text: str, known: Iterable[str] = ()) -> Target:
    """A target that must be one stream; ``known`` are the pipeline's streams, for the hint."""
    target = parse(text)
    if target.stream:
        return target
    streams = [f"{target.pipeline}.{s}" for s in known]
    raise Failure(
        f'"{text}" names a pipeline, but this is done to one stream.',
        Exit.USAGE,
        f"Write {' or '.join(streams[:5]) if streams else f'{target.pipeline}.STREAM'}.",
    )


def unmatched(what: str, name: str, known: Collection[str]) -> Failure:
    """Nothing has this name: the nearest right word, else all there is."""
    close = _nearest(name, known)
    if close:
        hint = f'Did you mean "{close}"?'
    elif known:
        some = sorted(known)[:8]
        hint = f"There is: {', '.join(some)}{' …' if len(known) > len(some) else ''}."
    else:
        hint = ""
    return Failure(f'No {what} is named "{name}".', Exit.NOTHING, hint)


def _nearest(word: str, known: Iterable[str]) -> str:
    from difflib import get_close_matches

    folded = {k.casefold(): k for k in known}
    word = word.casefold()
    ending = [k for f, k in folded.items() if f.endswith(f".{word}")]
    close = get_close_matches(word, folded, n=1, cutoff=0.6)
    return ending[0] if len(ending) == 1 else folded[close[0]] if close else ""

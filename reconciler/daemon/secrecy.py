"""The secrets of runs: read when one begins, and kept out of all that it says (rule 9)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from functools import cache

import msgspec

from reconciler.config import resolve_secret
from reconciler.config.desired import Connection, Project
from reconciler.run import messages as m
from reconciler.run.conduct import Conduct

_WORD = re.compile(r"[\w.-]+")


def reveal(connection: Connection) -> Mapping[str, str]:
    """The connection's secrets, read now so that a rotated one is used at the next run.

    Raises ``ConfigError`` for one that is not there.
    """
    return {option: resolve_secret(ref) for option, ref in connection.secrets.items()}


def secret_variables(project: Project) -> set[str]:
    """Environment variables that hold secrets: workers get them by the pipe alone (rule 9)."""
    refs = (ref for c in project.connections.values() for ref in c.secrets.values())
    return {ref.name for ref in refs if ref.scheme == "env"}


def named_openly(conduct: Conduct) -> frozenset[str]:
    """Words that stand in the config and the catalog for all to see, be one a password or not."""
    pipeline, streams = conduct.pipeline, conduct.claimed.streams
    ends = (conduct.project.connections[name] for name in (pipeline.source, pipeline.destination))
    texts = [str(value) for end in ends for value in end.options.values()]
    for name in {*pipeline.streams, *(stream.stream for stream in streams)}:
        texts += [name, *pipeline.settings(name).cursor, *pipeline.settings(name).key]
    texts += [stream.cursor.definition for stream in streams if stream.cursor]
    return frozenset(word for text in texts for word in _WORD.findall(text))


def without_secrets(
    done: m.Done, redact: Callable[[str], str], openly: Callable[[], Iterable[str]]
) -> m.Done:
    """What the worker said, without what it should not have: a server may repeat what it was sent.

    Before anything is made of it: the catalog, the log, the page and the person all get this.
    ``openly``: words left in what a hold keeps for its answer. A person's answer would be void
    where the password ``postgres`` took the beginning of ``postgresql://`` out of it.
    """

    @cache  # a thousand streams may be held at once, and each has a say in these words
    def left() -> re.Pattern[str] | None:
        words = "|".join(re.escape(word) for word in openly() if redact(word) != word)
        return re.compile(rf"(?<![\w.-])({words})(?![\w.-])") if words else None

    def kept(detail: str) -> str:
        without = redact(detail)
        if without == detail or (words := left()) is None:
            return without
        parts = words.split(detail)
        return "".join(part if at % 2 else redact(part) for at, part in enumerate(parts))

    streams = tuple(
        msgspec.structs.replace(
            result,
            reason=redact(result.reason),
            hold=result.hold
            and msgspec.structs.replace(
                result.hold, reason=redact(result.hold.reason), detail=kept(result.hold.detail)
            ),
        )
        for result in done.streams
    )
    notes = tuple((stream, redact(note)) for stream, note in done.notes)
    return msgspec.structs.replace(done, streams=streams, notes=notes, failure=redact(done.failure))

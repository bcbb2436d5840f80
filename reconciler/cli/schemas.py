"""The verb schema [diff]: a stream's schema, its versions, and what changed or is proposed."""

from __future__ import annotations

from typing import Annotated, Any, NamedTuple

import typer

from catalog.port import Catalog
from catalog.records import Decision, HoldKind, SchemaVersion, StreamState
from reconciler.cli import desk, options, output
from reconciler.cli.desk import Place
from reconciler.cli.failure import Exit, Failure
from reconciler.cli.grammar import verb
from reconciler.cli.target import name_of

_PANEL = "State"


@verb("schema", _PANEL, "schema diff shop.public.orders")
def schema(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="[diff] PIPELINE.STREAM",
            help="A stream; with diff: what changed last, or what is proposed.",
            show_default=False,
        ),
    ],
    config: options.Config = None,
    json: options.Json = False,
) -> int:
    """Show a stream's schema and its versions, or with diff the last or proposed change."""
    diff = words[0] == "diff"
    if len(words) != 1 + diff:
        raise Failure(
            "schema takes one PIPELINE.STREAM.", Exit.USAGE, "reconciler schema diff shop.orders"
        )
    place = desk.find(config)
    story = desk.with_catalog(place, lambda catalog: _read_schemas(place, catalog, words[-1]))
    if not story.versions and not (diff and story.stream.hold):
        raise Failure(f"{name_of(story.stream)} has no schema yet.", Exit.NOTHING)
    return (_diff if diff else _versions)(story, as_json=json)


class _Schemas(NamedTuple):
    stream: StreamState
    versions: tuple[SchemaVersion, ...]
    decisions: tuple[Decision, ...]


async def _read_schemas(place: Place, catalog: Catalog, text: str) -> _Schemas:
    stream = await desk.one_stream(place, catalog, text)
    return _Schemas(
        stream,
        await catalog.schemas(stream.pipeline, stream.stream),
        await catalog.decisions(stream.pipeline, stream.stream),
    )


def _versions(story: _Schemas, *, as_json: bool) -> int:
    from reconciler.schema.model import load

    newest = load(story.versions[-1].body)
    if as_json:
        versions = [{**output.plain(v), "body": output.plain(load(v.body))} for v in story.versions]
        output.emit(
            {
                "pipeline": story.stream.pipeline,
                "stream": story.stream.stream,
                "versions": versions,
                "decisions": output.plain(story.decisions),
            }
        )
        return Exit.GOOD
    output.print_line(f"{name_of(story.stream)}, version {story.versions[-1].version}\n")
    output.table(
        ("column", "type", "key", "null"),
        [
            (f.name, f.type, "key" if f.name in newest.key else "", "yes" if f.nullable else "no")
            for f in newest.fields
        ],
    )
    output.print_line()
    output.table(
        ("version", "fingerprint", "since", "run"),
        [(v.version, v.fingerprint, output.iso(v.created_at), v.epoch) for v in story.versions],
    )
    if story.decisions:
        output.print_line()
        output.table(
            ("decided", "answer", "by", "to", "why"),
            [(output.iso(d.at), d.answer, d.by, d.fingerprint, d.why) for d in story.decisions],
        )
    return Exit.GOOD


def _diff(story: _Schemas, *, as_json: bool) -> int:
    """The held proposal against the version it starts from; else the last two versions."""
    old, new, title = _two(story)
    from reconciler.schema.changes import compare

    changes = compare(old, new)
    if as_json:
        hold = story.stream.hold
        proposed = hold.fingerprint if hold and hold.kind is HoldKind.SCHEMA else ""
        output.emit(
            {
                "pipeline": story.stream.pipeline,
                "stream": story.stream.stream,
                "fingerprint": proposed,
                "changes": output.plain(changes),
            }
        )
        return Exit.GOOD
    output.print_line(title)
    for change in changes:
        output.next_step(str(change))
    if not changes:
        output.next_step("no change")
    return Exit.GOOD


def _two(story: _Schemas) -> tuple[Any, Any, str]:
    import msgspec

    from reconciler.schema.model import Schema, load

    name, hold = name_of(story.stream), story.stream.hold
    bodies = {v.version: load(v.body) for v in story.versions}
    if hold is not None and hold.kind is HoldKind.SCHEMA:
        proposed = msgspec.convert(msgspec.json.decode(hold.detail)["schema"], type=Schema)
        old = bodies.get(hold.from_version, Schema(()))
        return old, proposed, f"{name}: version {hold.from_version} to {hold.fingerprint}, held"
    if len(story.versions) < 2:
        raise Failure(f"{name} has had one schema only; nothing changed.", Exit.NOTHING)
    before, last = story.versions[-2].version, story.versions[-1].version
    return bodies[before], bodies[last], f"{name}: version {before} to {last}"

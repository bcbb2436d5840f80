"""How every verb that changes something does so: prepare, then edit or only say so."""

from __future__ import annotations

import time
from asyncio import sleep
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from catalog.edits import action_name
from catalog.errors import CatalogError, Leased
from catalog.port import Catalog, new_operation_id
from catalog.records import Edit, EditAction
from reconciler.cli import desk, output
from reconciler.cli.desk import Place
from reconciler.cli.failure import Exit, Failure, describe
from reconciler.cli.target import Target

PATIENCE = 10.0
"""Seconds that an edit waits for the end of a run that bars it."""
_STEP = 0.1


@dataclass(frozen=True, slots=True)
class How:
    """The options that every changing verb has."""

    config: Path | None
    json: bool
    dry_run: bool
    why: str = ""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a verb is about to do, and what to say of it."""

    actions: tuple[EditAction, ...]
    done: str
    """What has happened once they are carried out, a sentence."""
    then: tuple[str, ...] = ()
    """Commands to type next."""
    warning: str = ""
    """What a person should know before it happens."""


def edit(how: How, prepare: Callable[[Place, Catalog], Awaitable[Plan]]) -> int:
    """Prepare against the catalog, then carry out each action as an edit of its own.

    ``prepare`` changes nothing and raises ``Failure`` for what makes no sense; so ``--dry-run``
    finds the same mistakes.
    """
    place = desk.find(how.config)

    async def work(catalog: Catalog) -> tuple[Plan, list[Edit]]:
        plan = await prepare(place, catalog)
        if how.dry_run:
            return plan, []
        if plan.warning and not how.json:
            output.note(plan.warning)
        return plan, await _carry_out(catalog, plan, how)

    plan, edits = desk.with_catalog(place, work, changes=not how.dry_run)
    if how.json:
        proposed = [{"action": action_name(a), **output.plain(a)} for a in plan.actions]
        shown = proposed if how.dry_run else output.plain(edits)
        output.emit({"dry_run": how.dry_run, "edits": shown})
    elif how.dry_run:
        _say_what_would(plan)
    else:
        output.print_line(plan.done)
        output.next_step(*plan.then)
    return Exit.GOOD


async def _carry_out(catalog: Catalog, plan: Plan, how: How) -> list[Edit]:
    """Each action in turn. What a run under way bars waits a little for its end: where runs are
    short and come often, a person's edit would hardly ever fall between two of them."""
    by, edits = desk.who(), list[Edit]()
    give_up = time.monotonic() + PATIENCE
    while len(edits) < len(plan.actions):
        action = plan.actions[len(edits)]
        try:
            edits.append(await catalog.edit(new_operation_id(), by, how.why, action))
        except CatalogError as error:
            if not isinstance(error, Leased) or time.monotonic() > give_up:
                raise _stopped(error, action, edits) from None
            await sleep(_STEP)
    return edits


def _stopped(error: CatalogError, action: EditAction, edits: list[Edit]) -> Failure:
    """Why an action was not carried out; those before it were, and stay."""
    failure = describe(error)
    assert failure is not None
    done = ", ".join(f"{e.action} {Target(e.pipeline, e.stream)}" for e in edits)
    said = f"{failure} Done before that: {done}." if done else str(failure)
    hint = failure.hint
    if isinstance(error, Leased):
        hint = f"Start no more meanwhile: reconciler pause {action.pipeline}"
    return Failure(said, failure.code, hint)


def _say_what_would(plan: Plan) -> None:
    output.print_line("Nothing was changed. It would be:")
    for action in plan.actions:
        words = {k: v for k, v in output.plain(action).items() if v not in ("", None, 0, [], False)}
        shown = " ".join(f"{k}={_flat(v)}" for k, v in words.items())
        output.next_step(f"{action_name(action)} {shown}")
    if plan.warning:
        output.print_line(plan.warning)


def _flat(value: object) -> object:
    if isinstance(value, dict):  # a cursor: its position is what a person knows it by
        return value.get("position", {}).get("text", value)
    return ",".join(map(str, value)) if isinstance(value, list) else value

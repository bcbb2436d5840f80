"""How verbs are declared: one decorator, so that every verb's help has the same shape."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import typer

from reconciler.cli import desk, options

Verb = TypeVar("Verb", bound=Callable[..., int])
EXITS = (
    "Exit codes: 0 good, 1 failed, 2 usage or config, 3 held, 4 lease held by another, "
    "5 nothing matched."
)

app = typer.Typer(
    name="reconciler",
    help="Keeps incremental data pipelines up to date as its config file says.",
    epilog=f"Typing nothing shows what to type next. {EXITS}",
    no_args_is_help=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["--help", "-h"]},
)
cursor = typer.Typer(help="See and move the position up to which a stream's data is committed.")
config = typer.Typer(help="See the config as it is understood.")
catalog = typer.Typer(help="Look after the catalog, the project's state file.")


@app.callback()
def _before_the_verb(config: options.Config = None) -> None:
    desk.config_before_verb.set(config)


def verb(
    name: str, panel: str, example: str, *, under: typer.Typer = app
) -> Callable[[Verb], Verb]:
    """Declare a verb; ``example`` is what its help shows as typed, after ``reconciler``."""

    def declare(function: Verb) -> Verb:
        epilog = f"Example: reconciler {example}\n\n{EXITS}"
        short = (function.__doc__ or "").partition(". ")[0].removesuffix(".")
        under.command(
            name,
            epilog=epilog,
            short_help=f"{short}.",
            rich_help_panel=panel if under is app else None,
        )(function)
        return function

    return declare


def in_order(names: Sequence[str]) -> None:
    """Put the verbs of ``--help`` in this order, whatever the order they were declared in."""
    app.registered_commands.sort(key=lambda command: names.index(command.name or ""))

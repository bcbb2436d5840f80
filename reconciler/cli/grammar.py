"""How verbs are declared: one decorator, so that every verb's help has the same shape."""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from typing import Annotated, TypeAlias, TypeVar

import typer

from reconciler import version
from reconciler.cli import desk, options, output

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


def _print_version(wanted: bool) -> None:  # noqa: FBT001 - as typer calls it
    if wanted:
        output.print_line(f"reconciler {version()}, Python {platform.python_version()}")
        raise typer.Exit


Version: TypeAlias = Annotated[
    bool,
    typer.Option("--version", help="What is installed.", callback=_print_version, is_eager=True),
]


@app.callback()
def _before_the_verb(config: options.Config = None, _version: Version = False) -> None:
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

"""The options and arguments that verbs share, so that they read the same everywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, TypeAlias

import typer

Config: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="PATH",
        help="Config file; else $RECONCILER_CONFIG, ./config.toml, /etc/reconciler/config.toml.",
        rich_help_panel="Common",
    ),
]
Json: TypeAlias = Annotated[
    bool, typer.Option("--json", help="Print records as JSON.", rich_help_panel="Common")
]
DryRun: TypeAlias = Annotated[
    bool,
    typer.Option("--dry-run", help="Say what would be done; do nothing.", rich_help_panel="Common"),
]
Why: TypeAlias = Annotated[
    str, typer.Option("--why", metavar="TEXT", help="The reason, for the record of edits.")
]
PipelineName: TypeAlias = Annotated[
    str, typer.Argument(metavar="PIPELINE", help="A pipeline.", show_default=False)
]
AnyTarget: TypeAlias = Annotated[
    str,
    typer.Argument(
        metavar="PIPELINE[.STREAM]", help="A pipeline, or one stream of it.", show_default=False
    ),
]
StreamName: TypeAlias = Annotated[
    str,
    typer.Argument(metavar="PIPELINE.STREAM", help="One stream of a pipeline.", show_default=False),
]

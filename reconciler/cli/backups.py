"""Verbs of upkeep: catalog backup|restore."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from catalog.copies import Backup, Restored
from reconciler.cli import desk, grammar, options, output
from reconciler.cli.failure import Exit, Failure
from reconciler.cli.grammar import verb

_PANEL = "Config and upkeep"


@verb("backup", _PANEL, "catalog backup /var/backups/shop/", under=grammar.catalog)
def catalog_backup(
    path: Annotated[
        str,  # a Path would lose the slash at its end
        typer.Argument(
            metavar="PATH",
            help="The file to make; a directory: one in it, named after project and time.",
            show_default=False,
        ),
    ],
    force: Annotated[
        bool, typer.Option("--force", help="Replace a file of that name.", rich_help_panel="Common")
    ] = False,
    config: options.Config = None,
    json: options.Json = False,
    dry_run: options.DryRun = False,
) -> int:
    """Copy the catalog into one file, whole and checked, while the daemon goes on."""
    from catalog.open import back_up

    place = desk.find(config)
    done = back_up(place.catalog, _target(place, path), force=force, dry_run=dry_run)
    if json:
        output.emit({"dry_run": dry_run, "backup": output.plain(done)})
    else:
        _say_backup(done, dry_run=dry_run)
    return Exit.GOOD


def _target(place: desk.Place, text: str) -> Path:
    path = Path(text)
    if not path.is_dir():
        if text.endswith("/"):  # taken for a file's name, it would be in the next backup's way
            raise Failure(f"{path} is no directory; make it first.", Exit.FAILED)
        return path
    at = output.iso(desk.now_us())
    assert at is not None
    time = "".join(c for c in at.partition(".")[0] if c.isalnum())
    return path / f"{place.project}-{time}Z.db"


def _say_backup(done: Backup, *, dry_run: bool) -> None:
    runs = f", {output.count(done.open_runs, 'run')} open" if done.open_runs else ""
    what = (
        f"{output.count(done.pipelines, 'pipeline')}{runs}; {output.size(done.size_bytes)}, "
        f"last epoch {done.epoch}"
    )
    if dry_run:
        output.print_line(f"Nothing was written. {done.path} would hold {what}.")
        return
    output.print_line(f"{done.path} holds {what}. It was read back, and no damage found.")


@verb("restore", _PANEL, "catalog restore /var/backups/shop/shop.db", under=grammar.catalog)
def catalog_restore(
    path: Annotated[
        Path,
        typer.Argument(metavar="PATH", help="What catalog backup made.", show_default=False),
    ],
    why: options.Why = "",
    config: options.Config = None,
    json: options.Json = False,
    dry_run: options.DryRun = False,
) -> int:
    """Put a backup in the catalog's place, with the daemon stopped; what stood there is kept."""
    from catalog.open import restore
    from reconciler.lease.locks import living

    place = desk.find(config)
    if alive := living(place.state_dir):
        raise Failure(
            f"The catalog is in use: {', '.join(alive)} of {place.state_dir} still lives, or a "
            "worker of it does.",
            Exit.LEASED,
            "Stop the daemon (`systemctl stop`), or wait for that run to end; then try again. One "
            "whose lock this user may not open counts as living: then do this as root.",
        )
    done = restore(place.catalog, path, by=desk.who(), why=why, dry_run=dry_run)
    if json:
        output.emit({"dry_run": dry_run, "restored": output.plain(done)})
    else:
        _say_restored(done, dry_run=dry_run)
    return Exit.GOOD


def _say_restored(done: Restored, *, dry_run: bool) -> None:
    if dry_run:
        output.print_line(
            f"Nothing was changed. {done.path} would be what {done.source} is, and its counter of "
            f"epochs raised from {done.epoch_of_source} to {done.epoch} or a little more."
        )
        return
    output.print_line(f"{done.path} is what {done.source} was.")
    if done.kept:
        which = "" if done.replaced == done.catalog else ", another catalog or a damaged one,"
        output.print_line(f"What stood there{which} is kept as {done.kept}.")
    output.print_line(
        f"The counter of epochs was raised from {done.epoch_of_source} to {done.epoch}: runs that "
        "the lost catalog started have numbers below it."
    )
    if done.interrupted:
        runs = ", ".join(map(str, done.interrupted))
        output.print_line(f"Interrupted, since the copy has them as open: {runs}.")
    output.print_line(
        "Streams whose destination is ahead of the copy will be held by their next run; "
        "`reconciler why PIPELINE.STREAM` names the choices."
    )
    output.next_step("reconciler catalog check", "reconciler status")

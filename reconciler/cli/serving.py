"""Verbs that make things happen: run and serve."""

from __future__ import annotations

from reconciler.cli import desk, options
from reconciler.cli.grammar import verb

_PANEL = "Start"


@verb("run", _PANEL, "run shop")
def run(
    target: options.AnyTarget,
    config: options.Config = None,
    json: options.Json = False,
    dry_run: options.DryRun = False,
) -> int:
    """Bring a pipeline up to date now: by the daemon if one is up, else in this process."""
    from reconciler.cli.running import run_target, would_run

    if dry_run:
        return would_run(target, config, as_json=json)
    return run_target(target, config, as_json=json)


@verb("serve", _PANEL, "serve --config /etc/reconciler/config.toml")
def serve(config: options.Config = None) -> int:
    """Be the daemon: keep every pipeline up to date until told to stop (SIGTERM or Ctrl-C)."""
    from reconciler.daemon.serve import serve as serve_project

    return serve_project(desk.find(config).config)

"""The config file and the environment, as desired state.

Importing this package loads neither pydantic nor the models: commands that only need to know
where the catalog is use ``locate``, which takes milliseconds.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reconciler.config.document import find_config
from reconciler.config.locate import Located, locate
from reconciler.config.problems import ConfigError, Place, Problem

if TYPE_CHECKING:
    from reconciler.config.desired import Project, SecretRef
    from reconciler.config.edits import ConfigChange
    from reconciler.config.explaining import Explained

__all__ = [
    "ConfigError",
    "Located",
    "Place",
    "Problem",
    "changes",
    "explain",
    "find_config",
    "json_schema",
    "keep",
    "last_kept",
    "load",
    "locate",
    "resolve_secret",
]


def load(
    path: Path | None = None, env: Mapping[str, str] = os.environ, *, secrets: bool = True
) -> Project:
    """The config at ``path`` (None: where ``find_config`` finds it), checked and resolved.

    ``secrets``: each secret that is named must be there; its value is not kept. A reader that
    connects to nothing says False, since an operator's shell has not the daemon's environment.
    Raises ``ConfigError`` with every problem at once.
    """
    from reconciler.config import loading

    return loading.load(path or find_config(None, env), env, secrets=secrets)


def explain(path: Path, pipeline: str, env: Mapping[str, str] = os.environ) -> Explained:
    """Every value of a pipeline and of its streams, with where it comes from.

    Secrets are not looked at. Raises ``ConfigError`` if the config has problems or no such
    pipeline.
    """
    from reconciler.config import explaining

    return explaining.explain(path, pipeline, env)


def keep(project: Project) -> None:
    """Note that this project is the one that runs here, for ``last_kept``."""
    from reconciler.config import kept

    kept.keep(project)


def last_kept(state_dir: Path, env: Mapping[str, str] = os.environ) -> Project | None:
    """The project that last ran with this state directory; None: not known."""
    from reconciler.config import kept

    return kept.last_kept(state_dir, env)


def changes(old: Project, new: Project) -> tuple[ConfigChange, ...]:
    """The edits that lead from ``old`` to ``new``, each with what it does. Pure."""
    from reconciler.config import edits

    return edits.changes(old, new)


def json_schema() -> dict[str, Any]:
    """JSON Schema of the config file, for editors."""
    from reconciler.config import settings

    return settings.json_schema()


def resolve_secret(ref: SecretRef, env: Mapping[str, str] = os.environ) -> str:
    """What ``ref`` stands for, read now.

    Raises ``ConfigError`` with a sentence, which never holds the value, when it is not set,
    cannot be read, is empty or is not text.
    """
    from reconciler.config.locations import read_secret
    from reconciler.config.words import Wrong

    try:
        return read_secret(ref, env)
    except Wrong as wrong:
        raise ConfigError([Problem(Place(), "", wrong.message, hint=wrong.hint)]) from None

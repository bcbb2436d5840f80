"""The config as it was last taken up here, so that ``plan`` can say what an edit will do.

The text of its files, in the state directory. It holds what they hold: secrets by reference only.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from reconciler.config.desired import Project
from reconciler.config.document import read_text
from reconciler.config.problems import ConfigError

FILE = "config.json"


def keep(project: Project) -> None:
    """Keep the files that ``project`` was read from. When that fails nothing is kept: an older
    config must not be taken for the one that runs."""
    path = project.state_dir / FILE
    new = path.with_suffix(f".{os.getpid()}.new")
    try:
        body = json.dumps({str(file): read_text(file) for file in project.files}).encode()
        # As bytes: what a loss of power left there may be no text.
        if not path.exists() or path.read_bytes() != body:
            new.touch(0o600)
            new.write_bytes(body)
            new.replace(path)
    except (ConfigError, OSError):
        with suppress(OSError):
            path.unlink(missing_ok=True)
            new.unlink(missing_ok=True)


def last_kept(state_dir: Path, env: Mapping[str, str]) -> Project | None:
    """The project as it was last taken up, with today's environment; None: not known."""
    try:
        texts = {
            Path(p): str(text) for p, text in json.loads((state_dir / FILE).read_bytes()).items()
        }
    except (OSError, ValueError, AttributeError):
        return None
    from reconciler.config.loading import load

    try:
        return load(next(iter(texts)), env, secrets=False, kept=texts)
    except (ConfigError, StopIteration):
        return None

"""What runs printed: one file a run, only for those that printed something."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path


def path(state_dir: Path, pipeline: str, epoch: int) -> Path:
    """Where the output of a run is kept, if it printed any."""
    return state_dir / "logs" / pipeline / f"{epoch}.log"


def newest_first(state_dir: Path) -> list[tuple[int, Path]]:
    """All that are kept, with the numbers of their runs. The folder is named as the pipeline was
    then: whose run it is, the catalog knows."""
    found = [(f.stem, f) for f in (state_dir / "logs").glob("*/*.log")]
    return sorted(((int(n), f) for n, f in found if n.isascii() and n.isdigit()), reverse=True)


def keep(
    state_dir: Path, pipeline: str, epoch: int, printed: bytes, redact: Callable[[str], str]
) -> None:
    """Keep what a run printed, secrets taken out (rule 9)."""
    target = path(state_dir, pipeline, epoch)
    # Not the state directory: one that was moved away for a while is to find its place free.
    for folder in (target.parent.parent, target.parent):
        folder.mkdir(mode=0o700, exist_ok=True)
    target.write_bytes(redact(printed.decode(errors="replace")).encode())  # any locale


def forget_before(state_dir: Path, wall_seconds: float) -> None:
    """Remove what is older than runs are kept."""
    for file in (state_dir / "logs").glob("*/*.log"):
        if file.stat().st_mtime < wall_seconds:
            file.unlink(missing_ok=True)

"""A daemon that keeps incremental data pipelines up to date as one config file says."""

from __future__ import annotations


def version() -> str:
    """The installed version; ``0`` from a source tree that was never installed."""
    from importlib import metadata  # 20 ms that most commands need not pay

    try:
        return metadata.version("hakiri-reconciler")
    except metadata.PackageNotFoundError:
        return "0"

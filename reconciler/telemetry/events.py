"""The names of all log events: a closed list, stable across releases.

A reader of logs filters by these names; they change only with a major release. What each one
means stands beside it and, with its fields, in ``docs/logging.md``; a test holds the two equal.
"""

from __future__ import annotations

from enum import StrEnum


class Event(StrEnum):
    """An event's name is its value; ``meaning`` is one sentence for a person."""

    meaning: str

    def __new__(cls, value: str, meaning: str) -> Event:
        member = str.__new__(cls, value)
        member._value_ = value
        member.meaning = meaning
        return member

    # The daemon as a whole.
    DAEMON_STARTED = "daemon_started", "The process is up; nothing is opened yet."
    DAEMON_READY = "daemon_ready", "Catalog, config and web are there; runs may start."
    DAEMON_DRAINING = "daemon_draining", "No new runs; those under way get the grace time to end."
    DAEMON_STOPPED = "daemon_stopped", "The process ends; `reason` says why."
    DAEMON_FAILED = (
        "daemon_failed",
        "The process ends: something it cannot do without broke.",
    )
    LOOP_LAGGED = "loop_lagged", "The event loop was blocked for longer than it may be."

    # Runs.
    RUN_STARTED = "run_started", "A lease was taken and a worker has the run."
    RUN_FINISHED = "run_finished", "A run ended and the catalog says so."
    RUN_LOST = (
        "run_lost",
        "A run ended and the catalog does not know how.",
    )
    RUN_NOTE = "run_note", "What a run assumed, could not see or had to wait for."

    # What needs a person, and what persons did.
    HOLD_OPENED = "hold_opened", "A stream waits for a person's answer."
    PIPELINE_PARKED = "pipeline_parked", "A pipeline is not planned until a person acts."
    ROWS_REJECTED = "rows_rejected", "Rows were set aside, with place and count."

    # Leases.
    LEASE_LOST = "lease_lost", "Another daemon took over a pipeline; its run here ends as fenced."
    WRITE_FENCED = (
        "write_fenced",
        "A write showed an epoch not the current one; nothing changed.",
    )

    # Config.
    CONFIG_RELOADED = "config_reloaded", "A changed config took effect as a whole."
    CONFIG_REJECTED = (
        "config_rejected",
        "A changed config has mistakes; the old one stays.",
    )
    RENAME_REFUSED = (
        "rename_refused",
        "Both names of a renamed pipeline have batches of their own; each stays as it is.",
    )

    # Catalog.
    CATALOG_OPENED = "catalog_opened", "The catalog is open for reading and writing."
    CATALOG_UNAVAILABLE = (
        "catalog_unavailable",
        "A request to the catalog failed; `/readyz` says so until it is well.",
    )
    CATALOG_RECOVERED = "catalog_recovered", "The catalog can be written again."
    CATALOG_RETAINED = "catalog_retained", "Old history was deleted, as `[retention]` says."

    # Web.
    WEB_LISTENING = "web_listening", "The web server takes requests."

    # Others.
    LIBRARY_WARNING = "library_warning", "A library said something through Python's own logging."

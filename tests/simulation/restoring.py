"""A catalog put back from a copy: what ``catalog restore`` does to a file, done to the store."""

from __future__ import annotations

from catalog import rules
from catalog.memory import MemoryStore
from catalog.records import Micros

_ROWS = ("pipelines", "streams", "runs", "commits", "schemas", "decisions", "edits", "operations")
_RAISE = 10**6
"""By what the counter is further than any that was known: no day has so many runs."""


def copy_of(store: MemoryStore) -> MemoryStore:
    """What ``catalog backup`` writes."""
    copy = MemoryStore(store.id, store.epoch, store.change, store.edit)
    for name in _ROWS:
        setattr(copy, name, dict(getattr(store, name)))
    copy.files = {key: dict(ledger) for key, ledger in store.files.items()}
    return copy


def put_back(store: MemoryStore, copy: MemoryStore, now: Micros) -> None:
    """The copy in the place of the store, which nobody has open."""
    lost, again = store.epoch, copy_of(copy)
    for name in (*_ROWS, "files", "change", "edit"):
        setattr(store, name, getattr(again, name))
    store.holders.clear()
    store.changed_by.clear()
    store.epoch = max(lost, copy.epoch) + _RAISE
    for name, state in store.pipelines.items():
        if state.holder:
            ended = rules.interrupt(state, store.runs[state.epoch], "it was restored", now)
            store.change += 1
            store.pipelines[name] = rules.touch(ended[0], store.change)
            store.runs[state.epoch] = ended[1]

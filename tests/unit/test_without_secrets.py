"""What a worker said is cleaned of secrets before anything is made of it (rule 9)."""

from __future__ import annotations

from catalog.records import Hold, HoldKind, Outcome, StreamResult
from reconciler.config.hiding import Hiding
from reconciler.daemon.secrecy import without_secrets
from reconciler.run.messages import Done


def _held(number: int, detail: str) -> StreamResult:
    hold = Hold(HoldKind.DESTINATION, "it is ahead", 1, ("refresh",), detail=detail)
    return StreamResult(f"t{number}", Outcome.HELD, "it is ahead", hold=hold)


def test_of_many_held_streams_the_words_that_all_may_see_are_gathered_once() -> None:
    """A thousand are after a restore; what took a second for each ended the daemon."""
    asked: list[int] = []

    def openly() -> frozenset[str]:
        asked.append(1)
        return frozenset({"postgres", "orders"})

    redact = Hiding(("postgres", "hunter2")).redact
    quiet = tuple(_held(number, '{"seq": 1}') for number in range(3))
    assert without_secrets(Done(quiet, {}), redact, openly).streams == quiet
    assert not asked
    loud = tuple(_held(number, "postgres://db hunter2 xpostgresx") for number in range(3))
    found = without_secrets(Done(loud, {}), redact, openly)
    details = {stream.hold.detail for stream in found.streams if stream.hold}
    assert details == {"postgres://db [secret] x[secret]x"}
    assert len(asked) == 1

"""Processes hammer one catalog, some are killed; their own records tell whether it was one order.

Rules 1 and 6, judged from outside (A1, A2, A5, B1): each process logs its calls and their answers
with the machine's monotonic time, and the checker below knows nothing of how a catalog works. A
call without an answer (a kill, an unknown outcome) counts as both: it may have happened or not.

A longer proof: ``RECONCILER_TEST_SECONDS=600 pytest -m slow tests/crash/test_linearizable.py``.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import pytest

from catalog import position
from catalog.open import open_catalog
from catalog.records import Commit, Cursor, CursorKind, RunQuery
from tests.crash.hammer import PIPELINES, STREAM
from tests.patience import PATIENCE
from tests.replacing import replace

ROOT = Path(__file__).parents[2]
_PROCESSES = 3
_NEVER = 1 << 62


@dataclass(frozen=True)
class Call:
    """One call as its caller saw it. Unanswered: ``returned`` lies beyond all time."""

    kind: str
    pipeline: str
    called: int
    returned: int = _NEVER
    said: Any = None
    error: str = ""
    epoch: int = 0
    batch: str = ""
    follows: int = 0

    @property
    def told(self) -> bool:
        """Acknowledged."""
        return self.returned != _NEVER and not self.error

    @property
    def open(self) -> bool:
        """Nobody knows: it counts as done and as not done."""
        return self.returned == _NEVER or self.error == "unknown"


def read_logs(paths: list[Path]) -> tuple[list[Call], list[str]]:
    """All calls of all processes, and what they themselves found wrong."""
    calls: dict[str, Call] = {}
    faults: list[str] = []
    for path in paths:
        for line in path.read_text().splitlines(keepends=True):
            if not line.endswith("\n"):
                continue  # cut off by a kill
            entry = json.loads(line)
            if "fault" in entry:
                faults.append(entry["fault"])
            elif "call" in entry:
                number, at = entry.pop("call"), entry.pop("at")
                calls[number] = Call(called=at, **entry)
            else:
                number = entry["answer"]
                calls[number] = replace(
                    calls[number],
                    returned=entry["at"],
                    said=entry.get("said"),
                    error=entry.get("error", ""),
                )
    return list(calls.values()), faults


def check(calls: list[Call], recorded: list[Commit]) -> Iterator[str]:
    """What is wrong with one pipeline; ``recorded``: its commits as they are in the end."""
    recorded = sorted(recorded, key=lambda commit: commit.seq)
    yield from _one_sequence(calls, recorded)
    yield from _in_the_order_of_time(calls, recorded)
    yield from _fenced(calls)
    yield from _reads(calls)


def _one_sequence(calls: list[Call], recorded: list[Commit]) -> Iterator[str]:
    if [c.seq for c in recorded] != list(range(1, len(recorded) + 1)):
        yield "the commits are not numbered one by one"
    for before, after in pairwise(recorded):
        if before.epoch > after.epoch:
            yield f"batch {after.seq} was committed under an older epoch than the one before it"
        assert before.cursor is not None
        assert after.cursor is not None
        if before.cursor.position.data >= after.cursor.position.data:
            yield f"the cursor went back with batch {after.seq}"
    asked = {call.batch: call for call in calls if call.kind == "commit"}
    for commit in recorded:
        call = asked.get(commit.receipt)
        if call is None or call.error not in ("", "unknown"):
            yield f"batch {commit.seq} is there, and nobody was told so or could have been"
        elif commit.epoch != call.epoch or commit.seq != call.follows + 1:
            yield f"batch {commit.seq} is there otherwise than it was asked for"
    there = Counter(commit.receipt for commit in recorded)
    for call in asked.values():
        if call.told and there[call.batch] != 1:
            yield f"an acknowledged batch is there {there[call.batch]} times"
        if call.told and call.said != [call.follows + 1]:
            yield f"a batch that follows {call.follows} was acknowledged as {call.said}"


def _in_the_order_of_time(calls: list[Call], recorded: list[Commit]) -> Iterator[str]:
    """What was over before another began comes before it."""
    seqs = {commit.receipt: commit.seq for commit in recorded}
    commits = [call for call in calls if call.kind == "commit" and call.batch in seqs]
    yield from _rising(commits, lambda call: seqs[call.batch], "seq", strictly=True)
    claims = [call for call in calls if _claimed(call)]
    yield from _rising(claims, lambda call: call.said[0], "epoch", strictly=True)


def _reads(calls: list[Call]) -> Iterator[str]:
    """A read sees all that was acknowledged before it, and nothing not yet asked for."""
    reads = [call for call in calls if call.kind == "read" and call.told]
    yield from _rising(reads, lambda call: call.said, "a read", strictly=False)
    looks = [call for call in calls if call.kind == "look" and call.told]
    yield from _rising(looks, lambda call: call.said, "a look", strictly=False)
    commits = [call for call in calls if call.kind == "commit"]
    told = _Highest((c.returned, c.follows + 1) for c in commits if c.told)
    possible = _Highest((c.called, c.follows + 1) for c in commits if c.told or c.open)
    for read in reads:
        least, most = told.before(read.called), possible.before(read.returned)
        if not least <= read.said <= most:
            yield f"a read saw batch {read.said}; it had to be between {least} and {most}"


def _fenced(calls: list[Call]) -> Iterator[str]:
    """Nothing is acknowledged under an epoch once a later one's claim was answered (rule 1)."""
    epochs = _Highest((call.returned, call.said[0]) for call in calls if _claimed(call))
    for call in calls:
        if call.kind in ("commit", "finish") and call.told:
            later = epochs.before(call.called)
            if later > call.epoch:
                yield f"a {call.kind} of epoch {call.epoch} was acknowledged after epoch {later}"


def _claimed(call: Call) -> bool:
    return call.kind == "claim" and call.told and bool(call.said)


def _rising(
    calls: list[Call], value: Callable[[Call], int], what: str, *, strictly: bool
) -> Iterator[str]:
    """Of any two calls that do not overlap the later one has the higher value."""
    ended = _Highest((call.returned, value(call)) for call in calls)
    for call in calls:
        highest = ended.before(call.called)
        if value(call) < highest or (strictly and value(call) == highest):
            yield f"{what} {value(call)} comes after {highest}"


class _Highest:
    """The highest of the values so far, by time; 0 before the first."""

    def __init__(self, values: Iterable[tuple[int, int]]) -> None:
        ordered = sorted(values)
        self._times = [when for when, _ in ordered]
        self._highest = [0, *accumulate((value for _, value in ordered), max)]

    def before(self, when: int) -> int:
        return self._highest[bisect_left(self._times, when)]


class Hammers:
    """Processes on one catalog; now and then one is killed and another takes its place."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.catalog = folder / "catalog.db"
        self.logs: list[Path] = []
        self._folder, self._chance = folder, random.Random(seed)

    def _start(self, seconds: float) -> subprocess.Popen[bytes]:
        log = self._folder / f"{len(self.logs)}.log"
        log.touch()
        self.logs.append(log)
        seed = self._chance.getrandbits(32)
        command = [sys.executable, "-m", "tests.crash.hammer", self.catalog, log, seed, seconds]
        return subprocess.Popen([str(word) for word in command], cwd=ROOT)

    def run(self, seconds: float, proven: Callable[[], bool]) -> None:
        """For so long, and then until something is proven: a busy machine takes longer to do it."""
        end, patience = time.monotonic() + seconds, time.monotonic() + seconds + PATIENCE
        children = [self._start(seconds) for _ in range(_PROCESSES)]
        try:
            while (left := end - time.monotonic()) > 0 or not proven():
                assert time.monotonic() < patience, "there is no proof in what they did"
                time.sleep(min(self._chance.uniform(0.5, 2.0), max(left, 0.5)))
                victim = children.pop(self._chance.randrange(len(children)))
                victim.send_signal(signal.SIGKILL)
                victim.wait()
                children.append(self._start(max(end - time.monotonic(), 2.0)))
            assert [child.wait(PATIENCE) for child in children] == [0] * _PROCESSES
        finally:
            for child in children:
                child.kill()
                child.wait()


def _proof(calls: list[Call], claims: float) -> bool:
    """Enough was done: claims, commits to each pipeline, and somebody was fenced."""
    committed = {call.pipeline for call in calls if call.kind == "commit" and call.told}
    return (
        sum(map(_claimed, calls)) > claims
        and committed == {*PIPELINES}
        and any(call.error == "fenced" for call in calls)
    )


async def _prove(folder: Path, seconds: float) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")  # noqa: T201 - shown when it fails
    hammers = Hammers(folder, seed)
    hammers.run(seconds, lambda: _proof(read_logs(hammers.logs)[0], 20 * seconds**0.5))
    calls, faults = read_logs(hammers.logs)
    assert faults == []
    epochs = [call.said[0] for call in calls if _claimed(call)]
    assert len(epochs) == len(set(epochs)), "an epoch was given twice"
    async with open_catalog(f"sqlite:///{hammers.catalog}") as catalog:
        assert (await catalog.check()).problems == ()
        for name in PIPELINES:
            recorded = list(await catalog.commits(name, STREAM, limit=10_000_000))
            assert recorded
            assert list(check([call for call in calls if call.pipeline == name], recorded)) == []
        runs = await catalog.runs(RunQuery(limit=10_000_000))
    assert {run.epoch for run in runs} >= set(epochs), "a run that was opened is not there"


def _committed(seq: int, epoch: int, called: int, returned: int) -> Call:
    return Call(
        *("commit", "a", called, returned, [seq]), epoch=epoch, batch=f"b{seq}", follows=seq - 1
    )


def _recorded(seq: int, epoch: int) -> Commit:
    cursor = Cursor(CursorKind.MONOTONIC, "n", position.encode("int", seq))
    return Commit("a", STREAM, seq, epoch, f"b{seq}", 1, 0, 0, 0, 0, cursor)


_GOOD = [
    Call("claim", "a", 1, 2, [1]),
    _committed(1, 1, 3, 4),
    Call("claim", "a", 5, 6, [2]),
    _committed(2, 2, 7, 8),
    Call("read", "a", 9, 10, 2),
]
_THERE = [_recorded(1, 1), _recorded(2, 2)]


@pytest.mark.parametrize(
    ("calls", "recorded", "fault"),
    [
        (_GOOD, _THERE, ""),
        (_GOOD, _THERE[:1], "is there 0 times"),
        (_GOOD, [*_THERE, _recorded(2, 2)], "not numbered one by one"),
        (_GOOD[:3], _THERE, "nobody was told so"),
        ([*_GOOD[:3], _committed(2, 1, 7, 8)], [_recorded(1, 1), _recorded(2, 1)], "after epoch 2"),
        ([*_GOOD[:4], Call("read", "a", 9, 10, 1)], _THERE, "a read saw batch 1"),
        ([*_GOOD, Call("read", "a", 11, 12, 3)], _THERE, "a read saw batch 3"),
        ([*_GOOD, Call("claim", "a", 11, 12, [2])], _THERE, "epoch 2 comes after 2"),
        (_GOOD, [_THERE[0], replace(_THERE[1], cursor=_THERE[0].cursor)], "the cursor went back"),
    ],
)
def test_the_checker_finds(calls: list[Call], recorded: list[Commit], fault: str) -> None:
    found = list(check(calls, recorded))
    assert any(fault in text for text in found) if fault else found == []


def test_a_call_without_an_answer_may_have_happened_or_not() -> None:
    cut_off = replace(_GOOD[3], returned=_NEVER, said=None)
    calls = [*_GOOD[:3], cut_off]
    assert list(check(calls, _THERE)) == list(check(calls, _THERE[:1])) == []


@pytest.mark.anyio
async def test_all_processes_see_one_order(tmp_path: Path) -> None:
    await _prove(tmp_path, 4)


@pytest.mark.slow
@pytest.mark.anyio
async def test_all_processes_see_one_order_for_long(tmp_path: Path) -> None:
    await _prove(tmp_path, float(os.environ.get("RECONCILER_TEST_SECONDS", "120")))

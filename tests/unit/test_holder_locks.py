"""Holder locks (A7): who can take one knows that its holder, workers included, is dead."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from reconciler.lease.locks import HolderLock, daemon_alive, new_holder


def test_a_live_holder_is_never_taken_for_dead(tmp_path: Path) -> None:
    ours = HolderLock(tmp_path, new_holder("daemon"))
    rival = new_holder("daemon")
    lock = HolderLock(tmp_path, rival)
    assert ours.dead([rival.id]) == set()
    assert daemon_alive(tmp_path)
    lock.close()
    assert ours.dead([rival.id]) == {rival.id}
    ours.close()
    assert not daemon_alive(tmp_path)


def test_a_holder_without_a_file_may_live_on_another_machine(tmp_path: Path) -> None:
    ours = HolderLock(tmp_path, new_holder("daemon"))
    assert ours.dead(["daemon-elsewhere"]) == set()
    ours.close()


def test_a_holder_is_dead_only_when_its_last_worker_is_gone(tmp_path: Path) -> None:
    ours = HolderLock(tmp_path, new_holder("daemon"))
    rival = new_holder("daemon")
    lock = HolderLock(tmp_path, rival)
    worker = subprocess.Popen(
        [sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=(lock.fd,)
    )
    lock.close()
    assert ours.dead([rival.id]) == set()
    worker.communicate(b"\n")
    assert ours.dead([rival.id]) == {rival.id}
    ours.close()


def test_files_of_the_dead_go_once_the_catalog_has_forgotten_them(tmp_path: Path) -> None:
    ours = HolderLock(tmp_path, new_holder("daemon"))
    known, unknown, alive = new_holder("cli"), new_holder("cli"), new_holder("cli")
    for holder in (known, unknown):
        HolderLock(tmp_path, holder).close()
    living = HolderLock(tmp_path, alive)
    ours.forget({known.id})
    names = {path.name for path in (tmp_path / "holders").iterdir()}
    assert known.id in names
    assert alive.id in names
    assert unknown.id not in names
    living.close()
    ours.close()

"""Holder locks (A7): who can take one knows that its holder, workers included, is dead."""

from __future__ import annotations

import fcntl
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from catalog.errors import CannotOpen
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


def test_a_state_directory_that_takes_no_file_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("a file where the directory would be")
    with pytest.raises(CannotOpen, match=r"takes no lock file .*; see that"):
        HolderLock(tmp_path / "state", new_holder("cli"))


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


def test_holders_are_told_apart_and_say_who_they_are(tmp_path: Path) -> None:
    one, other = new_holder("daemon"), new_holder("daemon")
    assert one.id != other.id
    assert one.id.startswith("daemon-")
    assert new_holder("cli").id.startswith("cli-")
    assert (one.host, one.pid) == (socket.gethostname(), os.getpid())


def test_a_lock_is_its_owners_alone_and_lies_where_others_look(tmp_path: Path) -> None:
    state_dir = tmp_path / "deep" / "state"
    holder = new_holder("cli")
    lock = HolderLock(state_dir, holder)
    folder = state_dir / "holders"
    assert [path.name for path in folder.iterdir()] == [holder.id]
    assert folder.stat().st_mode & 0o777 == 0o700
    assert (folder / holder.id).stat().st_mode & 0o777 == 0o600
    lock.close()


def test_the_dead_stay_dead_once_their_files_are_gone(tmp_path: Path) -> None:
    ours = HolderLock(tmp_path, new_holder("daemon"))
    rivals = [new_holder("daemon") for _ in range(3)]
    locks = [HolderLock(tmp_path, rival) for rival in rivals]
    for lock in locks[:2]:
        lock.close()
    everyone = [rival.id for rival in rivals]
    assert ours.dead(everyone) == {*everyone[:2]}
    ours.forget(())
    assert ours.dead(everyone) == {*everyone[:2]}
    assert ours.dead(everyone[1:]) == {everyone[1]}
    locks[2].close()
    ours.close()


def test_ones_own_lock_is_never_forgotten_nor_taken_for_dead(tmp_path: Path) -> None:
    holder = new_holder("daemon")
    ours = HolderLock(tmp_path, holder)
    ours.forget(())
    assert (tmp_path / "holders" / holder.id).exists()
    ours.close()
    assert ours.dead([holder.id]) == set()


def test_what_a_start_that_died_half_way_left_goes_too(tmp_path: Path) -> None:
    ours = HolderLock(tmp_path, new_holder("daemon"))
    half = tmp_path / "holders" / ".daemon-half"
    known = tmp_path / "holders" / ".daemon-known"
    for path in (half, known):
        path.touch()
    ours.forget(["daemon-known"])
    assert (half.exists(), known.exists()) == (False, True)
    ours.close()


def test_a_start_whose_file_was_removed_before_it_was_locked_makes_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    daemon = HolderLock(tmp_path, new_holder("daemon"))
    flock = fcntl.flock

    def tidied_up(fd: int, how: int) -> None:
        monkeypatch.setattr(fcntl, "flock", flock)
        daemon.forget(())
        flock(fd, how)

    monkeypatch.setattr(fcntl, "flock", tidied_up)
    cli = new_holder("cli")
    lock = HolderLock(tmp_path, cli)
    assert daemon.dead([cli.id]) == set()
    lock.close()
    assert daemon.dead([cli.id]) == {cli.id}
    daemon.close()


def test_a_lock_that_cannot_be_tried_is_of_one_that_may_live(tmp_path: Path) -> None:
    """As when there are no more file descriptors, or the disk has become read-only."""
    ours = HolderLock(tmp_path, new_holder("daemon"))
    odd = tmp_path / "holders" / "daemon-odd"
    odd.symlink_to(odd.name)
    assert ours.dead(["daemon-odd"]) == set()
    ours.close()
    assert not daemon_alive(tmp_path)


def test_only_a_daemon_is_a_daemon(tmp_path: Path) -> None:
    assert not daemon_alive(tmp_path / "nowhere")
    command = HolderLock(tmp_path, new_holder("cli"))
    assert not daemon_alive(tmp_path)
    HolderLock(tmp_path, new_holder("daemon")).close()
    assert not daemon_alive(tmp_path)
    daemon = HolderLock(tmp_path, new_holder("daemon"))
    assert daemon_alive(tmp_path)
    daemon.close()
    command.close()

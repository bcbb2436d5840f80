"""The unit is hardened, understood by systemd as it stands, and patient enough for a drain."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from reconciler.config.desired import Daemon

UNIT = Path(__file__).parents[2] / "deploy/systemd/reconciler@.service"


@pytest.fixture
def instance(tmp_path: Path) -> str:
    """The unit as an instance, its program replaced by one that is on this machine."""
    path = tmp_path / "reconciler@shop.service"
    text = UNIT.read_text()
    assert text.count("/opt/reconciler/bin/reconciler ") == 1
    path.write_text(text.replace("/opt/reconciler/bin/reconciler ", "/bin/true "))
    return str(path)


def analyze(*arguments: str) -> subprocess.CompletedProcess[str]:
    program = shutil.which("systemd-analyze")
    if program is None:
        pytest.skip("systemd-analyze is not installed (Debian: systemd)")
    return subprocess.run([program, *arguments], capture_output=True, text=True, check=False)


def setting(name: str) -> str:
    (value,) = re.findall(rf"^{name}=(.*)$", UNIT.read_text(), re.M)
    return str(value)


def test_systemd_has_nothing_to_say_about_the_unit(instance: str) -> None:
    done = analyze("verify", "--man=no", instance)
    # It returns 0 on unknown keys: any word is a failure.
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_a_mistake_would_be_noticed(instance: str) -> None:
    path = Path(instance)
    path.write_text(path.read_text().replace("PrivateTmp=", "PrivatTmp="))
    done = analyze("verify", "--man=no", instance)
    assert "PrivatTmp" in done.stderr


def test_the_unit_is_hardened_to_a_score_of_two(instance: str) -> None:
    done = analyze("security", "--offline=true", "--threshold=20", "--no-pager", instance)
    assert done.returncode == 0, done.stdout


def test_systemd_waits_longer_than_runs_may_take_to_end() -> None:
    assert float(setting("TimeoutStopSec")) >= Daemon().grace + 20


def test_the_unit_is_not_given_up_nor_stopped_for_one_worker() -> None:
    """A daemon that starts on a full disk was given up after a minute; and where the kernel ended
    a worker for want of memory, systemd would stop the daemon and all other runs with it."""
    assert setting("StartLimitIntervalSec") == "0"
    assert setting("OOMPolicy") == "continue"
    assert setting("RestartPreventExitStatus") == "2"


def test_systemd_hears_from_the_daemon_itself() -> None:
    assert setting("Type") == "notify"
    assert setting("NotifyAccess") == "main"
    assert float(setting("WatchdogSec")) > 0

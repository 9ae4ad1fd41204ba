"""A real device never belongs to two agents of one machine."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from bursar.agent.devices.exclusive import DeviceLocks, ExclusiveDevices
from bursar.agent.devices.simulated import SimulatedDevices
from bursar.core.ids import AgentId, DeviceUuid

UUID = DeviceUuid("GPU-aaaaaaaa-0000-1111-2222-000000000000")
REAL = SimulatedDevices(AgentId("machine"), 4)


def agent(name: str, *directories: Path) -> ExclusiveDevices:
    return ExclusiveDevices(REAL, AgentId(name), directories)


def indexes(driver: ExclusiveDevices) -> list[int]:
    return [device.index for device in driver.discover()]


def test_second_agent_is_left_without_and_told_who_has_them(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first, second = agent("first", tmp_path), agent("second", tmp_path)
    assert indexes(first) == [0, 1, 2, 3] == indexes(first)
    with caplog.at_level(logging.WARNING):
        assert indexes(second) == [] == indexes(second)
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 4, "each device once"
    assert "agent first" in told[0]
    first.close()
    assert indexes(second) == [0, 1, 2, 3]
    second.close()
    assert list(tmp_path.iterdir()) == [], "nothing is left behind"


def test_devices_that_are_not_wanted_are_left_to_others(tmp_path: Path) -> None:
    first, second = agent("first", tmp_path), agent("second", tmp_path)
    first.keep_only([device.uuid for device in first.discover()[:2]])
    assert indexes(second) == [2, 3]
    assert indexes(first) == [0, 1]
    second.close()
    assert indexes(first) == [0, 1]
    first.close()


def test_one_directory_in_common_is_enough(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "all").mkdir()
    root = agent("root", tmp_path / "root", tmp_path / "all")
    user = agent("user", tmp_path / "all")
    assert indexes(user) == [0, 1, 2, 3]
    assert indexes(root) == []
    user.close()
    assert indexes(root) == [0, 1, 2, 3]
    root.close()


def test_a_killed_agent_lets_go(tmp_path: Path) -> None:
    program = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from bursar.agent.devices.exclusive import DeviceLocks\n"
        "locks = DeviceLocks('doomed', [Path(sys.argv[1])])\n"
        "assert locks.claim(sys.argv[2]) is None\n"
        "print('claimed', flush=True)\n"
        "time.sleep(600)\n"
    )
    other = subprocess.Popen([sys.executable, "-c", program, str(tmp_path), UUID], stdout=subprocess.PIPE)
    assert other.stdout is not None and other.stdout.readline() == b"claimed\n"
    locks = DeviceLocks(AgentId("heir"), [tmp_path])
    assert "doomed" in (locks.claim(UUID) or "")
    other.send_signal(signal.SIGKILL)
    other.wait()
    other.stdout.close()
    assert locks.claim(UUID) is None
    locks.release([UUID])


def test_lock_file_of_another_user_in_a_sticky_directory_is_used(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root to act as another user")
    tmp_path.chmod(0o1777)
    path = tmp_path / f"bursar-device-{UUID}.lock"
    path.write_text("agent of nobody")
    os.chown(path, 65534, 65534)
    path.chmod(0o644)
    locks = DeviceLocks(AgentId("root"), [tmp_path])
    assert locks.claim(UUID) is None
    other = DeviceLocks(AgentId("other"), [tmp_path])
    assert other.claim(UUID) is not None
    locks.release([UUID])
    assert other.claim(UUID) is None
    other.release([UUID])


def test_a_link_in_place_of_a_lock_is_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    locks_dir = tmp_path / "locks"
    locks_dir.mkdir()
    (locks_dir / f"bursar-device-{UUID}.lock").symlink_to(victim)
    locks = DeviceLocks(AgentId("agent"), [locks_dir])
    assert locks.claim(UUID) is not None, "without a lock no claim"
    assert victim.read_text() == "precious"


def test_odd_names_make_no_paths(tmp_path: Path) -> None:
    locks = DeviceLocks(AgentId("agent"), [tmp_path])
    assert locks.claim(DeviceUuid("../../etc/passwd")) is None
    assert len(list(tmp_path.iterdir())) == 1
    locks.release(locks.held)

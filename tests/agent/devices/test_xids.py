"""The table of XIDs."""

from __future__ import annotations

import pytest

from bursar.agent.devices.health import Remedy, Severity
from bursar.agent.devices.xids import XIDS, signal_of
from bursar.core.ids import DeviceUuid

UUID = DeviceUuid("GPU-1")


@pytest.mark.parametrize(
    ("number", "severity", "remedy"),
    [
        # NVIDIA's immediate action: RESTART_APP, IGNORE
        (13, Severity.NOTED, Remedy.NONE),
        (31, Severity.NOTED, Remedy.NONE),
        (43, Severity.NOTED, Remedy.NONE),
        (45, Severity.NOTED, Remedy.NONE),
        # RESTART_APP or IGNORE, but trouble is coming
        (63, Severity.SUSPICIOUS, Remedy.NONE),
        (92, Severity.SUSPICIOUS, Remedy.NONE),
        (94, Severity.SUSPICIOUS, Remedy.NONE),
        # RESET_GPU and the workflows that end in it
        (46, Severity.FATAL, Remedy.RESET),
        (48, Severity.FATAL, Remedy.RESET),
        (62, Severity.FATAL, Remedy.RESET),
        (64, Severity.FATAL, Remedy.RESET),
        (74, Severity.FATAL, Remedy.RESET),
        (95, Severity.FATAL, Remedy.RESET),
        (109, Severity.FATAL, Remedy.RESET),
        (119, Severity.FATAL, Remedy.RESET),
        (120, Severity.FATAL, Remedy.RESET),
        (140, Severity.FATAL, Remedy.RESET),
        (158, Severity.FATAL, Remedy.RESET),
        # RESTART_BM
        (79, Severity.FATAL, Remedy.REBOOT),
    ],
)
def test_an_xid_is_as_serious_as_nvidia_says(number: int, severity: Severity, remedy: Remedy) -> None:
    signal = signal_of(UUID, number)
    assert (signal.uuid, signal.severity, signal.remedy) == (UUID, severity, remedy)
    assert signal.text.startswith(f"XID {number}: ")


def test_one_that_is_newer_than_the_table_is_a_warning() -> None:
    assert signal_of(UUID, 9999).severity is Severity.SUSPICIOUS


def test_the_table_is_consistent() -> None:
    for number, xid in XIDS.items():
        assert number == xid.number and xid.meaning
        if xid.severity is not Severity.FATAL:
            assert xid.remedy is Remedy.NONE, "nothing waits for it"
        assert xid.severity is Severity.NOTED or xid.number != 154

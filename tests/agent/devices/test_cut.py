"""A whole agent cuts a card of the stand-in for NVIDIA's library."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bursar.core.ids import DeviceUuid
from bursar.core.messages.agent import CutReport, DeviceOrder, DeviceOrders, DevicesChanged, Register

CARD = DeviceUuid("GPU-aaaaaaaa-0000-1111-2222-000000000000")
WHOLE = f"device {CARD} NVIDIA_H100_80GB_HBM3 85899345920 00000000:19:00.0 0 1 0\ncard 0\n"


@pytest.fixture
def cut(scripted_master: Any, agent: Any, nvml_standin: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`await cut(layout, …)`: the report of each order, and the kinds of devices after the last."""
    file = tmp_path / "standin"
    monkeypatch.setenv("LD_LIBRARY_PATH", str(nvml_standin))
    monkeypatch.setenv("NVML_STANDIN", str(file))

    async def run(*layouts: str, faults: str = "") -> tuple[list[CutReport], list[str]]:
        file.write_text(WHOLE + faults)
        await agent.start("--master", scripted_master.address, "--runtime", "process", "--devices", "nvml")
        heard = scripted_master.heard
        hello = await scripted_master.until(lambda: next((one for one in heard if isinstance(one, Register)), None))
        assert "PARTITION" in hello.info.capabilities

        def reports() -> list[CutReport]:
            return [one for one in heard if isinstance(one, CutReport)]

        for number, layout in enumerate(layouts, 1):
            scripted_master.say(DeviceOrders((DeviceOrder(CARD, False, "", number, layout),)))
            await scripted_master.until(lambda number=number: len(reports()) >= number)
        (*_, changed) = [one for one in heard if isinstance(one, DevicesChanged)]
        return reports(), sorted(device.kind for device in changed.devices)

    return run


async def test_it_is_cut_and_cut_otherwise_and_made_whole(cut: Any) -> None:
    reports, kinds = await cut("3g.40gb=1,1g.10gb=2", "1g.10gb=3", "whole", "2g.20gb=3,1g.10gb=1")
    assert [report.problem for report in reports] == ["", "", "", ""]
    assert [report.now for report in reports] == ["2 1g.10gb, 1 3g.40gb", "3 1g.10gb", "whole", "1 1g.10gb, 3 2g.20gb"]
    assert kinds == ["mig-1g.10gb", "mig-2g.20gb", "mig-2g.20gb", "mig-2g.20gb"]


@pytest.mark.parametrize(
    ("fault", "text"),
    [
        ("fail 0 enable 0 19", "switching MIG on: In use by another client"),
        ("fail 0 create 2 23", "at 2: Insufficient Resources"),
        ("fail 0 compute 3 999", "creating a compute instance in GPU instance 3: Unknown Error"),
        ("pending 0", "once the GPU was reset"),
    ],
)
async def test_what_the_driver_refuses_is_undone_and_told(cut: Any, fault: str, text: str) -> None:
    (report,), kinds = await cut("1g.10gb=3", faults=fault + "\n")
    assert text in report.problem
    if fault == "pending 0":
        assert "once the GPU was reset" in report.problem
    else:
        assert report.now == "whole" and kinds == ["gpus"]

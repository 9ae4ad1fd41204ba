"""`--devices` in words."""

from __future__ import annotations

from pathlib import Path

import pytest

from bursar.agent.devices.select import driver_for
from bursar.core.errors import InvalidText
from bursar.core.ids import AgentId

AGENT = AgentId("agent")


@pytest.mark.parametrize(
    ("text", "name", "count"),
    [
        ("none", "none", 0),
        ("simulated:0", "simulated", 0),
        ("simulated:4", "simulated", 4),
        ("simulated:2:A100", "simulated", 2),
    ],
)
def test_what_can_be_asked_for(text: str, name: str, count: int) -> None:
    driver = driver_for(text, AGENT)
    assert (driver.name, len(driver.discover())) == (name, count)
    driver.close()


def test_nvml_is_made_without_touching_the_library(tmp_path: Path) -> None:
    driver = driver_for("nvml", AGENT, [tmp_path])
    assert driver.name == "nvml"
    driver.close()


def test_model_is_the_rest_of_the_text() -> None:
    (device,) = driver_for("simulated:1:NVIDIA A100: 40GB", AGENT).discover()
    assert device.model == "NVIDIA A100: 40GB"


BAD = [
    "", "foo", "simulated", "simulated:", "simulated:-1", "simulated:x", "simulated:1.5", "simulated:²", "simulated:1:",
    "simulated:99999999999999999999", "simulated:2000", "nvml:1", "none:", "NVML", "simulated:1:\x00",
]  # fmt: skip


@pytest.mark.parametrize("text", BAD)
def test_anything_else_is_refused_with_what_to_write(text: str) -> None:
    with pytest.raises(InvalidText) as refusal:
        driver_for(text, AGENT)
    assert refusal.value.detail.hint

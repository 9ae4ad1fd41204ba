"""Run as a program: what a driver that can cut cards does when it is told to, as JSON.

    recut.py nvml|simulation CARD LAYOUT…

The card is cut into each layout in turn, as an agent would; then a few steps are tried that no card can do.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from typing import Any

from bursar.agent.devices.cutting import CannotCut, CardLayout, Goal, Step, goal_of, next_step, plan
from bursar.agent.devices.driver import CardCutter, DeviceDriver
from bursar.agent.devices.nvml import NvmlDevices
from bursar.core.devices import Device
from bursar.core.ids import AgentId, DeviceUuid
from bursar.core.layouts import parse_layout
from bursar.simulation.devices import SimulatedGpus

#: More steps than any layout takes.
MOST = 40


class OfTheSimulation:
    """The GPUs of a simulated machine, as a driver."""

    name = "simulation"

    def __init__(self) -> None:
        self._gpus = SimulatedGpus(AgentId("agent-1"), 2, 1_000, 1 << 30, None)

    def discover(self) -> tuple[Device, ...]:
        return self._gpus.discover()[0]

    def layout_of(self, card: DeviceUuid) -> CardLayout:
        return self._gpus.cards[card].layout()

    def cut(self, card: DeviceUuid, step: Step) -> None:
        self._gpus.cards[card].cut(step, in_use=False, needs_restart=False)

    def close(self) -> None:
        pass


def main(which: str, *layouts: str) -> None:
    driver: DeviceDriver = NvmlDevices() if which == "nvml" else OfTheSimulation()
    assert isinstance(driver, CardCutter)
    card = driver.discover()[0].uuid
    said: dict[str, Any] = {"card": card, "cuts": [], "refused": []}
    for text in layouts:
        goal = plan(driver.layout_of(card), parse_layout(text))
        steps = _reach(driver, card, goal)
        layout = driver.layout_of(card)
        devices = [dataclasses.asdict(one) for one in driver.discover() if card in (one.uuid, one.parent_uuid)]
        said["cuts"].append({"steps": steps, "shown": layout.shown(), "is_cut": layout.is_cut, "devices": devices})
    said["bare"] = _without_instances(driver, card)
    said["refused"] = [_refused(driver, card, step) for step in _impossible(driver.layout_of(card))]
    json.dump(said, sys.stdout)


def _without_instances(driver: Any, card: DeviceUuid) -> dict[str, Any]:
    """As a restart may leave a card; then it is cut again as it was."""
    before = goal_of(driver.layout_of(card))
    _reach(driver, card, Goal(True))
    layout = driver.layout_of(card)
    devices = [dataclasses.asdict(one) for one in driver.discover() if card in (one.uuid, one.parent_uuid)]
    _reach(driver, card, before)
    again = [one.uuid for one in driver.discover() if card in (one.uuid, one.parent_uuid)]
    return {"shown": layout.shown(), "is_cut": layout.is_cut, "devices": devices, "again": again}


def _reach(driver: CardCutter, card: DeviceUuid, goal: Goal) -> int:
    """Step by step, as an agent would; return how many it took."""
    steps = 0
    while (step := next_step(driver.layout_of(card), goal)) is not None:
        driver.cut(card, step)
        steps += 1
        assert steps < MOST, step
    return steps


def _impossible(layout: CardLayout) -> list[Step]:
    part = layout.parts[0]
    return [
        Step("create", profile_id=part.profile_id, start=part.start, size=part.size),
        Step("create-compute", part.instance_id, profile_id=part.compute[0][1]),
        Step("destroy", part.instance_id),
        Step("destroy", 99),
        Step("disable"),
    ]


def _refused(driver: CardCutter, card: DeviceUuid, step: Step) -> dict[str, Any]:
    before = driver.layout_of(card)
    try:
        driver.cut(card, step)
    except CannotCut as error:
        return {"step": step.kind, "why": str(error), "is_as_before": driver.layout_of(card) == before}
    return {"step": step.kind, "why": "", "is_as_before": driver.layout_of(card) == before}


main(*sys.argv[1:])

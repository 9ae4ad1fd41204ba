"""From the value of `--devices` to a driver."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bursar.agent.devices.driver import DeviceDriver
from bursar.agent.devices.exclusive import ExclusiveDevices
from bursar.agent.devices.none import NoDevices
from bursar.agent.devices.nvml import NvmlDevices
from bursar.agent.devices.simulated import DEFAULT_MODEL, MAX_DEVICES, SimulatedDevices
from bursar.core.errors import InvalidText
from bursar.core.ids import AgentId

_HINT = "write nvml, none, simulated:N or simulated:N:MODEL, such as simulated:4:H100"


def driver_for(text: str, agent_id: AgentId, lock_directories: Sequence[Path] | None = None) -> DeviceDriver:
    """The driver that `text` names. Raises InvalidText.

    `lock_directories` is where real devices are claimed for this agent (default: those all users of the machine share).
    """
    name, colon, rest = text.strip().partition(":")
    if name == "simulated":
        count, colon, model = rest.partition(":")
        if not (count.isascii() and count.isdecimal()):
            raise InvalidText(f"devices: {text!r} does not say how many", _HINT)
        if len(count) > 9 or int(count) > MAX_DEVICES:
            raise InvalidText(f"devices: {count} simulated devices are too many", f"at most {MAX_DEVICES}")
        if colon and (not model.strip() or not model.isprintable() or len(model) > 96):
            raise InvalidText(f"devices: {text!r} has no usable model", _HINT)
        return SimulatedDevices(agent_id, int(count), model.strip() or DEFAULT_MODEL)
    if colon or name not in ("nvml", "none"):
        raise InvalidText(f"devices: {text!r} is no device driver", _HINT)
    if name == "none":
        return NoDevices()
    return ExclusiveDevices(NvmlDevices(), agent_id, lock_directories)

"""From the values of `--devices` and `--external-resources` to drivers."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from bursar.agent.devices.driver import DeviceDriver
from bursar.agent.devices.exclusive import ExclusiveDevices
from bursar.agent.devices.external import ExternalResource
from bursar.agent.devices.none import NoDevices
from bursar.agent.devices.nvml import NvmlDevices
from bursar.agent.devices.plugin import PluginDevices
from bursar.agent.devices.rocm import RocmDevices
from bursar.agent.devices.script import ScriptDevices
from bursar.agent.devices.several import SeveralDevices
from bursar.agent.devices.shares import SharedDevices, ShareSetting
from bursar.agent.devices.simulated import DEFAULT_MODEL, MAX_DEVICES, SimulatedDevices
from bursar.agent.devices.tpu import TpuDevices
from bursar.core.errors import InvalidText
from bursar.core.ids import AgentId

_HINT = (
    "write nvml, rocm, tpu, none, simulated:N, simulated:N:MODEL, plugin:NAME, plugin:FILE.py or plugin:DIR, several of them separated by commas,"
    " such as nvml,plugin:my-fpgas"
)


#: Drivers that read device files, which may lie under another root.
_ROOTED: dict[str, Callable[[Path], DeviceDriver]] = {"rocm": RocmDevices, "tpu": TpuDevices}


def driver_for(
    text: str,
    agent_id: AgentId,
    lock_directories: Sequence[Path] | None = None,
    external: Sequence[ExternalResource] = (),
    home: Path | None = None,
    faults: Path | None = None,
    shares: ShareSetting | None = None,
) -> DeviceDriver:
    """The driver that `text` and the external resources name, or one that stands for several. Raises InvalidText.

    `lock_directories` is where real devices are claimed for this agent (default: those all users of the machine share). Scripts have
    paths that are absolute or relative to `home` (default: the user's home directory). `faults`: the file in which
    faults of simulated devices are ordered. `shares`: into what NVIDIA's GPUs, and simulated ones, are shared.
    """
    bare = bare_drivers(text, agent_id, external, home, faults, shares)
    drivers = [
        driver if driver.name in ("simulated", "none") else ExclusiveDevices(driver, agent_id, lock_directories)
        for driver in bare
    ]
    return drivers[0] if len(drivers) == 1 else SeveralDevices(drivers)


def bare_drivers(
    text: str,
    agent_id: AgentId,
    external: Sequence[ExternalResource] = (),
    home: Path | None = None,
    faults: Path | None = None,
    shares: ShareSetting | None = None,
) -> list[DeviceDriver]:
    """As `driver_for`, one by one, and without claiming what they find. Raises InvalidText."""
    drivers = [_driver(name, agent_id, faults) for part in _parts(text) for name in _with_directory(part)]
    if external and [driver.name for driver in drivers] == ["none"]:
        drivers = []  # whoever has other drivers does not want none
    drivers += [_external(resource, home or Path.home()) for resource in external if resource.driver]
    names = [driver.name for driver in drivers]
    if twice := [name for name in names if names.count(name) > 1]:
        raise InvalidText(f"devices: {twice[0]} is there twice", "name each driver once")
    if len(drivers) > 1 and "none" in names:
        raise InvalidText(f"devices: {text!r} wants none and some", "leave `none` out")
    if shares is not None:
        drivers = [SharedDevices(one, shares) if one.name in ("nvml", "simulated") else one for one in drivers]
    return drivers or [NoDevices()]


def _parts(text: str) -> list[str]:
    """At commas; a model may contain one, so only those that begin another driver count."""
    return [
        part.strip() for part in re.split(r",(?=\s*(?:(?:nvml|none|rocm|tpu)\s*(?:[:,]|$)|simulated:|plugin:))", text)
    ]


def _with_directory(part: str) -> list[str]:
    """The plugins of a directory, by name; anything else as it is. Raises InvalidText."""
    directory = Path(part.removeprefix("plugin:"))
    if not part.startswith("plugin:") or not directory.is_dir():
        return [part]
    found = sorted(path for path in directory.glob("*.py") if not path.name.startswith("_"))
    if not found:
        raise InvalidText(f"devices: {directory} has no plugin", "put a Python file into it, or leave it out")
    return [f"plugin:{path}" for path in found]


def _external(resource: ExternalResource, home: Path) -> DeviceDriver:
    if resource.driver == "script":
        return ScriptDevices(resource, home)
    return PluginDevices(resource.driver, {**resource.params, "amount": str(resource.amount)}, resource.docker)


def _driver(text: str, agent_id: AgentId, faults: Path | None) -> DeviceDriver:
    name, colon, rest = text.partition(":")
    if name == "simulated":
        return _simulated(text, rest, agent_id, faults)
    if name == "plugin" and rest:
        if rest.endswith(".py") and not os.path.isfile(rest):
            raise InvalidText(
                f"devices: there is no file {rest}", "name a Python file, or the entry point of a package"
            )
        return PluginDevices(rest)
    if name in _ROOTED and (not colon or os.path.isdir(rest)):
        return _ROOTED[name](Path(rest or "/"))
    if colon or name not in ("nvml", "none"):
        raise InvalidText(f"devices: {text!r} is no device driver", _HINT)
    if name == "none":
        return NoDevices()
    return NvmlDevices()


def _simulated(text: str, rest: str, agent_id: AgentId, faults: Path | None) -> DeviceDriver:
    count, colon, model = rest.partition(":")
    if not (count.isascii() and count.isdecimal()):
        raise InvalidText(f"devices: {text!r} does not say how many", _HINT)
    if len(count) > 9 or int(count) > MAX_DEVICES:
        raise InvalidText(f"devices: {count} simulated devices are too many", f"at most {MAX_DEVICES}")
    if colon and (not model.strip() or not model.isprintable() or len(model) > 96):
        raise InvalidText(f"devices: {text!r} has no usable model", _HINT)
    return SimulatedDevices(agent_id, int(count), model.strip() or DEFAULT_MODEL, faults)

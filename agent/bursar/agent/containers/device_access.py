"""How a Docker container gets devices: what the engine can do decides (found when the agent starts, shown by `bursar-agent doctor`).

In this order: the vendor's own runtime, told the uuids; the engine's Container Device Interface (CDI), told the names in the
vendor's specification; explicit device nodes, for images that bring the vendor's libraries along.
"""

from __future__ import annotations

import enum
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from docker.types import DeviceRequest

from bursar.agent.containers.runtime import Decoration, LaunchFailed
from bursar.core.tasks import StatusReason

log = logging.getLogger(__name__)

#: Kinds of CDI under which a vendor lists its GPUs by their uuids.
GPU_KINDS = ("nvidia.com/gpu",)
_MAX_SPEC_BYTES = 4 * 2**20


class Way(enum.Enum):
    """How GPUs get into a container."""

    RUNTIME = "NVIDIA's runtime"
    CDI = "CDI"
    NODES = "device nodes"


@dataclass(frozen=True, slots=True)
class EngineDevices:
    """What an engine can do with devices."""

    has_nvidia_runtime: bool = False
    #: Where it looks for specifications; empty: it has no CDI, or it is switched off.
    cdi_directories: tuple[str, ...] = ()
    #: The names in them: `nvidia.com/gpu=GPU-…`.
    cdi_names: frozenset[str] = frozenset()

    @property
    def has_cdi(self) -> bool:
        """Whether it takes names of CDI at all."""
        return bool(self.cdi_directories)

    def cdi_name(self, uuid: str) -> str | None:
        """What CDI calls a GPU."""
        return next((name for kind in GPU_KINDS if (name := f"{kind}={uuid}") in self.cdi_names), None)

    def way(self, uuids: Iterable[str]) -> Way:
        """How these GPUs would be given."""
        if self.has_nvidia_runtime:
            return Way.RUNTIME
        return Way.CDI if all(self.cdi_name(uuid) for uuid in uuids) else Way.NODES


def engine_devices(info: Mapping[str, Any]) -> EngineDevices:
    """Read what an engine says of itself (`GET /info`), and the specifications that an older one does not list. Blocks."""
    directories = tuple(str(path) for path in info.get("CDISpecDirs") or ())
    listed = {
        str(device.get("ID", "")) for device in info.get("DiscoveredDevices") or () if device.get("Source") == "cdi"
    }
    return EngineDevices(
        "nvidia" in (info.get("Runtimes") or {}), directories, frozenset(listed) or names_in(map(Path, directories))
    )


def names_in(directories: Iterable[Path]) -> frozenset[str]:
    """The qualified names of all devices in specifications; one that cannot be read is warned about."""
    found: set[str] = set()
    for directory in directories:
        paths = sorted(directory.glob("*")) if directory.is_dir() else []
        for path in paths:
            if path.suffix not in (".json", ".yaml", ".yml"):
                continue
            try:
                if path.stat().st_size > _MAX_SPEC_BYTES:
                    raise ValueError("too long")
                text = path.read_text(encoding="utf-8")
                spec = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
                found.update(f"{spec['kind']}={device['name']}" for device in spec["devices"])
            except (OSError, ValueError, TypeError, KeyError, yaml.YAMLError) as error:
                log.warning("%s is no specification of CDI devices: %s", path, error)
    return frozenset(found)


def access(decoration: Decoration, engine: EngineDevices) -> tuple[list[DeviceRequest] | None, list[str] | None]:
    """Device requests and nodes for `create_host_config`. Raises LaunchFailed where the engine cannot give what is wanted."""
    requests: list[DeviceRequest] = []
    nodes = list(decoration.device_nodes)
    names = list(decoration.cdi)
    if names and not engine.has_cdi:
        raise LaunchFailed(
            StatusReason.LAUNCH_FAILED,
            f"the Docker engine has no CDI, by which {names[0]} is to be given: use Docker 25 or newer with"
            ' {"features": {"cdi": true}} in its daemon.json (`bursar-agent doctor` says what there is)',
        )
    if uuids := list(decoration.device_requests):
        way = engine.way(uuids)
        if way is Way.CDI:
            names = [*(name for uuid in uuids if (name := engine.cdi_name(uuid))), *names]
        elif way is Way.RUNTIME or not decoration.fallback_nodes:
            # Without any way the engine says itself what it lacks.
            requests.append(DeviceRequest(device_ids=uuids, capabilities=[["gpu"]]))
            # By themselves the engine knows nothing of the nodes that NVIDIA's runtime lets in, and whoever has it write its rules
            # anew takes them away (pain 3).
            nodes = [*decoration.fallback_nodes, *nodes]
        else:
            nodes = [*decoration.fallback_nodes, *nodes]
    if names:
        requests.append(DeviceRequest(driver="cdi", device_ids=names))
    return requests or None, _as_arguments(nodes) or None


def _as_arguments(nodes: Sequence[str]) -> list[str]:
    return [f"{node}:{node}:rwm" for node in dict.fromkeys(nodes)]

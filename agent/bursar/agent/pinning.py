"""Pinning: the complete environment of a task, so that it sees exactly the devices it was granted.

Pure: what is written here does not depend on the machine. In `docker` the sandbox is mounted at `CONTAINER_SANDBOX` and the
variables name the paths inside the container; in `process` they name the paths of the host.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from bursar.core.device_names import native_id, parent_of
from bursar.core.devices import Device
from bursar.core.ids import DeviceUuid, TaskId
from bursar.core.resources import GPUS
from bursar.core.tasks import PINNING_VARIABLES, AssignedTask, EnvironmentVariable

#: Where a container sees its sandbox.
CONTAINER_SANDBOX = "/mnt/bursar/sandbox"
#: Name of the devices file in the sandbox.
DEVICES_FILE = "bursar-devices.json"

_DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_DEFAULT_LANG = "C.UTF-8"


def visible_devices(uuids: Sequence[str]) -> dict[str, str]:
    """The variables by which CUDA and the NVIDIA container runtime choose; without devices both see none."""
    joined = ",".join(uuids)
    return {"CUDA_VISIBLE_DEVICES": joined, "NVIDIA_VISIBLE_DEVICES": joined or "void"}


def visible_id(device: Device) -> str:
    """What a library is told to find a device: as the driver says (attribute `visible_as`), else the driver's own name of it."""
    return device.attributes.get("visible_as") or native_id(device.uuid)


def is_gpu(device: Device) -> bool:
    """Whether it is a GPU, a slice or a share of one, so that CUDA's variables speak of it."""
    return device.kind == GPUS or parent_of(device.uuid) is not None


def granted_devices(task: AssignedTask, known: Mapping[DeviceUuid, Device]) -> tuple[Device, ...]:
    """The devices of a task in the order granted: as its specification named them, the others by index.

    Raises KeyError for a device that this agent does not have.
    """
    named = {uuid: position for position, uuid in enumerate(task.spec.resources.devices)}
    devices = [known[uuid] for uuid in task.device_uuids]
    devices.sort(key=lambda device: (named.get(device.uuid, len(named)), device.index, device.uuid))
    return tuple(devices)


def sandbox_as_seen(runtime: str, sandbox: Path) -> str:
    """Path of the sandbox as the task sees it."""
    return CONTAINER_SANDBOX if runtime == "docker" else str(sandbox)


def task_environment(
    *,
    task_id: TaskId,
    variables: Iterable[EnvironmentVariable],
    granted: Sequence[Device],
    runtime: str,
    sandbox: Path,
    agent_environment: Mapping[str, str],
    decoration: Mapping[str, str] | None = None,
    pinning: Mapping[str, str] | None = None,
    ports: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Everything that stands in the environment of a task, and nothing else of the agent's.

    `agent_environment` is read for `PATH` and `LANG` only, and only for a `process` task; a container has those of its
    image. The user's own variables win over these and over `decoration`, never over PINNING_VARIABLES, `ports` and `pinning`, which is
    what the drivers say of devices that are not chosen by CUDA's variables.
    """
    seen = sandbox_as_seen(runtime, sandbox)
    result: dict[str, str] = {}
    if runtime != "docker":
        result["PATH"] = agent_environment.get("PATH") or _DEFAULT_PATH
        result["HOME"] = seen
        result["LANG"] = agent_environment.get("LANG") or _DEFAULT_LANG
    said = {**(decoration or {}), **{variable.name: variable.value for variable in variables}}
    result.update((name, value) for name, value in said.items() if name not in PINNING_VARIABLES)
    result.update(visible_devices([visible_id(device) for device in granted if is_gpu(device)]))
    result.update(pinning or {})
    result.update(ports or {})
    result["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
    result["BURSAR_TASK_ID"] = task_id
    result["BURSAR_SANDBOX"] = seen
    result["BURSAR_DEVICES_FILE"] = f"{seen}/{DEVICES_FILE}"
    return result


def devices_file_content(granted: Sequence[Device]) -> str:
    """The JSON of `BURSAR_DEVICES_FILE`: a list in the order granted, one object per device, keys in snake_case.

    `links` names granted devices only: a task learns nothing of the others (F108-10).
    """
    mine = {device.uuid for device in granted}
    return (
        json.dumps(
            [
                {
                    "uuid": device.uuid,
                    "kind": device.kind,
                    "model": device.model,
                    "mem_bytes": device.mem_bytes,
                    "index": device.index,
                    "numa_node": device.numa_node,
                    "pci_address": device.pci_address,
                    "parent_uuid": device.parent_uuid,
                    "visible_as": visible_id(device),
                    "attributes": dict(device.attributes),
                    "links": [
                        {"peer_uuid": link.peer_uuid, "kind": link.kind, "strength": link.strength}
                        for link in device.links
                        if link.peer_uuid in mine
                    ],
                }
                for device in granted
            ],
            indent=2,
        )
        + "\n"
    )

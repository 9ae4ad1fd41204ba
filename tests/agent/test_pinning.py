"""A task sees its devices and its own variables, and nothing else of the agent's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bursar.agent.pinning import (
    CONTAINER_SANDBOX,
    devices_file_content,
    granted_devices,
    task_environment,
)
from bursar.core.devices import Device, DeviceLink
from bursar.core.ids import DeviceUuid, FrameworkId, TaskId
from bursar.core.resources import UNRESERVED, ReservedResources, ResourceRequest, Resources
from bursar.core.tasks import EXECUTOR_SOCKET, PINNING_VARIABLES, AssignedTask, EnvironmentVariable, TaskSpec

A, B, C = (DeviceUuid(f"GPU-{n * 8}-0000-0000-0000-000000000000") for n in "abc")
DEVICES = {
    uuid: Device(uuid, "gpus", "H100", 80 * 2**30, index, 0, f"00000000:{index:02x}:00.0")
    for index, uuid in enumerate((B, C, A))
}
AGENT = {"PATH": "/agents/bin:/bin", "LANG": "de_DE.UTF-8", "HOME": "/root", "AWS_SECRET": "x", "LD_PRELOAD": "y"}


def environment(
    granted: tuple[Device, ...] = (),
    variables: tuple[tuple[str, str], ...] = (),
    runtime: str = "process",
    decoration: dict[str, str] | None = None,
) -> dict[str, str]:
    return task_environment(
        task_id=TaskId("t"),
        variables=[EnvironmentVariable(*variable) for variable in variables],
        granted=granted,
        runtime=runtime,
        sandbox=Path("/srv/sandboxes/t"),
        agent_environment=AGENT,
        decoration=decoration,
    )


def test_devices_are_named_in_the_order_granted() -> None:
    seen = environment((DEVICES[C], DEVICES[A]))
    assert seen["CUDA_VISIBLE_DEVICES"] == f"{C},{A}" == seen["NVIDIA_VISIBLE_DEVICES"]


def test_without_devices_none_are_seen() -> None:
    seen = environment()
    assert (seen["CUDA_VISIBLE_DEVICES"], seen["NVIDIA_VISIBLE_DEVICES"]) == ("", "void")


def test_a_process_sees_its_own_environment_and_nothing_else() -> None:
    assert environment(variables=(("MINE", "1"),)) == {
        "PATH": "/agents/bin:/bin",
        "HOME": "/srv/sandboxes/t",
        "LANG": "de_DE.UTF-8",
        "MINE": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "NVIDIA_VISIBLE_DEVICES": "void",
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        "BURSAR_TASK_ID": "t",
        "BURSAR_SANDBOX": "/srv/sandboxes/t",
        "BURSAR_DEVICES_FILE": "/srv/sandboxes/t/bursar-devices.json",
    }


def test_a_container_keeps_its_images_own_and_sees_paths_inside() -> None:
    seen = environment(runtime="docker")
    assert not seen.keys() & {"PATH", "HOME", "LANG"}
    assert seen["BURSAR_SANDBOX"] == CONTAINER_SANDBOX == "/mnt/bursar/sandbox"
    assert seen["BURSAR_DEVICES_FILE"] == "/mnt/bursar/sandbox/bursar-devices.json"


@pytest.mark.parametrize("runtime", ["process", "docker"])
def test_users_cannot_pin_themselves_nor_can_drivers(runtime: str) -> None:
    lies = tuple((name, "lie") for name in sorted(PINNING_VARIABLES))
    assert environment((DEVICES[A],), lies, runtime) == environment((DEVICES[A],), (), runtime)
    assert environment((DEVICES[A],), (), runtime, dict(lies)) == environment((DEVICES[A],), (), runtime)
    assert environment().keys() >= PINNING_VARIABLES - {EXECUTOR_SOCKET}, "which executors have"


def test_user_wins_over_defaults_and_decoration() -> None:
    seen = environment(variables=(("PATH", "/mine"), ("NCCL", "u")), decoration={"NCCL": "d", "DRIVER": "d"})
    assert (seen["PATH"], seen["NCCL"], seen["DRIVER"]) == ("/mine", "u", "d")


@pytest.mark.parametrize(("named", "order"), [((), [B, C, A]), ((A, B, C), [A, B, C]), ((C, A, B), [C, A, B])])
def test_order_is_the_users_else_the_drivers(named: tuple[DeviceUuid, ...], order: list[DeviceUuid]) -> None:
    spec = TaskSpec(TaskId("t"), resources=ResourceRequest(gpus=3, devices=named))
    held = ReservedResources(UNRESERVED, Resources(devices=frozenset(DEVICES)))
    task = AssignedTask(FrameworkId("f"), "*", spec, (held,))
    assert [device.uuid for device in granted_devices(task, DEVICES)] == order
    with pytest.raises(KeyError):
        granted_devices(task, {})


def test_devices_file_describes_what_was_granted_alone() -> None:
    links = (DeviceLink(B, "nvlink", 12), DeviceLink(C, "nvlink", 12))
    first = Device(A, "gpus", "H100", 1024, 2, None, "00000000:02:00.0", links=links)
    described = json.loads(devices_file_content([first, DEVICES[C]]))
    assert [device["uuid"] for device in described] == [A, C]
    assert described[0] == {
        "uuid": A,
        "kind": "gpus",
        "model": "H100",
        "mem_bytes": 1024,
        "index": 2,
        "numa_node": None,
        "pci_address": "00000000:02:00.0",
        "parent_uuid": "",
        "visible_as": A,
        "attributes": {},
        "links": [{"peer_uuid": C, "kind": "nvlink", "strength": 12}],
    }
    assert json.loads(devices_file_content([])) == []

"""The network of a task group: that of a container which does nothing else, so that no task has to outlive the others.

Its image is made here, of one program of a few instructions that waits for ever: nothing is pulled, nothing else is in it.
"""

from __future__ import annotations

import io
import platform
import struct
import tarfile
from collections.abc import Sequence
from typing import Any

import docker.errors

from bursar.agent.containers.docker_engine import LABEL_AGENT, DockerEngine, published_ports, words_of
from bursar.agent.containers.runtime import LaunchFailed, NetworkId
from bursar.agent.service_ports import engine_conflict
from bursar.core.service_ports import ServicePort
from bursar.core.tasks import StatusReason

#: On a holder: the network that it holds. Not the label of a task's container: nobody counts it as one.
LABEL_NETWORK = "bursar.network_id"
_REPOSITORY, _TAG = "bursar/holds-network", "1"
_ADDRESS = 0x400000
_HEADERS = 64 + 56
#: Machine (of ELF) and instructions that call the kernel's `pause`, or what is like it, again and again.
_WAITS = {
    "x86_64": (62, bytes.fromhex("b8220000000f05ebf7")),  # mov eax,34 (pause); syscall; jmp back
    # mov x0..x4,0; mov x8,73 (ppoll of nothing, for ever); svc 0; b back
    "aarch64": (183, bytes.fromhex("000080d2010080d2020080d2030080d2040080d2280980d2010000d4f9ffff17")),
}


def program(machine: str) -> bytes:
    """An ELF file that waits for ever, for a machine as `uname -m` names it. Raises KeyError."""
    number, code = _WAITS[machine]
    size = _HEADERS + len(code)
    identity = b"\x7fELF" + bytes((2, 1, 1, 0)) + bytes(8)
    header = struct.pack("<HHIQQQIHHHHHH", 2, number, 1, _ADDRESS + _HEADERS, 64, 0, 0, 64, 56, 1, 64, 0, 0)
    segment = struct.pack("<IIQQQQQQ", 1, 5, 0, _ADDRESS, _ADDRESS, size, size, 0x1000)
    return identity + header + segment + code


def ensure_holder(engine: DockerEngine, network_id: NetworkId, services: Sequence[ServicePort] = ()) -> str:
    """Have the container that holds a network, running, and with it the ports by which others reach those who share it.

    Returns the network mode of those who do. Blocks.

    Raises LaunchFailed, and what the engine raises.
    """
    if engine.network_mode == "host" or engine.network_mode.startswith("container:"):
        return engine.network_mode
    try:
        _create(engine, network_id, services)
    except docker.errors.ImageNotFound:
        _make_image(engine)
        _create(engine, network_id, services)
    try:
        engine.api.start(str(network_id))
    except docker.errors.APIError as error:
        words = words_of(error)
        # It is there, but does not run: whoever comes next would meet the same.
        release_holder(engine, network_id)
        raise engine_conflict(words, services) or LaunchFailed(
            StatusReason.LAUNCH_FAILED, f"the network of its group cannot be made: {words}"
        ) from error
    return f"container:{network_id}"


def release_holder(engine: DockerEngine, network_id: NetworkId) -> None:
    """Remove it. Idempotent; blocks; raises what the engine raises."""
    engine.remove(network_id, force=True)  # type: ignore[arg-type]


def sweep_holders(engine: DockerEngine) -> None:
    """Remove those that no running container needs: their groups ended while nobody looked. Blocks."""
    needed = {
        (one.get("HostConfig") or {}).get("NetworkMode", "").removeprefix("container:")
        for one in engine.api.containers(filters={"label": f"{LABEL_AGENT}={engine.agent_id}"})
    }
    for one in engine.api.containers(all=True, filters={"label": [f"{LABEL_AGENT}={engine.agent_id}", LABEL_NETWORK]}):
        network_id = NetworkId(one["Labels"][LABEL_NETWORK])
        if network_id not in needed and one["Id"] not in needed:
            release_holder(engine, network_id)


def _create(engine: DockerEngine, network_id: NetworkId, services: Sequence[ServicePort]) -> None:
    published = published_ports(services, engine.network_mode)
    config: dict[str, Any] = engine.api.create_container_config(
        image=f"{_REPOSITORY}:{_TAG}",
        entrypoint=["/wait"],
        command=None,
        labels={LABEL_AGENT: engine.agent_id, LABEL_NETWORK: network_id},
        ports=[(one.container_port, str(one.protocol)) for one in services] if published else None,
        host_config=engine.api.create_host_config(
            network_mode=engine.network_mode,
            port_bindings=published or None,
            read_only=True,
            cap_drop=["ALL"],
            security_opt=["no-new-privileges"],
            pids_limit=4,
            mem_limit=6 * 2**20,
            memswap_limit=6 * 2**20,
        ),
    )
    try:
        engine.api.create_container_from_config(config, str(network_id))
    except docker.errors.ImageNotFound:
        raise
    except docker.errors.APIError as error:
        # Another task of the group was faster.
        if error.status_code != 409:
            if error.status_code == 404:
                raise docker.errors.ImageNotFound(str(error), error.response, error.explanation) from error
            raise


def _make_image(engine: DockerEngine) -> None:
    machine = platform.machine()
    if machine not in _WAITS:
        raise LaunchFailed(
            StatusReason.LAUNCH_FAILED,
            f"task groups in containers are not supported on {machine}: run the group on another agent",
        )
    content, archive = program(machine), io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        entry = tarfile.TarInfo("wait")
        entry.size, entry.mode = len(content), 0o755
        tar.addfile(entry, io.BytesIO(content))
    engine.api.import_image_from_data(archive.getvalue(), _REPOSITORY, _TAG)

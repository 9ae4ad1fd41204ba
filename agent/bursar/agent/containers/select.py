"""From the value of `--runtime` to a container runtime."""

from __future__ import annotations

from pathlib import Path

from bursar.agent.containers.docker import DockerRuntime
from bursar.agent.containers.process import ProcessRuntime
from bursar.agent.containers.runtime import ContainerRuntime
from bursar.core.errors import InvalidText
from bursar.core.ids import AgentId

RUNTIMES = ("docker", "process")


def runtime_for(text: str, agent_id: AgentId, work_dir: Path) -> ContainerRuntime:
    """The runtime that `text` names; it touches neither engine nor disk before `open`. Raises InvalidText."""
    name = text.strip()
    if name == "docker":
        return DockerRuntime(agent_id)
    if name == "process":
        return ProcessRuntime(work_dir / "containers")
    raise InvalidText(f"runtime: {text!r} is no container runtime", f"write {' or '.join(RUNTIMES)}")

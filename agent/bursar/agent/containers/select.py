"""From the value of `--runtime` to a container runtime."""

from __future__ import annotations

from pathlib import Path

from bursar.agent.containers.process import ProcessRuntime
from bursar.agent.containers.runtime import ContainerRuntime
from bursar.core.errors import InvalidText
from bursar.core.ids import AgentId

RUNTIMES = ("docker", "process")


def runtime_for(text: str, agent_id: AgentId, work_dir: Path) -> ContainerRuntime:
    """The runtime that `text` names; it touches neither engine nor disk before `open`. Raises InvalidText."""
    name = text.strip()
    if name == "docker":
        # Only here: an agent without an engine need not carry its client (20 MiB).
        from bursar.agent.containers.docker import DockerRuntime

        return DockerRuntime(agent_id)
    if name == "process":
        return ProcessRuntime(work_dir / "containers")
    raise InvalidText(f"runtime: {text!r} is no container runtime", f"write {' or '.join(RUNTIMES)}")

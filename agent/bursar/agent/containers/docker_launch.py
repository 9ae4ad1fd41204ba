"""Starting one container of a Docker engine: its steps, and what undoes those done where one fails.

All of it blocks: it belongs in a thread.
"""

from __future__ import annotations

import contextlib
import logging

from bursar.agent.containers.docker_engine import ENGINE_ERRORS, DockerEngine, Phase, Seen
from bursar.agent.containers.docker_network import ensure_holder
from bursar.agent.containers.docker_watch import Watched
from bursar.agent.containers.limits import give_to_user
from bursar.agent.containers.runtime import ContainerExit, ContainerSpec, LaunchFailed
from bursar.agent.service_ports import engine_conflict
from bursar.core.tasks import StatusReason

log = logging.getLogger(__name__)


def launch(engine: DockerEngine, spec: ContainerSpec, watched: Watched) -> ContainerExit | None:
    """Create and start a container, and look at its processes from then on.

    Returns its end where it has one already: its command cannot be run, or an earlier life of this agent started it. Raises
    LaunchFailed; ImageNotFound, DockerException and CONNECTION_ERRORS as the engine does.
    """
    give_to_user(spec)
    if (earlier := _create(engine, spec)) is not None:
        return earlier.exit
    try:
        end = engine.start(spec.container_id)
    except LaunchFailed as error:
        with contextlib.suppress(*ENGINE_ERRORS):
            engine.remove(spec.container_id, force=True)
        if conflict := engine_conflict(error.message, spec.service_ports):
            raise conflict from error
        if _gives_up_locked_memory(engine, error):
            return launch(engine, spec, watched)
        raise
    if end is not None:
        with contextlib.suppress(OSError), open(spec.sandbox / "stderr", "ab") as file:
            file.write(f"{end.message}\n".encode())
        return end
    if (seen := engine.inspect(spec.container_id)) is not None:
        watched.witness_of(seen.pid)
    return None


def _create(engine: DockerEngine, spec: ContainerSpec) -> Seen | None:
    """Create it anew; None. Or what an earlier life of this agent has started under this name: never twice."""
    network_mode = ensure_holder(engine, spec.network_id, spec.network_ports) if spec.network_id else ""
    try:
        engine.create(spec, network_mode)
    except FileExistsError:
        taken = engine.inspect(spec.container_id)
        if taken is not None and taken.agent_id != engine.agent_id:
            raise LaunchFailed(
                StatusReason.LAUNCH_FAILED,
                f"a container that is not ours has the name {spec.container_id}: remove it",
            ) from None
        if taken is not None and taken.phase is not Phase.CREATED:
            return taken
        engine.remove(spec.container_id, force=True)
        engine.create(spec, network_mode)
    return None


def _gives_up_locked_memory(engine: DockerEngine, error: LaunchFailed) -> bool:
    """Whether it failed at the limit of locked memory, which this engine is not asked to raise again."""
    if "setting rlimit" not in error.message or not engine.facts.raises_memlock:
        return False
    engine.facts.raises_memlock = False
    log.warning("this engine may not raise the limit of locked memory: pinned memory is advisory here")
    return True

"""Whether persistent volumes keep what was written on them (VOL-2): against the registry and what really runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable

from bursar.agent.containers.runtime import ContainerId
from bursar.agent.effects import KeepVolumes
from bursar.core.ids import AgentId, DeviceUuid
from bursar.master.records import Durable
from bursar.master.state import Agent
from bursar.simulation.checkers.verdicts import Judge, require
from bursar.simulation.containers import SimulatedContainer

#: An order may have been on its way for so long.
SLACK_MS = 120_000


class VolumeJudge(Judge):
    """Of what agents do with the data of volumes, and of the containers that mount them."""

    def __init__(self, verdicts: Counter[str]) -> None:
        super().__init__(verdicts)
        #: Since when the registry has known that it was made.
        self._made_at: dict[tuple[AgentId, DeviceUuid], int] = {}

    def carries_out(
        self,
        agent_id: AgentId,
        effect: KeepVolumes,
        data: Collection[DeviceUuid],
        durable: Durable,
        live: Iterable[SimulatedContainer],
        now_ms: int,
    ) -> None:
        """Only what was destroyed is removed, and not from under a task; what was made once is not made again."""
        known = durable.agents[agent_id]
        for uuid in effect.remove:
            if uuid in data:
                self._judged("data is removed by an order alone")
                require(uuid in known.leaving_volumes, f"{agent_id} removes {uuid}, which nobody has destroyed")
            for container in live:
                require(
                    uuid not in container.volumes,
                    f"{agent_id} removes {uuid} from under {container.container_id}",
                )
        made_at = self._made_at
        made = {volume.uuid for volume in known.volumes if volume.made}
        for uuid in made:
            made_at.setdefault((agent_id, uuid), now_ms)
        for key in [key for key in made_at if key[0] == agent_id and key[1] not in made]:
            del made_at[key]
        for uuid in effect.make:
            if uuid not in data and uuid in made:
                self._judged("what was made once is not made again")
                age_ms = now_ms - made_at[agent_id, uuid]
                require(age_ms < SLACK_MS, f"{agent_id} makes {uuid} anew, as if nothing had been lost")

    def began(
        self,
        agent_id: AgentId,
        container: SimulatedContainer,
        data: Collection[DeviceUuid],
        durable: Durable,
        live: Iterable[SimulatedContainer],
        forgotten: Collection[ContainerId],
    ) -> None:
        """A container mounts volumes that are there, are recorded, and are nobody else's."""
        for uuid in container.volumes:
            self._judged("a volume is one task's, and recorded")
            known = durable.agents[agent_id]
            recorded = {volume.uuid for volume in known.volumes} | set(known.leaving_volumes)
            require(uuid in recorded, f"{container.container_id} mounts {uuid}, of which there is no record")
            require(uuid in data, f"{container.container_id} mounts {uuid}, whose data is not there")
            for other in live:
                if other is not container and other.container_id not in forgotten:
                    require(
                        uuid not in other.volumes,
                        f"{container.container_id} and {other.container_id} both mount {uuid}",
                    )


def unsettled_volumes(agent: Agent, data: Collection[DeviceUuid]) -> list[str]:
    """What of an agent's volumes is not as it must be once faults have stopped."""
    wrong, volumes = [], agent.volumes
    if volumes.leaving:
        wrong.append(f"{agent.agent_id}: {sorted(volumes.leaving)} were destroyed, and are not gone")
    for uuid, volume in volumes.kept.items():
        if not volume.made and uuid not in volumes.troubles:
            wrong.append(f"{agent.agent_id}: {uuid} was never made")
    if strays := set(data) - volumes.kept.keys() - volumes.leaving - volumes.strays:
        wrong.append(f"{agent.agent_id} has {sorted(strays)}, and nobody was told")
    return wrong

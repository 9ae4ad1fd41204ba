"""What the containers of a simulated machine use of the cards that they have shares of: as much as is theirs, and now and then more."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from random import Random
from typing import TYPE_CHECKING

from bursar.agent.containers.runtime import ContainerId
from bursar.agent.devices.users import DeviceUser
from bursar.core.device_names import parent_of
from bursar.core.ids import DeviceUuid
from bursar.simulation.containers import SimulatedContainer
from bursar.simulation.timeline import Timeline

if TYPE_CHECKING:
    from bursar.simulation.agents import AgentNode

#: Less patient than in life, so that an end is seen.
SHARE_GRACE_MS = 4_000


class SimulatedShares:
    """Of one machine; some declare their GPUs as shares, most do not."""

    def __init__(self, node: AgentNode, random: Random, timeline: Timeline) -> None:
        self._node = node
        self._random = random
        self._timeline = timeline
        #: Where an agent's driver can tell, those who are greedy are ended.
        self._enforcement = ""
        self.declare(random.choice(("", "", "none", "soft", "soft")))
        self._greedy: dict[ContainerId, SimulatedContainer] = {}

    def declare(self, enforcement: str) -> None:
        """Every GPU is a share, with this to hold tasks to it, from the agent's next life on; empty: none is."""
        self._enforcement = enforcement
        self._node.gpus.share(enforcement)

    def strike(self, for_ms: int) -> None:
        """Some container is greedy, for a while or for good."""
        live = [
            container for container in self._outer() if not self._is_greedy(container) and dict(self._held(container))
        ]
        if not self._enforcement or not live:
            return
        container = self._random.choice(live)
        self._node.note(f"{container.container_id} uses more than its share")
        self._greedy[container.container_id] = container
        if self._random.random() < 0.5:
            self._timeline.after(self._random.randint(1, for_ms), self._content, container)

    def users(self, uuids: Iterable[DeviceUuid]) -> dict[DeviceUuid, tuple[DeviceUser, ...] | None]:
        """Who uses each of these, and how much."""
        sizes = {device.uuid: device.mem_bytes for device in self._node.gpus.all}
        users: dict[DeviceUuid, tuple[DeviceUser, ...] | None] = dict.fromkeys(uuids, ())
        for container in self._outer():
            more = int(self._is_greedy(container))
            for uuid, _ in self._held(container):
                if uuid in users:
                    users[uuid] = (DeviceUser(1, "simulated", sizes[uuid] + more, container.container_id),)
        return users

    def answers(self) -> bool:
        """Whether the driver says something this time."""
        return self._random.random() >= self._node.containers.faults.silent_driver_chance

    def unsettled(self) -> list[str]:
        """Who should have been ended once everything had time to come right."""
        if self._enforcement != "soft" or not self._node.tells_users:
            return []
        return [
            f"{container.container_id} uses more than its share, and is not ended"
            for container in self._outer()
            if self._is_greedy(container) and dict(self._held(container))
        ]

    def _content(self, container: SimulatedContainer) -> None:
        if self._greedy.get(container.container_id) is container:
            del self._greedy[container.container_id]

    def _is_greedy(self, container: SimulatedContainer) -> bool:
        return self._greedy.get(container.container_id) is container

    def _outer(self) -> list[SimulatedContainer]:
        return [container for container in self._node.containers.containers.values() if container.live]

    def _held(self, container: SimulatedContainer) -> Iterator[tuple[DeviceUuid, SimulatedContainer]]:
        """Its devices, and those of what runs within it; not slices, which nobody can use more of than there is."""
        within = self._node.containers.within.values()
        for one in (container, *(inner for outer, inner in within if outer == container.container_id and inner.live)):
            for uuid in one.devices:
                if parent_of(uuid) is None:
                    yield uuid, one

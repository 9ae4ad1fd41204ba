"""Frameworks whose tasks keep something."""

from __future__ import annotations

from typing import Any

from bursar.core.device_names import is_volume
from bursar.core.messages.offers import CreateVolume, DestroyVolume, Launch, Offer, Reserve
from bursar.core.resources import ResourceRequest, sum_resources
from bursar.core.surroundings import Volume, VolumeKind, VolumeMode
from bursar.simulation.frameworks.greedy import Greedy

_GIB = 1 << 30


class Keeping(Greedy):
    """Reserves disk, makes volumes of it, runs tasks on them, and destroys some."""

    def on_offer(self, offer: Offer) -> None:
        """A task on what volumes there are; or a volume for the next one."""
        random = self.random
        total = sum_resources(part.resources for part in offer.resources)
        cpus = total.scalars.get("cpus", 0)
        volumes = sorted(uuid for uuid in total.devices if is_volume(uuid))
        if self.world.calm or offer.revocable or not cpus:
            self.decline(offer, 1_000)
            return
        operations: list[Any] = []
        mounted = [uuid.rpartition("/")[2] for uuid in volumes]
        if volumes and random.random() < 0.3:
            gone = volumes[0]
            operations.append(DestroyVolume(offer.agent_id, gone))
            mounted.remove(gone.rpartition("/")[2])
        elif random.random() < 0.5:
            size, volume_id = random.choice((1, 2, 70)) * _GIB, random.choice(("a", "b", "c"))
            if random.random() < 0.7:
                operations.append(Reserve(offer.agent_id, ResourceRequest({"disk": size}), offer.role))
            operations.append(CreateVolume(offer.agent_id, volume_id, size))
            if volume_id not in mounted and random.random() < 0.7:
                mounted.append(volume_id)
        spec = self.task(
            ResourceRequest({"cpus": max(1, cpus // 4)}),
            offer.agent_id,
            run_ms=random.choice((0, 50, 2_000, 20_000)),
            volumes=tuple(
                Volume(VolumeKind.PERSISTENT, volume_id, f"/data/{volume_id}", VolumeMode.READ_WRITE)
                for volume_id in dict.fromkeys(mounted)
            ),
        )
        operations.append(Launch((spec,)))
        self.accept([offer.offer_id], operations, refuse_ms=random.choice((0, 500)), partial=random.random() < 0.2)

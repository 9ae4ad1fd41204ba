"""An offer as an author sees it: what is left shrinks with every task that is yielded."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from bursar.core.device_names import device_kind, devices_of_kind, gpus_among, is_volume
from bursar.core.devices import Device
from bursar.core.errors import BursarError, ErrorDetail, ErrorReason
from bursar.core.ids import AgentId, DeviceUuid
from bursar.core.messages import offers as messages
from bursar.core.messages.gangs import BundleMember
from bursar.core.resources import CPUS, DISK, MEM, MILLI, ResourceRequest, Resources, sum_resources
from bursar.core.role_expressions import plain_holder
from bursar.core.surroundings import process_problem, volumes_named
from bursar.core.text import format_amount, format_resources, format_shortfall
from bursar.core.volumes import mounted_volumes, read_volume, volume_device, volume_problem, volumes_by_id, volumes_in
from bursar.sdk.amounts import Amount, exact, request
from bursar.sdk.tasks import Task, TaskGroup


class Bundle:
    """Offers of several agents that are taken together, for a gang (`Framework.request_gang`)."""

    def __init__(self, gang_id: str, offers: Sequence[Offer], members: Iterable[BundleMember]) -> None:
        self.gang_id = gang_id
        #: One per agent.
        self.offers = tuple(offers)
        by_agent = {offer.agent_id: offer for offer in self.offers}
        #: A place for each task, group by group.
        self.places = tuple(Place(member.group, by_agent[member.agent_id], member.device_uuids) for member in members)


class Place(NamedTuple):
    """Where one task of a gang goes."""

    #: Index of its group, as asked for.
    group: int
    offer: Offer
    #: With `nvlink`: the linked GPUs that the task gets.
    device_uuids: tuple[str, ...] = ()


class Offer:
    """Resources of one agent, promised to this framework until the author's answer."""

    def __init__(self, offer: messages.Offer, description: messages.AgentDescription) -> None:
        self.id = str(offer.offer_id)
        #: In which of the framework's roles.
        self.role = offer.role
        #: It contains what is lent: its tasks may be ended after a notice (`Framework.on_preempted`).
        self.revocable = offer.revocable
        self.agent_id = str(offer.agent_id)
        self.hostname = description.hostname
        #: name → text or number.
        self.attributes: Mapping[str, str | float] = {
            name: value if isinstance(value, str) else value / MILLI for name, value in description.attributes.items()
        }
        #: `docker` or `process`.
        self.runtime = description.runtime
        #: Whether a task without an image can run there.
        self.runs_without_image = description.runs_without_image
        self._left: Resources = sum_resources(part.resources for part in offer.resources)
        offered = self._left.devices
        by_uuid = {device.uuid: device for device in description.devices}
        #: The devices of the offer, taken ones included. Which of them a task gets is the master's choice, unless it names them.
        self.devices: tuple[Device, ...] = tuple(
            by_uuid.get(uuid) or Device(uuid, device_kind(uuid))
            for uuid in sorted(offered, key=lambda u: (by_uuid[u].index if u in by_uuid else 1 << 30, u))
            if not is_volume(uuid)
        )
        #: Those that it holds or is to hold, taken ones included.
        self._volumes = set(volumes_in(offered))
        #: Disk by the role that it is reserved to: what volumes can be made of.
        self._reserved_disk: dict[str, int] = {}
        # As the master looks for it: the most refined first.
        for part in sorted(offer.resources, key=lambda part: (-len(part.stack), part.stack)):
            if part.stack and (holder := plain_holder(part.stack[-1].holder)) is not None:
                amount = part.resources.scalars.get(DISK, 0)
                self._reserved_disk[holder] = max(amount, self._reserved_disk.get(holder, 0))
        #: What the author has asked for by `create_volume` and `destroy_volume`, in order; for the session.
        self.volume_operations: list[messages.CreateVolume | messages.DestroyVolume] = []
        #: GPUs taken by number: they are any of those left.
        self._counted_gpus = 0

    def __repr__(self) -> str:
        return f"<Offer {self.id} of {self.hostname or self.agent_id}: {self.text}>"

    @property
    def cpus(self) -> float:
        """CPUs left."""
        return self._left.scalars.get(CPUS, 0) / MILLI

    @property
    def mem_bytes(self) -> int:
        """Memory left."""
        return self._left.scalars.get(MEM, 0)

    @property
    def gpus(self) -> int:
        """GPUs left."""
        return self._left.gpus - self._counted_gpus

    @property
    def text(self) -> str:
        """What is left, for people: `cpus:8;mem:16GiB;gpus:4`."""
        others = self._left.devices - gpus_among(self._left.devices)
        text = format_resources(Resources(self._left.scalars, self._left.ports, others))
        parts = [text] if text else []
        return ";".join([*parts, f"gpus:{self.gpus}"] if self.gpus else parts) or "nothing"

    @property
    def volumes(self) -> Mapping[str, int]:
        """The persistent volumes that no task has taken yet: id → bytes. A task mounts one as `volume/ID:/target:rw`."""
        return {volume_id: read_volume(uuid).size_bytes for volume_id, uuid in self._untaken_volumes().items()}

    def _untaken_volumes(self) -> dict[str, DeviceUuid]:
        """What their ids mean: as for the master, of several roles' the deepest role's."""
        return volumes_by_id(self._volumes & self._left.devices)

    def create_volume(self, volume_id: str, size: Amount) -> None:
        """Make a persistent volume of offered disk that is reserved to one role; a task that is yielded after may mount it.

        Raises BursarError where the offer has no such disk, or a volume of that id.
        """
        size_bytes = exact(DISK, size)
        problem = volume_problem(volume_id, size_bytes)
        role = next((role for role, there in self._reserved_disk.items() if there >= size_bytes), None)
        if any(read_volume(uuid).volume_id == volume_id for uuid in self._volumes):
            problem = f"offer {self.id} holds a volume {volume_id!r} already"
        elif not problem and role is None:
            problem = (
                f"offer {self.id} has less than {format_amount(DISK, size_bytes)} of disk that is reserved to a role"
            )
        if problem or role is None:
            hint = "volumes are made of reserved disk: `bursar reserve`, then offers of that role hold some"
            raise BursarError(ErrorDetail(ErrorReason.INVALID_ARGUMENT, problem, hint))
        self._reserved_disk[role] -= size_bytes
        uuid = volume_device(role, volume_id, size_bytes)
        self._volumes.add(uuid)
        taken = Resources({DISK: size_bytes})
        self._left = self._left - taken + Resources(devices=frozenset({uuid}))
        self.volume_operations.append(messages.CreateVolume(AgentId(self.agent_id), volume_id, size_bytes))

    def destroy_volume(self, volume_id: str) -> None:
        """End a persistent volume of this offer that no task has taken, and remove its data. Raises BursarError where there is none."""
        uuid = self._untaken_volumes().get(volume_id)
        if uuid is None:
            problem = f"offer {self.id} holds no volume {volume_id!r} that is not taken"
            raise BursarError(ErrorDetail(ErrorReason.INVALID_ARGUMENT, problem, "see offer.volumes"))
        self._volumes.discard(uuid)
        self._left = self._left - Resources(devices=frozenset({uuid}))
        self.volume_operations.append(messages.DestroyVolume(AgentId(self.agent_id), uuid))

    def amount(self, kind: str) -> float:
        """What is left of any other kind."""
        return self._left.amount(kind) / MILLI

    def fits(
        self,
        task: Task | TaskGroup | ResourceRequest | None = None,
        *,
        cpus: Amount = 0,
        mem: Amount = 0,
        gpus: Amount = 0,
        disk: Amount = 0,
        **custom: Amount,
    ) -> bool:
        """Say whether what is left is enough for a task or a group, or for these amounts. A task's image must be runnable there too.

        Raises InvalidText.
        """
        wanted = request(cpus, mem, gpus, disk, custom=custom)
        if isinstance(task, TaskGroup):
            rest = copy.copy(self)
            for member in task.tasks:
                if not rest.fits(member):
                    return False
                rest.take(member)
            return True
        if isinstance(task, Task):
            mounted = self._mounted(task)
            return mounted is not None and self.image_problem(task) == "" and self._fits(task.request)
        return self._fits(task if task is not None else wanted)

    def image_problem(self, task: Task) -> str:
        """Say why the agent cannot run a task's image, its having none, or its container settings; empty where it can."""
        where = self.hostname or self.agent_id
        if task.image and self.runtime == "process":
            return f"{where} runs plain processes, no images"
        if self.runtime == "process" and (problem := process_problem(task.container, task.parsed_volumes)):
            return f"{where}: {problem[0]}: {problem[1]}"
        if not task.image and not self.runs_without_image and not task.on_executor:
            return f"{where} runs containers and has no default image, and the task names none"
        return ""

    def take(self, task: Task) -> None:
        """For the session: subtract a task. Raises BursarError where it does not fit, by the author's mistake."""
        mounted = self._mounted(task)
        if mounted is None:
            lacking = ", ".join(sorted(set(volumes_named(task.parsed_volumes)) - self.volumes.keys()))
            raise BursarError(
                ErrorDetail(
                    ErrorReason.TASK_INVALID,
                    f"task {task.name or task.command!r} mounts volumes that offer {self.id} does not hold (any more): {lacking}",
                    "ask offer.fits(...) before yielding a task, or offer.create_volume(...)",
                )
            )
        if not self._fits(task.request):
            lacking = (
                format_shortfall(task.request, self._left) or f"gpus: {task.request.gpu_count} wanted, {self.gpus} left"
            )
            raise BursarError(
                ErrorDetail(
                    ErrorReason.TASK_INVALID,
                    f"task {task.name or task.command!r} does not fit what is left of offer {self.id}: {lacking}",
                    "ask offer.fits(...) before yielding a task",
                )
            )
        wanted = task.request
        scalars, devices = dict(wanted.scalars), frozenset(wanted.devices) | mounted
        for kind, amount in wanted.scalars.items():
            if self._left.scalars.get(kind, 0) < amount:
                # A kind of devices: any of them, the master chooses.
                del scalars[kind]
                pool = devices_of_kind(self._left.devices, kind) - devices
                devices |= frozenset(sorted(pool)[: amount // MILLI])
        ports = wanted.pick_ports(self._left.ports) or ()
        self._left = self._left - Resources(scalars, ports, devices)
        self._counted_gpus += wanted.gpu_count - len(gpus_among(frozenset(wanted.devices)))

    def _mounted(self, task: Task) -> frozenset[DeviceUuid] | None:
        """The volumes that a task mounts; None where one is not there, or is taken."""
        names, untaken = volumes_named(task.parsed_volumes), self._volumes & self._left.devices
        found = mounted_volumes(untaken, names, task.request.devices)
        return None if isinstance(found, str) else frozenset(found)

    def _fits(self, wanted: ResourceRequest) -> bool:
        return wanted.gpu_count <= self.gpus and wanted.fits_in(self._left)

"""A simulated GPU that can be cut into instances (MIG): what is really there, whoever believes what."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from bursar.agent.devices.cutting import CannotCut, CardLayout, Part, Profile, Step, next_step, plan, unconfigured
from bursar.core.device_names import device_name
from bursar.core.devices import Device
from bursar.core.layouts import parse_layout

#: As a large card has them: by the first slice of its memory, of eight. The smallest has one of seven slices of the engines.
PROFILES = (
    Profile("1g.10gb", 19, 0, tuple((start, 1) for start in range(7))),
    Profile("2g.20gb", 14, 1, ((0, 2), (2, 2), (4, 2))),
    Profile("3g.40gb", 9, 2, ((0, 4), (4, 4))),
    Profile("4g.40gb", 5, 3, ((0, 4),)),
    Profile("7g.80gb", 0, 4, ((0, 8),)),
)
#: Thousandths of the card, rounded down as a driver does.
_WEIGHT_MILLI = {"1g.10gb": 142, "2g.20gb": 285, "3g.40gb": 428, "4g.40gb": 571, "7g.80gb": 1000}
_BY_ID = {profile.profile_id: profile for profile in PROFILES}


class SimulatedCard:
    """One card. Its driver does what it is told, or says why not; nothing is done by halves."""

    def __init__(self, whole: Device) -> None:
        self._whole = whole
        self.is_cut = False
        #: Switched, and waiting for a restart of the machine.
        self.is_pending = False
        self.parts: dict[int, Part] = {}

    def describe(self, attributes: Mapping[str, str]) -> None:
        """What the whole card says of itself from now on."""
        self._whole = replace(self._whole, attributes=attributes)

    def layout(self) -> CardLayout:
        """What it has, and could have."""
        parts = tuple(sorted(self.parts.values(), key=lambda part: part.start))
        return CardLayout(self.is_cut, self.is_pending, parts if self.is_cut else (), PROFILES)

    def devices(self) -> tuple[Device, ...]:
        """As what it is there: itself, or those instances that can compute; itself, of no use, where it should have some and has none."""
        if not self.is_cut:
            return (self._whole,)
        slices = tuple(
            self._slice(part, compute_id)
            for part in sorted(self.parts.values(), key=lambda one: one.start)
            for compute_id, _ in part.compute
        )
        return slices or (unconfigured(self._whole),)

    def places(self) -> frozenset[tuple[str, int]]:
        """The profile and first slice of each instance that can compute; the whole card is one, too."""
        if not self.is_cut:
            return frozenset([("whole", 0)])
        return frozenset((_BY_ID[part.profile_id].name, part.start) for part in self.parts.values() if part.compute)

    def cut_into(self, layout: str) -> None:
        """Begin as somebody has cut it before."""
        goal = plan(self.layout(), parse_layout(layout))
        while (step := next_step(self.layout(), goal)) is not None:
            self.cut(step, in_use=False, needs_restart=False)

    @property
    def is_bare(self) -> bool:
        """Whether it is switched over to instances, and has none that can compute."""
        return self.is_cut and not any(part.compute for part in self.parts.values())

    def restart(self, forgets: bool) -> None:
        """The machine is started anew: a switch takes effect. `forgets`: no service of the system makes its instances again as they were."""
        if forgets:
            self.parts.clear()
        if self.is_pending:
            self.is_cut, self.is_pending = not self.is_cut, False
            self.parts.clear()

    def cut(self, step: Step, *, in_use: bool, needs_restart: bool) -> None:
        """Do one step. Raises CannotCut."""
        if in_use and step.kind not in ("create", "create-compute"):
            raise CannotCut("In use by another client")
        match step.kind:
            case "enable" | "disable":
                self._switch(step.kind == "enable", needs_restart)
            case "create":
                self._create(step)
            case "create-compute":
                part = self._part(step)
                if part.compute:
                    raise CannotCut("Insufficient Resources")
                self.parts[part.instance_id] = replace(part, compute=((0, step.profile_id),))
            case "destroy-compute":
                part = self._part(step)
                self.parts[part.instance_id] = replace(part, compute=())
            case "destroy":
                part = self._part(step)
                if part.compute:
                    raise CannotCut("In use by another client")
                del self.parts[part.instance_id]

    # --- inside ---

    def _switch(self, on: bool, needs_restart: bool) -> None:
        if self.parts or self.is_pending or on == self.is_cut:
            raise CannotCut("In use by another client")
        if needs_restart:
            self.is_pending = True
        else:
            self.is_cut = on

    def _create(self, step: Step) -> None:
        wanted = set(range(step.start, step.start + step.size))
        taken = {place for part in self.parts.values() for place in range(part.start, part.start + part.size)}
        if not self.is_cut or wanted & taken or (step.start, step.size) not in _BY_ID[step.profile_id].placements:
            raise CannotCut("Insufficient Resources")
        number = next(number for number in range(1, 10) if number not in self.parts)
        self.parts[number] = Part(number, step.profile_id, step.start, step.size)

    def _part(self, step: Step) -> Part:
        part = self.parts.get(step.instance_id)
        if part is None:
            raise CannotCut("Not Found")
        return part

    def _slice(self, part: Part, compute_id: int) -> Device:
        profile, card = _BY_ID[part.profile_id], self._whole
        kind = f"mig-{profile.name}"
        # By its place: what is cut again as it was has the same name, as with a real driver.
        native = f"MIG-{card.uuid}-{part.instance_id}-{compute_id}"
        weight_milli = _WEIGHT_MILLI[profile.name]
        return replace(
            card,
            uuid=device_name(kind, native, parent=card.uuid, weight_milli=weight_milli),
            kind=kind,
            mem_bytes=card.mem_bytes * weight_milli // 1000,
            parent_uuid=card.uuid,
            links=(),
            attributes={"enforcement": "hard"},
        )

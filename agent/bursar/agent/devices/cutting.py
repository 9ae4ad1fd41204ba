"""How a card is cut into instances, step by step, from whatever is there to what is wanted. Pure.

Each step is looked up anew from what the card has at that moment, so that going on after a crash at any point, and undoing what was begun,
are the same as beginning: only the goal differs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from bursar.core.devices import Device, DeviceCondition, DeviceHealth

#: Why nobody is given a card that is switched over to instances and has none, as a restart of the machine leaves it: NVIDIA's driver
#: forgets instances, but not the mode.
NO_INSTANCE = "MIG is switched on, and it has no instance; cut it or make it whole (`bursar gpu partition`)"


class CannotCut(Exception):
    """Why not, for people."""


def unconfigured(card: Device) -> Device:
    """A card that is well, but switched over to instances, and has none: there as itself, and of no use to anybody."""
    ill, condition = DeviceHealth.UNHEALTHY, DeviceCondition.UNCONFIGURED
    return replace(card, health=ill, condition=condition, health_reason=NO_INSTANCE)


@dataclass(frozen=True, slots=True)
class Profile:
    """A kind of GPU instance that a card can have."""

    name: str
    profile_id: int
    #: Of compute instances: the profile of one that has all of it.
    compute_profile: int
    #: First slice of memory and number of slices.
    placements: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Part:
    """A GPU instance that there is."""

    instance_id: int
    profile_id: int
    start: int
    size: int
    #: Its compute instances: id and profile.
    compute: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, slots=True)
class CardLayout:
    """What a card has, and could have."""

    is_cut: bool
    #: It will be the other way once it was reset.
    is_pending: bool
    parts: tuple[Part, ...] = ()
    profiles: tuple[Profile, ...] = ()

    def shown(self) -> str:
        """For people."""
        names = {profile.profile_id: profile.name for profile in self.profiles}
        counts = Counter(
            names.get(part.profile_id, f"profile {part.profile_id}") for part in self.parts if part.compute
        )
        return (
            (", ".join(f"{count} {name}" for name, count in sorted(counts.items())) or "no instance")
            if self.is_cut
            else "whole"
        )


@dataclass(frozen=True, slots=True)
class Target:
    """A GPU instance that there should be."""

    profile_id: int
    start: int
    size: int
    #: Profiles of its compute instances.
    compute: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Goal:
    """What a card should have."""

    is_cut: bool
    targets: tuple[Target, ...] = ()


@dataclass(frozen=True, slots=True)
class Step:
    """One call of the driver."""

    #: `enable`, `disable`; `destroy-compute`, `destroy`; `create`, `create-compute`.
    kind: str
    instance_id: int = -1
    compute_id: int = -1
    profile_id: int = -1
    start: int = -1
    size: int = -1

    def shown(self) -> str:
        """For people."""
        where = f" at {self.start}" if self.start >= 0 else ""
        which = (
            f" {self.instance_id}"
            if self.instance_id >= 0
            else f" of profile {self.profile_id}"
            if self.profile_id >= 0
            else ""
        )
        return {
            "enable": "switching MIG on",
            "disable": "switching MIG off",
            "destroy-compute": f"destroying a compute instance of GPU instance{which}",
            "destroy": f"destroying GPU instance{which}",
            "create": f"creating a GPU instance{which}{where}",
            "create-compute": f"creating a compute instance in GPU instance{which}",
        }[self.kind]


def goal_of(layout: CardLayout) -> Goal:
    """The goal of leaving a card as it is."""
    return Goal(
        layout.is_cut,
        tuple(
            Target(part.profile_id, part.start, part.size, tuple(sorted(profile for _, profile in part.compute)))
            for part in layout.parts
        ),
    )


def plan(layout: CardLayout, wanted: Sequence[tuple[str, int]]) -> Goal:
    """Where each instance is to lie; those that are there already stay where possible. Raises CannotCut."""
    if not wanted:
        return Goal(False)
    known = {_plain(profile.name): profile for profile in layout.profiles}
    chosen: list[Profile] = []
    for name, count in wanted:
        profile = known.get(_plain(name))
        if profile is None:
            names = ", ".join(sorted(one.name for one in layout.profiles)) or "none that the driver tells of"
            raise CannotCut(f"the card has no profile {name}; it has: {names}")
        chosen += [profile] * count
    # The hardest to place first.
    chosen.sort(key=lambda profile: (-max((size for _, size in profile.placements), default=0), profile.profile_id))
    there = {(part.profile_id, part.start) for part in layout.parts}
    places = _place(chosen, frozenset(), there, 0)
    if places is None:
        raise CannotCut(f"{', '.join(f'{count} {name}' for name, count in wanted)} do not fit on the card together")
    return Goal(
        True,
        tuple(
            Target(profile.profile_id, start, size, (profile.compute_profile,))
            for profile, (start, size) in zip(chosen, places, strict=True)
        ),
    )


def next_step(layout: CardLayout, goal: Goal) -> Step | None:
    """What to do now; None where it is as it should be. Raises CannotCut where something else has to be done first."""
    if layout.is_pending:
        raise CannotCut(
            "MIG is switched, and takes effect once the GPU was reset (nvidia-smi --gpu-reset) or the machine started anew"
        )
    if not layout.is_cut:
        return Step("enable") if goal.is_cut else None
    targets = {(target.profile_id, target.start): target for target in goal.targets}
    for part in layout.parts:
        target = targets.get((part.profile_id, part.start))
        surplus = Counter(profile for _, profile in part.compute)
        surplus.subtract(target.compute if target is not None else ())
        for compute_id, profile in part.compute:
            if surplus[profile] > 0:
                return Step("destroy-compute", part.instance_id, compute_id)
        if target is None:
            return Step("destroy", part.instance_id)
    if not goal.is_cut:
        return Step("disable")
    there = {(part.profile_id, part.start): part for part in layout.parts}
    for key, target in targets.items():
        found = there.get(key)
        if found is None:
            return Step("create", profile_id=target.profile_id, start=target.start, size=target.size)
        missing = Counter(target.compute) - Counter(profile for _, profile in found.compute)
        for profile in sorted(missing):
            return Step("create-compute", found.instance_id, profile_id=profile)
    return None


def _place(
    profiles: Sequence[Profile], taken: frozenset[int], there: set[tuple[int, int]], number: int
) -> list[tuple[int, int]] | None:
    """A place for each from `number` on, none upon another; equal ones are placed from left to right."""
    if number == len(profiles):
        return []
    profile = profiles[number]
    for start, size in sorted(
        profile.placements, key=lambda place: ((profile.profile_id, place[0]) not in there, place)
    ):
        slices = frozenset(range(start, start + size))
        if taken & slices:
            continue
        rest = _place(profiles, taken | slices, there, number + 1)
        if rest is not None:
            return [(start, size), *rest]
    return None


def _plain(name: str) -> str:
    return name.lower().replace("+", "-")

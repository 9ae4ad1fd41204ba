"""Bundles that stand, and how they and their gangs are told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bursar.core.ids import FrameworkId, OfferId, TaskId
from bursar.core.messages.gangs import Bundle, GangState, GangUpdate, RequestGang
from bursar.core.resources import ResourceRequest
from bursar.core.tasks import TaskSpec
from bursar.simulation.scenario.outcomes import Kind, Outcome, describe, parts_of

_WORDS = {
    GangState.WAITING: "waits",
    GangState.REFUSED: "is refused",
    GangState.EXPIRED: "has ended",
    GangState.CANCELLED: "is cancelled",
}


@dataclass(frozen=True, slots=True)
class StandingBundle:
    """A bundle that a framework holds, under its number in the transcript."""

    number: int
    bundle: Bundle
    request: RequestGang

    @property
    def offer_ids(self) -> tuple[OfferId, ...]:
        """All of it."""
        return tuple(offer.offer_id for offer in self.bundle.offers)

    @property
    def name(self) -> str:
        """How it is called in a transcript."""
        first = self.bundle.offers[0]
        return f"bundle {self.number} to {first.framework_id} for {first.role}"

    def tasks(self, names: Sequence[TaskId]) -> tuple[TaskSpec, ...]:
        """A task for each place, in the order of places."""
        specs = []
        for name, member in zip(names, self.bundle.members, strict=True):
            wanted = self.request.groups[member.group].resources
            if member.device_uuids:
                wanted = ResourceRequest(wanted.scalars, wanted.ports, devices=member.device_uuids)
            specs.append(TaskSpec(name, agent_id=member.agent_id, command=("true",), resources=wanted))
        return tuple(specs)

    def outcomes(self, at_ms: int) -> list[Outcome]:
        """What is told of a new one: itself, and each of its offers."""
        bundle = self.bundle
        tasks = len(bundle.members)
        first = Outcome(
            Kind.BUNDLE,
            at_ms,
            f"{self.name}: room for the {tasks} task{'s' if tasks != 1 else ''} of gang {bundle.gang_id}",
            offer=self.number,
            framework=bundle.offers[0].framework_id,
            role=bundle.offers[0].role,
        )
        return [
            first,
            *(
                Outcome(
                    Kind.BUNDLE,
                    at_ms,
                    f"  {offer.agent_id} {describe(offer.agent_id, offer.resources)}",
                    offer=self.number,
                    framework=offer.framework_id,
                    role=offer.role,
                    agent=offer.agent_id,
                    resources=parts_of(offer.resources),
                )
                for offer in bundle.offers
            ),
        ]

    def gone(self, kind: Kind, at_ms: int, words: str, message: str) -> Outcome:
        """It stands no more."""
        offer = self.bundle.offers[0]
        return Outcome(
            kind,
            at_ms,
            f"{self.name} {words}",
            offer=self.number,
            framework=offer.framework_id,
            role=offer.role,
            message=message,
        )


def of_gang(framework_id: FrameworkId, update: GangUpdate, at_ms: int) -> Outcome:
    """What became of a gang."""
    error = update.error
    why = f": {error.message}" if error else ""
    hint = f" ({error.hint})" if error and error.hint else ""
    return Outcome(
        Kind.GANG,
        at_ms,
        f"gang {update.gang_id} of {framework_id} {_WORDS[update.state]}{why}{hint}",
        framework=framework_id,
        reason=update.state.name,
        message=error.message if error else None,
        hint=(error.hint or None) if error else None,
    )

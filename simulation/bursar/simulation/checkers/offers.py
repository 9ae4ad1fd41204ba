"""Whether an offer may be made, and may stand."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from bursar.core.devices import DeviceHealth
from bursar.core.ids import DeviceUuid, OfferId
from bursar.core.messages.agent import AgentInfo
from bursar.core.messages.framework import GPU_RESOURCES, REVOCABLE_RESOURCES, FrameworkInfo, OfferSettings
from bursar.core.messages.gangs import RequestGang
from bursar.core.messages.offers import Offer
from bursar.core.resources import Resources, Stack
from bursar.master.machine import MasterMachine
from bursar.simulation.checkers.cards import card_of, is_on_disk, thousandths
from bursar.simulation.checkers.facts import Facts, covers, is_kept, is_lent_while_filling
from bursar.simulation.checkers.verdicts import Judge, require


class OfferJudge(Judge):
    """Of offers. `facts`: what has been decided in this reign."""

    def __init__(self, verdicts: Counter[str]) -> None:
        super().__init__(verdicts)
        self.facts = Facts()
        #: Those of what is held while a gang fills, in this reign.
        self.of_holds: set[OfferId] = set()

    def judge_standing(self, offer: Offer) -> None:
        """An offer that is out: permitted, and of what may be offered to its role."""
        facts = self.facts
        framework = facts.frameworks.get(offer.framework_id)
        require(framework is not None, f"{offer.offer_id} was made to {offer.framework_id}, which nobody knows")
        assert framework is not None
        info = facts.agents[offer.agent_id]
        view = facts.view_of(framework, offer.role, info)
        what = (
            f"{offer.offer_id} shows {offer.agent_id}, which has {len(info.devices)} devices, to {offer.framework_id}"
        )
        lacking = "" if GPU_RESOURCES in framework.capabilities else f", which lacks {GPU_RESOURCES}"
        require(
            view != "nothing", f"{what}{lacking}; by the rules {facts.rules} and the flag it must see nothing of it"
        )
        gpus = any(not is_on_disk(uuid) for part in offer.resources for uuid in part.resources.devices)
        require(
            view != "stripped" or not gpus,
            f"{what}{lacking}; by the rules {facts.rules} and the flag its GPUs are stripped",
        )
        require(offer.role in framework.roles, f"{offer.offer_id} is for the role {offer.role} of {offer.framework_id}")
        if offer.revocable:
            self._judge_loan(offer, framework)
        for part in offer.resources:
            if part.stack and not offer.revocable:
                holder = part.stack[-1].holder
                require(
                    covers(holder, offer.role),
                    f"{offer.offer_id} gives {offer.role} what is reserved to {holder}",
                )
            for uuid in part.resources.devices:
                bucket = facts.owner_of(offer.agent_id, uuid)
                require(
                    bucket == part.stack,
                    f"{offer.offer_id} offers {uuid} as of {part.stack}, but it belongs to {bucket}",
                )

    def _judge_loan(self, offer: Offer, framework: FrameworkInfo) -> None:
        """What is lent goes, as such, to those who said that they give it back; never to those whom it is kept for."""
        self._judged("what is lent is lent")
        what = f"{offer.offer_id} lends {offer.role} of {offer.framework_id}"
        require(REVOCABLE_RESOURCES in framework.capabilities, f"{what} something, and it lacks {REVOCABLE_RESOURCES}")
        stacks = [part.stack for part in offer.resources if part.stack]
        if is_lent_while_filling(True, offer.resources):
            return
        lent = self.facts.lent.get(offer.agent_id, frozenset())
        require(bool(stacks) and lent.issuperset(stacks), f"{what} {stacks}, and lent is {sorted(lent)}")
        for stack in stacks:
            require(not covers(stack[-1].holder, offer.role), f"{what} {stack}, which is kept for it")

    def _judge_hold(self, offer: Offer, machine: MasterMachine) -> None:
        """What is lent although nobody keeps it is held for somebody else's gang, and no more than a gang needs."""
        self._judged("what is held while a gang fills is lent")
        self.of_holds.add(offer.offer_id)
        gangs = machine.cluster.gangs.by_key
        what = f"{offer.offer_id} lends {offer.framework_id} what nobody keeps"
        require(any(key.framework_id != offer.framework_id for key in gangs), f"{what}, and no gang of others waits")
        for kind in {kind for part in offer.resources for kind in part.resources.amounts()}:
            amount = sum(part.resources.amount(kind) for part in offer.resources)
            most = max(needed_of(gang.request, kind) for gang in gangs.values())
            require(amount <= most, f"{what}: {amount} of {kind}, and no gang needs more than {most}")

    def judge_new(self, offer: Offer, machine: MasterMachine) -> None:
        """A new offer: permitted, and of what nobody holds."""
        self._judged("an offer is permitted and of free things")
        facts = self.facts
        self.judge_standing(offer)
        if is_lent_while_filling(offer.revocable, offer.resources):
            self._judge_hold(offer, machine)
        info = facts.agents[offer.agent_id]
        settings = facts.frameworks[offer.framework_id].offer_settings
        for one in settings:
            if one.role == offer.role and not offer.bundle_id:
                self._judged("an offer is what its framework takes")
                require(_is_taken(one, offer, info), f"{offer.offer_id} is not what {offer.framework_id} takes: {one}")
        health = {device.uuid: device.health for device in info.devices}
        held: dict[Stack, list[Resources]] = {}
        holders: dict[DeviceUuid, Any] = {}
        for key, (agent_id, task) in facts.tasks.items():
            if agent_id == offer.agent_id:
                for part in task.resources:
                    held.setdefault(part.stack, []).append(part.resources)
                    holders.update(dict.fromkeys(part.resources.devices, key))
        for outstanding in machine.cluster.offers.values():
            other = outstanding.offer
            if other.agent_id == offer.agent_id:
                for part in other.resources:
                    held.setdefault(part.stack, []).append(part.resources)
                    if other.offer_id != offer.offer_id:
                        holders.update(dict.fromkeys(part.resources.devices, other.offer_id))
        self._judge_cards(offer, holders, machine)
        self._judged("a cordoned device is never offered")
        orders = machine.cluster.durable.agents[offer.agent_id].device_orders
        cordoned = {order.uuid for order in orders if order.cordoned}
        for part in offer.resources:
            require(bool(part.resources), f"{offer.offer_id} has an empty part")
            taken = cordoned & part.resources.devices
            require(not taken, f"{offer.offer_id} offers {taken}, which an operator took out of service")
            for uuid in part.resources.devices:
                require(uuid not in holders, f"{offer.offer_id} offers {uuid}, which {holders.get(uuid)} holds")
                require(health.get(uuid) is not DeviceHealth.UNHEALTHY, f"{offer.offer_id} offers {uuid}, which is ill")
            total = facts.amounts_of(offer.agent_id, part.stack)
            for kind in part.resources.scalars:
                used = sum(resources.scalars.get(kind, 0) for resources in held.get(part.stack, ()))
                require(
                    used <= total.get(kind, 0),
                    f"{offer.offer_id}: {used} of {kind} are offered or held on {offer.agent_id} in {part.stack},"
                    f" there are {total.get(kind, 0)}",
                )

        self._judge_limits(offer, machine)

    def _judge_cards(self, offer: Offer, holders: Mapping[DeviceUuid, Any], machine: MasterMachine) -> None:
        """Nothing of a card that is being cut, and of no card more than there is."""
        offered = [uuid for part in offer.resources for uuid in part.resources.devices if not is_on_disk(uuid)]
        if not offered:
            return
        self._judged("no card is offered that is cut otherwise, or more of it than there is")
        there = {device.uuid for device in self.facts.agents[offer.agent_id].devices}
        orders = machine.cluster.durable.agents[offer.agent_id].device_orders
        cuts = {order.uuid: order.layout for order in orders if order.layout}
        given: dict[str, set[DeviceUuid]] = {}
        for uuid in (*offered, *(uuid for uuid in holders if not is_on_disk(uuid))):
            given.setdefault(card_of(uuid), set()).add(uuid)
        for uuid in offered:
            card = card_of(uuid)
            require(uuid in there, f"{offer.offer_id} offers {uuid}, and {offer.agent_id} has no such device")
            require(
                card not in cuts,
                f"{offer.offer_id} offers {uuid}, whose card is being cut: {cuts.get(DeviceUuid(card))}",
            )
            require(
                thousandths(given[card]) <= 1000,
                f"{offer.offer_id}: more of {card} is given than there is: {given[card]}",
            )

    def _judge_limits(self, offer: Offer, machine: MasterMachine) -> None:
        """No limit of the role or of those above it is passed by what a new offer brings: forced or not, nothing more is given."""
        facts = self.facts
        limits = {
            (role, kind): limit
            for role, quota in facts.quotas.items()
            if covers(role, offer.role)
            for kind, limit in quota.limits.items()
        }
        if is_lent_while_filling(offer.revocable, offer.resources):
            return
        loose = [part.resources for part in offer.resources if not is_kept(part.stack)]
        for (role, kind), limit in limits.items():
            if any(amount_of(resources, kind) for resources in loose):
                self._judged("no role is offered more than its limit")
                consumed = self._consumed(role, kind, machine)
                require(
                    consumed <= limit,
                    f"{offer.offer_id} lets {role} have {consumed} of {kind}, and its limit is {limit}",
                )

    def _consumed(self, role: str, kind: str, machine: MasterMachine) -> int:
        """All that is reserved to the role and those below it, in use or not, and what they hold of anything else."""
        facts = self.facts
        total = 0
        for agent_id, info in facts.agents.items():
            if agent_id in facts.unreachable:
                continue
            stacks = {part.stack for part in (*info.resources, *facts.reservations.get(agent_id, ()))}
            for stack in stacks:
                if stack and is_kept(stack) and covers(role, stack[-1].holder):
                    total += facts.amounts_of(agent_id, stack).get(kind, 0)
                    if kind == "gpus":
                        total += thousandths(d.uuid for d in info.devices if facts.owner_of(agent_id, d.uuid) == stack)
        holders = [
            (task.role, agent_id, task.resources)
            for agent_id, task in facts.tasks.values()
            if not is_lent_while_filling(task.revocable, task.resources)
        ]
        for outstanding in machine.cluster.offers.values():
            out = outstanding.offer
            if not is_lent_while_filling(out.revocable, out.resources):
                holders.append((out.role, out.agent_id, out.resources))
        for holder, agent_id, parts in holders:
            if covers(role, holder) and agent_id not in facts.unreachable:
                total += sum(amount_of(part.resources, kind) for part in parts if not is_kept(part.stack))
        return total


def amount_of(resources: Resources, kind: str) -> int:
    """How much of a kind; of `gpus` in thousandths, slices among them."""
    return thousandths(resources.devices) if kind == "gpus" else resources.amount(kind)


def needed_of(request: RequestGang, kind: str) -> int:
    """How much of a kind all tasks of a gang need."""
    return sum(
        group.count * (1000 * group.resources.gpus if kind == "gpus" else group.resources.scalars.get(kind, 0))
        for group in request.groups
    )


def _is_taken(settings: OfferSettings, offer: Offer, agent: AgentInfo) -> bool:
    """Read the few forms of constraints and minima that simulated frameworks use, by hand."""
    gpus_milli = sum(thousandths(part.resources.devices) for part in offer.resources)
    cpus_milli = sum(part.resources.scalars.get("cpus", 0) for part in offer.resources)
    true = {
        "gpus>=2": gpus_milli >= 2000,
        "gpus<=1": gpus_milli <= 1000,
        "!gpus": gpus_milli == 0,
        "cpus>=0.5": cpus_milli >= 500,
        "cpus<=2,gpus>=1": cpus_milli <= 2000 and gpus_milli >= 1000,
        "hostname=agent-1|agent-2": agent.hostname in ("agent-1", "agent-2"),
    }
    least = {
        None: True,
        "": True,
        "gpus:1": gpus_milli >= 1000,
        "cpus:1|gpus:2": cpus_milli >= 1000 or gpus_milli >= 2000,
    }
    fits = not settings.constraints or any(true[text] for text in settings.constraints)
    return fits and least[settings.min_allocatable]

"""Cards that are cut: what is told, begun and done of them is what is really there, and every order has an end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from bursar.agent.effects import CutCard
from bursar.agent.machine import AgentMachine
from bursar.agent.state import AgentState, CutSaved, DeviceHealthSaved
from bursar.core.devices import DeviceCondition, DeviceHealth
from bursar.core.errors import ErrorDetail
from bursar.core.ids import AgentId, DeviceUuid
from bursar.core.messages.agent import CutReport, DevicesChanged, Register
from bursar.core.messages.operator import PartitionDeviceRequest
from bursar.master.machine import MasterMachine
from bursar.simulation.checkers.cards import card_of, is_on_disk, is_slice, thousandths
from bursar.simulation.checkers.verdicts import Judge, require
from bursar.simulation.containers import SimulatedContainer
from bursar.simulation.devices import SimulatedGpus

Places = frozenset[tuple[str, int]]


class CutJudge(Judge):
    """Looks at what an agent does to its cards, and says of them."""

    def __init__(self, verdicts: Counter[str]) -> None:
        super().__init__(verdicts)
        #: By agent, card and order: what was there when its first step was asked for.
        self._before: dict[tuple[AgentId, DeviceUuid, int], Places] = {}
        #: The same: what had befallen the card by then; what was there when it was written down how it had ended, and whether
        #: something had befallen it meanwhile.
        self._begun: dict[tuple[AgentId, DeviceUuid, int], int] = {}
        self._ended: dict[tuple[AgentId, DeviceUuid, int], tuple[Places, bool]] = {}

    def cuts(
        self,
        agent_id: AgentId,
        effect: CutCard,
        checkpoint: AgentState,
        held: Iterable[SimulatedContainer],
        gpus: SimulatedGpus,
    ) -> None:
        """A step is asked for: whoever comes after this life must know of it, and nobody may have any of the card."""
        self._judged("a step of cutting is in the checkpoint before it is done")
        record = checkpoint.cuts.get(effect.card)
        known = record is not None and record.is_open and record.doing == effect.step
        require(known, f"{agent_id}: {effect.step.shown()} of {effect.card} is done before it is in the checkpoint")
        assert record is not None
        self._before.setdefault((agent_id, effect.card, record.ordered_at_ms), gpus.cards[effect.card].places())
        if record.before is not None and record.before.is_cut and not record.before.targets:
            self._judged("a card without instances is cut again")
        self._judged("a card is cut while nobody has any of it")
        for container in held:
            mine = [uuid for uuid in container.devices if card_of(uuid) == effect.card]
            require(not mine, f"{agent_id} cuts {effect.card}, and {container.task_id} has {mine}")

    def began(self, agent_id: AgentId, container: SimulatedContainer, gpus: SimulatedGpus) -> None:
        """A container begins: its devices are what its cards are cut into."""
        if container.devices:
            self._judged("a task is begun on what its card is cut into")
        for uuid in container.devices:
            what = f"{agent_id} begins {container.task_id} on {uuid}"
            require(uuid in gpus.there, f"{what}; its card is cut otherwise")
            require(is_slice(uuid) or not gpus.cards[uuid].is_bare, f"{what}, which should have instances and has none")

    def stepped(self, agent: AgentMachine) -> None:
        """A card that has no instance is shown so, is no ill one for it, and is just being cut between two steps."""
        bare = [one for one in agent.info.devices if one.condition is DeviceCondition.UNCONFIGURED]
        if not bare:
            return
        self._judged("a card without instances is of no use, and not ill")
        for device in bare:
            record = agent.state.health.get(device.uuid)
            what = f"{agent.info.agent_id} has {device.uuid} without instances"
            require(device.health is DeviceHealth.UNHEALTHY, f"{what}, and tells of it as healthy")
            require(record is None or not record.has_failed, f"{what}, and has not told that it failed: {record}")
            cut = agent.state.cuts.get(device.uuid)
            require(cut is None or not cut.is_open, f"{what}, and does not say that it is being cut: {cut}")

    def recorded(self, agent_id: AgentId, records: Iterable[Any], gpus: SimulatedGpus) -> None:
        """How a cut ended is written down; nothing of a device's health for want of instances."""
        for record in records:
            if isinstance(record, CutSaved):
                card, troubles = record.cut.card, gpus.troubles[record.cut.card]
                key = (agent_id, card, record.cut.ordered_at_ms)
                begun = self._begun.setdefault(key, troubles)
                if not record.cut.is_open:
                    self._ended[key] = gpus.cards[card].places(), troubles != begun
            if isinstance(record, DeviceHealthSaved):
                health = record.health
                want = any(text.startswith("MIG is switched on") for text in (health.complaint, health.reason))
                require(not want, f"{agent_id} takes {health.uuid} for ill for want of instances: {health.reason}")

    def answered(self, request: Any, answer: Any) -> None:
        """An operator may have a card cut that has no instance."""
        if isinstance(request, PartitionDeviceRequest) and isinstance(answer, ErrorDetail):
            refused = "MIG is switched on" in answer.message
            require(not refused, f"{request.device} has no instance, and may not be cut: {answer.message}")

    def said(self, agent_id: AgentId, message: Any, checkpoint: AgentState) -> None:
        """What an agent tells its master of its cards."""
        match message:
            case Register(info):
                self._judge_devices(agent_id, [device.uuid for device in info.devices])
            case DevicesChanged(devices):
                self._judge_devices(agent_id, [device.uuid for device in devices])
            case CutReport():
                self._judge_report(agent_id, message, checkpoint)

    def _judge_devices(self, agent_id: AgentId, uuids: list[DeviceUuid]) -> None:
        self._judged("a card is told of as a whole or as its slices")
        for card in {card_of(uuid) for uuid in uuids if is_slice(uuid)}:
            slices = [uuid for uuid in uuids if card_of(uuid) == card]
            require(card not in slices, f"{agent_id} tells of {card} and of its slices: {sorted(slices)}")
            require(thousandths(slices) <= 1000, f"{agent_id} tells of more of {card} than there is: {sorted(slices)}")

    def _judge_report(self, agent_id: AgentId, report: CutReport, checkpoint: AgentState) -> None:
        record = checkpoint.cuts.get(report.uuid)
        require(record is not None, f"{agent_id} says that {report} is over, and its checkpoint knows of none")
        assert record is not None
        if record.ordered_at_ms > report.ordered_at_ms:
            return  # said again, while the next order is on its way already
        require(not record.is_open, f"{agent_id} says that {report} is over before it is")
        # Said again on each stream, whatever has become of the card.
        now, was_disturbed = self._ended[agent_id, report.uuid, report.ordered_at_ms]
        if not report.problem:
            self._judged("a cut that is said to be done is done")
            there = ",".join(sorted(name for name, _ in now))
            require(there == _wanted(record.layout), f"{agent_id}: {report.uuid} is cut into {there}: {report}")
            return
        self._judged("a cut that fails is undone, or it is said that it is not")
        changed = "and then something else changed it" in report.problem
        require(was_disturbed or not changed, f"{agent_id}: nothing else changed {report.uuid}: {report}")
        before = self._before.get((agent_id, report.uuid, report.ordered_at_ms), now)
        require(
            before == now or "could not be undone" in report.problem or was_disturbed,
            f"{agent_id}: {report.uuid} was {sorted(before)} and is {sorted(now)}: {report}",
        )


def uncut(machine: MasterMachine, agent: AgentMachine, there: Iterable[DeviceUuid]) -> Iterator[str]:
    """What of an agent's cards is not as it must be once faults have stopped and everything had time to come right."""
    agent_id = agent.info.agent_id
    for record in agent.state.cuts.values():
        if record.is_open:
            yield f"{record.card} of {agent_id} is being cut into {record.layout} ({record.phase.name}), and does not end"
    for order in machine.cluster.durable.agents[agent_id].device_orders:
        if order.layout:
            yield f"{order.uuid} of {agent_id} was to be cut into {order.layout}, and nobody has said how that ended"
    books = machine.cluster.ledger.books[agent_id]
    offered = {uuid for part in books.total.values() for uuid in part.devices if not is_on_disk(uuid)}
    # What a reservation keeps has a place, also where it is gone.
    kept = machine.cluster.durable.agents[agent_id].reservations
    expected = {*there, *(uuid for part in kept for uuid in part.resources.devices)}
    for what, known in (("knows", set(machine.cluster.agents[agent_id].devices)), ("offers", offered)):
        if known != expected:
            yield f"the master {what} {sorted(known)} of {agent_id}, whose cards are cut into {sorted(there)}"


def _wanted(layout: str) -> str:
    """The profiles of an order, one by one, read by hand."""
    names: list[str] = []
    for item in layout.split(","):
        name, _, count = item.partition("=")
        names += [name] * int(count or 1)
    return ",".join(sorted(names))

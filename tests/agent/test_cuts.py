"""Cutting cards: dialogues with the agent's machine, crashes at every step, and the plan."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from agent_dialogue import GPUS, Agent, R, S, of, said, statuses, task

from bursar.agent.containers.runtime import RecoveredContainer
from bursar.agent.devices.cut_record import CutPhase
from bursar.agent.devices.cutting import (
    NO_INSTANCE,
    CannotCut,
    CardLayout,
    Part,
    Profile,
    Step,
    goal_of,
    next_step,
    plan,
    unconfigured,
)
from bursar.agent.devices.health import DeviceSignal, Remedy, Severity
from bursar.agent.effects import AgentEffect, CutCard, LookAtCard, LookAtDevices, ProbeDevice
from bursar.agent.events import (
    CardCut,
    CardLookedAt,
    ContainersRecovered,
    DeviceProbed,
    DevicesDiscovered,
    DevicesSignalled,
)
from bursar.agent.machine import AgentMachine
from bursar.core.device_names import device_name
from bursar.core.devices import Device, DeviceCondition
from bursar.core.layouts import parse_layout
from bursar.core.messages.agent import CutReport, DeviceOrder, DeviceOrders, DevicesChanged
from bursar.core.resources import ReservedResources, Resources

CARD = GPUS[0].uuid
PROFILES = (
    Profile("7g.80gb", 0, 4, ((0, 8),)),
    Profile("3g.40gb", 9, 2, ((0, 4), (4, 4))),
    Profile("1g.10gb", 19, 0, tuple((start, 1) for start in range(7))),
)


@dataclass
class Card:
    """A card that does what it is told, unless a step is to fail."""

    is_cut: bool = False
    parts: list[Part] = field(default_factory=list)
    fails: Callable[[Step], str] = lambda step: ""
    steps: int = 0

    def layout(self) -> CardLayout:
        return CardLayout(self.is_cut, False, tuple(sorted(self.parts, key=lambda part: part.start)), PROFILES)

    def cut(self, step: Step) -> str:
        self.steps += 1
        if problem := self.fails(step):
            return problem
        match step.kind:
            case "enable" | "disable":
                assert not self.parts
                self.is_cut = step.kind == "enable"
            case "create":
                number = 1 + max((part.instance_id for part in self.parts), default=0)
                assert not any(
                    part.start < step.start + step.size and step.start < part.start + part.size for part in self.parts
                )
                self.parts.append(Part(number, step.profile_id, step.start, step.size))
            case "destroy":
                (part,) = [part for part in self.parts if part.instance_id == step.instance_id]
                assert not part.compute
                self.parts.remove(part)
            case _:
                (part,) = [part for part in self.parts if part.instance_id == step.instance_id]
                left = tuple(one for one in part.compute if one[0] != step.compute_id)
                added = ((len(part.compute), step.profile_id),) if step.kind == "create-compute" else ()
                self.parts[self.parts.index(part)] = replace(part, compute=left + added)
        return ""

    def devices(self) -> tuple[Device, ...]:
        if not self.is_cut:
            return GPUS
        names = {profile.profile_id: profile.name for profile in PROFILES}
        mine = tuple(
            Device(
                device_name(f"mig-{names[part.profile_id]}", f"MIG-{part.instance_id}", parent=CARD, weight_milli=142),
                f"mig-{names[part.profile_id]}",
                parent_uuid=CARD,
            )
            for part in self.parts
            if part.compute
        )
        return (*(mine or (unconfigured(GPUS[0]),)), *GPUS[1:])


def cut_into(*profiles: str) -> Card:
    card = Card()
    goal = plan(card.layout(), [(profile, profiles.count(profile)) for profile in dict.fromkeys(profiles)])
    while step := next_step(card.layout(), goal):
        assert card.cut(step) == ""
    return card


class Cutting(Agent):
    """An agent with a card; each effect about it is carried out by hand."""

    def __init__(self, card: Card, before: Agent | None = None) -> None:
        super().__init__(before.durable if before else None)
        config = self.machine.books.config
        info = replace(config.info, devices=card.devices(), resources=offered(card))
        self.machine = AgentMachine(replace(config, info=info), self.durable.copy())
        self.card, self.crashes_at, self.acts = card, -1, 0
        self.told: list[Any] = []
        if before is not None:
            self.ms, self.sequence = before.ms + 1, before.sequence

    def ready(self, *found: RecoveredContainer) -> Cutting:
        self.told += said(self.settle(self.step(ContainersRecovered(found))))
        self.told += said(self.settle(self.connect()))
        self.told += said(self.settle(self.register()))
        self.full()
        return self

    def order(self, layout: str, at_ms: int = 5) -> list[Any]:
        self.told += said(self.settle(self.hear(DeviceOrders((DeviceOrder(CARD, False, "", at_ms, layout),)))))
        return self.told

    def settle(self, effects: list[AgentEffect]) -> list[AgentEffect]:
        """Carry out what is asked for, until nothing is; or die at the moment that was ordered."""
        everything, queue = list(effects), list(effects)
        while queue:
            effect = queue.pop(0)
            event: Any = None
            if isinstance(effect, (LookAtCard, CutCard, LookAtDevices)):
                # Before the act, and after it but before its outcome is heard.
                self._die_maybe()
            match effect:
                case LookAtCard(uuid):
                    event = CardLookedAt(uuid, self.card.layout())
                case CutCard(uuid, step):
                    event = CardCut(uuid, step, self.card.cut(step))
                case LookAtDevices():
                    event = DevicesDiscovered(self.card.devices(), offered(self.card))
            if event is not None:
                self._die_maybe()
                more = self.step(event)
                everything += more
                queue += more
        return everything

    def _die_maybe(self) -> None:
        self.acts += 1
        if self.acts == self.crashes_at:
            raise Died


class Died(Exception):
    """The agent, at this moment."""


def offered(card: Card) -> tuple[ReservedResources, ...]:
    return (ReservedResources((), Resources(devices=frozenset(device.uuid for device in card.devices()))),)


def reports(told: list[Any]) -> list[CutReport]:
    return [message for message in told if isinstance(message, CutReport)]


def kinds(agent: Agent) -> list[str]:
    return sorted(device.kind for device in agent.machine.info.devices if device.condition is not DeviceCondition.BUSY)


def test_a_card_is_cut_step_by_step_and_offered_as_what_it_became() -> None:
    agent = Cutting(Card()).ready()
    told = agent.order("3g.40gb=1,1g.10gb=2")
    assert [type(message) for message in told[-2:]] == [DevicesChanged, CutReport], (
        "first what there is, then that it is done"
    )
    assert reports(told) == [CutReport(CARD, 5, "", "2 1g.10gb, 1 3g.40gb")]
    assert kinds(agent) == ["gpus"] * 3 + ["mig-1g.10gb"] * 2 + ["mig-3g.40gb"]
    assert not agent.machine.state.health, "what was cut is not ill"
    assert not reports(agent.order("3g.40gb=1,1g.10gb=2"))[1:], "said again, done once"


def test_it_is_made_whole_again_and_nothing_of_it_is_given_to_anybody_meanwhile() -> None:
    agent = Cutting(cut_into("1g.10gb", "1g.10gb")).ready()
    effects = agent.hear(DeviceOrders((DeviceOrder(CARD, False, "", 5, "whole"),)))
    part = agent.machine.info.devices[0]
    assert part.condition is DeviceCondition.BUSY and part.health_reason == "its card is being cut: whole"
    (refused,) = statuses(agent.launch(replace(task("t"), resources=offered(agent.card))))
    assert refused.state is S.DROPPED
    agent.settle(effects)
    assert kinds(agent) == ["gpus"] * 4 and not agent.card.is_cut


def test_a_step_that_fails_is_undone_and_the_drivers_words_are_told() -> None:
    card = cut_into("3g.40gb")
    before = card.layout()
    card.fails = lambda step: (
        "Insufficient Resources" if step.kind == "create" and step.profile_id == 19 and len(card.parts) > 1 else ""
    )
    agent = Cutting(card).ready()
    (report,) = reports(agent.order("1g.10gb=7"))
    assert report.problem == "creating a GPU instance of profile 19 at 2: Insufficient Resources"
    assert report.now == "1 3g.40gb" and goal_of(card.layout()) == goal_of(before)
    assert kinds(agent) == ["gpus"] * 3 + ["mig-3g.40gb"]


def test_what_cannot_be_undone_either_stays_and_is_said() -> None:
    card = cut_into("3g.40gb")
    card.fails = lambda step: "In use by another client" if step.kind == "create" else ""
    (report,) = reports(Cutting(card).ready().order("1g.10gb=1"))
    assert (
        "; it could not be undone: creating a GPU instance of profile 9" in report.problem
        and report.now == "no instance"
    )


def test_a_step_without_effect_is_not_done_for_ever() -> None:
    card = Card()
    card.cut = lambda step: ""  # type: ignore[method-assign]
    (report,) = reports(Cutting(card).ready().order("1g.10gb=1"))
    assert "switching MIG on had no effect" in report.problem


@pytest.mark.parametrize("layout", ["5g.10gb=1", "1g.10gb=8", "3g.40gb=2,1g.10gb=1"])
def test_what_cannot_be_is_refused_before_anything_is_done(layout: str) -> None:
    card = Card()
    (report,) = reports(Cutting(card).ready().order(layout))
    assert report.problem and card.steps == 0 and report.now == "whole"


def test_a_card_that_a_task_has_is_not_cut() -> None:
    agent = Cutting(Card()).ready()
    agent.run(task("t", 0))
    (report,) = reports(agent.order("1g.10gb=1"))
    assert "is held by" in report.problem and agent.card.steps == 0


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("begins", [(), ("3g.40gb", "1g.10gb"), ("1g.10gb",) * 7])
@pytest.mark.parametrize("layout", ["3g.40gb=1,1g.10gb=2", "whole"])
def test_whenever_it_dies_the_next_life_goes_on_to_the_same_end(
    layout: str, begins: tuple[str, ...], fails: bool
) -> None:
    def make() -> Card:
        card = cut_into(*begins) if begins else Card()
        if fails:
            refused = "disable" if layout == "whole" else "create-compute"
            counts = {"left": 1}

            def fail(step: Step) -> str:
                if step.kind == refused and counts["left"] and (refused == "disable" or len(card.parts) > 1):
                    counts["left"] -= 1
                    return "Unknown Error"
                return ""

            card.fails = fail
        return card

    smooth = Cutting(make()).ready()
    smooth.order(layout)
    moments = smooth.acts
    assert (moments > 4) or (layout == "whole" and not begins)
    for moment in range(1, moments + 1):
        first = Cutting(make()).ready()
        first.crashes_at = first.acts + moment
        try:
            first.order(layout)
        except Died:
            second = Cutting(first.card, first)
            second.ready()
            second.order(layout)
            told, agent = second.told, second
        else:
            told, agent = first.told, first
        (report,) = reports(told)
        assert agent.machine.state.cuts[CARD].phase is CutPhase.DONE
        # A failure that nobody heard of is tried again, and may go well then.
        now = {(target.profile_id, target.start, target.compute) for target in goal_of(agent.card.layout()).targets}
        wanted = goal_of(make().layout()) if report.problem else plan(make().layout(), parse_layout(layout))
        assert fails or not report.problem, moment
        assert now == {(target.profile_id, target.start, target.compute) for target in wanted.targets}, moment
        assert agent.card.is_cut == wanted.is_cut, moment
        assert {one.condition for one in agent.machine.info.devices} <= {DeviceCondition.UNSPECIFIED}, moment


def bare() -> Card:
    """Switched over to instances, and without any: as a restart of the machine leaves it."""
    return Card(is_cut=True)


def shown(agent: Agent) -> tuple[DeviceCondition, str]:
    """How the card itself is told of."""
    (card,) = [one for one in agent.machine.info.devices if one.uuid == CARD]
    return card.condition, card.health_reason


@pytest.mark.parametrize(("layout", "kind"), [("1g.10gb=2", "mig-1g.10gb"), ("whole", "gpus")])
def test_a_card_without_instances_is_told_of_and_is_cut_or_made_whole(layout: str, kind: str) -> None:
    agent = Cutting(bare()).ready()
    assert shown(agent) == (DeviceCondition.UNCONFIGURED, NO_INSTANCE)
    (refused,) = statuses(agent.launch(replace(task("t", 0), resources=offered(agent.card))))
    assert refused.state is S.DROPPED and NO_INSTANCE in refused.message
    (report,) = reports(agent.order(layout))
    assert not report.problem and kind in kinds(agent)
    assert not agent.machine.state.health, "it was never ill"
    agent.step(DevicesDiscovered(agent.card.devices(), offered(agent.card)))
    assert not agent.machine.state.health and DeviceCondition.UNCONFIGURED not in map(_condition, agent_devices(agent))


@pytest.mark.parametrize(
    ("begins", "layout"), [((), "1g.10gb=2"), (("3g.40gb",), "1g.10gb=2"), (("3g.40gb",), "whole")]
)
def test_between_two_steps_a_card_is_busy_and_nothing_else(begins: tuple[str, ...], layout: str) -> None:
    """Whoever looks between the switch and the first instance, or after the last one, sees a card that is being cut."""
    agent = Cutting(cut_into(*begins) if begins else Card()).ready()
    effects = agent.hear(DeviceOrders((DeviceOrder(CARD, False, "", 5, layout),)))
    seen = set()
    while effects:
        (effect,) = [one for one in effects if isinstance(one, (LookAtCard, CutCard, LookAtDevices))] or [None]
        match effect:
            case LookAtCard(uuid):
                event: Any = CardLookedAt(uuid, agent.card.layout())
            case CutCard(uuid, step):
                event = CardCut(uuid, step, agent.card.cut(step))
            case _:
                break
        effects = agent.step(event)
        if agent.machine.state.cuts[CARD].is_open:
            agent.step(DevicesDiscovered(agent.card.devices(), offered(agent.card)))
            seen |= {_condition(one) for one in agent_devices(agent) if CARD in (one.uuid, one.parent_uuid)}
        if agent.machine.state.cuts[CARD].phase is CutPhase.VERIFYING:
            break
    assert seen <= {DeviceCondition.BUSY, DeviceCondition.UNSPECIFIED} and DeviceCondition.BUSY in seen
    assert not agent.machine.state.health


def test_a_card_that_is_switched_over_under_its_task_is_lost_to_it_and_comes_back() -> None:
    agent = Cutting(Card()).ready()
    agent.run(task("t", 0))
    agent.card.is_cut = True
    effects = agent.step(DevicesDiscovered(agent.card.devices(), offered(agent.card)))
    (told,) = statuses(effects)
    assert told.reason is R.DEVICE_FAILED and NO_INSTANCE in told.message
    agent.exit("t", 1)
    agent.step(DevicesDiscovered(agent.card.devices(), offered(agent.card)))
    (ask,) = of(agent.wait(60_000), ProbeDevice)
    agent.step(DeviceProbed(ask.uuid, ""))
    assert shown(agent) == (DeviceCondition.UNCONFIGURED, NO_INSTANCE)
    assert agent.machine.state.health[CARD].relapses == 0


def test_other_ills_of_a_card_without_instances_are_told_instead() -> None:
    agent = Cutting(bare()).ready()
    agent.step(DevicesSignalled((DeviceSignal(CARD, Severity.FATAL, "XID 79", Remedy.NONE),)))
    assert shown(agent) == (DeviceCondition.CORDONED, "XID 79")
    (ask,) = of(agent.wait(60_000), ProbeDevice)
    agent.step(DeviceProbed(ask.uuid, ""))
    assert shown(agent) == (DeviceCondition.UNCONFIGURED, NO_INSTANCE)


@pytest.mark.parametrize(
    ("begins", "layout", "left", "now"),
    [
        ((), "3g.40gb=1,1g.10gb=2", 2, "1 1g.10gb, 1 3g.40gb"),
        ((), "3g.40gb=1,1g.10gb=2", 0, "no instance"),
        (("3g.40gb",), "whole", 0, "no instance"),
    ],
)
def test_what_has_gone_before_anybody_looked_is_said(begins: tuple[str, ...], layout: str, left: int, now: str) -> None:
    card = cut_into(*begins) if begins else Card()
    agent = Cutting(card).ready()

    def devices() -> tuple[Device, ...]:
        """Somebody else was at it since the last step."""
        card.is_cut, card.parts = True, card.parts[:left]
        return Card.devices(card)

    card.devices = devices  # type: ignore[method-assign]
    (report,) = reports(agent.order(layout))
    assert (report.problem, report.now) == ("it was done, and then something else changed it", now)


def test_what_was_undone_and_has_gone_is_said_with_both(monkeypatch: pytest.MonkeyPatch) -> None:
    card = cut_into("3g.40gb")
    card.fails = lambda step: "Insufficient Resources" if step.profile_id == 19 and len(card.parts) > 1 else ""
    agent = Cutting(card).ready()
    monkeypatch.setattr(card, "devices", lambda: GPUS[1:])
    (report,) = reports(agent.order("1g.10gb=7"))
    assert report.problem.endswith("; that was undone, and then something else changed it") and report.now == "nothing"


def test_instances_that_the_agent_does_not_offer_are_there_all_the_same() -> None:
    agent = Cutting(Card()).ready()
    effects = agent.hear(DeviceOrders((DeviceOrder(CARD, False, "", 5, "1g.10gb=2"),)))
    while not any(isinstance(effect, LookAtDevices) for effect in effects):
        (effect,) = [one for one in effects if isinstance(one, (LookAtCard, CutCard))]
        look = isinstance(effect, LookAtCard)
        event = CardLookedAt(CARD, agent.card.layout()) if look else None
        effects = agent.step(event or CardCut(CARD, effect.step, agent.card.cut(effect.step)))
    hidden = frozenset(device.uuid for device in agent.card.devices()) - {device.uuid for device in GPUS}
    (report,) = reports(said(agent.step(DevicesDiscovered(GPUS[1:], (), hidden=hidden))))
    assert not report.problem and report.now == "2 1g.10gb"


def agent_devices(agent: Agent) -> tuple[Device, ...]:
    return agent.machine.info.devices


def _condition(device: Device) -> DeviceCondition:
    return device.condition


def test_instances_that_are_there_already_stay_where_they_are() -> None:
    card = cut_into("1g.10gb", "1g.10gb", "1g.10gb")
    card.parts = [part for part in card.parts if part.start == 2]
    before = card.parts[0]
    goal = plan(card.layout(), [("1g.10gb", 2)])
    while step := next_step(card.layout(), goal):
        card.cut(step)
    assert before in card.parts and len(card.parts) == 2


def test_a_switch_that_waits_for_a_reset_is_said() -> None:
    with pytest.raises(CannotCut, match="was reset"):
        next_step(CardLayout(False, True), plan(CardLayout(False, True, profiles=PROFILES), [("1g.10gb", 1)]))

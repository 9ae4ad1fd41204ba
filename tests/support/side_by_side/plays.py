"""Random clusters, in which much happens."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, ClassVar

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from bursar.core.messages.framework import OfferSettings
from bursar.core.messages.offers import Shape
from bursar.core.messages.rules import Rule, RuleAction, RuleMode
from bursar.core.resources import Reservation, ReservationType, ReservedResources, Resources, subtract_holdings
from bursar.core.role_expressions import parse_role_expression
from side_by_side.choices import CONSTRAINTS, EXPRESSIONS, FRAMEWORKS, KINDS, MEMBERS, MINIMA, SOME_ROLES
from side_by_side.duet import Duet
from side_by_side.model import reference

quota_amounts = st.fixed_dictionaries(
    {},
    optional={
        "cpus": st.sampled_from([1000, 0, 500, 3000, 6000]),
        "mem": st.sampled_from([1 << 30, 0, 4 << 30]),
        "gpus": st.sampled_from([1000, 0, 2000, 3000]),
    },
)


class SideBySide(RuleBasedStateMachine):
    """Small clusters, in which much happens."""

    new_book: Any
    ROLES = SOME_ROLES
    #: What was accepted in all runs together.
    done: ClassVar[Counter[str]] = Counter()

    def __init__(self) -> None:
        super().__init__()
        self.duet = Duet(self.new_book())
        self.duet.done = self.done
        self.model = self.duet.model
        self.request = self.duet.book.request

    # --- what there is to choose from ---

    def connected(self) -> list[str]:
        return [name for name, framework in self.model.frameworks.items() if framework.connected]

    def offered(self) -> list[str]:
        return sorted({offer.framework_id for offer in self.model.offers})

    def agents(self, connected: bool | None = True) -> list[str]:
        return [name for name, agent in self.model.agents.items() if connected is None or agent.connected == connected]

    # --- rules ---

    @initialize(data=st.data())
    def begin(self, data: st.DataObject) -> None:
        self.set_group(data.draw(st.sampled_from(sorted(MEMBERS))))
        for _ in range(data.draw(st.integers(1, 3))):
            self.agent_comes(data)
        for _ in range(data.draw(st.integers(1, 3))):
            self.framework_comes(data)
        for name in self.connected():
            if data.draw(st.booleans()):
                self.want_something(name, data)

    @rule(data=st.data())
    def agent_comes(self, data: st.DataObject) -> None:
        if len(self.model.agents) == 4:
            return
        name = f"m{len(self.model.agents) + 1}"
        book = self.duet.book
        gpus = data.draw(st.sampled_from([0, 0, 1, 2, 4]))
        links = data.draw(st.sampled_from(["none", "pairs", "odd"])) if gpus > 1 else "none"
        if links == "pairs":
            devices = book.linked(name, [range(first, first + 2) for first in range(0, gpus, 2)])
        elif links == "odd":
            devices = book.linked(name, [range(0, gpus, 2), range(1, gpus, 2)])
        else:
            devices = book.devices(name, gpus)
        uuids = [device.uuid for device in devices]
        parts = []
        role = data.draw(st.sampled_from([None, *self.ROLES, *EXPRESSIONS]))
        role = None if role == "*" else role
        if role is not None:
            if role in EXPRESSIONS:
                meaning, role = EXPRESSIONS[role], str(parse_role_expression(role))
                self.model.meanings[role] = meaning
            kept = data.draw(st.integers(0, gpus))
            parts.append(ReservedResources(book.static(role), self.some(data, uuids[:kept])))
            uuids = uuids[kept:]
        parts.append(ReservedResources((), self.some(data, uuids, data.draw(st.sampled_from(["", "1-2"])))))
        attributes = {
            attribute: value
            for attribute, values in (("rack", ["", "r1", "r2"]), ("region", ["", "", "eu", "us"]))
            if (value := data.draw(st.sampled_from(values)))
        }
        self.duet.agent(name, [part for part in parts if part.resources], devices, **attributes)

    def some(self, data: st.DataObject, uuids: Sequence[str], ports: str = "") -> Resources:
        cpus = data.draw(st.sampled_from([4, 0, 1, 2, 4.5]))
        mem = data.draw(st.sampled_from([2, 0, 1 / 64, 1, 8]))
        found: Resources = self.duet.book.resources(cpus, mem, uuids, ports)
        return found

    @precondition(lambda self: self.agents(False))
    @rule(data=st.data())
    def agent_returns(self, data: st.DataObject) -> None:
        self.duet.agent_returns(data.draw(st.sampled_from(self.agents(False))))

    @precondition(lambda self: self.agents())
    @rule(data=st.data(), for_good=st.booleans())
    def agent_leaves(self, data: st.DataObject, for_good: bool) -> None:
        name = data.draw(st.sampled_from(self.agents()))
        if for_good:
            self.duet.agent_leaves(name)
        else:
            self.duet.agent_returns(name)

    @precondition(lambda self: self.agents())
    @rule(data=st.data(), sick=st.sets(st.integers(0, 3), max_size=2))
    def devices_change(self, data: st.DataObject, sick: set[int]) -> None:
        self.duet.devices_sick(data.draw(st.sampled_from(self.agents())), sorted(sick))

    @precondition(lambda self: self.model.tasks)
    @rule(data=st.data())
    def task_ends(self, data: st.DataObject) -> None:
        untold = {key for keys in self.duet.untold.values() for key in keys}
        keys = [(t.framework_id, t.task_id) for t in self.model.tasks if (t.framework_id, t.task_id) not in untold]
        if keys:
            self.duet.task_ends(*data.draw(st.sampled_from(keys)))

    @rule(data=st.data())
    def framework_comes(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from("fgh"))
        gone = len([removed for removed in self.gone() if removed.startswith(name)])
        roles = self.some_roles(data)
        self.duet.framework(
            name + "'" * gone,
            roles,
            gpu=data.draw(st.booleans()),
            failover_ms=data.draw(st.sampled_from([0, 60_000])),
            suppressed=data.draw(st.sampled_from([[], [], [], roles[:1]])),
            travels=data.draw(st.booleans()),
            refines=data.draw(st.booleans()),
            settings=self.some_settings(data, roles),
        )

    def some_settings(self, data: st.DataObject, roles: Sequence[str]) -> list[OfferSettings]:
        return [
            OfferSettings(
                role,
                tuple(data.draw(st.lists(st.sampled_from(CONSTRAINTS), max_size=2, unique=True))),
                data.draw(st.sampled_from([None, None, *MINIMA])),
            )
            for role in roles
            if data.draw(st.sampled_from([False, False, True]))
        ]

    def gone(self) -> set[str]:
        """Frameworks that can never come back."""
        return {name for name in self.duet.book.frameworks if name not in self.model.frameworks}

    def some_roles(self, data: st.DataObject) -> list[str]:
        found: list[str] = data.draw(st.lists(st.sampled_from(self.ROLES), min_size=1, max_size=3, unique=True))
        return found

    @precondition(lambda self: self.connected())
    @rule(data=st.data())
    def framework_leaves(self, data: st.DataObject) -> None:
        self.duet.framework_leaves(data.draw(st.sampled_from(self.connected())))

    @precondition(lambda self: self.connected())
    @rule(data=st.data(), gpu=st.booleans())
    def update(self, data: st.DataObject, gpu: bool) -> None:
        roles = self.some_roles(data)
        name = data.draw(st.sampled_from(self.connected()))
        suppressed = data.draw(st.sampled_from([[], [], roles[:1], sorted(self.model.frameworks[name].suppressed)]))
        self.duet.update(
            name,
            roles,
            gpu=gpu,
            suppressed=[role for role in suppressed if role in roles],
            travels=data.draw(st.booleans()),
            refines=data.draw(st.booleans()),
            settings=self.some_settings(data, roles),
        )

    @precondition(lambda self: self.connected())
    @rule(data=st.data(), revive=st.booleans())
    def suppress_or_revive(self, data: st.DataObject, revive: bool) -> None:
        name = data.draw(st.sampled_from(self.connected()))
        mine = sorted(data.draw(st.sets(st.sampled_from(self.model.frameworks[name].roles), max_size=2)))
        (self.duet.revive if revive else self.duet.suppress)(name, mine)

    @precondition(lambda self: self.connected())
    @rule(data=st.data())
    def want(self, data: st.DataObject) -> None:
        self.want_something(data.draw(st.sampled_from(self.connected())), data)

    def want_something(self, name: str, data: st.DataObject) -> None:
        roles = self.model.frameworks[name].roles[: data.draw(st.integers(1, 3))]
        counts = data.draw(st.lists(st.integers(1, 3), max_size=3))
        self.duet.want(name, [Shape(data.draw(st.sampled_from(roles)), self.a_request(data), n) for n in counts])

    def a_request(self, data: st.DataObject) -> Any:
        while True:
            found = self.request(
                cpus=data.draw(st.sampled_from([0.5, 1, 2, 0])),
                mem=data.draw(st.sampled_from([0, 0, 1])),
                gpus=data.draw(st.sampled_from([0, 0, 1, 2])),
                ports=data.draw(st.sampled_from(["", "", "", "1-1"])),
            )
            if found:
                return found

    def a_part(self, data: st.DataObject) -> Any:
        """Little enough to be there often."""
        return data.draw(
            st.sampled_from([self.request(cpus=0.5), self.request(cpus=1), self.request(gpus=1), self.a_request(data)])
        )

    def some_offers(self, data: st.DataObject) -> tuple[str, list[Any]]:
        name = data.draw(st.sampled_from(self.offered()))
        offers = [offer for offer in self.model.offers if offer.framework_id == name]
        first = data.draw(st.integers(0, len(offers) - 1))
        rest = [
            offer
            for index, offer in enumerate(offers)
            if index != first and offer.role == offers[first].role and data.draw(st.booleans())
        ]
        return name, [offers[first], *rest]

    @precondition(lambda self: self.offered())
    @rule(data=st.data(), refuse_ms=st.sampled_from([None, 0, 3000, 100_000]))
    def decline(self, data: st.DataObject, refuse_ms: int | None) -> None:
        name, offers = self.some_offers(data)
        self.duet.decline(name, offers, refuse_ms)

    @precondition(lambda self: self.offered())
    @rule(data=st.data(), refuse_ms=st.sampled_from([None, 0, 3000, 100_000]), launches=st.integers(0, 3))
    def accept(self, data: st.DataObject, refuse_ms: int | None, launches: int) -> None:
        name, offers = self.some_offers(data)
        agents = sorted({offer.agent_id for offer in offers})
        wanted = [shape.resources for shape in self.model.frameworks[name].shapes]
        chosen = [
            (
                data.draw(st.sampled_from(agents)),
                data.draw(st.sampled_from(wanted)) if wanted and data.draw(st.booleans()) else self.a_request(data),
            )
            for _ in range(launches)
        ]
        self.duet.accept(name, offers, chosen, refuse_ms)

    @precondition(lambda self: self.offered())
    @rule(data=st.data(), refuse_ms=st.sampled_from([None, 0, 100_000]), labels=st.sampled_from([(), (("p", "x"),)]))
    def framework_reserves(self, data: st.DataObject, refuse_ms: int | None, labels: Any) -> None:
        """Inside an accept, with or without a launch after it; now and then what may not be."""
        name, offers = self.some_offers(data)
        steps: list[Any] = []
        for _ in range(data.draw(st.integers(1, 2))):
            offer = data.draw(st.sampled_from(offers))
            stack = data.draw(st.sampled_from(sorted(offer.holding)))
            part = reference.take({stack: offer.holding[stack]}, self.a_part(data), {}) if stack else None
            if stack and data.draw(st.booleans()):
                undone = part[stack] if part and not part[stack].devices else offer.holding[stack]
                steps.append(reference.Unreserve(offer.agent_id, stack, undone))
            else:
                holder = data.draw(st.sampled_from([offer.role, offer.role, offer.role, "a/b"]))
                principal = self.duet.book.machine.cluster.frameworks[name].info.principal
                level = Reservation(ReservationType.DYNAMIC, holder, principal, labels)
                steps.append(reference.Reserve(offer.agent_id, stack, level, self.a_part(data)))
        if data.draw(st.booleans()):
            steps.append((data.draw(st.sampled_from(offers)).agent_id, self.a_part(data)))
        self.duet.accept(name, offers, steps, refuse_ms)

    @precondition(lambda self: self.offered())
    @rule(data=st.data(), refuse_ms=st.sampled_from([None, 0, 3000]), launches=st.integers(1, 3))
    def accept_what_fits(self, data: st.DataObject, refuse_ms: int | None, launches: int) -> None:
        """Of each offer as much as there is."""
        name, offers = self.some_offers(data)
        left = {offer.agent_id: offer.holding for offer in offers}
        steps: list[Any] = []
        for _ in range(launches):
            agent_id = data.draw(st.sampled_from(sorted(left)))
            parts = [part for part in self.some_parts() if reference.take(left[agent_id], part, {}) is not None]
            if parts:
                part = data.draw(st.sampled_from(parts))
                taken = reference.take(left[agent_id], part, {})
                left[agent_id] = subtract_holdings(left[agent_id], taken)
                steps.append((agent_id, part))
        if steps:
            self.duet.accept(name, offers, steps, refuse_ms)

    @precondition(lambda self: any(offer.role != "*" for offer in self.model.offers))
    @rule(data=st.data(), refuse_ms=st.sampled_from([None, 0]), labels=st.sampled_from([(), (("p", "x"),)]))
    def reserve_what_fits(self, data: st.DataObject, refuse_ms: int | None, labels: Any) -> None:
        """Inside an accept, of what is unreserved, and perhaps a launch on what was reserved."""
        offer = data.draw(st.sampled_from([offer for offer in self.model.offers if offer.role != "*"]))
        there = {(): offer.holding[()]} if () in offer.holding else {}
        parts = [part for part in self.some_parts() if reference.take(there, part, {}) is not None]
        if not parts:
            return
        principal = self.duet.book.machine.cluster.frameworks[offer.framework_id].info.principal
        level = Reservation(ReservationType.DYNAMIC, offer.role, principal, labels)
        part = data.draw(st.sampled_from(parts))
        steps = [reference.Reserve(offer.agent_id, (), level, part)]
        launch = [(offer.agent_id, part)] * data.draw(st.booleans())
        self.duet.accept(offer.framework_id, [offer], [*steps, *launch], refuse_ms)

    @precondition(lambda self: self.undoable())
    @rule(data=st.data(), refuse_ms=st.sampled_from([None, 0]), all_of_it=st.booleans())
    def unreserve_what_is_offered(self, data: st.DataObject, refuse_ms: int | None, all_of_it: bool) -> None:
        """Inside an accept: all of a bucket, or a part of what can be counted."""
        offer, stack = data.draw(st.sampled_from(self.undoable()))
        whole = offer.holding[stack]
        some = Resources({kind: amount // 2 for kind, amount in whole.scalars.items() if amount // 2})
        undone = whole if all_of_it or not some else some
        step = reference.Unreserve(offer.agent_id, stack, undone)
        self.duet.accept(offer.framework_id, [offer], [step], refuse_ms)

    def undoable(self) -> list[tuple[Any, Any]]:
        """Offers, and what of each is reserved dynamically."""
        return [
            (offer, stack)
            for offer in self.model.offers
            for stack in sorted(offer.holding)
            if stack and stack[-1].type is ReservationType.DYNAMIC
        ]

    def some_parts(self) -> list[Any]:
        amounts = ({"cpus": 0.5}, {"cpus": 1}, {"cpus": 2}, {"gpus": 1}, {"cpus": 1, "gpus": 2}, {"cpus": 1, "mem": 1})
        return [self.request(**some) for some in amounts]

    @precondition(lambda self: self.agents())
    @rule(data=st.data(), undo=st.booleans(), label=st.sampled_from(["", "x"]))
    def reserve(self, data: st.DataObject, undo: bool, label: str) -> None:
        name = data.draw(st.sampled_from(self.agents()))
        labels = {"project": label} if label else {}
        holders = [role for role in self.ROLES if role != "*"]
        made = sorted({stack[-1].holder for stack in self.model.agents[name].buckets if stack})
        holder = data.draw(st.sampled_from(made if undo and made else [*holders, *EXPRESSIONS]))
        known = [text for text in EXPRESSIONS if text == holder or str(parse_role_expression(text)) == holder]
        self.duet.reserve(
            name, holder, self.a_part(data), undo=undo, meaning=EXPRESSIONS[known[0]] if known else None, **labels
        )

    @precondition(lambda self: any(stack for name in self.agents() for stack in self.model.agents[name].buckets))
    @rule(data=st.data(), label=st.sampled_from(["", "", "x"]))
    def re_reserve(self, data: st.DataObject, label: str) -> None:
        """From one holder to another: what does not refine it is popped first."""
        name, stack = data.draw(
            st.sampled_from(
                [(name, stack) for name in self.agents() for stack in self.model.agents[name].buckets if stack]
            )
        )
        holder = data.draw(st.sampled_from([role for role in self.ROLES if role != "*"]))
        labels = {"project": label} if label else {}
        self.duet.reserve(name, holder, self.a_part(data), source=stack[-1].holder, **labels)

    @precondition(lambda self: any(stack for name in self.agents() for stack in self.model.agents[name].buckets))
    @rule(data=st.data())
    def refine(self, data: st.DataObject) -> None:
        """For a role below, or one that the expression covers."""
        name, stack = data.draw(
            st.sampled_from(
                [(name, stack) for name in self.agents() for stack in self.model.agents[name].buckets if stack]
            )
        )
        source = stack[-1].holder
        below = [
            role for role in ("a/b", "a/c", "a/b/d", "e", "a") if role != source and self.model.is_for(source, role)
        ]
        if below:
            self.duet.reserve(name, data.draw(st.sampled_from(below)), self.a_part(data), source=source)

    @rule(members=st.sampled_from(sorted(MEMBERS)))
    def set_group(self, members: tuple[str, ...]) -> None:
        self.duet.set_group("g", members, MEMBERS[members])

    @rule(
        mode=st.sampled_from(["true", "false", "strip", "strip"]), headroom=st.sampled_from(["50%", "100%", "cpus:1"])
    )
    def toggle(self, mode: str, headroom: str) -> None:
        self.duet.set_gpu_filter(mode, headroom)

    @rule(
        data=st.data(),
        name=st.sampled_from("uvw"),
        action=st.sampled_from([RuleAction.STRIP, RuleAction.HIDE_AGENT, RuleAction.HEADROOM, RuleAction.ALLOW]),
        whom=st.sampled_from(sorted(FRAMEWORKS)),
        agents=st.sampled_from(["", "rack=r1", "gpus>=2", "cpus<4", "gpu.clique>=2"]),
        kinds=st.sampled_from([(), (), ("gpus",), ("mem", "ports")]),
        enforce=st.sampled_from([True, True, True, False]),
    )
    def add_rule(
        self,
        data: st.DataObject,
        name: str,
        action: RuleAction,
        whom: str,
        agents: str,
        kinds: tuple[str, ...],
        enforce: bool,
    ) -> None:
        keeps = action in (RuleAction.STRIP, RuleAction.HEADROOM)
        headroom = data.draw(st.sampled_from(["", "25%", "cpus:0.5;mem:1GiB"])) if keeps else ""
        others = [other for other in self.model.rules if other != name]
        before = data.draw(st.sampled_from(["", *others]))
        mode = RuleMode.ENFORCE if enforce else RuleMode.AUDIT
        rule = Rule(name, action, mode, whom, agents, kinds, headroom)
        self.duet.add_rule(rule, FRAMEWORKS[whom], before)

    @precondition(lambda self: self.model.rules)
    @rule(data=st.data())
    def remove_rule(self, data: st.DataObject) -> None:
        self.duet.remove_rule(data.draw(st.sampled_from(sorted(self.model.rules))))

    @rule(
        quotas=st.dictionaries(
            st.sampled_from([*SOME_ROLES, "a/z"]), st.tuples(quota_amounts, quota_amounts), min_size=1, max_size=3
        ),
        force=st.booleans(),
    )
    def set_quotas(self, quotas: dict[str, tuple[dict[str, int], dict[str, int]]], force: bool) -> None:
        self.duet.set_quotas(quotas, force)

    @rule(region=st.sampled_from(["", "eu", "us"]))
    def move_master(self, region: str) -> None:
        self.duet.set_region(region)

    @rule(minimum=st.sampled_from(MINIMA))
    def set_minimum(self, minimum: str) -> None:
        self.duet.set_minimum(minimum)

    @rule(
        weights=st.dictionaries(
            st.sampled_from([*SOME_ROLES, "a/.", "a/b/."]),
            st.sampled_from([1000, 1, 500, 3000, 10**9]),
            min_size=1,
            max_size=4,
        )
    )
    def weigh(self, weights: dict[str, int]) -> None:
        self.duet.weigh(**weights)

    @rule(kinds=st.sets(st.sampled_from(KINDS)))
    def exclude(self, kinds: set[str]) -> None:
        self.duet.exclude(sorted(kinds))

    @precondition(lambda self: self.duet.batch is None)
    @rule(ms=st.sampled_from([1, 500, 1000, 3000, 5000, 29_000, 30_000, 95_000]))
    def time_passes(self, ms: int) -> None:
        self.duet.advance(ms)

    @rule()
    def batch(self) -> None:
        if self.duet.batch is None:
            self.duet.begin_batch()
        else:
            self.duet.end_batch()


class UnderQuota(SideBySide):
    """The same, with quotas from the beginning, in few roles and on agents that have little more than CPUs."""

    ROLES = SOME_ROLES[1:3] + SOME_ROLES[5:]
    done: ClassVar[Counter[str]] = Counter()
    #: Rules that are left out here.
    toggle = add_rule = remove_rule = move_master = set_minimum = exclude = set_quotas = devices_change = None

    @initialize(data=st.data())
    def begin(self, data: st.DataObject) -> None:
        super().begin(data)
        self.tighten(data)

    @rule(data=st.data())
    def tighten(self, data: st.DataObject) -> None:
        amounts = st.fixed_dictionaries({"cpus": st.sampled_from([2000, 0, 1000, 4000, 6000])})
        quotas = st.tuples(st.one_of(st.just({}), amounts), st.one_of(st.just({}), amounts))
        self.duet.set_quotas(
            data.draw(st.dictionaries(st.sampled_from(self.ROLES), quotas, min_size=1, max_size=3)), force=True
        )

    def some(self, data: st.DataObject, uuids: Sequence[str], ports: str = "") -> Resources:
        found: Resources = self.duet.book.resources(data.draw(st.sampled_from([4, 1, 2, 3])), 1, uuids, ports)
        return found


class Accepting(SideBySide):
    """The same, with what is accepted in the middle: reservations and launches inside accepts, and what operators reserve and take back."""

    ROLES = ("a", "a/b", "e")
    done: ClassVar[Counter[str]] = Counter()
    #: Rules that are left out here.
    toggle = add_rule = remove_rule = move_master = set_minimum = exclude = set_quotas = weigh = update = None
    framework_leaves = suppress_or_revive = devices_change = None

    def some_settings(self, data: st.DataObject, roles: Sequence[str]) -> list[OfferSettings]:
        return []

    @rule(data=st.data())
    def framework_comes(self, data: st.DataObject) -> None:
        if len(self.connected()) < 2:
            name = "fg"[len(self.model.frameworks) % 2]
            self.duet.framework(name, [data.draw(st.sampled_from(self.ROLES))], refines=data.draw(st.booleans()))

    def want_something(self, name: str, data: st.DataObject) -> None:
        """Mostly whatever there is."""
        if data.draw(st.integers(0, 3)) == 0:
            super().want_something(name, data)

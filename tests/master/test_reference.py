"""The master's allocator against the reference, side by side: random clusters, and after every step the same offers.

`Duet` does everything twice, once to the real machine through the messages of its peers, once to the reference, and compares all
outstanding offers: framework, role, agent, resources, devices. `BURSAR_REFERENCE_RUNS=5000` looks deeper, with other seeds each time;
`BURSAR_REFERENCE_SHORTEN=yes` looks for the shortest story of a disagreement, which takes minutes.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from bursar.core.errors import ErrorDetail
from bursar.core.messages.agent import DevicesChanged
from bursar.core.messages.framework import OfferSettings
from bursar.core.messages.offers import Operation, Reserve, Shape, Unreserve
from bursar.core.messages.operator import (
    AddRuleRequest,
    Quota,
    RemoveRuleRequest,
    ReserveResourcesRequest,
    SetRoleGroupRequest,
    UnreserveResourcesRequest,
)
from bursar.core.messages.rules import Rule, RuleAction, RuleMode
from bursar.core.resources import Holding, Reservation, ReservationType, ReservedResources, Resources, to_holding
from bursar.core.role_expressions import parse_role_expression
from bursar.core.tasks import TaskState
from bursar.core.text import format_amount, format_duration, format_request, format_resources

_NAME = "bursar_tests_reference"
if _NAME not in sys.modules:
    _folder = Path(__file__).with_name("reference")
    _spec = importlib.util.spec_from_file_location(
        _NAME, _folder / "__init__.py", submodule_search_locations=[str(_folder)]
    )
    assert _spec is not None and _spec.loader is not None
    sys.modules[_NAME] = importlib.util.module_from_spec(_spec)
    _spec.loader.exec_module(sys.modules[_NAME])
reference = sys.modules[_NAME]

#: How many random clusters, from another seed each time; 0: a few, always the same.
RUNS = int(os.environ.get("BURSAR_REFERENCE_RUNS", "0"))
#: Whether to look for the shortest story of a disagreement.
SHORTEN = os.environ.get("BURSAR_REFERENCE_SHORTEN", "no") == "yes"


class Duet:
    """A master with its peers, and the reference: what happens to one happens to the other."""

    def __init__(self, book: Any) -> None:
        self.book = book
        self.model = reference.Reference(book.machine.cluster.permuted, book.now.monotonic_ms)
        #: The reference's offers → the ids of the real ones.
        self.ids: dict[Any, str] = {}
        self.history: list[str] = []
        #: Ends of tasks that their agent could not tell yet.
        self.untold: dict[str, list[tuple[str, str]]] = {}
        self.removed: set[str] = set()
        self.batch: Any = None
        self.names = 0

    # --- the frame of every step ---

    @contextmanager
    def doing(self, what: str) -> Iterator[None]:
        """One step: tell of it, let the batch end unless a longer one is open, compare."""
        self.history.append(f"{format_time(self.model.now_ms - 1_000_000)}  {'| ' if self.batch else ''}{what}")
        try:
            with self.book.batch():
                yield
        except AssertionError as error:
            raise AssertionError(f"{error}\n\n{self.story()}") from error
        self.compare()

    def compare(self) -> None:
        """Nobody may be offered anything else than the reference says."""
        if self.batch is None:
            self.model.quiet()
        real: dict[Any, list[str]] = {}
        for peer in self.book.frameworks.values():
            for offer_id, offer in peer.offers.items():
                key = (offer.framework_id, offer.role, offer.agent_id, tuple(sorted(offer.resources, key=repr)))
                real.setdefault(key, []).append(offer_id)
        expected: dict[Any, list[Any]] = {}
        for offer in self.model.offers:
            resources = tuple(
                sorted((ReservedResources(stack, part) for stack, part in offer.holding.items()), key=repr)
            )
            expected.setdefault((offer.framework_id, offer.role, offer.agent_id, resources), []).append(offer)
        counted, wanted = (Counter({key: len(found) for key, found in offers.items()}) for offers in (real, expected))
        if counted != wanted:
            lines = ["the master and the reference disagree:"]
            lines += [f"  only the master offers     {describe(key)}" for key in (counted - wanted).elements()]
            lines += [f"  only the reference offers  {describe(key)}" for key in (wanted - counted).elements()]
            lines += [f"  both offer                 {describe(key)}" for key in (wanted & counted).elements()]
            raise AssertionError("\n".join([*lines, "", self.story()]))
        self.ids = {
            offer: offer_id
            for key, offers in expected.items()
            for offer, offer_id in zip(offers, real[key], strict=True)
        }

    def story(self) -> str:
        lines = ["what happened:", *(f"  {line}" for line in self.history), "what there is:"]
        for agent in self.model.agents.values():
            there = "" if agent.connected else " (away)"
            lines.append(
                f"  agent {agent.agent_id}{there}: {text(agent.buckets)}; free: {text(self.model.free(agent))}"
            )
        lines.append(f"  order of service: {', '.join(f'{f} in {r}' for r, f in self.model.order())}")
        lines += [
            f"  filter: {f.framework_id} in {f.role}, agent {f.agent_id}, {text(f.refused)}, "
            f"{format_duration(f.until_ms - self.model.now_ms)} left"
            for f in self.model.filters
        ]
        for framework in self.model.frameworks.values():
            if framework.version:
                left = [
                    f"{count} × {format_request(shape.resources)} in {shape.role}"
                    for shape, count in zip(framework.shapes, self.model.open(framework), strict=True)
                ]
                lines.append(f"  {framework.framework_id} wants {', '.join(left) or 'nothing'}")
        return "\n".join(lines)

    def begin_batch(self) -> None:
        self.batch = self.book.batch()
        self.batch.__enter__()

    def end_batch(self) -> None:
        self.history.append(f"{format_time(self.model.now_ms - 1_000_000)}  (the batch is over)")
        self.batch.__exit__()
        self.batch = None
        self.compare()

    # --- agents ---

    def agent(
        self, agent_id: str, parts: Sequence[ReservedResources], devices: Sequence[Any] = (), **attributes: str
    ) -> None:
        said = "".join(f", {name} {value}" for name, value in attributes.items())
        with self.doing(f"agent {agent_id} registers with {text(to_holding(parts))}{said}"):
            peer = self.book.agent(agent_id, parts=parts, devices=devices, attributes=attributes)
            hostname = peer.info.hostname
            self.model.agent_registered(agent_id, parts, devices, hostname=hostname, attributes=attributes)

    def agent_returns(self, agent_id: str) -> None:
        with self.doing(f"agent {agent_id} registers again"):
            self.book.agents[agent_id].connect()
            self.model.agent_registered(agent_id, (), (), self.untold.pop(agent_id, ()))

    def agent_leaves(self, agent_id: str) -> None:
        with self.doing(f"agent {agent_id} disconnects"):
            self.book.agents[agent_id].disconnect()
            self.model.agent_disconnected(agent_id)

    def devices_sick(self, agent_id: str, sick: Sequence[int]) -> None:
        peer = self.book.agents[agent_id]
        with self.doing(f"agent {agent_id}: unhealthy GPUs are {list(sick) or 'none'}"):
            healths = {device.uuid: 2 if device.index in sick else 1 for device in peer.info.devices}
            devices = tuple(replace(device, health=healths[device.uuid]) for device in peer.info.devices)
            peer.say(DevicesChanged(devices, peer.info.resources))
            peer.info = replace(peer.info, devices=devices)
            self.model.devices_changed(agent_id, devices)

    def task_ends(self, framework_id: str, task_id: str) -> None:
        (agent_id,) = [t.agent_id for t in self.model.tasks if (t.framework_id, t.task_id) == (framework_id, task_id)]
        peer = self.book.agents[agent_id]
        told = peer.connection is not None
        with self.doing(f"task {task_id} of {framework_id} ends on {agent_id}{'' if told else ', which is away'}"):
            peer.update(task_id, TaskState.FINISHED, framework=framework_id, deliver=told)
            if told:
                self.model.task_ended(framework_id, task_id)
            else:
                self.untold.setdefault(agent_id, []).append((framework_id, task_id))

    # --- frameworks ---

    def framework(
        self,
        framework_id: str,
        roles: Sequence[str],
        *,
        gpu: bool = True,
        failover_ms: int = 60_000,
        suppressed: Sequence[str] = (),
        travels: bool = False,
        refines: bool = False,
        settings: Sequence[OfferSettings] = (),
    ) -> None:
        caps = capabilities(gpu, travels, refines)
        with self.doing(f"framework {framework_id} subscribes: {said_of(roles, caps, suppressed, settings)}"):
            peer = self.book.frameworks.get(framework_id)
            if peer is None:
                peer = self.book.framework(framework_id, roles=roles, failover_ms=failover_ms, connect=False)
            peer.connect(
                roles=tuple(roles),
                capabilities=caps,
                failover_timeout_ms=failover_ms,
                offer_settings=tuple(settings),
                suppressed=tuple(suppressed),
            )
            self.model.framework_subscribed(
                framework_id,
                roles,
                gpu,
                failover_ms,
                suppressed,
                travels=travels,
                refines=refines,
                settings=settings,
            )

    def update(
        self,
        framework_id: str,
        roles: Sequence[str],
        *,
        gpu: bool = True,
        suppressed: Sequence[str] = (),
        travels: bool = False,
        refines: bool = False,
        settings: Sequence[OfferSettings] = (),
    ) -> None:
        caps = capabilities(gpu, travels, refines)
        with self.doing(f"framework {framework_id} changes: {said_of(roles, caps, suppressed, settings)}"):
            peer = self.book.frameworks[framework_id]
            result, gone = self.ask(
                lambda: peer.update(
                    roles=tuple(roles),
                    capabilities=caps,
                    offer_settings=tuple(settings),
                    suppressed=tuple(suppressed),
                )
            )
            allowed = all(shape.role in roles for shape in self.model.frameworks[framework_id].shapes)
            assert (result.error is None) == allowed, result.error or "shapes in roles that it gave up"
            if allowed:
                self.model.framework_updated(
                    framework_id,
                    roles,
                    gpu,
                    suppressed,
                    travels=travels,
                    refines=refines,
                    settings=settings,
                    rescinded=gone,
                )
            else:
                self.history[-1] += f": {result.error.reason.name}"

    def framework_leaves(self, framework_id: str) -> None:
        with self.doing(f"framework {framework_id} disconnects"):
            self.book.frameworks[framework_id].disconnect()
            self.model.framework_disconnected(framework_id)

    def suppress(self, framework_id: str, roles: Sequence[str]) -> None:
        with self.doing(f"{framework_id} suppresses {', '.join(roles) or 'all roles'}"):
            self.book.frameworks[framework_id].suppress(*roles)
            self.model.suppressed(framework_id, roles)

    def revive(self, framework_id: str, roles: Sequence[str]) -> None:
        with self.doing(f"{framework_id} revives {', '.join(roles) or 'all roles'}"):
            self.book.frameworks[framework_id].revive(*roles)
            self.model.revived(framework_id, roles)

    def want(self, framework_id: str, shapes: Sequence[Shape]) -> None:
        wanted = ", ".join(f"{shape.count} × {format_request(shape.resources)} in {shape.role}" for shape in shapes)
        self.names += 1
        with self.doing(f"{framework_id} wants {wanted or 'nothing'}"):
            self.book.frameworks[framework_id].want(*shapes, version=self.names)
            self.model.demand_stated(framework_id, self.names, shapes)

    def decline(self, framework_id: str, offers: Sequence[Any], refuse_ms: int | None = None) -> None:
        peer = self.book.frameworks[framework_id]
        with self.doing(f"{framework_id} declines {self.listed(offers)}{for_so_long(refuse_ms)}"):
            peer.decline(*(peer.offers[self.ids[offer]] for offer in offers), refuse_ms=refuse_ms)
            self.model.declined(framework_id, offers, refuse_ms)

    def accept(
        self,
        framework_id: str,
        offers: Sequence[Any],
        wanted: Sequence[Any],
        refuse_ms: int | None = None,
    ) -> None:
        """One operation for each: launch (agent, request); or reserve, or unreserve, in the reference's words."""
        peer = self.book.frameworks[framework_id]
        steps = []
        for one in wanted:
            self.names += 1
            steps.append(reference.Launch(f"t{self.names}", *one) if isinstance(one, tuple) else one)
        words = ", ".join(map(operation_text, steps)) or "to do nothing"
        with self.doing(f"{framework_id} accepts {self.listed(offers)} {words}" + for_so_long(refuse_ms)):
            operations = [self.operation(step, f"op-{index}") for index, step in enumerate(steps)]
            result = peer.accept([self.ids[offer] for offer in offers], *operations, refuse_ms=refuse_ms)
            tasks = self.model.accepted(framework_id, offers, steps, refuse_ms)
            assert (result.error is None) == (tasks is not None), result.error or "accepted, but it does not fit"
            for task in tasks or ():
                report = self.book.agents[task.agent_id].tasks[framework_id, task.task_id]
                held = to_holding(report.task.resources)
                assert held == task.holding, f"{task.task_id} holds {text(held)} instead of {text(task.holding)}"
            self.compare_buckets({step.agent_id for step in steps})

    def operation(self, step: Any, operation_id: str) -> Any:
        if isinstance(step, reference.Launch):
            spec = self.book.spec(step.task_id, resources=step.request, agent_id=step.agent_id)
            return self.book.launch(spec, operation_id=operation_id)
        if isinstance(step, reference.Reserve):
            level = step.level
            made = Reserve(step.agent_id, step.request, level.holder, dict(level.labels), step.onto)
            return Operation(operation_id, made)
        return Operation(operation_id, Unreserve(step.agent_id, ReservedResources(step.stack, step.resources)))

    def compare_buckets(self, agent_ids: Iterable[str]) -> None:
        """What is kept for whom, of agents that are there."""
        for agent_id in agent_ids:
            real = {
                stack: part for stack, part in self.book.machine.cluster.ledger.books[agent_id].total.items() if part
            }
            mine = {stack: part for stack, part in self.model.agents[agent_id].buckets.items() if part}
            assert real == mine, f"{agent_id} keeps {text(real)} instead of {text(mine)}"

    # --- operators ---

    def reserve(
        self,
        agent_id: str,
        holder: str,
        request: Any,
        *,
        undo: bool = False,
        source: str = "",
        meaning: Any = None,
        **labels: str,
    ) -> None:
        """`meaning`: of an expression, as the reference understands it. `source`: the holder of what is refined. Which devices are
        reserved, and which offers are rescinded for it, is not the allocator's to say: taken as it comes.
        """
        verb = "unreserves" if undo else "reserves"
        from_there = f" from what is reserved to {source}" if source else ""
        role, roles = (holder, "") if meaning is None else ("", holder)
        request_labels = tuple(sorted(labels.items()))
        with self.doing(f"an operator {verb} {format_request(request)} on {agent_id} for {holder}{from_there}"):
            asked: Any = ReserveResourcesRequest("", agent_id, role, request, labels, roles=roles, source=source)
            if undo:
                asked = UnreserveResourcesRequest("", agent_id, role, request, labels, roles=roles)
            answer, gone = self.ask(lambda: self.book.ask(asked))
            if isinstance(answer, ErrorDetail):
                self.history[-1] += f": {answer.reason.name}"
                return
            assert all(offer.agent_id == agent_id for offer in gone)
            self.history[-1] += f": {len(gone)} offers rescinded"
            self.model.rescinded(gone)
            for made in answer.reservations:
                stack, resources = made.stack, made.resources
                self.history[-1] += f", {text({stack: resources})}"
                if meaning is not None and not undo:
                    self.model.meanings[stack[-1].holder] = meaning
                move = (stack, stack[:-1]) if undo else (self.came_from(agent_id, stack, resources), stack)
                if source:
                    level = Reservation(ReservationType.DYNAMIC, stack[-1].holder, stack[-1].principal, request_labels)
                    wanted = self.model.re_reserved(move[0], level)
                    assert wanted == stack, f"{text({stack: resources})} instead of {wanted}"
                self.model.moved(agent_id, *move, resources)

    def came_from(self, agent_id: str, target: Any, resources: Resources) -> Any:
        """The bucket that has less now, by so much."""
        real = self.book.machine.cluster.ledger.books[agent_id].total
        (source,) = [
            stack
            for stack, before in self.model.agents[agent_id].buckets.items()
            if before != real.get(stack, Resources()) == before.minus_saturating(resources)
        ]
        return source

    def set_group(self, name: str, members: Sequence[str], meaning: Any) -> None:
        """`meaning`: whom they cover, as the reference understands them."""
        with self.doing(f"the role group @{name} is {', '.join(members)}"):
            answer, gone = self.ask(lambda: self.book.ask(SetRoleGroupRequest("", name, tuple(members))))
            assert not isinstance(answer, ErrorDetail), answer
            self.model.group_set(name, meaning)
            self.model.permissions_changed(gone)

    def set_gpu_filter(self, mode: str, headroom: str) -> None:
        with self.doing(f"filter-gpu-resources is {mode}, gpu-headroom {headroom}"):
            _, first = self.ask(lambda: self.book.set_flag("gpu-headroom", headroom))
            self.model.headroom = headroom
            self.model.permissions_changed(first)
            _, gone = self.ask(lambda: self.book.set_flag("filter-gpu-resources", mode))
            self.model.gpu_filter = mode
            self.model.permissions_changed(gone)

    def set_quotas(self, quotas: dict[str, tuple[dict[str, int], dict[str, int]]], force: bool) -> None:
        """Which quotas are refused, and which offers go for one, is not the allocator's to say: taken as it comes."""
        words = "; ".join(f"{role}: {amounts_text(g)} to {amounts_text(m)}" for role, (g, m) in quotas.items())
        with self.doing(f"quotas of {words}{', forced' if force else ''}"):
            asked = [Quota(role, *quota) for role, quota in quotas.items()]
            answer, gone = self.ask(lambda: self.book.set_quotas(*asked, force=force))
            if isinstance(answer, ErrorDetail):
                self.history[-1] += f": {answer.reason.name}"
                return
            self.history[-1] += f": {len(gone)} offers rescinded"
            self.model.rescinded(gone)
            self.model.quotas_set(quotas)

    def ask(self, act: Any) -> tuple[Any, list[Any]]:
        """The answer to an operator, and the offers that were rescinded for it: none where it is a refusal."""
        before = {offer_id for peer in self.book.frameworks.values() for offer_id in peer.offers}
        answer = act()
        after = {offer_id for peer in self.book.frameworks.values() for offer_id in peer.offers}
        gone = [offer for offer, offer_id in self.ids.items() if offer_id in before - after]
        assert not gone or not isinstance(answer, ErrorDetail), "refused, and yet offers were rescinded"
        return answer, gone

    def set_region(self, region: str) -> None:
        with self.doing(f"the master's region is {region or 'not told'}"):
            _, gone = self.ask(lambda: self.book.set_flag("region", region))
            self.model.region = region
            self.model.permissions_changed(gone)

    def add_rule(self, rule: Rule, speaks_of: Any, before: str = "") -> None:
        """`speaks_of`: the framework's part of the rule, as the reference understands it."""
        words = f"{rule.action.word} for {rule.framework or 'all'} on {rule.agent or 'all'}"
        words += f" {','.join(rule.resources)} {rule.headroom} {rule.mode.name.lower()}"
        with self.doing(f"rule {rule.name}{' before ' + before if before else ''}: {words}"):
            answer, gone = self.ask(
                lambda: self.book.ask(AddRuleRequest(rule, before=before, replace=True, force=True))
            )
            assert not isinstance(answer, ErrorDetail), answer
            enforced = rule.mode is RuleMode.ENFORCE
            mine = reference.Rule(rule.action, speaks_of, rule.agent, rule.resources, rule.headroom, enforced)
            self.model.rule_added(rule.name, mine, before)
            self.model.permissions_changed(gone)

    def remove_rule(self, name: str) -> None:
        with self.doing(f"rule {name} is removed"):
            _, gone = self.ask(lambda: self.book.ask(RemoveRuleRequest(name)))
            del self.model.rules[name]
            self.model.permissions_changed(gone)

    def set_minimum(self, minimum: str) -> None:
        with self.doing(f"an offer is at least {minimum or 'anything'}"):
            self.book.set_flag("min-allocatable-resources", minimum)
            self.model.minimum_set(minimum)

    def weigh(self, **weights: int) -> None:
        with self.doing(f"weights are {', '.join(f'{role}: {milli / 1000}' for role, milli in weights.items())}"):
            answer = self.book.set_weights(weights)
            assert not isinstance(answer, ErrorDetail), answer
            self.model.weights_set(weights)

    def exclude(self, kinds: Sequence[str]) -> None:
        with self.doing(f"excluded from shares: {', '.join(kinds) or 'nothing'}"):
            self.book.set_flag("fair-sharing-excluded-resource-names", ",".join(kinds))
            self.model.excluded_set(kinds)

    # --- time ---

    def advance(self, ms: int) -> None:
        assert self.batch is None
        with self.doing(f"… {format_duration(ms)} pass"):
            pass
        self.book.advance(ms)
        self.model.advance(ms)
        self.removed = {name for name in self.book.frameworks if name not in self.model.frameworks}
        self.compare()

    # --- words ---

    def listed(self, offers: Iterable[Any]) -> str:
        return " and ".join(f"[{offer.role} @ {offer.agent_id}: {text(offer.holding)}]" for offer in offers)


def operation_text(step: Any) -> str:
    if isinstance(step, reference.Launch):
        return f"to launch {step.task_id} ({format_request(step.request)}) on {step.agent_id}"
    if isinstance(step, reference.Reserve):
        onto = f" onto {'>'.join(level.holder for level in step.onto)}" if step.onto else ""
        return f"to reserve {format_request(step.request)} of {step.agent_id} to {step.level.holder}{onto}"
    return f"to unreserve {text({step.stack: step.resources})} of {step.agent_id}"


def text(holding: Holding) -> str:
    """Resources with their reservations and devices, in a line."""
    parts = []
    for stack, part in sorted(holding.items()):
        devices = f" {{{', '.join(uuid.removeprefix(uuid[:2]) for uuid in sorted(part.devices))}}}"
        owner = ">".join(level.holder for level in stack)
        parts.append(f"{owner + ':' if owner else ''}{format_resources(part)}{devices if part.devices else ''}")
    return " + ".join(parts) or "nothing"


def capabilities(gpu: bool, travels: bool, refines: bool) -> tuple[str, ...]:
    return ("GPU_RESOURCES",) * gpu + ("REGION_AWARE",) * travels + ("RESERVATION_REFINEMENT",) * refines


def said_of(
    roles: Sequence[str], caps: Sequence[str], suppressed: Sequence[str], settings: Sequence[OfferSettings]
) -> str:
    parts = [f"{', '.join(roles)}; {' '.join(caps) or 'no capabilities'}"]
    parts += [f"suppressed in {', '.join(suppressed)}"] if suppressed else []
    for one in settings:
        least = "" if one.min_allocatable is None else f", at least {one.min_allocatable or 'anything'}"
        parts.append(f"in {one.role} only {' or '.join(one.constraints) or 'anything'}{least}")
    return "; ".join(parts)


def amounts_text(amounts: dict[str, int]) -> str:
    return ";".join(f"{kind}:{format_amount(kind, amount)}" for kind, amount in amounts.items()) or "any"


def describe(key: Any) -> str:
    framework_id, role, agent_id, resources = key
    return f"{framework_id} in {role}: {text(to_holding(resources))} on {agent_id}"


def for_so_long(refuse_ms: int | None) -> str:
    return "" if refuse_ms is None else f", filter of {format_duration(refuse_ms)}"


def format_time(ms: int) -> str:
    return f"{ms / 1000:9.3f} s"


SOME_ROLES = ["*", "a", "a/b", "a/c", "a/b/d", "e"]
KINDS = ["cpus", "mem", "gpus"]
CONSTRAINTS = [
    "rack=r1",
    "rack!=r1",
    "!region",
    "hostname=m1*",
    "gpus>=2",
    "gpus<=1",
    "cpus<=2",
    "cpus>=2,mem>=1GiB",
    "gpu.clique>=2",
    "gpu.health=healthy",
    "rack=r1,gpus<1",
]
#: The framework's part of a rule, and what it means.
FRAMEWORKS: dict[str, Any] = {
    "": lambda framework, role: True,
    "lacks=GPU_RESOURCES": lambda framework, role: not framework.capable,
    "has=REGION_AWARE|GPU_RESOURCES": lambda framework, role: framework.capable or framework.travels,
    "role=a/**": lambda framework, role: role.startswith("a/"),
    "role=*": lambda framework, role: role == "*",
    "name=f|g": lambda framework, role: framework.framework_id in ("f", "g"),
    "name=f*,role=e": lambda framework, role: framework.framework_id[0] == "f" and role == "e",
}
#: Whom reservations may be for that are for no plain role, and what that means.
EXPRESSIONS: dict[str, Any] = {
    "(a/** | e) & !a/b": lambda role, groups: role.startswith("a/") and not is_in(role, "a/b") or is_in(role, "e"),
    "=a | e": lambda role, groups: role == "a" or is_in(role, "e"),
    "@g": lambda role, groups: groups["g"](role),
    "a & !@g": lambda role, groups: is_in(role, "a") and not groups["g"](role),
}
MEMBERS: dict[tuple[str, ...], Any] = {
    ("a",): lambda role: is_in(role, "a"),
    ("a/b", "e"): lambda role: is_in(role, "a/b") or is_in(role, "e"),
    ("=a/c",): lambda role: role == "a/c",
    ("e/**",): lambda role: role.startswith("e/"),
}


def is_in(role: str, above: str) -> bool:
    return role == above or role.startswith(f"{above}/")


MINIMA = ["", "cpus:2", "cpus:4;mem:1GiB|gpus:1", "mem:16MiB"]


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

    def __init__(self) -> None:
        super().__init__()
        self.duet = Duet(self.new_book())
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


@pytest.fixture(autouse=True)
def _book(new_book: Any) -> None:
    SideBySide.new_book = new_book


def how(runs: int) -> settings:
    return settings(
        max_examples=RUNS or runs,
        stateful_step_count=25,
        deadline=None,
        derandomize=not RUNS,
        suppress_health_check=list(HealthCheck),
        phases=[phase for phase in Phase if SHORTEN or phase is not Phase.shrink],
    )


# To shorten a story takes minutes.
@pytest.mark.timeout(900)
class TestSideBySide(SideBySide.TestCase):  # type: ignore[misc, valid-type]
    settings = how(120)


@pytest.mark.timeout(900)
class TestUnderQuota(UnderQuota.TestCase):  # type: ignore[misc, valid-type]
    settings = how(80)


@pytest.mark.parametrize("refuse_ms", [0, 3_000, None, 60_000])
def test_long_rows_of_declines(new_book: Any, refuse_ms: int | None) -> None:
    """What random runs are too short for: the pauses grow as the rules say, and end with what ends them."""
    duet = Duet(new_book())
    total = Resources({"cpus": 4000, "mem": 4 << 30})
    for name in ("m1", "m2"):
        duet.agent(name, [ReservedResources((), total)], [])
    duet.framework("f", ["a", "e"])
    for turn in range(60):
        by_role = [[offer for offer in duet.model.offers if offer.role == role] for role in ("a", "e")]
        for offers in filter(None, by_role):
            if turn == 40:
                one = duet.book.request(cpus=1)
                duet.accept("f", offers[:1], [(offers[0].agent_id, one)], refuse_ms)
            else:
                duet.decline("f", offers[: 1 + turn % 2], refuse_ms)
        if turn == 50:
            duet.revive("f", ["a"])
        duet.advance((500, 1000, 3500, 20_000)[turn % 4])


def test_reservations_inside_accepts_and_from_holder_to_holder(new_book: Any) -> None:
    """What random runs seldom come to: each step done, by both, and the buckets the same afterwards."""
    duet = Duet(new_book())
    devices = duet.book.devices("m", 4)
    uuids = [device.uuid for device in devices]
    duet.agent("m", [ReservedResources((), duet.book.resources(8, 8, uuids))], devices)
    duet.framework("f", ["a/b"], refines=True)
    principal = duet.book.machine.cluster.frameworks["f"].info.principal
    level = Reservation(ReservationType.DYNAMIC, "a/b", principal)

    def offered() -> Any:
        (offer,) = duet.model.offers
        return offer

    two = duet.book.request(cpus=2, gpus=2)
    duet.accept("f", [offered()], [reference.Reserve("m", (), level, two), ("m", duet.book.request(cpus=1))], 0)
    duet.advance(1000)
    assert offered().holding[(level,)].gpus == 2, "what it made was not refused"
    duet.accept("f", [offered()], [reference.Unreserve("m", (level,), duet.book.resources(1))], 0)
    duet.advance(1000)
    # An operator's level below, refined by the framework inside an accept, and then popped by the operator for somebody else.
    duet.reserve("m", "a", duet.book.request(gpus=2))
    (below,) = [stack for stack in duet.model.agents["m"].buckets if stack and stack[-1].holder == "a"]
    duet.accept("f", [offered()], [reference.Reserve("m", below, level, duet.book.request(gpus=1))], 0)
    assert (*below, level) in duet.model.agents["m"].buckets
    duet.advance(1000)
    duet.reserve("m", "e", duet.book.request(gpus=1), source="a/b")
    duet.reserve("m", "a/c", duet.book.request(gpus=1), source="a/b")
    holders = {tuple(one.holder for one in stack) for stack, part in duet.model.agents["m"].buckets.items() if part}
    assert ("a", "a/c") in holders or ("e",) in holders

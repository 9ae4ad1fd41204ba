"""A master with its peers, and the reference: what happens to one happens to the other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

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
from bursar.core.messages.rules import Rule, RuleMode
from bursar.core.resources import Reservation, ReservationType, ReservedResources, Resources, to_holding
from bursar.core.tasks import TaskState
from bursar.core.text import format_duration, format_request
from side_by_side.model import reference
from side_by_side.words import (
    amounts_text,
    capabilities,
    describe,
    for_so_long,
    format_time,
    operation_text,
    said_of,
    text,
)


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
        #: How many operations of each kind were accepted, and how many accepts were refused.
        self.done: Counter[str] = Counter()

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
            self.done.update(["refused"] if tasks is None else [type(step).__name__ for step in steps])
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

"""The verbs of a script: who is there, what they do, how time passes. What is none of them is an operator's command.

Each verb is a function that reads its words completely – so that a script with a mistake is refused before anything is carried out –
and returns what is to be done on the stage.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from bursar.core.devices import Device, DeviceHealth, DeviceLink
from bursar.core.errors import ErrorDetail, InvalidText
from bursar.core.flags import closest
from bursar.core.ids import AgentId, DeviceUuid, FrameworkId, TaskId, id_problem
from bursar.core.messages import operator as op
from bursar.core.messages.agent import AgentInfo, DevicesChanged
from bursar.core.messages.framework import FrameworkInfo, OfferSettings, Revive, Suppress, Teardown, UpdateDemand
from bursar.core.messages.offers import Demand, Launch, Reserve, Shape, Unreserve
from bursar.core.predicates import parse_predicates
from bursar.core.resources import (
    GPUS,
    MEM,
    MILLI,
    PORTS,
    Reservation,
    ReservationType,
    ReservedResources,
    ResourceRequest,
    Resources,
    Stack,
    add_holdings,
    to_reserved,
)
from bursar.core.roles import DEFAULT_ROLE, role_problem
from bursar.core.tasks import TaskSpec, TaskState
from bursar.core.text import (
    format_duration,
    format_milli,
    parse_amount,
    parse_attributes,
    parse_duration,
    parse_minimum,
    parse_request,
    parse_resources,
)
from bursar.master.flags import find_flag
from bursar.simulation.scenario.outcomes import Kind, Outcome
from bursar.simulation.scenario.peers import STARTING, FrameworkPeer, Habit, Standing
from bursar.simulation.scenario.stage import MAX_ADVANCE_MS, Stage
from bursar.simulation.scenario.words import Words

Action = Callable[[Stage], None]

_FAILOVER_MS = 60_000
_LINK_STRENGTH = 10


@dataclass(slots=True)
class Names:
    """What earlier commands of the script have named."""

    agents: set[str] = field(default_factory=set)
    frameworks: set[str] = field(default_factory=set)
    tasks: set[str] = field(default_factory=set)

    def declare(self, kind: str, words: Words) -> str:
        """A new name. Raises InvalidText where there is one already."""
        name = words.next(f"the name of the {kind}")
        if problem := id_problem(name):
            raise words.problem(f"{name!r} is no name: {problem}")
        known: set[str] = getattr(self, f"{kind}s")
        if name in known:
            raise words.problem(f"there is a {kind} {name!r} already: names are used once in a script")
        known.add(name)
        return name

    def known(self, kind: str, words: Words) -> str:
        """A name that was declared. Raises InvalidText."""
        name = words.next(f"the name of the {kind}")
        known: set[str] = getattr(self, f"{kind}s")
        if name not in known:
            near = closest(name, sorted(known))
            also = f"did you mean {near}?" if near else f"an earlier line must add {'it' if known else 'one'}"
            raise InvalidText(f"no {kind} {name!r} was added above", also)
        return name


_VERBS: dict[tuple[str, ...], tuple[str, Callable[[Words, Names], Action]]] = {}


def _verb(usage: str) -> Callable[[Callable[[Words, Names], Action]], Callable[[Words, Names], Action]]:
    """Enter a verb under the words in lower case that its usage begins with."""

    def enter(read: Callable[[Words, Names], Action]) -> Callable[[Words, Names], Action]:
        words = usage.split()
        length = next(
            (index for index, word in enumerate(words) if not word.isalpha() or not word.islower()), len(words)
        )
        _VERBS[tuple(words[:length])] = (usage, read)
        return read

    return enter


def usages() -> list[str]:
    """How every verb is written."""
    return [usage for usage, _ in _VERBS.values()]


def parse_verb(words: Sequence[str], names: Names) -> Action | None:
    """What a command does; None where its words begin with no verb. Raises InvalidText."""
    for length in (2, 1):
        entry = _VERBS.get(tuple(words[:length]))
        if entry is not None and len(words) >= length:
            usage, read = entry
            rest = Words(words[length:], usage)
            action = read(rest, names)
            rest.end()
            return action
    return None


# --- reading ------------------------------------------------------------------------------------------------------------


def _role(text: str) -> str:
    if problem := role_problem(text):
        raise InvalidText(problem, "a role is a path such as eng/backend")
    return text


def _roles(text: str) -> tuple[str, ...]:
    return tuple(_role(role.strip()) for role in text.split(","))


def _texts(text: str) -> tuple[str, ...]:
    return tuple(filter(None, (piece.strip() for piece in text.split(","))))


def _pairs(text: str) -> dict[str, str]:
    pairs = [piece.partition("=") for piece in _texts(text)]
    if any(not name or not equals for name, equals, _ in pairs):
        raise InvalidText(f"{text!r} is not NAME=VALUE", "write labels team=vision,why=paper")
    return {name: value for name, _, value in pairs}


def _numbers(text: str) -> tuple[int, ...]:
    if not all(piece.isascii() and piece.isdigit() and len(piece) < 5 for piece in _texts(text)):
        raise InvalidText(f"{text!r} is not a list of numbers", "write numbers with commas between them, such as 0,3")
    return tuple(map(int, _texts(text)))


def _shape(text: str) -> Shape:
    """`ml/train 2x cpus:1;gpus:2`; without a role for `*`, without a count one."""
    pieces = text.split()
    *before, amounts = pieces or [""]
    count, role = 1, DEFAULT_ROLE
    for piece in before:
        if piece.endswith("x") and piece[:-1].isascii() and piece[:-1].isdigit() and len(piece) < 10:
            count = int(piece[:-1])
        else:
            role = _role(piece)
    if len(before) > 2:
        raise InvalidText(f"{text!r} is not a demand", "write 'ml/train 2x cpus:1;gpus:2': role, count, amounts")
    return Shape(role, parse_request(amounts), count)


@dataclass(slots=True)
class _Machine:
    """What a script says of an agent's machine."""

    resources: str = ""
    attributes: dict[str, str | int] = field(default_factory=dict)
    model: str = "Simulated GPU"
    gpu_mem_bytes: int = 16 << 30
    #: Sizes of groups of GPUs that NVLink connects, in order.
    cliques: tuple[int, ...] = ()
    unhealthy: tuple[int, ...] = ()

    def read(self, words: Words) -> None:
        """What stands behind the name: resources, then keywords."""
        keywords = ("resources", "attributes", "region", "zone", "model", "gpu-mem", "cliques", "unhealthy", "healthy")
        while (keyword := words.keyword(keywords)) is not None:
            match keyword:
                case "resources":
                    self.resources = words.next("resources")
                case "attributes":
                    self.attributes = words.read("attributes", parse_attributes)
                case "region" | "zone":
                    self.attributes[keyword] = words.next(f"the {keyword}")
                case "model":
                    self.model = words.next("the model")
                case "gpu-mem":
                    self.gpu_mem_bytes = parse_amount(MEM, words.next("the memory of a GPU"))
                case "cliques":
                    self.cliques = words.read("the sizes of cliques", _numbers)
                case "unhealthy":
                    self.unhealthy = words.read("numbers of GPUs", _numbers)
                case "healthy":
                    self.unhealthy = ()

    def declared(self, name: str) -> tuple[tuple[Device, ...], tuple[ReservedResources, ...]]:
        """Devices `<agent>-gpu0`… and resources, as an agent declares them. Raises InvalidText."""
        items = parse_resources(self.resources)
        count = sum(item.amount for item in items if item.kind == GPUS) // MILLI
        uuids = [DeviceUuid(f"{name}-gpu{index}") for index in range(count)]
        free = iter(uuids)
        holding: dict[Stack, Resources] = {}
        for item in items:
            stack: Stack = () if item.holder is None else (Reservation(ReservationType.STATIC, item.holder),)
            if item.kind == GPUS:
                part = Resources(devices=frozenset(next(free) for _ in range(item.amount // MILLI)))
            elif item.kind == PORTS:
                part = Resources(ports=item.ports)
            else:
                part = Resources({item.kind: item.amount} if item.amount else {})
            holding = add_holdings(holding, {stack: part})
        if sum(self.cliques) > count or any(index >= count for index in self.unhealthy):
            raise InvalidText(f"{name} has {count} GPUs", "cliques and unhealthy speak of those, the first is 0")
        return tuple(self._device(uuids, index) for index in range(count)), to_reserved(holding)

    def _device(self, uuids: list[DeviceUuid], index: int) -> Device:
        first, peers = 0, []
        for size in self.cliques:
            if first <= index < first + size:
                peers = [uuid for uuid in uuids[first : first + size] if uuid != uuids[index]]
            first += size
        ill = index in self.unhealthy
        return Device(
            uuids[index],
            GPUS,
            model=self.model,
            mem_bytes=self.gpu_mem_bytes,
            index=index,
            links=tuple(DeviceLink(peer, "nvlink", _LINK_STRENGTH) for peer in peers),
            health=DeviceHealth.UNHEALTHY if ill else DeviceHealth.HEALTHY,
            health_reason="the script says so" if ill else "",
        )


@dataclass(slots=True)
class _Client:
    """What a script says of a framework."""

    info: dict[str, Any] = field(default_factory=dict)
    suppressed: tuple[str, ...] | None = None
    shapes: tuple[Shape, ...] | None = None
    habit: Habit | None = None
    #: Role → what it says of the offers that it takes.
    settings: dict[str, OfferSettings] = field(default_factory=dict)

    def read(self, words: Words) -> None:
        """Keywords behind the name."""
        keywords = (
            "roles", "capabilities", "suppressed", "demand", "failover", "labels", "principal", "takes", "constraints", "minimum",
        )  # fmt: skip
        while (keyword := words.keyword(keywords)) is not None:
            match keyword:
                case "roles":
                    self.info["roles"] = words.read("roles", _roles)
                case "capabilities":
                    given = words.read("capabilities", _texts)
                    self.info["capabilities"] = () if given == ("none",) else given
                case "suppressed":
                    self.suppressed = words.read("roles", _roles)
                case "demand":
                    self.shapes = (*(self.shapes or ()), words.read("a demand", _shape))
                case "failover":
                    self.info["failover_timeout_ms"] = words.read("a duration", parse_duration)
                case "labels":
                    self.info["labels"] = words.read("labels", _pairs)
                case "principal":
                    self.info["principal"] = words.next("the principal")
                case "takes":
                    shape = words.read("amounts", parse_request)
                    for_ms = words.read("a duration", _above_zero) if words.take("for") else None
                    self.habit = Habit(shape, for_ms)
                case "constraints" | "minimum":
                    self._setting(keyword, words.next(keyword))

    def _setting(self, keyword: str, text: str) -> None:
        """`ml gpu.model=H100,gpus>=4` or `ml gpus:4`; `none` for neither."""
        if text == "none":
            self.settings.clear()
            self.info["offer_settings"] = ()
            return
        role, blank, said = text.partition(" ")
        if not blank:
            raise InvalidText(f"{text!r} says nothing of its role", f"write {keyword} 'ROLE …', or {keyword} none")
        before = self.settings.get(_role(role), OfferSettings(role))
        if keyword == "constraints":
            parse_predicates(said)
            self.settings[role] = replace(before, constraints=(*before.constraints, said.strip()))
        else:
            least = "" if said.strip() == "none" else said.strip()
            parse_minimum(least)
            self.settings[role] = replace(before, min_allocatable=least)
        self.info["offer_settings"] = tuple(self.settings.values())


def _above_zero(text: str) -> int:
    ms = parse_duration(text)
    if not ms:
        raise InvalidText(f"{text} is no time at all", "write at least 1ms")
    return ms


# --- agents -------------------------------------------------------------------------------------------------------------

_AGENT = "[attributes rack:r1;…] [region R] [zone Z] [model H100] [gpu-mem 80GiB] [cliques 4,4] [unhealthy 0,3]"


@_verb(f"agent add NAME RESOURCES {_AGENT}")
def _agent_add(words: Words, names: Names) -> Action:
    name = names.declare("agent", words)
    machine = _Machine(words.next("resources"))
    machine.read(words)
    devices, resources = machine.declared(name)
    info = AgentInfo(
        AgentId(name),
        boot_id="boot",
        hostname=name,
        attributes=machine.attributes,
        resources=resources,
        devices=devices,
    )

    def act(stage: Stage) -> None:
        stage.machines[name] = machine
        stage.add_agent(info)

    return act


@_verb(f"agent update NAME [resources RESOURCES] {_AGENT} [healthy]")
def _agent_update(words: Words, names: Names) -> Action:
    name = names.known("agent", words)
    given = words.rest()
    _Machine().read(Words(given, words.usage))

    def act(stage: Stage) -> None:
        old: _Machine = stage.machines[name]
        machine = replace(old, attributes=dict(old.attributes))
        machine.read(Words(given, words.usage))
        devices, resources = machine.declared(name)
        agent, stage.machines[name] = stage.agents[name], machine
        same = replace(machine, unhealthy=old.unhealthy) == old
        agent.info = replace(agent.info, attributes=machine.attributes, resources=resources, devices=devices)
        if same and agent.connection is not None:
            # The health of devices changes while the agent runs; for the rest it is started anew.
            agent.say(DevicesChanged(devices, resources))
        elif agent.connection is not None:
            agent.connect()

    return act


@_verb("agent deactivate NAME")
def _agent_deactivate(words: Words, names: Names) -> Action:
    name = names.known("agent", words)
    return lambda stage: stage.agents[name].disconnect()


@_verb("agent activate NAME")
def _agent_activate(words: Words, names: Names) -> Action:
    name = names.known("agent", words)
    return lambda stage: stage.agents[name].connect()


@_verb("agent remove NAME")
def _agent_remove(words: Words, names: Names) -> Action:
    name = names.known("agent", words)

    def act(stage: Stage) -> None:
        stage.agents[name].disconnect()
        stage.settle()
        stage.advance(stage.patience_ms())

    return act


# --- frameworks ---------------------------------------------------------------------------------------------------------

_FRAMEWORK = (
    "[roles R,…] [capabilities C,…|none] [suppressed R,…] [demand 'ROLE 2x cpus:1;gpus:2']… [failover 60s]"
    " [labels NAME=VALUE,…] [principal P] [takes AMOUNTS [for 60s]]"
    " [constraints 'ROLE gpu.model=H100,gpus>=4']… [minimum 'ROLE gpus:4|cpus:8']"
)


@_verb(f"framework add NAME {_FRAMEWORK}")
def _framework_add(words: Words, names: Names) -> Action:
    name = names.declare("framework", words)
    client = _Client({"failover_timeout_ms": _FAILOVER_MS})
    client.read(words)
    info = FrameworkInfo(FrameworkId(name), "1", name, **client.info)
    demand = Demand() if client.shapes is None else Demand(1, client.shapes)
    return lambda stage: stage.add_framework(
        info, suppressed=client.suppressed or (), demand=demand, habit=client.habit
    )


@_verb(f"framework update NAME {_FRAMEWORK}")
def _framework_update(words: Words, names: Names) -> Action:
    name = names.known("framework", words)
    client = _Client()
    client.read(words)

    def act(stage: Stage) -> None:
        framework = stage.frameworks[name]
        framework.habit = client.habit or framework.habit
        info = replace(framework.info, **client.info)
        suppressed, demand = framework.suppressed, framework.demand
        if client.suppressed is not None:
            suppressed = client.suppressed
        elif "roles" in client.info:
            suppressed = tuple(role for role in suppressed if role in info.roles)
        if client.shapes is not None:
            demand = Demand(demand.version + 1, client.shapes)
        elif "roles" in client.info and demand.version:
            kept = tuple(shape for shape in demand.shapes if shape.role in info.roles)
            demand = Demand(demand.version + 1, kept)
        framework.update(info, suppressed, demand)

    return act


@_verb("framework deactivate NAME")
def _framework_deactivate(words: Words, names: Names) -> Action:
    name = names.known("framework", words)
    return lambda stage: stage.frameworks[name].disconnect()


@_verb("framework activate NAME")
def _framework_activate(words: Words, names: Names) -> Action:
    name = names.known("framework", words)
    return lambda stage: stage.frameworks[name].connect()


@_verb("framework remove NAME")
def _framework_remove(words: Words, names: Names) -> Action:
    name = names.known("framework", words)
    return lambda stage: stage.frameworks[name].call(Teardown())


@_verb("demand FRAMEWORK none|'ROLE 2x cpus:1;gpus:2'…")
def _demand(words: Words, names: Names) -> Action:
    name = names.known("framework", words)
    given = words.rest()
    if not given:
        raise words.problem("what it wants is missing")
    shapes = () if given == ["none"] else tuple(_shape(text) for text in given)

    def act(stage: Stage) -> None:
        framework = stage.frameworks[name]
        framework.demand = Demand(framework.demand.version + 1, shapes)
        framework.call(UpdateDemand(framework.demand))

    return act


# --- offers and tasks ---------------------------------------------------------------------------------------------------


def _standing(stage: Stage, framework: FrameworkPeer, agent: str | None, role: str | None) -> list[Standing]:
    """The offers that a command speaks of; where there are none, the transcript says so."""
    found = framework.standing(agent, role)
    if not found:
        where = f" of {agent}" if agent else ""
        stage.refuse(
            f"{framework.framework_id} holds no offer{where}{f' for {role}' if role else ''}",
            "`show offers` lists those that stand",
            framework=framework.framework_id,
        )
    return found


@_verb("use FRAMEWORK AGENT AMOUNTS as TASK[,TASK…] [role R] [for 60s] [refuse 5s]")
def _use(words: Words, names: Names) -> Action:
    name, agent = names.known("framework", words), names.known("agent", words)
    amounts = words.read("amounts", parse_request)
    if not words.take("as"):
        raise words.problem("the name of the task is missing")
    tasks = [names.declare("task", Words([task], words.usage)) for task in _texts(words.next("the name of the task"))]
    role: str | None = None
    for_ms = refuse_ms = None
    while (keyword := words.keyword(("role", "for", "refuse"))) is not None:
        match keyword:
            case "role":
                role = words.read("the role", _role)
            case "for":
                for_ms = words.read("a duration", _above_zero)
            case "refuse":
                refuse_ms = words.read("a duration", parse_duration)

    def act(stage: Stage) -> None:
        framework = stage.frameworks[name]
        found = _standing(stage, framework, agent, role)
        if not found:
            return
        # One accept speaks for one role.
        chosen = [standing for standing in found if standing.offer.role == found[0].offer.role]
        specs = tuple(TaskSpec(TaskId(task), command=("true",), resources=amounts) for task in tasks)
        framework.accept(chosen, [Launch(specs)], refuse_ms)
        for task in tasks:
            stage.tasks[task] = name
            if for_ms is not None:
                stage.later(for_ms, stage.end_task, name, task)

    return act


@_verb("recover TASK [failed] [refuse 5s]")
def _recover(words: Words, names: Names) -> Action:
    task = names.known("task", words)
    state = TaskState.FAILED if words.take("failed") else TaskState.FINISHED
    refuse_ms = words.read("a duration", parse_duration) if words.take("refuse") else None

    def act(stage: Stage) -> None:
        owner = stage.tasks.get(task)
        framework = stage.frameworks.get(owner or "")
        before = set() if framework is None else {standing.number for standing in framework.standing()}
        agent = None if framework is None else stage.end_task(framework.framework_id, TaskId(task), state)
        if agent is None or framework is None:
            stage.refuse(f"{task} does not run", "`show tasks` lists those that do", task=task)
        elif refuse_ms is not None:
            stage.settle()
            back = [standing for standing in framework.standing(agent) if standing.number not in before]
            if back:
                framework.decline(back, refuse_ms)

    return act


@_verb("decline FRAMEWORK [AGENT] [role R] [refuse 5s]")
def _decline(words: Words, names: Names) -> Action:
    name = names.known("framework", words)
    agent = role = refuse_ms = None
    while (keyword := words.keyword({"role", "refuse", *names.agents})) is not None:
        match keyword:
            case "role":
                role = words.read("the role", _role)
            case "refuse":
                refuse_ms = words.read("a duration", parse_duration)
            case _:
                agent = keyword

    def act(stage: Stage) -> None:
        if found := _standing(stage, stage.frameworks[name], agent, role):
            stage.frameworks[name].decline(found, refuse_ms)

    return act


@_verb("suppress FRAMEWORK [ROLE…]")
def _suppress(words: Words, names: Names) -> Action:
    name, roles = names.known("framework", words), tuple(map(_role, words.rest()))

    def act(stage: Stage) -> None:
        framework = stage.frameworks[name]
        framework.suppressed = tuple(sorted({*framework.suppressed, *(roles or framework.info.roles)}))
        framework.call(Suppress(roles))

    return act


@_verb("revive FRAMEWORK [ROLE…]")
def _revive(words: Words, names: Names) -> Action:
    name, roles = names.known("framework", words), tuple(map(_role, words.rest()))

    def act(stage: Stage) -> None:
        framework = stage.frameworks[name]
        framework.suppressed = tuple(sorted({*framework.suppressed} - {*(roles or framework.info.roles)}))
        framework.call(Revive(roles))

    return act


@_verb("framework reserve NAME AGENT AMOUNTS for ROLE [labels NAME=VALUE,…]")
def _framework_reserve(words: Words, names: Names) -> Action:
    name, agent, amounts, role, labels = _what_to_reserve(words, names)

    def act(stage: Stage) -> None:
        framework = stage.frameworks[name]
        if found := _standing(stage, framework, agent, None):
            framework.accept(found[:1], [Reserve(AgentId(agent), amounts, role, labels)], 0)

    return act


@_verb("framework unreserve NAME AGENT AMOUNTS for ROLE [labels NAME=VALUE,…]")
def _framework_unreserve(words: Words, names: Names) -> Action:
    name, agent, amounts, role, labels = _what_to_reserve(words, names)

    def act(stage: Stage) -> None:
        framework = stage.frameworks[name]
        for standing in _standing(stage, framework, agent, None):
            for part in standing.offer.resources:
                if part.stack and part.stack[-1].holder == role and dict(part.stack[-1].labels) == labels:
                    give = _cut(part, amounts)
                    framework.accept([standing], [Unreserve(AgentId(agent), give)], 0)
                    return
        if framework.standing(agent):
            stage.refuse(f"{name} is offered nothing of {agent} that is reserved to {role}", framework=name)

    return act


def _what_to_reserve(words: Words, names: Names) -> tuple[str, str, ResourceRequest, str, dict[str, str]]:
    name, agent = names.known("framework", words), names.known("agent", words)
    amounts = words.read("amounts", parse_request)
    if not words.take("for"):
        raise words.problem("the role is missing")
    role = words.read("the role", _role)
    labels = words.read("labels", _pairs) if words.take("labels") else {}
    return name, agent, amounts, role, labels


def _cut(part: ReservedResources, amounts: ResourceRequest) -> ReservedResources:
    """So much of what is reserved, whether it is there or not; the first devices."""
    devices = sorted(part.resources.devices)[: amounts.gpu_count]
    return ReservedResources(part.stack, Resources(amounts.scalars, amounts.ports, frozenset(devices)))


# --- the master and time ------------------------------------------------------------------------------------------------


@_verb("master FLAG VALUE")
def _master(words: Words, names: Names) -> Action:
    if words.take("restart"):
        return Stage.restart
    flag = find_flag(words.next("the name of a flag"))
    if isinstance(flag, ErrorDetail):
        raise InvalidText(flag.message, flag.hint)
    value = words.next("the value")

    def act(stage: Stage) -> None:
        if stage.has_started:
            raise InvalidText(
                "the master runs already, its command line cannot be changed",
                f"write this line before all others, or `flag set {flag} {value}`",
            )
        stage.set_flag(flag, value)

    return act


@_verb("advance DURATION [quietly]")
def _advance(words: Words, names: Names) -> Action:
    ms = words.read("a duration", parse_duration)
    if ms > MAX_ADVANCE_MS:
        raise words.problem(f"{format_duration(ms)} is longer than {format_duration(MAX_ADVANCE_MS)}")
    if not words.take("quietly"):
        return lambda stage: stage.advance(ms)

    def act(stage: Stage) -> None:
        before, stage.outcomes = stage.outcomes, []
        stage.advance(ms)
        told, stage.outcomes = stage.outcomes, before
        stage.show(_summary(told))

    return act


def _summary(outcomes: Sequence[Outcome]) -> str:
    """How much of what happened, for whom long transcripts say too little."""
    counts = {
        "offer": sum(outcome.kind is Kind.OFFER for outcome in outcomes),
        "rescind": sum(outcome.kind is Kind.RESCIND for outcome in outcomes),
        "refusal": sum(outcome.kind is Kind.REFUSED for outcome in outcomes),
        "task started": sum(outcome.kind is Kind.TASK and outcome.reason == STARTING for outcome in outcomes),
        "task ended": sum(outcome.kind is Kind.TASK and outcome.reason != STARTING for outcome in outcomes),
    }
    return ", ".join(f"{count} {_plural(noun, count)}" for noun, count in counts.items())


def _plural(noun: str, count: int) -> str:
    first, blank, rest = noun.partition(" ")
    return noun if count == 1 else f"{first}s{blank}{rest}"


@_verb("cycle full")
def _cycle(words: Words, names: Names) -> Action:
    def act(stage: Stage) -> None:
        count = len(stage.outcomes)
        stage.full_cycle()
        if len(stage.outcomes) == count:
            stage.show("a full cycle offers nothing more")

    return act


# --- looking ------------------------------------------------------------------------------------------------------------


@_verb("show offers|shares|tasks|time")
def _show(words: Words, names: Names) -> Action:
    shows: dict[str, Action] = {
        "offers": Stage.show_offers,
        "shares": _show_shares,
        "tasks": _show_tasks,
        "time": lambda stage: stage.show(f"{format_duration(stage.at_ms)} since the start"),
    }
    what = words.keyword(shows.keys())
    if what is None:
        raise words.problem("what to show is missing")
    return shows[what]


def _show_shares(stage: Stage) -> None:
    answer = stage.ask(op.ListRolesRequest())
    assert isinstance(answer, op.ListRolesResponse)
    for view in answer.roles:
        share, weight = view.share_millionths, view.weight_milli
        stage.show(f"{view.role}: share {share // 10_000}.{share // 100 % 100:02d}%, weight {format_milli(weight)}")


def _show_tasks(stage: Stage) -> None:
    answer = stage.ask(op.ListTasksRequest())
    assert isinstance(answer, op.ListTasksResponse)
    for task in answer.tasks:
        stage.show(
            f"{task.task_id} of {task.framework_id} for {task.role} on {task.agent_id}: {task.state.name.lower()}"
        )
    if not answer.tasks:
        stage.show("no tasks")

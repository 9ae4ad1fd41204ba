"""What frameworks do with offers, and the end of tasks."""

from __future__ import annotations

from bursar.core.ids import AgentId, TaskId
from bursar.core.messages.offers import Launch, Reserve, Unreserve
from bursar.core.resources import ReservedResources, ResourceRequest, Resources
from bursar.core.surroundings import Volume, parse_volume
from bursar.core.tasks import TaskSpec, TaskState
from bursar.core.text import parse_duration, parse_request
from bursar.simulation.scenario.peers import FrameworkPeer, Standing
from bursar.simulation.scenario.stage import Stage
from bursar.simulation.scenario.verbs.grammar import Action, Names, verb
from bursar.simulation.scenario.verbs.reading import pairs_in, role_in, texts_in, time_above_zero
from bursar.simulation.scenario.words import Words


def offers_of(stage: Stage, framework: FrameworkPeer, agent: str | None, role: str | None) -> list[Standing]:
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


@verb("use FRAMEWORK AGENT AMOUNTS as TASK[,TASK…] [role R] [for 60s] [refuse 5s] [mount VOLUME]")
def _use(words: Words, names: Names) -> Action:
    name, agent = names.known("framework", words), names.known("agent", words)
    amounts = words.read("amounts", parse_request)
    if not words.take("as"):
        raise words.problem("the name of the task is missing")
    tasks = [names.declare("task", Words([task], words.usage)) for task in texts_in(words.next("the name of the task"))]
    role: str | None = None
    for_ms = refuse_ms = None
    volumes: tuple[Volume, ...] = ()
    while (keyword := words.keyword(("role", "for", "refuse", "mount"))) is not None:
        match keyword:
            case "role":
                role = words.read("the role", role_in)
            case "mount":
                mounted = words.read("the volume", lambda text: parse_volume(f"volume/{text}:/data:rw"))
                volumes = (mounted,)
            case "for":
                for_ms = words.read("a duration", time_above_zero)
            case "refuse":
                refuse_ms = words.read("a duration", parse_duration)

    def act(stage: Stage) -> None:
        framework = stage.frameworks[name]
        found = offers_of(stage, framework, agent, role)
        if not found:
            return
        # One accept speaks for one role.
        chosen = [standing for standing in found if standing.offer.role == found[0].offer.role]
        specs = tuple(TaskSpec(TaskId(task), command=("true",), resources=amounts, volumes=volumes) for task in tasks)
        framework.accept(chosen, [Launch(specs)], refuse_ms)
        for task in tasks:
            stage.tasks[task] = name
            if for_ms is not None:
                stage.later(for_ms, stage.end_task, name, task)

    return act


@verb("recover TASK [failed] [refuse 5s]")
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


@verb("decline FRAMEWORK [AGENT] [role R] [refuse 5s]")
def _decline(words: Words, names: Names) -> Action:
    name = names.known("framework", words)
    agent = role = refuse_ms = None
    while (keyword := words.keyword({"role", "refuse", *names.agents})) is not None:
        match keyword:
            case "role":
                role = words.read("the role", role_in)
            case "refuse":
                refuse_ms = words.read("a duration", parse_duration)
            case _:
                agent = keyword

    def act(stage: Stage) -> None:
        if found := offers_of(stage, stage.frameworks[name], agent, role):
            stage.frameworks[name].decline(found, refuse_ms)

    return act


@verb("framework reserve NAME AGENT AMOUNTS for ROLE [labels NAME=VALUE,…]")
def _framework_reserve(words: Words, names: Names) -> Action:
    name, agent, amounts, role, labels = _what_to_reserve(words, names)

    def act(stage: Stage) -> None:
        framework = stage.frameworks[name]
        if found := offers_of(stage, framework, agent, None):
            framework.accept(found[:1], [Reserve(AgentId(agent), amounts, role, labels)], 0)

    return act


@verb("framework unreserve NAME AGENT AMOUNTS for ROLE [labels NAME=VALUE,…]")
def _framework_unreserve(words: Words, names: Names) -> Action:
    name, agent, amounts, role, labels = _what_to_reserve(words, names)

    def act(stage: Stage) -> None:
        framework = stage.frameworks[name]
        for standing in offers_of(stage, framework, agent, None):
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
    role = words.read("the role", role_in)
    labels = words.read("labels", pairs_in) if words.take("labels") else {}
    return name, agent, amounts, role, labels


def _cut(part: ReservedResources, amounts: ResourceRequest) -> ReservedResources:
    """So much of what is reserved, whether it is there or not; the first devices."""
    devices = sorted(part.resources.devices)[: amounts.gpu_count]
    return ReservedResources(part.stack, Resources(amounts.scalars, amounts.ports, frozenset(devices)))

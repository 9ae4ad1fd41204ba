"""Gangs: asking for one, and what a framework does with the bundle that answers it."""

from __future__ import annotations

from bursar.core.errors import InvalidText
from bursar.core.ids import TaskId
from bursar.core.messages.gangs import CancelGang, GangGroup, GangTopology, OnMemberLost, RequestGang
from bursar.core.text import parse_duration
from bursar.simulation.scenario.bundles import StandingBundle
from bursar.simulation.scenario.stage import Stage
from bursar.simulation.scenario.verbs.grammar import Action, Names, verb
from bursar.simulation.scenario.verbs.reading import role_in, shape_in, time_above_zero
from bursar.simulation.scenario.words import Words

_TTL_MS = 3_600_000


@verb("gang request FRAMEWORK GANG '4x cpus:1;gpus:2'… [role R] [same rack] [linked] [ttl 1h] [keep]")
def _request(words: Words, names: Names) -> Action:
    name, gang = names.known("framework", words), words.next("the name of the gang")
    groups = []
    role: str | None = None
    topology, ttl_ms, lost = GangTopology(), _TTL_MS, OnMemberLost.RELEASE_ALL
    while words:
        match words.next("a group of tasks"):
            case "role":
                role = words.read("the role", role_in)
            case "same":
                topology = GangTopology(words.next("the attribute"), topology.nvlink_clique)
            case "linked":
                topology = GangTopology(topology.same_attribute, True)
            case "ttl":
                ttl_ms = words.read("a duration", time_above_zero)
            case "keep":
                lost = OnMemberLost.KEEP
            case text:
                shape = shape_in(text)
                groups.append(GangGroup(shape.resources, shape.count))
    if not groups:
        raise words.problem("the tasks of the gang are missing")
    # Names of its tasks are given when its bundle is taken; how many that are is known here.
    names.gangs[name, gang] = sum(group.count for group in groups)

    def act(stage: Stage) -> None:
        framework = stage.frameworks[name]
        roles = framework.info.roles
        framework.ask_for_gang(RequestGang(gang, role or roles[0], tuple(groups), topology, ttl_ms, lost))

    return act


@verb("gang accept FRAMEWORK GANG as NAME [for 60s] [refuse 5s]")
def _accept(words: Words, names: Names) -> Action:
    name, gang = _known(words, names)
    if not words.take("as"):
        raise words.problem("the name of its tasks is missing")
    stem = words.next("the name of its tasks")
    count = names.gangs[name, gang]
    tasks = [names.declare("task", Words([f"{stem}{number + 1}"], words.usage)) for number in range(count)]
    for_ms = refuse_ms = None
    while (keyword := words.keyword(("for", "refuse"))) is not None:
        if keyword == "for":
            for_ms = words.read("a duration", time_above_zero)
        else:
            refuse_ms = words.read("a duration", parse_duration)

    def act(stage: Stage) -> None:
        if bundle := _bundle_of(stage, name, gang):
            stage.frameworks[name].accept_bundle(bundle, tuple(map(TaskId, tasks)), refuse_ms)
            for task in tasks:
                stage.tasks[task] = name
                if for_ms is not None:
                    stage.later(for_ms, stage.end_task, name, task)

    return act


@verb("gang decline FRAMEWORK GANG [refuse 5s]")
def _decline(words: Words, names: Names) -> Action:
    name, gang = _known(words, names)
    refuse_ms = words.read("a duration", parse_duration) if words.take("refuse") else None

    def act(stage: Stage) -> None:
        if bundle := _bundle_of(stage, name, gang):
            stage.frameworks[name].decline_bundle(bundle, refuse_ms)

    return act


@verb("gang cancel FRAMEWORK GANG")
def _cancel(words: Words, names: Names) -> Action:
    name, gang = _known(words, names)
    return lambda stage: stage.frameworks[name].call(CancelGang(gang))


def _known(words: Words, names: Names) -> tuple[str, str]:
    name, gang = names.known("framework", words), words.next("the name of the gang")
    if (name, gang) not in names.gangs:
        raise InvalidText(f"{name} asked for no gang {gang!r} above", f"write first: gang request {name} {gang} …")
    return name, gang


def _bundle_of(stage: Stage, name: str, gang: str) -> StandingBundle | None:
    """The bundle that answers a gang; where there is none, the transcript says so."""
    bundle = stage.frameworks[name].bundles.get(gang)
    if bundle is None:
        stage.refuse(f"{name} holds no bundle for its gang {gang}", "`explain framework` says why", framework=name)
    return bundle

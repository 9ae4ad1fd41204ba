"""What a connected agent believes, compared with what the master does, and repaired both ways (B-18).

An agent says now and then, in a few bytes, what it believes. Where two digests in a row are not ours, it is asked for all of it; one may
differ for what is on its way. The answer is exact: streams keep their order, so it lacks only what was begun after the question, and that
is known. What then differs is judged as at a registration, by the same code: nothing is ended that would not be ended there. Where
nothing differs after all, the next question comes later.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from bursar.core.books import device_lines, digest, task_line
from bursar.core.ids import DeviceUuid
from bursar.core.messages.agent import BooksDigest, BooksReport, DesiredState, DevicesChanged, Repair
from bursar.master.agents import change_devices, tell_device_orders
from bursar.master.differences import ask_for_books, differences, is_to_end, report_repairs
from bursar.master.events import AgentRegistering
from bursar.master.offers import offers_on, rescind
from bursar.master.registration import generation_above, judge_tasks, refusal_of, repeat_restarts
from bursar.master.state import Agent, Asked, Cluster, Comparing, Turn

#: Digests in a row that must differ before all is asked for; and at most so many, where nothing is ever found.
PATIENCE, MAX_PATIENCE = 2, 32


def hear(cluster: Cluster, turn: Turn, agent: Agent, message: BooksDigest | BooksReport) -> None:
    """An agent said what it believes, in few words or in many."""
    agent.missed_pings = 0
    if isinstance(message, BooksDigest):
        report_repairs(cluster, turn, agent, message.repairs)
        _hear_digest(cluster, turn, agent, message)
    else:
        _hear_report(cluster, turn, agent, message)


def _hear_digest(cluster: Cluster, turn: Turn, agent: Agent, message: BooksDigest) -> None:
    comparing, counts = agent.comparing, cluster.counters.comparisons
    outcome = "equal" if _is_ours(cluster, agent, message) else "different"
    counts[outcome] = counts.get(outcome, 0) + 1
    if outcome == "equal":
        comparing.differing, comparing.fruitless = 0, 0
        return
    comparing.differing += 1
    if comparing.differing >= _patience(comparing):
        ask_for_books(cluster, turn, agent)


def _patience(comparing: Comparing) -> int:
    """How many digests must differ: once or twice there may have been nothing for what was on its way, not again and again."""
    return min(PATIENCE << max(0, comparing.fruitless - 2), MAX_PATIENCE)


def _is_ours(cluster: Cluster, agent: Agent, message: BooksDigest) -> bool:
    if message.generation > agent.generation:
        return False
    lines = [task_line(*task.key, task.state, is_to_end=is_to_end(task)) for task in cluster.live_tasks(agent.tasks)]
    if len(lines) != message.tasks or digest(lines) != message.tasks_digest:
        return False
    orders_ms = {order.uuid: order.ordered_at_ms for order in cluster.durable.agents[agent.agent_id].device_orders}
    return digest(_lines_of(agent, orders_ms)) == message.devices_digest


def _lines_of(agent: Agent, orders_ms: Mapping[DeviceUuid, int]) -> list[str]:
    said = agent.comparing.untaken or agent.info
    return device_lines(said.devices, said.resources, orders_ms)


def _hear_report(cluster: Cluster, turn: Turn, agent: Agent, message: BooksReport) -> None:
    """A part of the answer; the last one is the moment to repair."""
    comparing, asked = agent.comparing, agent.comparing.asked
    if asked is None or message.number != asked.number:
        return
    comparing.parts.append(message)
    if not message.complete:
        return
    parts, comparing.parts, comparing.asked = comparing.parts, [], None
    register = parts[0].register
    if register is None or agent.connection is None or register.info.agent_id != agent.agent_id:
        return
    reports = tuple(report for part in parts for report in part.tasks)
    _repair(cluster, turn, agent, asked, AgentRegistering(agent.connection, register, reports))


def _repair(cluster: Cluster, turn: Turn, agent: Agent, asked: Asked, said: AgentRegistering) -> None:
    comparing = agent.comparing
    info, seen = said.register.info, said.register.generation
    # What it has is judged apart from what runs there, as when it says by itself that its devices changed.
    as_known = replace(said.register, info=replace(info, devices=agent.info.devices, resources=agent.info.resources))
    if problem := refusal_of(cluster, replace(said, register=as_known), agent):
        # It would not be let in with this: nothing is taken over, nothing is ended.
        if comparing.problem != problem.message:
            comparing.problem = problem.message
            turn.publish("not_repaired", str(problem), agent_id=agent.agent_id)
        return
    comparing.problem = ""
    repeat_restarts(cluster, turn, agent, said.tasks)
    found = differences(cluster, agent, said.tasks, seen, asked)
    has_other_devices = digest(device_lines(info.devices, info.resources, {})) != digest(_lines_of(agent, {}))
    if has_other_devices:
        found.append(Repair("devices", message="its devices or resources were not those that the master knew"))
    if seen > agent.generation:
        found.append(Repair("generation", message="it had obeyed a later order than the master knew of"))
    tell_device_orders(cluster, turn, agent)
    if not found:
        comparing.fruitless += 1
        return
    comparing.fruitless = 0
    rescind(cluster, turn, offers_on(cluster, agent.agent_id), f"what is known of agent {info.hostname} is repaired")
    if has_other_devices:
        change_devices(cluster, turn, agent, DevicesChanged(info.devices, info.resources))
    launches, kills, keeps = judge_tasks(cluster, turn, agent, said.tasks, seen, rebooted=False, asked=asked)
    agent.generation = generation_above(cluster, turn, agent, seen)
    turn.to_agent(agent, DesiredState(agent.generation, None, False, tuple(launches), tuple(kills), tuple(keeps)))
    cluster.touch(agent.agent_id)
    report_repairs(cluster, turn, agent, found)

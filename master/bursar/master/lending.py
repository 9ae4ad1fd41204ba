"""Lending what is idle of reservations, and getting it back.

`allocator.lending` decides who may borrow and whose turn it is to get back; here that is carried out: outstanding offers are rescinded
at once, tasks get a notice and are killed when `--preemption-notice` is over, and until all that is needed is back, what is back is
withheld for whom it is for (the earmark). Which reservations are lent, that a task is revocable and when it must go are durable;
claims are found anew after a restart.
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Set as AbstractSet
from dataclasses import replace

from bursar.core.errors import ErrorDetail, ErrorReason
from bursar.core.ids import AgentId, FrameworkId, TaskId
from bursar.core.messages.framework import Preemption, PreemptionNotice
from bursar.core.messages.operator import (
    AgentState,
    LendReservationsRequest,
    LendReservationsResponse,
    ReserveResourcesRequest,
    ReserveResourcesResponse,
)
from bursar.core.resources import EMPTY, Holding, Stack
from bursar.core.role_expressions import read_holder
from bursar.core.tasks import StatusReason
from bursar.core.text import format_duration
from bursar.master import reservations
from bursar.master.allocator.decision import Proposal, consider
from bursar.master.allocator.lending import find_claim, is_active, is_of_hold, loans_on
from bursar.master.allocator.loans import Claim, Loan
from bursar.master.allocator.shares import Client
from bursar.master.groups import expander
from bursar.master.ledger import TaskKey
from bursar.master.offers import rescind
from bursar.master.records import LendingRecorded, PreemptionRecorded
from bursar.master.state import Agent, Cluster, Framework, Task, Turn
from bursar.master.tasks import kill
from bursar.master.views import find_agent, reservation_views


def lend(cluster: Cluster, turn: Turn, request: LendReservationsRequest) -> LendReservationsResponse | ErrorDetail:
    """Lend what is idle of the reservations of a holder, static ones too, or lend it no longer; all that there are, or one agent's."""
    expression = reservations.read_unreserved_holder(request)
    if isinstance(expression, ErrorDetail):
        return expression
    if request.agent:
        agent = find_agent(cluster, request.agent)
        if isinstance(agent, ErrorDetail):
            return agent
        agents = [agent]
    else:
        agents = [cluster.agents[agent_id] for agent_id in sorted(cluster.agents)]
    labels = tuple(sorted(request.labels.items()))
    found: list[tuple[Agent, frozenset[Stack]]] = []
    for agent in agents:
        stacks = frozenset(
            stack
            for stack in cluster.ledger.books[agent.agent_id].total
            if stack and read_holder(stack[-1].holder) == expression and (not labels or stack[-1].labels == labels)
        )
        if stacks:
            found.append((agent, stacks))
    if not found:
        who = agents[0].info.hostname if request.agent else "no agent"
        return ErrorDetail(
            ErrorReason.NOT_FOUND,
            f"{who} keeps {'nothing' if request.agent else 'anything'} for {expression}",
            "see `bursar reservation ls`",
            "role",
        )
    rescinded = preempted = 0
    for agent, stacks in found:
        if request.withdraw:
            offers, tasks = _withdraw(cluster, turn, agent, stacks)
            rescinded, preempted = rescinded + offers, preempted + tasks
        else:
            set_lent(cluster, turn, agent, agent.lent | stacks)
    expand = expander(cluster)
    views = tuple(
        view for agent, stacks in found for view in reservation_views(cluster, agent, expand) if view.stack in stacks
    )
    return LendReservationsResponse(views, rescinded, preempted)


def reserve(
    cluster: Cluster, turn: Turn, request: ReserveResourcesRequest, principal: str
) -> ReserveResourcesResponse | ErrorDetail:
    """Reserve, and lend what was reserved where that is asked for."""
    response = reservations.reserve(cluster, turn, request, principal)
    if isinstance(response, ErrorDetail) or not request.lend:
        return response
    views = tuple(replace(view, lend=True) for view in response.reservations)
    if not request.dry_run:
        for view in views:
            agent = cluster.agents[view.agent_id]
            set_lent(cluster, turn, agent, agent.lent | {view.stack})
    return replace(response, reservation=views[0], reservations=views)


def set_lent(cluster: Cluster, turn: Turn, agent: Agent, lent: frozenset[Stack]) -> None:
    """Exactly these reservations of an agent are lent from now on."""
    if lent == agent.lent:
        return
    more = lent - agent.lent
    agent.lent = lent
    turn.persist(LendingRecorded(agent.agent_id, tuple(sorted(lent))))
    cluster.lenders.add(agent.agent_id)
    cluster.touch(agent.agent_id)
    what = ", ".join(sorted({stack[-1].holder for stack in more or lent}))
    text = f"what {agent.info.hostname} keeps for {what} is lent while it is idle" if more else "less is lent"
    turn.publish("reservation_lent" if more else "lending_changed", text, agent_id=agent.agent_id)


def _withdraw(cluster: Cluster, turn: Turn, agent: Agent, stacks: frozenset[Stack]) -> tuple[int, int]:
    """Lend these no longer; return how many offers were rescinded and how many tasks got a notice."""
    if not agent.lent & stacks:
        return 0, 0
    agent.lent -= stacks
    turn.persist(LendingRecorded(agent.agent_id, tuple(sorted(agent.lent))))
    holders = ", ".join(sorted({stack[-1].holder for stack in stacks}))
    why = f"what {agent.info.hostname} keeps for {holders} is lent no longer"
    loans = [loan for loan in loans_on(cluster, agent.agent_id) if not stacks.isdisjoint(loan.holding)]
    done = call_in(cluster, turn, loans, why)
    cluster.touch(agent.agent_id)
    turn.publish("lending_withdrawn", why, agent_id=agent.agent_id)
    return done


def settle(cluster: Cluster, turn: Turn) -> None:
    """Before a cycle: whoever waited, and can be served now, is asked first for what came back.

    What is earmarked counts as free meanwhile, for headroom too, and the claims are looked at in the order in which they were made: else
    looking again, though nothing has changed, would come to something else.
    """
    books = cluster.ledger.books
    earmarks = {agent_id: books[agent_id].earmark for agent_id in cluster.claims}
    for agent_id in earmarks:
        cluster.ledger.set_earmark(agent_id, {})
    for agent_id, earmark in earmarks.items():
        _look(cluster, turn, cluster.agents[agent_id], earmark)


def reclaim(cluster: Cluster, turn: Turn, agent_ids: AbstractSet[AgentId]) -> None:
    """After a cycle, which served from what was free whom it could: call in what is wanted by those for whom it is kept.

    Offers of all agents, which cost nobody anything, before the first task of any.
    """
    in_order = sorted(agent_ids & cluster.lenders)
    for offers_alone in (True, False):
        for agent_id in in_order:
            if agent_id in cluster.claims or agent_id in cluster.first_in_line or agent_id in cluster.gangs.recalling:
                continue
            if agent_id in cluster.lenders:
                _look(cluster, turn, cluster.agents[agent_id], {}, offers_alone=offers_alone)


def _look(cluster: Cluster, turn: Turn, agent: Agent, before: Holding, *, offers_alone: bool = False) -> None:
    """See who wants something back of one agent; `before` was earmarked until now."""
    agent_id, ledger = agent.agent_id, cluster.ledger
    books, waiting = ledger.books[agent_id], cluster.claims.get(agent_id)
    everything = loans_on(cluster, agent_id)
    if not everything and not agent.lent:
        cluster.lenders.discard(agent_id)
    # What was lent of what is held for a gang comes back to gangs.
    mine = [loan for loan in everything if not is_of_hold(loan.holding)]
    loans = sorted(mine, key=lambda loan: reluctance(cluster, loan))
    if offers_alone:
        loans = [loan for loan in loans if not isinstance(loan.holder, TaskKey)]
    have = books.free
    claim: Claim | None = None
    if agent.state is AgentState.ACTIVE:
        if waiting is not None and _can_be_served(cluster, agent, waiting.client, have):
            cluster.first_in_line[agent_id] = waiting
        elif loans and not books.in_excess:
            claim = find_claim(cluster, agent, loans, have)
    cluster.claims.pop(agent_id, None)
    earmark: Holding = {}
    if claim is not None:
        who = cluster.frameworks[claim.client.framework_id].info.name or claim.client.framework_id
        call_in(cluster, turn, claim.loans, f"{who} wants what {agent.info.hostname} keeps for {claim.client.role}")
        if all(isinstance(loan.holder, str) for loan in claim.loans):
            cluster.first_in_line[agent_id] = claim
        else:
            cluster.claims[agent_id] = claim
            earmark = overlap(claim.holding, books.free)
    ledger.set_earmark(agent_id, earmark)
    if earmark != before or waiting is not None and claim is None:
        cluster.touch(agent_id)


def overlap(wanted: Holding, there: Holding) -> Holding:
    """What is there already of what is wanted."""
    return {stack: common for stack, part in wanted.items() if (common := part.intersection(there.get(stack, EMPTY)))}


def _can_be_served(cluster: Cluster, agent: Agent, client: Client, have: Holding) -> bool:
    if not is_active(cluster, client):
        return False
    framework, filters = cluster.frameworks[client.framework_id], cluster.filters.on(agent.agent_id)
    return isinstance(consider(cluster, agent, client, framework, dict(have), filters), Proposal)


def reluctance(cluster: Cluster, loan: Loan) -> tuple[int, int]:
    """Which loans are given up first: offers, tasks that have a notice, then the youngest tasks."""
    if not isinstance(loan.holder, TaskKey):
        return 0, 0
    task = cluster.tasks[loan.holder]
    return (1, task.preempt_at_ms) if _is_called_in(task) else (2, -task.assigned.launched_at_ms)


def is_due(cluster: Cluster, loan: Loan) -> bool:
    """Whether a loan will come back: its task has a notice, or is being killed."""
    return isinstance(loan.holder, TaskKey) and _is_called_in(cluster.tasks[loan.holder])


def _is_called_in(task: Task) -> bool:
    return bool(task.preempt_at_ms) or task.kill_reason is not StatusReason.UNSPECIFIED


def call_in(cluster: Cluster, turn: Turn, loans: Iterable[Loan], why: str) -> tuple[int, int]:
    """Rescind offers at once, and give tasks notice; return how many of each."""
    offers = [loan.holder for loan in loans if not isinstance(loan.holder, TaskKey)]
    rescinded = rescind(cluster, turn, offers, why) if offers else 0
    notices: dict[FrameworkId, list[Preemption]] = {}
    notice_ms = cluster.flags.duration_ms("preemption-notice")
    for loan in loans:
        if not isinstance(loan.holder, TaskKey) or _is_called_in(task := cluster.tasks[loan.holder]):
            continue
        task.preempt_at_ms = turn.now.wall_ms + notice_ms
        turn.persist(PreemptionRecorded(*task.key, task.preempt_at_ms))
        cluster.deadlines.set(_deadline(task.key), turn.now.monotonic_ms + notice_ms)
        cluster.counters.tasks_preempted += 1
        notices.setdefault(task.key.framework_id, []).append(Preemption(task.key.task_id, notice_ms))
        turn.publish(
            "task_preempted",
            f"{task.key.task_id} of {task.key.framework_id} is to end in {format_duration(notice_ms)}: {why}",
            agent_id=task.agent_id,
            framework_id=task.key.framework_id,
            task_id=task.key.task_id,
        )
    for framework_id, preemptions in notices.items():
        if (framework := cluster.frameworks.get(framework_id)) is not None:
            turn.to_framework(framework, PreemptionNotice(tuple(preemptions), why))
    return rescinded, sum(map(len, notices.values()))


def _deadline(key: TaskKey) -> tuple[str, str]:
    # Ids have no slashes.
    return "preempt", f"{key.framework_id}/{key.task_id}"


def notice_over(cluster: Cluster, turn: Turn, name: str) -> None:
    """The time of a task is over: it is killed, wherever its agent is."""
    framework_id, task_id = name.split("/", 1)
    task = cluster.tasks.get(TaskKey(FrameworkId(framework_id), TaskId(task_id)))
    # A later task of the same name has none.
    if task is None or not task.preempt_at_ms:
        return
    if not task.state.is_terminal and task.kill_reason is StatusReason.UNSPECIFIED:
        kill(cluster, turn, task, StatusReason.REVOKED, None)


def repeat_notices(cluster: Cluster, turn: Turn, framework: Framework) -> None:
    """Tell a framework that is (back) on line which of its tasks are to end."""
    left = tuple(
        Preemption(task.key.task_id, max(0, task.preempt_at_ms - turn.now.wall_ms))
        for task in cluster.live_tasks(sorted(framework.tasks))
        if task.preempt_at_ms
    )
    if left:
        turn.to_framework(framework, PreemptionNotice(left, "what they run on is wanted back"))


def recover(cluster: Cluster, now_ms: int, wall_ms: int) -> None:
    """After a restart: what is lent, and which tasks are to end when."""
    for agent_id, known in cluster.durable.agents.items():
        cluster.agents[agent_id].lent = frozenset(known.lent)
        if known.lent:
            cluster.lenders.add(agent_id)
    for task in cluster.tasks.values():
        if task.assigned.revocable and not task.state.is_terminal:
            cluster.lenders.add(task.agent_id)
            if task.preempt_at_ms:
                cluster.deadlines.set(_deadline(task.key), now_ms + max(0, task.preempt_at_ms - wall_ms))

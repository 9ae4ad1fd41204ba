"""What operators are shown."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, TypeVar

from bursar.core.errors import ErrorDetail, ErrorReason
from bursar.core.ids import AgentId, DeviceUuid, FrameworkId, OfferId
from bursar.core.messages.operator import (
    AgentView,
    DeviceView,
    FrameworkView,
    LoanView,
    MasterView,
    OfferView,
    Page,
    ReservationView,
    ServiceView,
    TaskView,
)
from bursar.core.resources import Holding, Resources, Stack, holding_total, sum_resources, to_reserved
from bursar.core.tasks import StatusReason, TaskSpec
from bursar.core.text import format_resources
from bursar.master.allocator.shares import Client
from bursar.master.hoarding import history_of
from bursar.master.ledger import Books, TaskKey
from bursar.master.obstacles.wording import name_of
from bursar.master.state import Agent, Cluster, Framework, OutstandingOffer, Task
from bursar.master.vacant import is_vacancy

T = TypeVar("T")

DEFAULT_PAGE_SIZE = 500
MAX_PAGE_SIZE = 5000


def page_of(
    items: Sequence[T], key: Callable[[T], str], page: Page, most: int = MAX_PAGE_SIZE
) -> tuple[tuple[T, ...], str]:
    """The part of a list after the page's token, in the order of `key`, and the token of the next; empty on the last page.

    `most`: no page is longer.
    """
    size = min(page.page_size or DEFAULT_PAGE_SIZE, most)
    keyed = sorted((key(item), index) for index, item in enumerate(items))
    first = bisect_right(keyed, page.page_token, key=lambda entry: entry[0]) if page.page_token else 0
    part = keyed[first : first + size]
    more = first + size < len(keyed)
    return tuple(items[index] for _, index in part), part[-1][0] if more else ""


def master_view(cluster: Cluster, version: str, address: str) -> MasterView:
    """The master itself."""
    return MasterView(
        cluster.cluster_id,
        cluster.term,
        version,
        address,
        cluster.started_at_ms,
        len(cluster.agents),
        len(cluster.frameworks),
        sum(len(agent.tasks) for agent in cluster.agents.values()),
        len(cluster.offers),
    )


def agent_view(cluster: Cluster, agent: Agent) -> AgentView:
    """One agent, with its books."""
    books = cluster.ledger.books[agent.agent_id]
    info = agent.info
    return AgentView(
        agent.agent_id,
        info.hostname,
        agent.state,
        info.attributes,
        info.runtime,
        info.version,
        total=holding_total(books.total),
        free=holding_total(books.free),
        offered=books.offered_total(),
        allocated=books.allocated_total(),
        withheld=holding_total(books.withheld()),
        withheld_reasons=(
            *sorted(f"{uuid}: {why}" for uuid, why in books.withheld_devices.items()),
            *_gang_hold(cluster, agent.agent_id),
            *_earmark(cluster, agent.agent_id, books),
        ),
        excess=sum_resources(books.excess().values()),
        buckets=to_reserved(books.total),
        devices=info.devices,
        tasks=len(agent.tasks),
        registered_at_ms=agent.registered_at_ms,
        boot_id=info.boot_id,
        incarnation=info.incarnation,
        runs_without_image=info.runs_without_image,
        loans=loan_views(cluster, agent.agent_id),
    )


def _gang_hold(cluster: Cluster, agent_id: AgentId) -> tuple[str, ...]:
    """What is withheld for gangs, and for which."""
    return tuple(
        f"gang hold for {cluster.gangs.by_number[number].key}: {format_resources(holding_total(held))}"
        for number, held in sorted(cluster.ledger.holders_on(agent_id).items())
    )


def _earmark(cluster: Cluster, agent_id: AgentId, books: Books) -> tuple[str, ...]:
    """What is withheld for whom it was lent from, until the rest is back."""
    claim = cluster.claims.get(agent_id)
    if not books.earmark or claim is None:
        return ()
    client = claim.client
    who = name_of(cluster, client.framework_id)
    return (f"earmark for {who} in {client.role}: {format_resources(holding_total(books.earmark))}",)


def _amounts_of_offers(cluster: Cluster, framework: Framework, role: str | None = None) -> Resources:
    return sum_anywhere(
        holding_total(cluster.ledger.offer_holding(cluster.offers[offer_id].offer.agent_id, offer_id))
        for offer_id in framework.offers
        if role is None or cluster.offers[offer_id].offer.role == role
    )


def sum_anywhere(parts: Iterable[Resources]) -> Resources:
    """Sum over agents: ports of different agents are different ports and are left out."""
    scalars: dict[str, int] = {}
    devices: set[DeviceUuid] = set()
    for part in parts:
        devices |= part.devices
        for kind, amount in part.scalars.items():
            scalars[kind] = scalars.get(kind, 0) + amount
    return Resources(scalars, (), frozenset(devices))


def framework_view(cluster: Cluster, framework: Framework) -> FrameworkView:
    """One framework."""
    live = cluster.live_tasks(framework.tasks)
    return FrameworkView(
        framework.info,
        framework.state,
        tuple(sorted(framework.suppressed)),
        framework.demand,
        offered=_amounts_of_offers(cluster, framework),
        allocated=sum_anywhere(holding_total(cluster.ledger.task_holding(task.key)) for task in live),
        offers=len(framework.offers),
        tasks=len(live),
        subscribed_at_ms=framework.subscribed_at_ms,
        failover_deadline_ms=framework.failover_deadline_ms,
        history=history_of(cluster, framework),
    )


def offer_view(cluster: Cluster, outstanding: OutstandingOffer) -> OfferView:
    """One offer."""
    offer = outstanding.offer
    return OfferView(
        offer,
        cluster.agents[offer.agent_id].info.hostname,
        cluster.frameworks[offer.framework_id].info.name,
        outstanding.created_at_ms,
    )


def task_view(cluster: Cluster, task: Task) -> TaskView:
    """One task."""
    status = task.status
    return TaskView(
        task.key.framework_id,
        task.key.task_id,
        task.assigned.spec.name,
        task.assigned.role,
        task.agent_id,
        cluster.agents[task.agent_id].info.hostname,
        task.state,
        StatusReason.UNSPECIFIED if status is None else status.reason,
        "" if status is None else status.message,
        None if status is None else status.exit_code,
        task.assigned.resources,
        task.assigned.spec.without_secrets(),
        task.assigned.launched_at_ms,
        task.ended_at_ms,
        None if status is None else status.healthy,
        None if status is None else status.check,
        task.assigned.revocable,
        task.preempt_at_ms,
        service_views(task.assigned.spec, cluster.agents[task.agent_id].info.hostname),
    )


def service_views(spec: TaskSpec, hostname: str) -> tuple[ServiceView, ...]:
    """Where others reach a task."""
    address = f"[{hostname}]" if ":" in hostname else hostname
    return tuple(ServiceView(one.name, f"{address}:{one.host_port}", one.reach(hostname)) for one in spec.service_ports)


def device_views(cluster: Cluster, agent: Agent) -> list[DeviceView]:
    """The devices of one agent, by index."""
    books = cluster.ledger.books[agent.agent_id]
    holders = dict(cluster.ledger.device_holders(agent.agent_id))
    owners = {uuid: stack[-1].holder for stack, part in books.total.items() if stack for uuid in part.devices}
    in_gang_hold = {
        uuid: f"gang hold for {cluster.gangs.by_number[number].key}"
        for number, held in cluster.ledger.holders_on(agent.agent_id).items()
        for uuid in holding_total(held).devices
    }
    views = []
    for device in sorted(agent.devices.values(), key=lambda device: (device.index, device.uuid)):
        holder = holders.get(device.uuid)
        reason = books.withheld_devices.get(device.uuid, "") or in_gang_hold.get(device.uuid, "")
        use = "withheld" if reason else "free"
        framework_id = task_id = ""
        if isinstance(holder, TaskKey):
            use, (framework_id, task_id) = "allocated", holder
        elif holder is not None:
            use, framework_id = "offered", cluster.offers[holder].offer.framework_id
        views.append(
            DeviceView(
                agent.agent_id,
                agent.info.hostname,
                device,
                use,
                owners.get(device.uuid, ""),
                framework_id,
                task_id,
                reason,
            )
        )
    return views


def reservation_views(
    cluster: Cluster, agent: Agent, expand: Callable[[str], tuple[str, ...]]
) -> list[ReservationView]:
    """What one agent keeps, static and dynamic; `expand`: see `groups.expander`."""
    books = cluster.ledger.books[agent.agent_id]
    return [
        ReservationView(
            agent.agent_id,
            agent.info.hostname,
            stack,
            books.total[stack],
            books.allocated_in(stack),
            expand(stack[-1].holder),
            stack in agent.lent,
            sum_resources(
                entry.holding[stack]
                for entry in (*books.offered.values(), *books.allocated.values())
                if entry.revocable and stack in entry.holding
            ),
            loan_views(cluster, agent.agent_id, stack),
            tuple(
                sorted(
                    uuid
                    for uuid in books.total[stack].devices & agent.devices.keys()
                    if is_vacancy(agent.devices[uuid])
                )
            ),
        )
        for stack in sorted(books.total)
        if stack
    ]


def loan_views(cluster: Cluster, agent_id: AgentId, stack: Stack | None = None) -> tuple[LoanView, ...]:
    """What is on loan of an agent, by lender and borrower; `stack`: of this reservation alone."""
    if agent_id not in cluster.ledger.with_loans:
        return ()
    books = cluster.ledger.books[agent_id]
    found: dict[tuple[str, Client], list[tuple[Resources, OfferId | TaskKey]]] = {}
    entries: list[tuple[OfferId | TaskKey, Any]] = [*books.offered.items(), *books.allocated.items()]
    for holder, entry in entries:
        for lent, part in lent_parts(entry.holding).items() if entry.revocable else ():
            if stack is None or lent == stack:
                by = (lent[-1].holder if lent else "", entry.client)
                found.setdefault(by, []).append((part, holder))
    return tuple(_loan_view(cluster, lender, client, parts) for (lender, client), parts in sorted(found.items()))


def _loan_view(
    cluster: Cluster, lender: str, client: Client, parts: Sequence[tuple[Resources, OfferId | TaskKey]]
) -> LoanView:
    framework = cluster.frameworks.get(client.framework_id)
    holders = {holder for _, holder in parts}
    tasks = [cluster.tasks[holder] for holder in holders if isinstance(holder, TaskKey)]
    return LoanView(
        lender,
        client.framework_id,
        "" if framework is None else framework.info.name,
        client.role,
        sum_resources(part for part, _ in parts),
        len(holders) - len(tasks),
        len(tasks),
        sum(bool(task.preempt_at_ms) or task.kill_reason is not StatusReason.UNSPECIFIED for task in tasks),
    )


def lent_parts(holding: Holding) -> Holding:
    """What of a revocable offer or task is lent: what is reserved, or all where it was held for a gang."""
    return {stack: part for stack, part in holding.items() if stack} or holding


# --- finding what people name ---


def find_agent(cluster: Cluster, text: str) -> Agent | ErrorDetail:
    """By id, unique prefix of an id, or unique hostname."""
    exact = [agent for agent_id, agent in cluster.agents.items() if agent_id == text]
    by_name = [agent for agent in cluster.agents.values() if agent.info.hostname == text]
    by_prefix = [agent for agent_id, agent in cluster.agents.items() if text and agent_id.startswith(text)]
    for found in (exact, by_name, by_prefix):
        if len(found) == 1:
            return found[0]
        if found:
            return _ambiguous("agent", text, [f"{agent.agent_id} ({agent.info.hostname})" for agent in found])
    return _not_found("agent", text)


def find_framework(
    cluster: Cluster, text: str, among: Collection[FrameworkId] | None = None
) -> Framework | ErrorDetail:
    """By id or unique prefix of an id; with `among` as if there were no other frameworks."""
    known = {i: framework for i, framework in cluster.frameworks.items() if among is None or i in among}
    exact = [framework for framework_id, framework in known.items() if framework_id == text]
    by_prefix = [framework for framework_id, framework in known.items() if text and framework_id.startswith(text)]
    for found in (exact, by_prefix):
        if len(found) == 1:
            return found[0]
        if found:
            return _ambiguous("framework", text, [framework.framework_id for framework in found])
    return _not_found("framework", text)


def find_task(cluster: Cluster, text: str, among: Collection[FrameworkId] | None = None) -> Task | ErrorDetail:
    """By `FRAMEWORK_ID/TASK_ID` (each may be a unique prefix), or by a task id or prefix that is unique.

    With `among`: as if there were only the tasks of these frameworks.
    """
    framework_text, slash, task_text = text.rpartition("/")
    keys = [key for key in cluster.tasks if among is None or key.framework_id in among]
    if slash:
        exact = [key for key in keys if key == (framework_text, task_text)]
        by_prefix = [
            key
            for key in keys
            if key.framework_id.startswith(framework_text) and key.task_id.startswith(task_text) and text
        ]
        same_id = [key for key in by_prefix if key.task_id == task_text]
        groups = (exact, same_id, by_prefix)
    else:
        exact = [key for key in keys if key.task_id == text]
        by_prefix = [key for key in keys if text and key.task_id.startswith(text)]
        groups = (exact, by_prefix, [])
    for found in groups:
        if len(found) == 1:
            return cluster.tasks[found[0]]
        if found:
            return _ambiguous("task", text, ["/".join(key) for key in found])
    return _not_found("task", text)


def _ambiguous(noun: str, text: str, candidates: list[str]) -> ErrorDetail:
    shown = ", ".join(sorted(candidates)[:5]) + (", …" if len(candidates) > 5 else "")
    return ErrorDetail(
        ErrorReason.AMBIGUOUS, f"{text!r} fits {len(candidates)} {noun}s: {shown}", "write more of the id", noun
    )


def _not_found(noun: str, text: str) -> ErrorDetail:
    return ErrorDetail(ErrorReason.NOT_FOUND, f"there is no {noun} {text!r}", f"see `bursar {noun} ls`", noun)

"""Orders to have an image on agents beforehand (B-13), and which agents have which images.

Soft, all of it: the registry does not know of it. What is under way is known by the agents that pull, who tell it whenever they
register; so a new master knows it again, and an agent that begins anew is told again what it has not done. Forgotten is only what
the master had not told the agent when it ended, or what both forgot at once; then the image comes with the first task.
"""

from __future__ import annotations

from dataclasses import replace

from bursar.core.errors import ErrorDetail, ErrorReason, InvalidText
from bursar.core.ids import AgentId
from bursar.core.images import ImagePullState, image_problem
from bursar.core.messages import operator as op
from bursar.core.messages.agent import CancelImagePull, ImagePulls, Images, StartImagePull
from bursar.core.messages.operator import AgentState
from bursar.core.predicates import parse_predicates
from bursar.master.image_books import MAX_PULLS, ImageBooks, PullOrder
from bursar.master.reservation_sources import is_true_of
from bursar.master.state import Agent, Cluster, Turn
from bursar.master.views import find_agent, page_of

_S = ImagePullState


# --- what operators want ---


def pull(
    cluster: Cluster, turn: Turn, request: op.PullImageRequest, principal: str
) -> op.PullImageResponse | ErrorDetail:
    """Order a pull. On agents that are not connected it begins when they are."""
    if problem := image_problem(request.image):
        return ErrorDetail(ErrorReason.INVALID_ARGUMENT, problem, "name one image", "image")
    agents = _agents(cluster, request)
    if isinstance(agents, ErrorDetail):
        return agents
    books = cluster.images
    if sum(not order.is_over for order in books.orders.values()) >= MAX_PULLS:
        return ErrorDetail(
            ErrorReason.INVALID_ARGUMENT,
            f"{MAX_PULLS} pulls are under way already",
            "wait for some, or cancel them: bursar image pulls",
        )
    books.sequence += 1
    order = PullOrder(f"pull-{cluster.term}-{books.sequence}", request.image, principal, turn.now.wall_ms)
    books.orders[order.pull_id] = order
    _forget_old(books)
    for agent in agents:
        order.members[agent.agent_id] = order.member()
        _tell(turn, agent, order)
    turn.publish("image_pull_ordered", f"{order.pull_id}: {order.image} on {len(agents)} agents")
    return op.PullImageResponse(view(cluster, order))


def cancel(
    cluster: Cluster, turn: Turn, request: op.CancelImagePullRequest
) -> op.CancelImagePullResponse | ErrorDetail:
    """End what is left of an order; what agents have by now stays."""
    order = _find(cluster, request.pull)
    if isinstance(order, ErrorDetail):
        return order
    for agent_id, member in order.members.items():
        if member.state.is_over:
            continue
        order.members[agent_id] = replace(member, state=_S.CANCELLED, message="cancelled by an operator")
        agent = cluster.agents.get(agent_id)
        if agent is not None and agent.connection is not None:
            turn.to_agent(agent, CancelImagePull(order.pull_id))
    return op.CancelImagePullResponse(view(cluster, order))


def list_pulls(cluster: Cluster, request: op.ListImagePullsRequest) -> op.ListImagePullsResponse | ErrorDetail:
    """Orders, the oldest first; or the one that is named."""
    orders = list(cluster.images.orders.values())
    if request.pull:
        order = _find(cluster, request.pull)
        if isinstance(order, ErrorDetail):
            return order
        orders = [order]
    orders.sort(key=lambda order: (order.ordered_at_ms, order.pull_id))
    part, token = page_of(orders, lambda order: f"{order.ordered_at_ms:020d}/{order.pull_id}", request.page)
    return op.ListImagePullsResponse(tuple(view(cluster, order) for order in part), token)


def list_images(cluster: Cluster, request: op.ListImagesRequest) -> op.ListImagesResponse | ErrorDetail:
    """Which agents have which images, as they told last."""
    agents = sorted(cluster.agents.values(), key=lambda agent: (agent.info.hostname, agent.agent_id))
    if request.agent:
        found = find_agent(cluster, request.agent)
        if isinstance(found, ErrorDetail):
            return found
        agents = [found]
    images = [
        op.ImageView(agent.agent_id, agent.info.hostname, image)
        for agent in agents
        for image in cluster.images.on_agents.get(agent.agent_id, ())
    ]
    numbered = [(f"{one.hostname}/{one.agent_id}/{number:06d}", one) for number, one in enumerate(images)]
    part, token = page_of(numbered, lambda item: item[0], request.page)
    return op.ListImagesResponse(tuple(one for _, one in part), token)


def view(cluster: Cluster, order: PullOrder) -> op.ImagePullView:
    """One order as operators see it."""
    members = []
    for agent_id, member in order.members.items():
        agent = cluster.agents.get(agent_id)
        if not member.state.is_over and (agent is None or agent.connection is None):
            member = replace(member, message="the agent is not connected; it goes on when it is back")
        members.append(op.ImagePullMember(agent_id, agent.info.hostname if agent else "", member))
    members.sort(key=lambda one: (one.hostname, one.agent_id))
    return op.ImagePullView(order.pull_id, order.image, order.principal, order.ordered_at_ms, tuple(members))


# --- what agents tell ---


def greet(cluster: Cluster, turn: Turn, agent: Agent) -> None:
    """An agent has registered: it is told what is not over; one that knows of it only tells where it is."""
    for order in cluster.images.orders.values():
        member = order.members.get(agent.agent_id)
        if member is not None and not member.state.is_over:
            _tell(turn, agent, order)


def hear(cluster: Cluster, turn: Turn, agent: Agent, message: ImagePulls | Images) -> None:
    """An agent tells where its pulls are, or what it has."""
    books = cluster.images
    if isinstance(message, Images):
        books.on_agents[agent.agent_id] = message.images
        return
    for pull in message.pulls:
        order = books.orders.get(pull.pull_id)
        if order is None:
            # Ordered by a master before this one.
            order = PullOrder(pull.pull_id, pull.image, pull.principal, pull.ordered_at_ms)
            books.orders[pull.pull_id] = order
        before = order.members.get(agent.agent_id, order.member())
        if before.state is _S.CANCELLED and not pull.state.is_over:
            turn.to_agent(agent, CancelImagePull(pull.pull_id))
        elif not before.state.is_over:
            order.members[agent.agent_id] = pull
            if pull.state is _S.FAILED:
                turn.publish(
                    "image_pull_failed", f"{pull.image}: {pull.message or pull.failure.name}", agent_id=agent.agent_id
                )
            elif pull.state is _S.PULLED:
                turn.publish("image_pulled", pull.image, agent_id=agent.agent_id)
    _forget_old(books)


# --- inside ---


def _tell(turn: Turn, agent: Agent, order: PullOrder) -> None:
    if agent.connection is not None:
        turn.to_agent(agent, StartImagePull(order.pull_id, order.image, order.principal, order.ordered_at_ms))


def _agents(cluster: Cluster, request: op.PullImageRequest) -> list[Agent] | ErrorDetail:
    """Those that are named, or of which the predicates are true, or all that are active."""
    ways = (bool(request.agents), bool(request.where), request.all)
    if sum(ways) != 1:
        return ErrorDetail(
            ErrorReason.INVALID_ARGUMENT,
            "where is the image wanted? name agents, or predicates, or all: one of the three",
            "--agents a1,a2, --where 'gpus>=1' or --all",
            "agents",
        )
    if request.agents:
        named: dict[AgentId, Agent] = {}
        for name in request.agents:
            agent = find_agent(cluster, name)
            if isinstance(agent, ErrorDetail):
                return agent
            named[agent.agent_id] = agent
        return list(named.values())
    try:
        predicates = parse_predicates(request.where, "where") if request.where else ()
    except InvalidText as error:
        return ErrorDetail(ErrorReason.INVALID_ARGUMENT, error.detail.message, error.detail.hint, "where")
    active = [agent for agent in cluster.agents.values() if agent.state is AgentState.ACTIVE]
    found = [agent for agent in active if all(is_true_of(cluster, agent, predicate) for predicate in predicates)]
    if not found:
        what = f"none of {len(active)} active agents matches {request.where!r}" if active else "no agent is active"
        return ErrorDetail(ErrorReason.NOT_FOUND, what, "see `bursar agent ls`", "where")
    return found


def _find(cluster: Cluster, name: str) -> PullOrder | ErrorDetail:
    order = cluster.images.orders.get(name)
    if order is None:
        return ErrorDetail(ErrorReason.NOT_FOUND, f"there is no pull {name!r}", "see `bursar image pulls`", "pull")
    return order


def _forget_old(books: ImageBooks) -> None:
    over = [pull_id for pull_id, order in books.orders.items() if order.is_over]
    for pull_id in over[: max(0, len(books.orders) - MAX_PULLS)]:
        del books.orders[pull_id]

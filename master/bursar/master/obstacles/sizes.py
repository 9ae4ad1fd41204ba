"""What is too small: agents for shapes, what is free for the smallest offer."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from bursar.core.messages.operator import Obstacle, ObstacleKind
from bursar.core.resources import (
    holding_total,
)
from bursar.core.text import format_request
from bursar.master.obstacles.asking import MAX_LOOKED_AT, Group
from bursar.master.obstacles.wording import amounts_of, format_of, how_much


def shapes_exceeding(group: Group) -> Iterator[Obstacle]:
    """In which dimension shapes exceed: first those in which every agent is too small, else what the nearest agent lacks."""
    agents = list(group.agents.values())
    totals = [holding_total(group.books_of(agent).total) for agent in agents]
    for shape, _ in group.shapes[:MAX_LOOKED_AT]:
        request, text = shape.resources, format_request(shape.resources)
        hopeless = False
        for kind, wanted in amounts_of(request):
            amounts = [how_much(request, kind, total) for total in totals]
            most = max(amounts)
            if most < wanted:
                hopeless = True
                largest = agents[amounts.index(most)]
                message = (
                    f"{kind}: {format_of(kind, wanted)} wanted, {largest.info.hostname} has {format_of(kind, most)}"
                )
                if len(agents) > 1:
                    message += ", and no other has more"
                yield Obstacle(
                    ObstacleKind.SHAPE, text, message, agent_id=largest.agent_id, resource=kind, amount=wanted, of=most
                )
        if hopeless:
            continue
        lacking = [
            [(kind, wanted) for kind, wanted in amounts_of(request) if how_much(request, kind, total) < wanted]
            for total in totals
        ]
        index = min(range(len(agents)), key=lambda index: len(lacking[index]))
        for kind, wanted in lacking[index]:
            there = how_much(request, kind, totals[index])
            name = agents[index].info.hostname
            message = (
                f"{kind}: {format_of(kind, wanted)} wanted, {name} has all else and {format_of(kind, there)} of it"
            )
            if len(lacking[index]) > 1:
                message = (
                    f"{kind}: {format_of(kind, wanted)} wanted, {name}, which lacks least, has {format_of(kind, there)}"
                )
            yield Obstacle(
                ObstacleKind.SHAPE,
                text,
                message,
                agent_id=agents[index].agent_id,
                resource=kind,
                amount=wanted,
                of=there,
            )


def exceeds_says(group: Group) -> str:
    """That it is too small, and for what first."""
    everywhere = len(group.agents) == len(group.cluster.agents)
    says = "smaller in total than what is wanted"
    if everywhere and len(group.agents) > 1:
        says = "no agent could ever fit what is wanted"
    return says + "".join(f"; {obstacle.message}" for obstacle in islice(shapes_exceeding(group), 1))


def exceeds_hint(group: Group) -> str:
    """What would be small enough."""
    for obstacle in shapes_exceeding(group):
        kind = obstacle.resource
        if not obstacle.of:
            return f"add agents that have {kind}, or ask for none"
        return f"ask for at most {kind}:{format_of(kind, obstacle.of)} at once, or add larger agents"
    return "ask for less, or add larger agents"


def minimum_missed(group: Group) -> Iterator[Obstacle]:
    """Of what less is free on the first agent than the smallest offer has."""
    settings = group.framework.settings.get(group.client.role)
    minimum = settings.minimum if settings is not None and settings.minimum is not None else group.cluster.minimum
    books, agent = group.books_of(group.agent), group.agent
    free, total = holding_total(books.free), holding_total(books.total)
    for alternative in minimum:
        for kind, least in alternative:
            there = free.amount(kind)
            if there < least:
                text = f"{kind}: {format_of(kind, there)} free on {agent.info.hostname}, {format_of(kind, least)} is the least"
                if total.amount(kind) < least:
                    text += f", and it has only {format_of(kind, total.amount(kind))}"
                yield Obstacle(
                    ObstacleKind.MINIMUM, kind, text, agent_id=agent.agent_id, resource=kind, amount=there, of=least
                )

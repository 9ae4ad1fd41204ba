"""Longer pauses for who refuses the same again and again (design.md §7; field.md pain 17).

A framework that declines with a short filter is offered the same every few seconds, for nothing, and whoever comes after it waits. How
often it did so in a row is remembered per (role, framework) and *shape* of agent: its amounts in total. Offers that were out together
are one *round*. From the sixth round on a decline is followed by a pause of one allocation interval, doubled with each further round
up to a minute, where the framework's own filter ends earlier. Whoever uses anything of such an agent begins anew, as does who
revives the role or comes back; and what is larger than what was declined is offered at once, whatever the pause.

Offers that were left unanswered are followed by a pause from the first round on, doubled up to five minutes; any answer ends that.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from bursar.core.ids import FrameworkId
from bursar.core.resources import Holding, holding_total
from bursar.master.allocator.shares import Client

#: Rounds of declines in a row without any consequence.
FREE_ROUNDS = 5
#: The longest pause after a decline; whose own filter is as long needs no history.
MAX_DECLINE_PAUSE_MS = 60_000
#: The longest pause of a framework that never answers.
MAX_SILENCE_PAUSE_MS = 300_000

AgentShape = tuple[tuple[str, int], ...]
"""Amounts by kind, sorted: agents that have the same are alike."""


def shape_of(total: Holding) -> AgentShape:
    """The shape of an agent that has so much in all."""
    return tuple(sorted(holding_total(total).amounts().items()))


def pause_ms(rounds: int, interval_ms: int, longest_ms: int) -> int:
    """One allocation interval in the first round, doubled with each further one up to a bound; nothing before the first."""
    if rounds < 1:
        return 0
    return max(interval_ms, min(interval_ms << min(rounds - 1, 20), longest_ms))


def decline_pause_ms(rounds: int, interval_ms: int) -> int:
    """What follows on so many rounds of declines in a row."""
    return pause_ms(rounds - FREE_ROUNDS, interval_ms, MAX_DECLINE_PAUSE_MS)


@dataclass(slots=True)
class OfferCounts:
    """What became of a framework's offers since the master started; soft."""

    accepted: int = 0
    declined: int = 0
    unanswered: int = 0
    #: How long those that came back unused were out, together.
    unused_ms: int = 0


class DeclineHistory:
    """Who declined what how often in a row. Soft: it goes with the stream and with the master."""

    def __init__(self) -> None:
        #: The rounds, and when the last one began.
        self._clients: dict[Client, dict[AgentShape, tuple[int, int]]] = {}

    def declined(self, client: Client, shape: AgentShape, made_ms: int, now_ms: int) -> int:
        """Note that an offer was declined, and when it was made; return the rounds in a row, from 1."""
        shapes = self._clients.setdefault(client, {})
        rounds, since_ms = shapes.get(shape, (0, made_ms - 1))
        if made_ms > since_ms:
            rounds += 1
            shapes[shape] = rounds, now_ms
        return rounds

    def used(self, client: Client, shape: AgentShape) -> None:
        """The client took something of an agent of this shape."""
        shapes = self._clients.get(client)
        if shapes is not None and shapes.pop(shape, (0, 0))[0] and not shapes:
            del self._clients[client]

    def rounds(self, client: Client, shape: AgentShape) -> int:
        """In how many rounds in a row agents of this shape were declined."""
        return self._clients.get(client, {}).get(shape, (0, 0))[0]

    def most_rounds(self, framework_id: FrameworkId, roles: Iterable[str]) -> int:
        """The same of the shape that was declined most often."""
        return max(
            (rounds for role in roles for rounds, _ in self._clients.get(Client(role, framework_id), {}).values()),
            default=0,
        )

    def forget(self, framework_id: FrameworkId, roles: Collection[str] | None = None) -> None:
        """Forget a framework, in some roles or in all."""
        if roles is None:
            roles = [client.role for client in self._clients if client.framework_id == framework_id]
        for role in roles:
            self._clients.pop(Client(role, framework_id), None)

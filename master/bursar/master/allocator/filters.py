"""What a framework declined a moment ago (OFF-5).

A filter of (client, agent) suppresses an offer iff what was refused contains what would be offered, so a larger or different offer
still goes out. It lives `max(allocation interval, refuse_ms)`, which also is the damping of design.md §7.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from collections.abc import Set as AbstractSet

from bursar.core.clock import Deadlines
from bursar.core.ids import AgentId, FrameworkId
from bursar.core.resources import EMPTY, Holding
from bursar.master.allocator.backoff import DeclineHistory
from bursar.master.allocator.shares import Client

_Filters = tuple[int, Holding, "_Filters | None"]
"""When the first ends, what it refused, and the other filters of the same client on the same agent. Flat: there may be millions."""

_NOTHING: Holding = {}
#: Most agents are offered before anybody is found hidden: an empty set each would cost more than their filters.
NOBODY: frozenset[Client] = frozenset()

_Due = tuple[FrameworkId, str, int]


class AgentFilters:
    """The filters on one agent."""

    __slots__ = ("by_client", "hidden", "hidden_from")

    def __init__(self, by_client: dict[Client, _Filters]) -> None:
        self.by_client = by_client
        #: Clients for which a filter contains all that they could be offered of `hidden_from`, what is free: found once.
        self.hidden: set[Client] | frozenset[Client] = NOBODY
        self.hidden_from: Holding | None = None

    def blocks(self, client: Client, offered: Holding) -> bool:
        """Whether an offer is suppressed."""
        filters = self.by_client.get(client)
        while filters is not None:
            _, refused, filters = filters
            for stack, part in offered.items():
                there = refused.get(stack, EMPTY)
                if there is not part and not there.contains(part):
                    break
            else:
                return True
        return False

    def known_hidden(self, free: Holding) -> AbstractSet[Client]:
        """The clients that were found to be blocked whatever is offered of `free`."""
        return self.hidden if self.hidden_from is free else NOBODY

    def note_hidden(self, client: Client, free: Holding) -> None:
        """A client was found to be."""
        if self.hidden_from is not free:
            self.hidden, self.hidden_from = NOBODY, free
        if isinstance(self.hidden, set):
            self.hidden.add(client)
        else:
            self.hidden = {client}

    def forget_hidden(self, client: Client) -> None:
        """A filter of its ended."""
        if isinstance(self.hidden, set):
            self.hidden.discard(client)


class RefuseFilters:
    """All filters; soft state, lost with the master."""

    def __init__(self) -> None:
        self._agents: dict[AgentId, AgentFilters] = {}
        #: Framework → (role, until) → agents with such a filter; some may be gone meanwhile.
        self._places: dict[FrameworkId, dict[tuple[str, int], list[AgentId]]] = {}
        self.deadlines: Deadlines[_Due] = Deadlines()
        #: For frameworks that left offers unanswered: in how many rounds in a row, and when the last one began.
        self._unanswered: dict[FrameworkId, tuple[int, int]] = {}
        self.history = DeclineHistory()

    def __len__(self) -> int:
        return sum(len(filters.by_client) for filters in self._agents.values())

    def on(self, agent_id: AgentId) -> AgentFilters | None:
        """The filters on an agent, if there are any."""
        return self._agents.get(agent_id)

    def add(self, client: Client, agent_id: AgentId, refused: Holding, until_ms: int) -> None:
        """Suppress what `refused` contains until then."""
        self.add_all(client, ((agent_id, refused),), until_ms)

    def add_all(self, client: Client, refused: Iterable[tuple[AgentId, Holding]], until_ms: int) -> None:
        """The same of many agents at once."""
        by_agent, names = self._agents, []
        # What agents alike have is one object, and so is a filter of it.
        one: _Filters = (until_ms, _NOTHING, None)
        for agent_id, holding in refused:
            if holding is not one[1]:
                one = (until_ms, holding, None)
            if not holding:
                continue
            on_agent = by_agent.get(agent_id)
            if on_agent is None:
                by_agent[agent_id] = AgentFilters({client: one})
            else:
                known = on_agent.by_client.get(client)
                on_agent.by_client[client] = one if known is None else _with(known, until_ms, holding)
            names.append(agent_id)
        if not names:
            return
        due = (client.role, until_ms)
        places = self._places.setdefault(client.framework_id, {})
        agents = places.get(due)
        if agents is None:
            places[due] = names
            self.deadlines.set((client.framework_id, *due), until_ms)
        else:
            agents += names

    def blocks(self, client: Client, agent_id: AgentId, offered: Holding) -> bool:
        """Whether an offer is suppressed."""
        on_agent = self._agents.get(agent_id)
        return on_agent is not None and on_agent.blocks(client, offered)

    def left_unanswered(self, framework_id: FrameworkId, made_ms: int, now_ms: int) -> int:
        """Note that an offer was left unanswered; return in how many rounds in a row, from 1. Offers that were out together
        are one round.
        """
        rounds, since_ms = self._unanswered.get(framework_id, (0, made_ms))
        if made_ms >= since_ms:
            rounds, since_ms = rounds + 1, now_ms
            self._unanswered[framework_id] = (rounds, since_ms)
        return rounds

    def rounds_unanswered(self, framework_id: FrameworkId) -> int:
        """In how many rounds in a row a framework left offers unanswered."""
        return self._unanswered.get(framework_id, (0, 0))[0]

    def answered(self, framework_id: FrameworkId) -> None:
        """The framework is awake."""
        self._unanswered.pop(framework_id, None)

    def expire(self, now_ms: int) -> set[AgentId]:
        """Drop what has expired; return the agents that may be offered again."""
        woken: set[AgentId] = set()
        for framework_id, role, until_ms in self.deadlines.pop_due(now_ms):
            places = self._places[framework_id]
            for agent_id in places.pop((role, until_ms)):
                on_agent = self._agents.get(agent_id)
                client = Client(role, framework_id)
                filters = None if on_agent is None else on_agent.by_client.get(client)
                if on_agent is None or filters is None:
                    continue
                rest = _after(filters, now_ms)
                if rest is not filters:
                    woken.add(agent_id)
                    self._put(agent_id, on_agent, client, rest)
            if not places:
                del self._places[framework_id]
        return woken

    def agents_of(self, framework_id: FrameworkId) -> set[AgentId]:
        """The agents of which a framework declined something."""
        roles = {role for role, _ in self._places.get(framework_id, ())}
        clients = [Client(role, framework_id) for role in sorted(roles)]
        return {
            agent_id
            for agents in self._places.get(framework_id, {}).values()
            for agent_id in agents
            if (on_agent := self._agents.get(agent_id)) and any(client in on_agent.by_client for client in clients)
        }

    def drop_framework(self, framework_id: FrameworkId, roles: Collection[str] | None = None) -> set[AgentId]:
        """Forget a framework's filters, of some roles or of all (revive, disconnection); return the agents that they were on."""
        self._unanswered.pop(framework_id, None)
        self.history.forget(framework_id, roles)
        places = self._places.get(framework_id)
        if places is None:
            return set()
        woken: set[AgentId] = set()
        for role, until_ms in list(places):
            if roles is not None and role not in roles:
                continue
            self.deadlines.cancel((framework_id, role, until_ms))
            client = Client(role, framework_id)
            for agent_id in places.pop((role, until_ms)):
                on_agent = self._agents.get(agent_id)
                if on_agent is not None and client in on_agent.by_client:
                    woken.add(agent_id)
                    self._put(agent_id, on_agent, client, None)
        if not places:
            del self._places[framework_id]
        return woken

    def forget_hidden(self) -> None:
        """Whom reservations are for changed: clients that were found blocked may be offered more of what is free."""
        for on_agent in self._agents.values():
            on_agent.hidden_from = None

    def drop_agent(self, agent_id: AgentId) -> None:
        """Forget what was declined of an agent: it has changed."""
        self._agents.pop(agent_id, None)

    def _put(self, agent_id: AgentId, on_agent: AgentFilters, client: Client, filters: _Filters | None) -> None:
        on_agent.forget_hidden(client)
        if filters is not None:
            on_agent.by_client[client] = filters
            return
        del on_agent.by_client[client]
        if not on_agent.by_client:
            del self._agents[agent_id]


def _with(known: _Filters, until_ms: int, refused: Holding) -> _Filters:
    """Add a filter, the one that ends first in front; those that it covers for as long as they live are dropped."""
    kept = [(until_ms, refused)]
    rest: _Filters | None = known
    while rest is not None:
        at_ms, what, rest = rest
        if at_ms > until_ms or not _contains(refused, what):
            kept.append((at_ms, what))
    kept.sort(key=lambda entry: -entry[0])
    result: _Filters | None = None
    for at_ms, what in kept:
        result = (at_ms, what, result)
    assert result is not None
    return result


def _contains(left: Holding, right: Holding) -> bool:
    return all(left.get(stack, EMPTY).contains(part) for stack, part in right.items())


def _after(filters: _Filters, now_ms: int) -> _Filters | None:
    """Those that live on."""
    rest: _Filters | None = filters
    while rest is not None and rest[0] <= now_ms:
        rest = rest[2]
    return rest

"""The allocation cycle.

For each agent with something free, in the order of a permutation: ask the shares who comes next; decide what that (role,
framework) may have of the agent (`decision`); hand it out; go on with what is left. A cycle runs for the agents that changed, at
once, and for all as the guarantee of progress; when the former is quiet, the latter makes no offer (design.md §7).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from itertools import chain
from operator import attrgetter
from typing import NamedTuple

from bursar.core.ids import AgentId, FrameworkId, OfferId
from bursar.core.messages.offers import Offer
from bursar.core.messages.operator import RefusalReason
from bursar.core.resources import Holding, ReservedResources, holding_total, to_reserved
from bursar.core.volumes import volumes_in
from bursar.master.allocator.alike import WANT_OF_AMOUNTS, Alike, AllAlike, Portion, Wants
from bursar.master.allocator.decision import Decision, Proposal, Question, rules_about, steps_for
from bursar.master.allocator.filters import NOBODY
from bursar.master.allocator.held_back import guaranteed_first
from bursar.master.allocator.hidden import Hidden
from bursar.master.allocator.lending import first_in_line
from bursar.master.allocator.line import Line, Place
from bursar.master.allocator.quota import surely
from bursar.master.allocator.shares import Amounts, Client, Node
from bursar.master.allocator.shares import in_order as walk_in_order
from bursar.master.ledger import Books
from bursar.master.state import Agent, Cluster, Framework, OutstandingOffer


class Made(NamedTuple):
    """What a cycle made."""

    offers: int
    #: Whom to tell, in the order in which they got their first.
    by_framework: dict[FrameworkId, list[Offer]]


def run_cycle(cluster: Cluster, agent_ids: AbstractSet[AgentId], now_ms: int, wall_ms: int) -> Made:
    """Offer what is free on these agents; return the new offers, already booked in the ledger."""
    cycle = Cycle(cluster, wall_ms)
    cluster.held_back.forget(in_cycle=True)
    cycle.offer_agents(in_order(cluster, agent_ids))
    cluster.held_back.forget(in_cycle=False)
    cluster.counters.cycles += 1
    return cycle.finish(now_ms)


def in_order(cluster: Cluster, agent_ids: AbstractSet[AgentId]) -> list[Agent]:
    """Agents in the order of the permutation. Where anybody says what they want, those with the fewest free devices come first: so a
    small demand is met by what is broken up already, or has no devices at all, and whole agents are left for those who need them.
    """
    if 4 * len(agent_ids) > len(cluster.agents_in_order):
        agents = [agent for agent in cluster.agents_in_order if agent.agent_id in agent_ids]
    else:
        agents = sorted([cluster.agents[agent_id] for agent_id in agent_ids], key=attrgetter("order"))
    if (
        len(agents) > 1
        and cluster.ledger.has_devices
        and any(
            framework.demand.version and framework.connection is not None for framework in cluster.frameworks.values()
        )
    ):
        books_of = cluster.ledger.books
        wholes = [_wholeness(books_of[agent.agent_id]) for agent in agents]
        if any(wholes):
            agents = [agents[index] for index in sorted(range(len(agents)), key=wholes.__getitem__)]
    return agents


def _wholeness(books: Books) -> int:
    """How many devices are free and unreserved, and, where that is the same, how many are free."""
    number = 0
    for stack, part in books.free.items():
        if not stack:
            number += len(part.devices) * 0x1_0001
        elif books.has_gpus_only:
            number += len(part.devices)
        else:
            # A volume is disk of its role's, and no device of anybody's.
            number += len(part.devices) - len(volumes_in(part.devices))
    return number


class Plan(Place):
    """How a cycle deals with a client, worked out once."""

    __slots__ = ("client", "framework", "judges_devices", "offers", "rules", "steps", "want")

    def __init__(self, cluster: Cluster, node: Node, wants: Wants, offers: list[Offer]) -> None:
        super().__init__(node)
        assert node.client is not None
        self.client = node.client
        self.framework = cluster.frameworks[node.client.framework_id]
        #: The rules that speak of it, as bits.
        self.rules = rules_about(cluster, self.client, self.framework)
        self.steps = steps_for(cluster, self.client, self.framework, self.rules)
        #: What is decided for others who want the same holds for it, too; None: nobody wants the same.
        self.want = wants.of(cluster, self.client, self.framework)
        #: Whether it minds which devices it is offered, beyond their number.
        self.judges_devices = self.want is not None and self.want.judges_devices
        #: Those to the framework in this cycle.
        self.offers = offers


class _Turn:
    """An agent, while it is offered."""

    __slots__ = ("agent", "alike", "books", "done", "filters", "hidden", "passed", "rules")

    def __init__(self, cycle: Cycle, agent: Agent, alike: Alike | None) -> None:
        cluster, agent_id = cycle.cluster, agent.agent_id
        self.agent = agent
        self.books = cluster.ledger.books[agent_id]
        self.filters = cluster.filters.on(agent_id)
        #: The rules that speak of it, as bits; and from whom rules hide all agents of its class.
        self.rules = cluster.visibility.class_of_agent(agent.info) if cycle.has_rules else 0
        self.hidden = cycle.hidden_from(self.rules)
        #: Roles that were passed over, for it is hidden from all of them.
        self.passed: set[Node] = set()
        #: Who was served or refused once need not be asked again: what is free only shrinks here. But a demand may be cut differently
        #: from less, and so get past the filter that blocked its first cut.
        self.done: set[Node] = set()
        self.alike = alike

    def is_hidden(self, node: Node) -> bool:
        """Whether a rule hides the agent from a client, as is known; counted once."""
        cell = self.hidden.by_client.get(node)
        if cell is None:
            return False
        if node not in self.done:
            cell.decisions += 1
            self.done.add(node)
        return True

    def is_refused_to_all(self, active: int) -> bool:
        """Whether all that may be given anything are known to be refused, as far as the count tells."""
        assert self.alike is not None
        refused, done = self.alike.refused, self.done
        return len(refused) + len(done) >= active and len(refused) + len(done - refused) >= active


class Cycle:
    """One run over agents: what is configured holds for all of it."""

    #: Whether what it offers is on loan.
    revocable = False

    def __init__(self, cluster: Cluster, wall_ms: int) -> None:
        self.cluster = cluster
        self.wall_ms = wall_ms
        self.expires_in_ms = cluster.flags.duration_ms("offer-timeout")
        self.offer_ids: list[OfferId] = []
        self.by_framework: dict[FrameworkId, list[Offer]] = {}
        self._boxes: dict[FrameworkId, list[Offer]] = {}
        self._plans: dict[Node, Plan] = {}
        self._wants = Wants()
        self._alike = AllAlike()
        #: Class of agents → whom rules hide them from, and the rule.
        self._hidden: dict[int, Hidden] = {}
        self._line: Line[Plan] = Line(cluster.shares, self.plan_for)
        #: All that may be given anything, once somebody asked.
        self._clients: frozenset[Client] | None = None
        self.question = Question(cluster)
        self.has_rules = bool(cluster.visibility.rules)
        self.has_quota = bool(cluster.shares.quota_kinds)
        #: Of the kinds that quotas name: what was given in this cycle; and for a role's clients, up to which sum of it quota cuts
        #: nothing.
        self._given = dict.fromkeys(cluster.shares.quota_kinds, 0)
        self._reach: dict[Node, dict[str, int]] = {}
        self._offer_prefix = f"{cluster.term}-O"

    def finish(self, now_ms: int) -> Made:
        """The offers that were made. They expire together: one deadline for all of them."""
        cluster = self.cluster
        if self.offer_ids:
            expires_at_ms = now_ms + self.expires_in_ms
            cluster.expiring_offers.setdefault(str(expires_at_ms), []).extend(self.offer_ids)
            cluster.deadlines.set(("offers", str(expires_at_ms)), expires_at_ms)
        cluster.counters.offers_made += len(self.offer_ids)
        return Made(len(self.offer_ids), self.by_framework)

    def offer_agents(self, agents: Iterable[Agent]) -> None:
        """Offer each agent until nothing is left of it, or nobody may have it."""
        for turn in self._offer_firsts(agents):
            if not self._repeat(turn):
                self._write_down()
                self._ask_in_turn(turn)
        self._write_down()

    # --- what was decided already ---

    def _offer_firsts(self, agents: Iterable[Agent]) -> Iterator[_Turn]:
        """Offer each agent to whoever comes first, if nothing but what is free and wanted matters and the same was decided before: as it
        mostly is, and so without a detour. Return the agents, one by one in their turn, that this does not end.
        """
        cluster, line, has_quota, root = self.cluster, self._line, self.has_quota, self.cluster.shares.root
        ledger, filters_on, class_of = cluster.ledger, cluster.filters.on, cluster.visibility.class_of_agent
        books_of, first_in_line, known_alike = ledger.books, cluster.first_in_line, self._alike.by_holding
        for agent in agents:
            agent_id = agent.agent_id
            books = books_of[agent_id]
            free = books.free
            known = known_alike.get(id(free))
            alike = known[1] if known is not None else self._alike.of(free)
            plan = line.first()
            if plan is None:
                return
            if root.unmet_below and alike is not None and self._somebody_is_guaranteed(alike, free):
                yield _Turn(self, agent, None)
                continue
            want, portion = plan.want, None
            if (
                alike is not None
                and want is not None
                and filters_on(agent_id) is None
                and not (plan.rules and plan.rules & class_of(agent.info))
                and not (first_in_line or books.has_views or not books.counted)
                and not (alike.refused and plan.node in alike.refused)
                and (not has_quota or self._is_within_reach(plan, alike.amounts))
            ):
                portion = alike.always.get(want) if want.is_constant else alike.recall(want, agent, plan.framework)
            if type(portion) is not Portion or (portion.same is None and plan.judges_devices):
                yield _Turn(self, agent, alike)
                continue
            holding, left, parts = portion.same or portion.of(free, agent.devices)
            offer_id = self._make_offer(plan, agent, parts, portion.promised)
            ledger.offer_part(books, agent_id, offer_id, plan.client, holding, portion.amounts, left)
            line.serve(plan, portion.amounts)
            if has_quota:
                self._note_given(portion.amounts)
            rest = portion.rest
            if rest is not None and (rest.cut or len(rest.refused) < root.active):
                turn = _Turn(self, agent, rest)
                turn.done.add(plan.node)
                yield turn

    def _is_special(self, books: Books, agent_id: AgentId) -> bool:
        """Whether an agent is not like others, whatever is free on it."""
        return not books.counted or books.has_views or agent_id in self.cluster.first_in_line

    def _repeat(self, turn: _Turn) -> bool:
        """Offer an agent as others alike were, until nothing is left or nobody may have it; or until there is something to decide:
        return whether there is not.
        """
        books, alike = turn.books, turn.alike
        if self._is_special(books, turn.agent.agent_id):
            return False
        while alike is not None:
            if self.has_quota and self._somebody_is_guaranteed(alike, books.free):
                return False
            found = self._next_in_line(turn)
            if found is None:
                if alike.cut:
                    self._park(turn)
                return True
            plan, portion = found
            if portion is None or not self._repeat_offer(turn, plan, portion):
                return False
            turn.alike = alike = portion.rest
            turn.done.add(plan.node)
        return not books.free

    def _next_in_line(self, turn: _Turn) -> tuple[Plan, Portion | None] | None:
        """Who is to be offered something next, and what; or who is to be decided about. None: nobody may have anything."""
        alike, line = turn.alike, self._line
        assert alike is not None
        plan = line.first()
        if plan is None or alike.refused and turn.is_refused_to_all(self.cluster.shares.root.active):
            return None
        declined = turn.filters.known_hidden(turn.books.free) if turn.filters is not None else NOBODY
        if declined and not turn.hidden.by_client and self._includes_all(declined):
            return None
        node = plan.node
        if node not in alike.refused and node not in turn.done and node not in turn.hidden.by_client:
            portion = self._recall(turn, alike, plan)
            if not isinstance(portion, RefusalReason):
                return plan, portion
        for node in turn.hidden.others(line.top, turn.passed):
            if turn.is_hidden(node) or node.client in declined or node in turn.done or node in alike.refused:
                continue
            plan = self.plan_for(node)
            portion = self._recall(turn, alike, plan)
            if not isinstance(portion, RefusalReason):
                return plan, portion
        return None

    def _includes_all(self, clients: AbstractSet[Client]) -> bool:
        """Whether these are all that may be given anything, and perhaps others."""
        if len(clients) < self.cluster.shares.root.active:
            return False
        if self._clients is None:
            # Who they are stays as it is during a cycle.
            self._clients = frozenset(
                [node.client for node in walk_in_order(self._line.top) if node.client is not None]
            )
        return self._clients <= clients

    def _recall(self, turn: _Turn, alike: Alike, plan: Plan) -> Portion | RefusalReason | None:
        """What was decided about such a client and such an agent; None where it must be decided."""
        want, filters = plan.want, turn.filters
        if want is None or plan.rules & turn.rules:
            return None
        if filters is not None and plan.client in filters.by_client:
            return RefusalReason.DECLINED if plan.client in filters.known_hidden(turn.books.free) else None
        known = alike.recall(want, turn.agent, plan.framework)
        if isinstance(known, Portion):
            return known if not self.has_quota or self._is_within_reach(plan, alike.amounts) else None
        if known in WANT_OF_AMOUNTS:
            alike.refused.add(plan.node)
        return known

    def _repeat_offer(self, turn: _Turn, plan: Plan, portion: Portion) -> bool:
        """Offer what was decided; return whether it could be: constraints may be on which devices these are."""
        agent, books, want = turn.agent, turn.books, plan.want
        holding, rest, parts = portion.same or portion.of(books.free, agent.devices)
        assert want is not None
        if plan.judges_devices and portion.same is None:
            assert want.settings is not None
            if not want.settings.takes(agent.facts, holding, agent.devices):
                return False
        offer_id = self._make_offer(plan, agent, parts, portion.promised)
        self.cluster.ledger.offer_part(books, agent.agent_id, offer_id, plan.client, holding, portion.amounts, rest)
        self._line.serve(plan, portion.amounts)
        if self.has_quota:
            self._note_given(portion.amounts)
        return True

    def _write_down(self) -> None:
        """Tell the accounts what was offered as before."""
        amounts = self._line.close()
        if self.has_quota and amounts:
            self.cluster.ledger.note_offered(amounts)
            self.cluster.held_back.forget(in_cycle=True)

    # --- quota ---

    def _note_given(self, amounts: Amounts) -> None:
        given = self._given
        for kind in given:
            given[kind] += amounts.get(kind, 0)

    def _is_within_reach(self, plan: Plan, amounts: Amounts) -> bool:
        """Whether quota surely cuts nothing of so much."""
        role = plan.node.parent
        assert role is not None
        given, reach = self._given, self._reach.get(role)
        if reach is not None:
            for kind, most in reach.items():
                if given[kind] + amounts.get(kind, 0) > most:
                    break
            else:
                return True
        self._write_down()
        free = self.cluster.ledger.free_unreserved()
        self._reach[role] = reach = {
            kind: sofar + surely(role, kind, free.get(kind, 0)) for kind, sofar in given.items()
        }
        return all(given[kind] + amounts.get(kind, 0) <= most for kind, most in reach.items())

    def _somebody_is_guaranteed(self, alike: Alike, free: Holding) -> bool:
        """Whether there may be somebody to be served before all others."""
        shares = self.cluster.shares
        if not shares.root.unmet_below:
            return False
        # What is unmet was more when it was written down, if anything.
        return any(node not in alike.refused for node in guaranteed_first(shares, free))

    def _park(self, turn: _Turn) -> None:
        """Something is left of an agent, and quota is among what speaks against offering it."""
        cluster, held_back = self.cluster, self.cluster.held_back
        assert turn.alike is not None
        self._write_down()
        held_back.begin()
        held_back.cut |= turn.alike.cut
        held_back.park(turn.agent.agent_id, cluster.shares, cluster.ledger.free_unreserved())

    # --- what is to be decided ---

    def _ask_in_turn(self, turn: _Turn) -> None:
        """Ask one after the other, and decide."""
        cluster, has_quota = self.cluster, self.has_quota
        agent, books, filters, done = turn.agent, turn.books, turn.filters, turn.done
        shares, held_back = cluster.shares, cluster.held_back
        if turn.passed:
            done.update(turn.hidden.clients_in(turn.passed))
        if has_quota:
            held_back.begin()
        while free := books.free:
            hidden = filters.known_hidden(free) if filters is not None else None
            turn.alike = alike = self._alike.of(free)
            if alike is not None:
                held_back.cut |= alike.cut
                if turn.is_refused_to_all(shares.root.active):
                    break
            refused = alike.refused if alike is not None else done
            order = chain(guaranteed_first(shares, free), shares.order()) if has_quota else shares.order()
            if cluster.first_in_line:
                order = chain(first_in_line(cluster, agent.agent_id), order)
            for node in order:
                if turn.is_hidden(node) or node in done or node in refused or hidden and node.client in hidden:
                    continue
                plan = self.plan_for(node)
                decision = self._decide(turn, plan, free)
                if isinstance(decision, Proposal):
                    # What it uses of a reservation may fulfil a guarantee, so that quota leaves it more of the rest.
                    if self.question.within is None:
                        done.add(node)
                    self.hand_out(agent, plan, decision)
                    break
                self._note_refusal(turn, plan, decision)
            else:
                break
        if has_quota and books.free:
            held_back.park(agent.agent_id, shares, cluster.ledger.free_unreserved())

    def _decide(self, turn: _Turn, plan: Plan, free: Holding) -> Decision:
        """Decide about a client; where the decision would be the same for others, keep it."""
        agent, alike, want, filters, framework = turn.agent, turn.alike, plan.want, turn.filters, plan.framework
        question, place = self.question, None
        if (
            alike is not None
            and want is not None
            and not plan.rules & turn.rules
            and (filters is None or plan.client not in filters.by_client)
        ):
            known = alike.recall(want, agent, framework)
            if isinstance(known, RefusalReason):
                return known
            place = None if known is not None else alike.place_for(want, agent, framework, free)
        decision = question.decide(agent, plan.client, framework, free, filters, plan.steps)
        if alike is None or want is None or place is None or question.within is not None:
            return decision
        where, circumstances = place
        if not isinstance(decision, Proposal):
            if decision in WANT_OF_AMOUNTS or _is_about_agent(question, decision):
                where[circumstances] = decision
        elif alike.is_plain and not turn.books.has_views:
            where[circumstances] = self._alike.portion(free, want, decision)
        return decision

    def _note_refusal(self, turn: _Turn, plan: Plan, decision: RefusalReason) -> None:
        """Remember a refusal for as long, and for as many agents, as it holds."""
        cluster, client, framework, agent, alike = self.cluster, plan.client, plan.framework, turn.agent, turn.alike
        if not _may_change(decision, framework, is_cut=self.question.within is not None):
            turn.done.add(plan.node)
        if decision is RefusalReason.HIDDEN_BY_RULE:
            cell = cluster.visibility.hider(agent.info, client.role, framework.info)
            if cell is not None:
                turn.hidden.add(plan.node, cell)
        if alike is not None and decision in WANT_OF_AMOUNTS and plan.want is not None and not plan.rules & turn.rules:
            alike.refused.add(plan.node)
            alike.cut |= cluster.held_back.cut

    def plan_for(self, node: Node) -> Plan:
        """How a client is dealt with."""
        plan = self._plans.get(node)
        if plan is None:
            assert node.client is not None
            offers = self._boxes.setdefault(node.client.framework_id, [])
            plan = self._plans[node] = Plan(self.cluster, node, self._wants, offers)
        return plan

    def hidden_from(self, rules: int) -> Hidden:
        """From whom rules hide agents of a class, as far as is known."""
        known = self._hidden.get(rules)
        if known is None:
            known = self._hidden[rules] = Hidden()
        return known

    def hand_out(self, agent: Agent, plan: Plan, proposal: Proposal) -> None:
        """Offer it; the ledger has it from now on."""
        holding, promised = proposal
        offer_id = self._make_offer(plan, agent, to_reserved(holding), promised)
        self.cluster.ledger.offer(agent.agent_id, offer_id, plan.client, holding, self.revocable)
        if self.has_quota:
            self._note_given(holding_total(holding).amounts())
            self.cluster.held_back.forget(in_cycle=True)

    def _make_offer(
        self, plan: Plan, agent: Agent, parts: tuple[ReservedResources, ...], promised: Mapping[int, int]
    ) -> OfferId:
        """Make an offer; the ledger is told by the caller."""
        cluster, client, framework, mine = self.cluster, plan.client, plan.framework, plan.offers
        role, framework_id = client
        cluster.offer_sequence = number = cluster.offer_sequence + 1
        offer_id = OfferId(f"{self._offer_prefix}{number}")
        offer = Offer(
            offer_id,
            framework_id,
            role,
            agent.agent_id,
            agent.description_version,
            parts,
            self.expires_in_ms,
            "",
            self.revocable,
        )
        cluster.offers[offer_id] = OutstandingOffer(offer, self.wall_ms, framework.demand.version, promised)
        framework.offers.add(offer_id)
        if promised:
            for index, count in promised.items():
                framework.promised[index] += count
            cluster.reopened.add(framework_id)
        self.offer_ids.append(offer_id)
        if not mine:
            self.by_framework[framework_id] = mine
        mine.append(offer)
        return offer_id


def _is_about_agent(question: Question, decision: RefusalReason) -> bool:
    """Whether the agent alone, and not what would be offered of it, was reason enough to refuse it."""
    if decision is RefusalReason.OFFER_CONSTRAINTS:
        assert question.settings is not None
        return not question.settings.may_take(question.agent.facts)
    return decision is RefusalReason.OTHER_REGION


def _may_change(decision: Decision, framework: Framework, *, is_cut: bool) -> bool:
    """Whether less of the agent may be offered where more was not: a demand is cut differently, and so is what quota cuts; `gpus<=2` is true
    at last.
    """
    if decision is RefusalReason.DECLINED:
        return framework.demand.version > 0 or is_cut
    return decision is RefusalReason.OFFER_CONSTRAINTS

"""Guarantees and limits of roles: what an operator may set, and which offers must go for it (mesos.md §3.3, QTA-1).

A request is tried on a copy of the tree of roles that has a quota; either all of it is carried out, or nothing is changed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush

from bursar.core.errors import ErrorDetail, ErrorReason
from bursar.core.flags import closest
from bursar.core.ids import OfferId
from bursar.core.messages.operator import Quota, QuotaView, SetQuotasRequest, SetQuotasResponse
from bursar.core.resources import GPUS, MAX_AMOUNT, MILLI, PORTS, UNRESERVED, ResourceRequest, to_holding
from bursar.core.roles import ancestors, covers, role_problem
from bursar.core.text import format_amount
from bursar.master.allocator.held_back import is_loose, loose_amounts
from bursar.master.allocator.quota import settle, unmet
from bursar.master.offers import rescind
from bursar.master.records import QuotasRecorded
from bursar.master.state import Cluster, Turn

#: How many roles one request may name, and kinds per role.
MAX_ROLES = 10_000
MAX_KINDS = 64
#: Kinds that are known although no agent has any.
BUILT_IN = frozenset({"cpus", "mem", "disk", GPUS})

Amounts = Mapping[str, int]


@dataclass(slots=True, eq=False)
class TrialRole:
    """A role with a quota, or above one, in a copy of the tree on which a change is tried; a `QuotaNode`."""

    path: str
    parent: TrialRole | None = None
    children: dict[str, TrialRole] = field(default_factory=dict)
    guarantee: Amounts = field(default_factory=dict)
    limit: Amounts = field(default_factory=dict)
    unmet: dict[str, int] = field(default_factory=dict)
    unmet_below: dict[str, int] = field(default_factory=dict)
    #: What its subtree consumes.
    used: dict[str, int] = field(default_factory=dict)
    #: What its subtree is guaranteed: its own guarantee, or those of its children where they come to more.
    required: dict[str, int] = field(default_factory=dict)

    def consumed(self, kind: str) -> int:
        """What counts against its quota."""
        return self.used.get(kind, 0)

    def take(self, amounts: Amounts, sign: int = 1) -> None:
        """Consume more, or with sign -1 less; the root counts nothing."""
        for kind, amount in amounts.items():
            node, above = self, self.parent
            while above is not None:
                node.used[kind] = node.used.get(kind, 0) + sign * amount
                node, above = above, above.parent
            settle(self, kind)


@dataclass(frozen=True, slots=True)
class _Offered:
    """An outstanding offer, as quota sees it."""

    offer_id: OfferId
    #: The nearest role, from the offer's upwards, that the tree knows.
    role: TrialRole
    #: What of it counts as consumed, and what is unreserved: free again when it goes.
    counted: Amounts
    unreserved: Amounts


def set_quotas(cluster: Cluster, turn: Turn, request: SetQuotasRequest) -> SetQuotasResponse | ErrorDetail:
    """Replace the quotas of the roles that are named, all or none; rescind as few offers as stand in the way."""
    named = request.quotas
    if error := _form_problem(cluster, named, request.force):
        return error
    before = cluster.durable.quotas
    after = {role: quota for role, quota in before.items()}
    for quota in named:
        after.pop(quota.role, None)
        if quota.guarantees or quota.limits:
            after[quota.role] = quota
    tree = _trial_tree_of(cluster, after)
    if error := _limits_below_guarantees(tree, named):
        return error
    offers = _offers(cluster, tree)
    if not request.force:
        former = _trial_tree_of(cluster, before)
        if error := _capacity_problem(cluster, former, tree) or _passed_problem(tree, offers, named):
            return error
    going = offers_to_rescind(tree, offers, cluster.ledger.free_unreserved(), before, named)
    turn.persist(QuotasRecorded(named))
    for quota in named:
        apply(cluster, quota)
    said = ", ".join(quota.role for quota in named[:5]) + (", …" if len(named) > 5 else "")
    rescinded = rescind(cluster, turn, going, f"the quota of {said} changed")
    cluster.touch_all()
    turn.publish("quotas_changed", f"quotas changed: {said}")
    shown = _trial_tree_of(cluster, after)
    return SetQuotasResponse(tuple(_view(shown, quota) for quota in named), rescinded)


def apply(cluster: Cluster, quota: Quota) -> None:
    """Let the allocator know."""
    cluster.shares.set_quota(quota.role, quota.guarantees, quota.limits)


def views(cluster: Cluster) -> list[QuotaView]:
    """All quotas, by role, with what counts against them."""
    quotas = cluster.durable.quotas
    tree = _trial_tree_of(cluster, quotas)
    return [_view(tree, quotas[role]) for role in sorted(quotas)]


def _view(tree: Mapping[str, TrialRole], quota: Quota) -> QuotaView:
    node = tree.get(quota.role)
    kinds = sorted({*quota.guarantees, *quota.limits})
    if node is None or not kinds:
        return QuotaView(quota)
    missing = {kind: amount for kind in kinds if (amount := unmet(node, kind))}
    return QuotaView(quota, {kind: node.consumed(kind) for kind in kinds}, missing)


# --- the copy of the tree ---


def _trial_tree_of(cluster: Cluster, quotas: Mapping[str, Quota]) -> dict[str, TrialRole]:
    return trial_tree(quotas, lambda role: _consumed(cluster, role))


def trial_tree(quotas: Mapping[str, Quota], consumed: Callable[[str], Amounts]) -> dict[str, TrialRole]:
    """All roles with a quota and those above them, by path; the root is under the empty path."""
    root = TrialRole("")
    tree = {"": root}
    for role in sorted(quotas):
        above = root
        for path in (*reversed(ancestors(role)), role):
            node = tree.get(path)
            if node is None:
                node = tree[path] = above.children[path] = TrialRole(path, above, used=dict(consumed(path)))
            above = node
        above.guarantee, above.limit = quotas[role].guarantees, quotas[role].limits
    # Those below before those above.
    for path in sorted(tree, key=lambda path: -path.count("/")):
        node = tree[path]
        if node is root:
            continue
        for kind in node.guarantee:
            settle(node, kind)
    for node in sorted(tree.values(), key=lambda node: -len(node.path)):
        node.required = {
            kind: max(node.guarantee.get(kind, 0), sum(child.required.get(kind, 0) for child in node.children.values()))
            for kind in {*node.guarantee, *(kind for child in node.children.values() for kind in child.required)}
        }
    return tree


def _consumed(cluster: Cluster, role: str) -> Amounts:
    """What counts against the quota of a role; nothing for one that nobody uses."""
    node = cluster.shares.find(role)
    return {} if node is None else {kind: node.consumed(kind) for kind in {*node.held, *node.reserved}}


def _add(into: dict[str, int], amounts: Amounts) -> None:
    for kind, amount in amounts.items():
        into[kind] = into.get(kind, 0) + amount


def _offers(cluster: Cluster, tree: Mapping[str, TrialRole]) -> list[_Offered]:
    found = []
    for offer_id, outstanding in cluster.offers.items():
        role = outstanding.offer.role
        node = next((tree[path] for path in (role, *ancestors(role)) if path in tree), tree[""])
        holding = to_holding(outstanding.offer.resources)
        counted = loose_amounts(holding)
        unreserved = holding[UNRESERVED].amounts() if UNRESERVED in holding else {}
        if counted:
            found.append(_Offered(offer_id, node, counted, unreserved))
    return found


# --- what is refused ---


def _form_problem(cluster: Cluster, quotas: tuple[Quota, ...], force: bool) -> ErrorDetail | None:
    """What is wrong with a request as it stands."""
    if not quotas or len(quotas) > MAX_ROLES:
        return _invalid(f"from 1 to {MAX_ROLES} roles can be named, not {len(quotas)}", "name some roles", "quotas")
    known = BUILT_IN | cluster.shares.total.keys()
    seen: set[str] = set()
    for index, quota in enumerate(quotas):
        field = f"quotas[{index}]"
        if problem := role_problem(quota.role):
            return _invalid(problem, "write a role such as research or eng/backend", f"{field}.role")
        if quota.role in seen:
            return _invalid(f"role {quota.role!r} is named twice", "name each role once", f"{field}.role")
        seen.add(quota.role)
        if len(quota.guarantees) > MAX_KINDS or len(quota.limits) > MAX_KINDS:
            return _invalid(f"quota of {quota.role!r} names more than {MAX_KINDS} kinds", "name fewer", field)
        if not quota.guarantees and not quota.limits and quota.role not in cluster.durable.quotas:
            return ErrorDetail(
                ErrorReason.NOT_FOUND, f"role {quota.role!r} has no quota", "see `bursar quota ls`", f"{field}.role"
            )
        for name, amounts in (("guarantees", quota.guarantees), ("limits", quota.limits)):
            for kind, amount in sorted(amounts.items()):
                if error := _amount_problem(quota.role, kind, amount, known, force, f"{field}.{name}"):
                    return error
        for kind, amount in sorted(quota.guarantees.items()):
            limit = quota.limits.get(kind)
            if limit is not None and amount > limit:
                return _invalid(
                    f"the guarantee of {quota.role!r} is above its limit: {kind}: {format_amount(kind, amount)} and "
                    f"{format_amount(kind, limit)}",
                    "lower the guarantee or raise the limit",
                    f"{field}.guarantees",
                )
    return None


def _amount_problem(
    role: str, kind: str, amount: int, known: Iterable[str], force: bool, field: str
) -> ErrorDetail | None:
    if kind == PORTS:
        return _invalid("ports cannot be shared by quota", "name scalar kinds and gpus", field)
    if kind not in known and not force:
        near = closest(kind, sorted(known))
        hint = f"did you mean {near}? " if near else ""
        return _invalid(
            f"no agent has any {kind!r}", f"{hint}known are {', '.join(sorted(known))}; --force sets it anyway", field
        )
    if not 0 <= amount <= MAX_AMOUNT:
        return _invalid(f"quota of {role!r}: {kind}: {amount} is not between 0 and {MAX_AMOUNT}", "", field)
    if kind == GPUS and amount % MILLI:
        return _invalid(
            f"quota of {role!r}: gpus: {format_amount(kind, amount)} is not a whole number",
            "GPUs are granted whole; amounts are in thousandths",
            field,
        )
    return None


def _limits_below_guarantees(tree: Mapping[str, TrialRole], named: tuple[Quota, ...]) -> ErrorDetail | None:
    """Guarantees below a role that come to more than its limit could never be met."""
    for path in sorted(tree):
        node = tree[path]
        for kind, limit in sorted(node.limit.items()):
            below = sum(child.required.get(kind, 0) for child in node.children.values())
            if below > limit:
                roles = [child.path for child in node.children.values() if child.required.get(kind)]
                return _invalid(
                    f"guarantees of {kind} below {path!r} ({', '.join(roles[:5])}{', …' if len(roles) > 5 else ''}) come to "
                    f"{format_amount(kind, below)}, and its limit is {format_amount(kind, limit)}",
                    "lower those guarantees or raise the limit, in one request",
                    "quotas",
                )
    return None


def _capacity_problem(
    cluster: Cluster, before: Mapping[str, TrialRole], after: Mapping[str, TrialRole]
) -> ErrorDetail | None:
    """More is guaranteed than there is, agents included that are awaited after a restart (T28). What was so before is let be."""
    to_expressions = _reserved_to_expressions(cluster)

    def needed(tree: Mapping[str, TrialRole], kind: str) -> int:
        tops = {node.path: node.required.get(kind, 0) for node in tree[""].children.values()}
        for node in cluster.shares.root.children.values():
            # What is kept for a role counts for its guarantee, and is lost to those of others.
            tops[node.path] = max(tops.get(node.path, 0), node.reserved.get(kind, 0))
        return sum(tops.values()) + to_expressions.get(kind, 0)

    for kind in sorted({kind for node in after[""].children.values() for kind in node.required}):
        total, now = cluster.shares.total.get(kind, 0), needed(after, kind)
        if now > total and now > needed(before, kind):
            asked = sum(node.required.get(kind, 0) for node in after[""].children.values())
            elsewhere = now - asked
            kept = f" besides {format_amount(kind, elsewhere)} reserved elsewhere" if elsewhere else ""
            return ErrorDetail(
                ErrorReason.INSUFFICIENT_RESOURCES,
                f"guarantees of {kind} come to {format_amount(kind, asked)}{kept}, and the cluster has "
                f"{format_amount(kind, total)}",
                "guarantee less, add agents, or --force: what there is is kept free for guarantees then",
                "quotas",
            )
    return None


def _reserved_to_expressions(cluster: Cluster) -> dict[str, int]:
    """What nobody in particular can be sure of."""
    found: dict[str, int] = {}
    for books in cluster.ledger.books.values():
        for stack, part in books.total.items():
            if books.counted and stack and is_loose(stack):
                _add(found, part.amounts())
    return found


def _passed_problem(
    tree: Mapping[str, TrialRole], offers: list[_Offered], named: tuple[Quota, ...]
) -> ErrorDetail | None:
    """Tasks and reservations are beyond a limit already: no rescinded offer brings the role below it."""
    for quota in named:
        for kind, limit in sorted(quota.limits.items()):
            node = tree[quota.role]
            offered = sum(offer.counted.get(kind, 0) for offer in offers if covers(quota.role, offer.role.path))
            used = node.consumed(kind) - offered
            if used > limit:
                return ErrorDetail(
                    ErrorReason.RESOURCES_IN_USE,
                    f"role {quota.role!r} uses {kind}: {format_amount(kind, used)} in tasks and reservations, more than the "
                    f"limit of {format_amount(kind, limit)}",
                    "wait for tasks to end, unreserve, or --force: nothing is taken away, and nothing more is given until then",
                    "quotas",
                )
    return None


def _invalid(message: str, hint: str, field: str) -> ErrorDetail:
    return ErrorDetail(ErrorReason.INVALID_ARGUMENT, message, hint, field)


# --- what else would pass a limit ---


def reserve_problem(
    cluster: Cluster, role: str, resources: ResourceRequest, going: Iterable[OfferId], payer: str | None = None
) -> ErrorDetail | None:
    """An operator's reservation would pass a limit of the role or of one above it (T21); `going` are offers that end for it.

    `payer`: whom it is reserved to now; for that role and those above it nothing changes.
    """
    if not cluster.shares.quota_kinds:
        return None
    amounts = dict(resources.scalars)
    if resources.gpu_count:
        amounts[GPUS] = MILLI * resources.gpu_count
    freed: dict[str, dict[str, int]] = {}
    for offer_id in going:
        offer = cluster.offers[offer_id].offer
        _add(freed.setdefault(offer.role, {}), loose_amounts(to_holding(offer.resources)))
    for path in (role, *ancestors(role)):
        if payer is not None and covers(path, payer):
            break
        for kind, limit in sorted(_limits(cluster, path).items()):
            given_back = sum(parts.get(kind, 0) for below, parts in freed.items() if covers(path, below))
            then = _consumed(cluster, path).get(kind, 0) - given_back + amounts.get(kind, 0)
            if amounts.get(kind, 0) and then > limit:
                return ErrorDetail(
                    ErrorReason.RESOURCES_IN_USE,
                    f"role {path!r} would have {kind}: {format_amount(kind, then)}, more than its limit of "
                    f"{format_amount(kind, limit)}",
                    "reserve less, raise the limit (`bursar quota set`), or --force",
                    "resources",
                )
    return None


def accept_problem(cluster: Cluster, role: str, offered: Amounts, used: Amounts) -> ErrorDetail | None:
    """What an accept uses would leave a limit passed. Offers are cut to limits, so this is rare: tasks came back with an agent.

    `offered` and `used`: what counts of the offers and of the operations.
    """
    for path in (role, *ancestors(role)):
        for kind, limit in sorted(_limits(cluster, path).items()):
            then = _consumed(cluster, path).get(kind, 0) - offered.get(kind, 0) + used.get(kind, 0)
            if used.get(kind, 0) > 0 and then > limit:
                return ErrorDetail(
                    ErrorReason.RESOURCES_IN_USE,
                    f"role {path!r} would have {kind}: {format_amount(kind, then)}, more than its limit of "
                    f"{format_amount(kind, limit)}: others of the role have come back since this was offered",
                    "wait for tasks of the role to end; new offers stay within the limit",
                    "operations",
                )
    return None


def _limits(cluster: Cluster, role: str) -> Amounts:
    quota = cluster.durable.quotas.get(role)
    return {} if quota is None else quota.limits


# --- which offers go ---


def offers_to_rescind(
    tree: Mapping[str, TrialRole],
    offers: list[_Offered],
    free: Amounts,
    before: Mapping[str, Quota],
    named: tuple[Quota, ...],
) -> list[OfferId]:
    """The fewest offers, greedily: of the roles whose limit is passed until it holds, then anybody's until headroom is there.

    Each time the one that brings most of what is missing; at the end those are spared that later ones made superfluous. The tree
    is left as it would be then.
    """
    former = [before[quota.role] for quota in named if quota.role in before]
    kinds = {kind for quota in (*named, *former) for kind in (*quota.guarantees, *quota.limits)}
    limited = [node for node in tree.values() if node.limit]
    search = _Search(
        dict(free),
        [(tree[quota.role], kind) for quota in named if quota.role in tree for kind in quota.limits],
        [(tree[""], kind) for kind in sorted(kinds)] + [(node, kind) for node in limited for kind in node.limit],
    )
    rest = {offer.offer_id: offer for offer in offers}
    chosen: list[_Offered] = []
    for missing, brings in ((search.beyond_limits, search.brings_limits), (search.headroom, search.brings_headroom)):
        at_first = missing()
        kinds_missing = {kind for _, kind in at_first}
        # What an offer brings only ever becomes less: if the best of old figures still is the best, it is the best. Of two that
        # bring as much the smaller goes.
        heap = [
            (-worth, sum(offer.counted.get(kind, 0) for kind in kinds_missing), offer_id)
            for offer_id, offer in rest.items()
            if (worth := brings(offer, at_first)) > 0
        ]
        heapify(heap)
        while heap and missing():
            _, size, offer_id = heappop(heap)
            worth = brings(rest[offer_id], at_first)
            if worth > 0 and heap and (-worth, size, offer_id) > heap[0]:
                heappush(heap, (-worth, size, offer_id))
            elif worth > 0:
                offer = rest.pop(offer_id)
                search.move(offer, -1)
                chosen.append(offer)
    over, short = search.beyond_limits(), search.headroom()
    needed = []
    for offer in chosen:
        search.move(offer, 1)
        if _is_more(search.beyond_limits(), over) or _is_more(search.headroom(), short):
            search.move(offer, -1)
            needed.append(offer.offer_id)
    return needed


def _is_more(missing: _Missing, than: _Missing) -> bool:
    return any(amount > than.get(what, 0) for what, amount in missing.items())


_Missing = dict[tuple[str, str], int]
"""(role, kind) → how much."""


@dataclass(slots=True)
class _Search:
    """What is missing while offers are tried."""

    free: dict[str, int]
    #: Limits that shall hold.
    limits: list[tuple[TrialRole, str]]
    #: Where there shall be headroom for the guarantees below: in the cluster, and within limits.
    rooms: list[tuple[TrialRole, str]]

    def beyond_limits(self) -> _Missing:
        """By how much limits are passed."""
        return {(node.path, kind): over for node, kind in self.limits if (over := -_left(node, kind)) > 0}

    def headroom(self) -> _Missing:
        """By how much what can still be had is less than what is to be kept for guarantees."""
        return {(node.path, kind): short for node, kind in self.rooms if (short := self._short(node, kind)) > 0}

    def _short(self, node: TrialRole, kind: str) -> int:
        room = self.free.get(kind, 0) if node.parent is None else max(0, _left(node, kind))
        return max(0, node.unmet_below.get(kind, 0) - room)

    def move(self, offer: _Offered, sign: int) -> None:
        """With sign -1 an offer is rescinded, with 1 it is outstanding again."""
        offer.role.take(offer.counted, sign)
        for kind, amount in offer.unreserved.items():
            self.free[kind] = self.free.get(kind, 0) - sign * amount

    def brings_limits(self, offer: _Offered, at_first: _Missing) -> int:
        """How many parts in a million of what was missing at first its return brings now, summed over limits."""
        return sum(
            min(amount, max(0, -_left(node, kind))) * 1_000_000 // at_first[node.path, kind]
            for node in _path_up(offer.role)
            for kind, amount in offer.counted.items()
            if (node.path, kind) in at_first
        )

    def brings_headroom(self, offer: _Offered, at_first: _Missing) -> int:
        """The same of headroom: what can be had again, less what is kept for the offer's own role then."""
        rooms = [
            (node, kind) for node in _path_up(offer.role) for kind in offer.counted if (node.path, kind) in at_first
        ]
        short = [self._short(*room) for room in rooms]
        if not any(short):
            return 0
        self.move(offer, -1)
        left = [self._short(*room) for room in rooms]
        self.move(offer, 1)
        return sum(
            (now - then) * 1_000_000 // at_first[node.path, kind]
            for (node, kind), now, then in zip(rooms, short, left, strict=True)
        )


def _left(node: TrialRole, kind: str) -> int:
    return node.limit[kind] - node.consumed(kind)


def _path_up(node: TrialRole) -> Iterable[TrialRole]:
    """A role, those above it, and the root."""
    walk: TrialRole | None = node
    while walk is not None:
        yield walk
        walk = walk.parent

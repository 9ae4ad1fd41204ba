"""Role groups: named sets of roles, for reservations that outlive the list of those who may use them (M-13).

A change is felt at the next cycle; offers that it no longer permits are rescinded before the answer. Tasks and refinements stay.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from itertools import islice

from bursar.core.errors import ErrorDetail, ErrorReason, InvalidText
from bursar.core.messages.operator import (
    RemoveRoleGroupRequest,
    RemoveRoleGroupResponse,
    RoleGroupView,
    SetRoleGroupRequest,
    SetRoleGroupResponse,
)
from bursar.core.role_expressions import (
    MAX_COST,
    RoleExpression,
    group_name_problem,
    groups_problem,
    parse_role_expression,
    reached_groups,
    read_holder,
    union,
)
from bursar.master import rules
from bursar.master.offers import rescind
from bursar.master.records import RoleGroupRecorded
from bursar.master.role_views import role_names
from bursar.master.state import Cluster, Turn

#: Members of one group, at most.
MAX_MEMBERS = 1000
#: Groups of one cluster, at most.
MAX_GROUPS = 1000
#: As many roles are shown of those that a reservation or group covers.
MAX_EXPANDED = 100


def set_group(cluster: Cluster, turn: Turn, request: SetRoleGroupRequest) -> SetRoleGroupResponse | ErrorDetail:
    """Make a group of these members, instead of those that it had; refused as a whole where one of them is wrong."""
    members = _read_members(cluster, request)
    if isinstance(members, ErrorDetail):
        return members
    expression = union(members)
    problem = _change_problem(cluster, request.name, expression)
    if problem is not None:
        return problem
    texts = tuple(dict.fromkeys(map(str, members)))
    turn.persist(RoleGroupRecorded(request.name, texts))
    cluster.holders.set_group(request.name, expression)
    rescinded = apply_groups(cluster, turn, f"the role group @{request.name} was changed")
    turn.publish("group_changed", f"@{request.name} is {' | '.join(texts)}")
    (view,) = group_views(cluster, (request.name,))
    return SetRoleGroupResponse(view, rescinded)


def remove_group(
    cluster: Cluster, turn: Turn, request: RemoveRoleGroupRequest
) -> RemoveRoleGroupResponse | ErrorDetail:
    """Forget a group; what names it is meant as if it covered nobody."""
    name = request.name.removeprefix("@")
    if unknown := unknown_groups_problem(cluster, (name,), "name"):
        return unknown
    (view,) = group_views(cluster, (name,))
    groups = _groups_naming(cluster, name)
    users = [f"{view.reservations} reservation{'s' if view.reservations > 1 else ''}"] if view.reservations else []
    users += (
        [f"the group{'s' if len(groups) > 1 else ''} {', '.join(f'@{other}' for other in groups)}"] if groups else []
    )
    named = _rules_naming(cluster, name)
    users += [f"the rule{'s' if len(named) > 1 else ''} {', '.join(named)}"] if named else []
    if users and not request.force:
        return ErrorDetail(
            ErrorReason.RESOURCES_IN_USE,
            f"@{name} is named by {' and '.join(users)}",
            "see `bursar reservation ls` and `bursar rule ls`; change those first, or use --force: the group then covers nobody, and `!@"
            f"{name}` removes nobody",
            "name",
        )
    turn.persist(RoleGroupRecorded(name, None))
    cluster.holders.set_group(name, None)
    rescinded = apply_groups(cluster, turn, f"the role group @{name} was removed")
    turn.publish("group_removed", f"@{name} was removed")
    return RemoveRoleGroupResponse(view, rescinded)


def apply_groups(cluster: Cluster, turn: Turn, reason: str) -> int:
    """Make changed groups felt: rescind the offers that hold what their role may not have any more; return how many."""
    cluster.filters.forget_hidden()
    covers = cluster.holders.covers
    forbidden = [
        offer_id
        for offer_id, outstanding in cluster.offers.items()
        if any(
            part.stack and not outstanding.offer.revocable and not covers(part.stack[-1].holder, outstanding.offer.role)
            for part in outstanding.offer.resources
        )
    ]
    # Rules name groups too.
    return rescind(cluster, turn, forbidden, reason) + rules.changed(cluster, turn, reason)


def group_views(cluster: Cluster, names: Iterable[str]) -> tuple[RoleGroupView, ...]:
    """Groups, as operators see them."""
    groups = cluster.holders.groups
    roles = role_names(cluster)
    #: Holder → the groups that it reaches; there are few holders and many buckets.
    reached: dict[str, frozenset[str]] = {}
    counts: Counter[str] = Counter()
    for books in cluster.ledger.books.values():
        for stack in books.total:
            found: set[str] = set()
            for level in stack:
                if level.holder not in reached:
                    reached[level.holder] = reached_groups(read_holder(level.holder), groups)
                found |= reached[level.holder]
            counts.update(found)
    return tuple(
        RoleGroupView(
            name,
            cluster.durable.role_groups[name],
            tuple(islice((role for role in roles if groups[name].covers(role, groups)), MAX_EXPANDED)),
            counts[name],
        )
        for name in names
    )


def expander(cluster: Cluster) -> Callable[[str], tuple[str, ...]]:
    """Makes of a holder the roles known now that it covers, the first `MAX_EXPANDED` of them; worked out once for each."""
    roles: list[str] | None = None
    known: dict[str, tuple[str, ...]] = {}

    def expand(holder: str) -> tuple[str, ...]:
        nonlocal roles
        if holder not in known:
            roles = role_names(cluster) if roles is None else roles
            covered = (role for role in roles if cluster.holders.covers(holder, role))
            known[holder] = tuple(islice(covered, MAX_EXPANDED))
        return known[holder]

    return expand


def unknown_groups_problem(cluster: Cluster, names: Iterable[str], field: str) -> ErrorDetail | None:
    """Say which of these groups do not exist."""
    unknown = sorted(name for name in names if name not in cluster.holders.groups)
    if not unknown:
        return None
    return ErrorDetail(
        ErrorReason.NOT_FOUND,
        f"there is no role group {', '.join(f'@{name}' for name in unknown)}",
        "see `bursar group ls`; make it with `bursar group set NAME ROLE...`",
        field,
    )


def load_groups(cluster: Cluster) -> None:
    """Take the groups from the registry."""
    for name, members in cluster.durable.role_groups.items():
        cluster.holders.set_group(name, group_of(members))


def group_of(members: Iterable[str]) -> RoleExpression:
    """What a group of these members, as they are recorded, covers."""
    return union(map(read_holder, members))


def _read_members(cluster: Cluster, request: SetRoleGroupRequest) -> list[RoleExpression] | ErrorDetail:
    if problem := group_name_problem(request.name):
        return ErrorDetail(ErrorReason.INVALID_ARGUMENT, problem, "write a name such as gpu-users", "name")
    if not request.members:
        return ErrorDetail(
            ErrorReason.INVALID_ARGUMENT,
            f"@{request.name} would have no members",
            "name at least one role or role expression, or remove the group (`bursar group rm`)",
            "members",
        )
    if len(request.members) > MAX_MEMBERS:
        return ErrorDetail(
            ErrorReason.INVALID_ARGUMENT,
            f"{len(request.members)} members are too many for one group",
            f"at most {MAX_MEMBERS}; name a role above them, or make several groups and one of these",
            "members",
        )
    if request.name not in cluster.holders.groups and len(cluster.holders.groups) >= MAX_GROUPS:
        return ErrorDetail(
            ErrorReason.INVALID_ARGUMENT, f"there are {MAX_GROUPS} role groups already", "remove some", "name"
        )
    members = []
    for index, text in enumerate(request.members):
        try:
            members.append(parse_role_expression(text))
        except InvalidText as error:
            return ErrorDetail(
                ErrorReason.INVALID_ARGUMENT, error.detail.message, error.detail.hint, f"members[{index}]"
            )
    return members


def _change_problem(cluster: Cluster, name: str, expression: RoleExpression) -> ErrorDetail | None:
    """Say why the groups cannot be what this would make of them."""
    if unknown := unknown_groups_problem(cluster, expression.groups - {name}, "members"):
        return unknown
    groups = cluster.holders.groups | {name: expression}
    if problem := groups_problem(groups):
        return ErrorDetail(ErrorReason.INVALID_ARGUMENT, problem, "let groups name roles, or groups that do", "members")
    for other in sorted({name, *_groups_naming(cluster, name)}):
        if (cost := groups[other].cost(groups)) > MAX_COST:
            return ErrorDetail(
                ErrorReason.INVALID_ARGUMENT,
                f"@{other} would cost too much to evaluate: {cost} roles, groups and operators in all",
                f"at most {MAX_COST}: name roles above, instead of many below",
                "members",
            )
    if expression.cost(groups) <= _MAX_SEARCHED and expression.covers_nothing(groups):
        return ErrorDetail(
            ErrorReason.INVALID_ARGUMENT,
            f"@{name} would cover no role, whatever it is called: {expression}",
            "look at what '&' and '!' leave",
            "members",
        )
    return None


#: Up to this cost it is looked for whether an expression covers anything at all.
_MAX_SEARCHED = 500


def _groups_naming(cluster: Cluster, name: str) -> list[str]:
    """The groups that reach a group."""
    groups = cluster.holders.groups
    return sorted(other for other in groups if other != name and name in reached_groups(groups[other], groups))


def _rules_naming(cluster: Cluster, name: str) -> list[str]:
    """The rules that reach a group by their role expressions."""
    groups = cluster.holders.groups
    return [
        rule.name
        for rule in cluster.visibility.rules
        if any(name in reached_groups(expression, groups) for expression in rule.frameworks.roles)
    ]

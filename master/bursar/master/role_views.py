"""Roles as operators see them: everybody with a framework, a holding, a reservation, a quota or a weight, and those above (ROL-1)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from bursar.core.ids import FrameworkId
from bursar.core.messages.operator import Quota, RoleView
from bursar.core.resources import Resources, holding_total
from bursar.core.role_expressions import plain_holder
from bursar.core.roles import DEFAULT_ROLE, ancestors
from bursar.master.allocator.quota import least_limit_left, unmet
from bursar.master.state import Cluster
from bursar.master.views import lent_parts, sum_anywhere
from bursar.master.weights import OWN_LEAF


def role_names(cluster: Cluster) -> list[str]:
    """Every role in use, and `*`; sorted."""
    names = set(cluster.shares.roles()) | {DEFAULT_ROLE}
    for framework in cluster.frameworks.values():
        names.update(framework.info.roles)
    for books in cluster.ledger.books.values():
        names.update(role for stack in books.total if stack and (role := plain_holder(stack[-1].holder)) is not None)
    names.update(role.removesuffix(OWN_LEAF) for role in cluster.durable.weights)
    names.update(above for role in list(names) for above in ancestors(role))
    return sorted(names)


def role_views(cluster: Cluster, roles: Iterable[str]) -> tuple[RoleView, ...]:
    """These roles; what one holds or keeps includes its descendants. Everything is walked over once for all of them."""
    offered: dict[str, list[Resources]] = {role: [] for role in roles}
    allocated: dict[str, list[Resources]] = {role: [] for role in offered}
    reserved: dict[str, list[Resources]] = {role: [] for role in offered}
    lent: dict[str, list[Resources]] = {role: [] for role in offered}
    borrowed: dict[str, list[Resources]] = {role: [] for role in offered}
    frameworks: dict[str, list[FrameworkId]] = {role: [] for role in offered}
    for books in cluster.ledger.books.values():
        for found, entries in ((offered, books.offered), (allocated, books.allocated)):
            for entry in entries.values():
                _add_up(found, entry.client.role, holding_total(entry.holding))
                for stack, part in lent_parts(entry.holding).items() if entry.revocable else ():
                    _add_up(borrowed, entry.client.role, part)
                    if stack and (owner := plain_holder(stack[-1].holder)) is not None:
                        _add_up(lent, owner, part)
        for stack, part in books.total.items():
            if stack and (owner := plain_holder(stack[-1].holder)) is not None:
                _add_up(reserved, owner, part)
    for framework in cluster.frameworks.values():
        for role in framework.info.roles:
            if role in frameworks:
                frameworks[role].append(framework.framework_id)
    return tuple(
        _with_quota(
            cluster,
            RoleView(
                role,
                cluster.shares.weight_milli(role),
                cluster.shares.share_millionths(role),
                offered=sum_anywhere(offered[role]),
                allocated=sum_anywhere(allocated[role]),
                reserved=sum_anywhere(reserved[role]),
                framework_ids=tuple(sorted(frameworks[role])),
                lent=sum_anywhere(lent[role]),
                borrowed=sum_anywhere(borrowed[role]),
            ),
        )
        for role in offered
    )


def _add_up(found: Mapping[str, list[Resources]], role: str, part: Resources) -> None:
    for path in (role, *ancestors(role)):
        if path in found:
            found[path].append(part)


def _with_quota(cluster: Cluster, view: RoleView) -> RoleView:
    shares, quotas = cluster.shares, cluster.durable.quotas
    node = shares.nearest(view.role)
    quota = quotas.get(view.role, Quota(view.role))
    limited = {kind for path in (view.role, *ancestors(view.role)) if path in quotas for kind in quotas[path].limits}
    mine = node.path == view.role
    return replace(
        view,
        guarantees=quota.guarantees,
        limits=quota.limits,
        consumed={kind: amount for kind in sorted({*node.held, *node.reserved}) if (amount := node.consumed(kind))}
        if mine
        else {},
        limit_left={kind: left for kind in sorted(limited) if (left := least_limit_left(node, kind)) is not None},
        unmet={kind: amount for kind in sorted(node.unmet) if (amount := unmet(node, kind))} if mine else {},
        own_weight_milli=shares.weight_milli(view.role + OWN_LEAF),
    )

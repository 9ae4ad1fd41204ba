"""Weights of roles: set by operators, felt in the next cycle. Nothing is rescinded: what is held stays held (mesos.md WGT-1, T22)."""

from __future__ import annotations

from bursar.core.errors import ErrorDetail, ErrorReason
from bursar.core.messages.operator import RoleWeight, SetWeightsRequest, SetWeightsResponse
from bursar.core.roles import DEFAULT_ROLE, role_problem
from bursar.core.text import format_milli
from bursar.master.records import WeightsRecorded
from bursar.master.state import Cluster, Turn

#: A weight of a million: beyond that shares would have no digits left to differ in.
MAX_WEIGHT_MILLI = 10**9
#: How many roles one request may name.
MAX_ROLES = 10_000
#: The place of a role's own frameworks among its children (T24).
OWN_LEAF = "/."


def set_weights(cluster: Cluster, turn: Turn, request: SetWeightsRequest) -> SetWeightsResponse | ErrorDetail:
    """Set the weights of the roles that are named, all or none; others keep theirs."""
    if error := _problem(request.weights):
        return error
    turn.persist(WeightsRecorded(request.weights))
    for weight in request.weights:
        cluster.shares.set_weight(weight.role, weight.weight_milli)
    said = ", ".join(f"{weight.role}={format_milli(weight.weight_milli)}" for weight in request.weights[:10])
    more = f" and {len(request.weights) - 10} more" if len(request.weights) > 10 else ""
    turn.publish("weights_changed", f"weights: {said}{more}")
    return SetWeightsResponse(request.weights)


def recorded(cluster: Cluster) -> list[RoleWeight]:
    """The weights that are not 1, by role."""
    return [RoleWeight(role, milli) for role, milli in sorted(cluster.durable.weights.items())]


def _problem(weights: tuple[RoleWeight, ...]) -> ErrorDetail | None:
    if not weights or len(weights) > MAX_ROLES:
        return _invalid(f"from 1 to {MAX_ROLES} roles can be named, not {len(weights)}", "name some roles", "weights")
    seen: set[str] = set()
    for index, weight in enumerate(weights):
        field = f"weights[{index}]"
        role = weight.role.removesuffix(OWN_LEAF)
        if problem := role_problem(role):
            return _invalid(problem, "write a role such as research or eng/backend", f"{field}.role")
        if weight.role == DEFAULT_ROLE + OWN_LEAF:
            return _invalid("'*' has no children to share with", "give '*' itself a weight", f"{field}.role")
        if weight.role in seen:
            return _invalid(f"role {weight.role!r} is named twice", "name each role once", f"{field}.role")
        seen.add(weight.role)
        if not 1 <= weight.weight_milli <= MAX_WEIGHT_MILLI:
            return _invalid(
                f"the weight of {weight.role!r} is not between 0.001 and {MAX_WEIGHT_MILLI // 1000}",
                "1 is the default; a role of weight 2 gets twice the share of one of weight 1",
                f"{field}.weight_milli",
            )
    return None


def _invalid(message: str, hint: str, field: str) -> ErrorDetail:
    return ErrorDetail(ErrorReason.INVALID_ARGUMENT, message, hint, field)

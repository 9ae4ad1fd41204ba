"""Which tasks an operator asked to see."""

from __future__ import annotations

from bursar.core.errors import ErrorDetail, ErrorReason, InvalidText
from bursar.core.ids import FrameworkId
from bursar.core.messages import operator as op
from bursar.core.role_expressions import parse_role_expression
from bursar.core.roles import DEFAULT_ROLE
from bursar.master import views
from bursar.master.groups import unknown_groups_problem
from bursar.master.state import Cluster


def list_tasks(cluster: Cluster, request: op.ListTasksRequest) -> op.ListTasksResponse | ErrorDetail:
    """A page of those that all parts of the request are true of. Refused where it names what there is not."""
    shown = [task for _, task in sorted(cluster.tasks.items()) if request.all or not task.state.is_terminal]
    if request.framework:
        owners = _owners(cluster, request.framework)
        if isinstance(owners, ErrorDetail):
            return owners
        shown = [task for task in shown if task.key.framework_id in owners]
    if request.agent:
        agent = views.find_agent(cluster, request.agent)
        if isinstance(agent, ErrorDetail):
            return agent
        shown = [task for task in shown if task.agent_id == agent.agent_id]
    if request.roles:
        covered = _covered(cluster, {task.assigned.role for task in shown}, request.roles)
        if isinstance(covered, ErrorDetail):
            return covered
        shown = [task for task in shown if task.assigned.role in covered]
    if request.labels:
        wanted = request.labels.items()
        shown = [task for task in shown if wanted <= dict(task.assigned.spec.labels).items()]
    part, token = views.page_of(shown, lambda task: "/".join(task.key), request.page)
    return op.ListTasksResponse(tuple(views.task_view(cluster, task) for task in part), token)


def _owners(cluster: Cluster, name: str) -> set[FrameworkId] | ErrorDetail:
    """The framework of that id or prefix: also one that is gone, as long as a task of it is remembered."""
    owners = {key.framework_id for key in cluster.tasks} | cluster.frameworks.keys()
    owners = {owner for owner in owners if owner.startswith(name)}
    if name in owners:
        return {FrameworkId(name)}
    if len(owners) == 1:
        return owners
    found = views.find_framework(cluster, name)
    return found if isinstance(found, ErrorDetail) else {found.framework_id}


def _covered(cluster: Cluster, roles: set[str], text: str) -> set[str] | ErrorDetail:
    """Those of the roles that a role expression covers; `*` is the default role, of which expressions do not speak."""
    if text.strip() == DEFAULT_ROLE:
        return roles & {DEFAULT_ROLE}
    try:
        expression = parse_role_expression(text)
    except InvalidText as error:
        return ErrorDetail(ErrorReason.INVALID_ARGUMENT, error.detail.message, error.detail.hint, "roles")
    if problem := unknown_groups_problem(cluster, expression.groups, "roles"):
        return problem
    groups = cluster.holders.groups
    return {role for role in roles if expression.covers(role, groups)}

"""What a framework's principal may ask of its own: as if there were nothing else, so that an answer tells nothing of what is another's."""

from __future__ import annotations

from bursar.core.errors import ErrorDetail, ErrorReason
from bursar.core.ids import FrameworkId
from bursar.core.messages import operator as op
from bursar.core.messages.operator import OperatorRequest
from bursar.master import views
from bursar.master.explain import explain_framework
from bursar.master.state import Cluster, Turn


def answer_own(
    cluster: Cluster, turn: Turn, request: OperatorRequest, principal: str
) -> op.GetTaskResponse | op.ExplainFrameworkResponse | ErrorDetail:
    """Answer a request of somebody who is no operator. Names are looked up among the registered frameworks of the principal and their tasks:
    what a removed framework has left is nobody's.
    """
    mine = frozenset(i for i, framework in cluster.frameworks.items() if principal == framework.info.principal != "")
    match request:
        case op.GetTaskRequest(name):
            task = views.find_task(cluster, name, mine)
            if isinstance(task, ErrorDetail):
                return _told(task, principal, "task", name)
            return op.GetTaskResponse(views.task_view(cluster, task))
        case op.ExplainFrameworkRequest(name, agent_name, role):
            return _explain(cluster, turn, (name, agent_name, role), principal, mine)
        case _:
            asked = type(request).__name__.removesuffix("Request")
            return ErrorDetail(ErrorReason.PERMISSION_DENIED, f"{asked} is for operators", "ask one")


def _explain(
    cluster: Cluster, turn: Turn, asked: tuple[str, str, str], principal: str, mine: frozenset[FrameworkId]
) -> op.ExplainFrameworkResponse | ErrorDetail:
    name, agent_name, role = asked
    framework = views.find_framework(cluster, name, mine)
    if isinstance(framework, ErrorDetail):
        return _told(framework, principal, "framework", name)
    agent = views.find_agent(cluster, agent_name) if agent_name else None
    return agent if isinstance(agent, ErrorDetail) else explain_framework(cluster, turn.now, framework, agent, role)


def _told(problem: ErrorDetail, principal: str, noun: str, name: str) -> ErrorDetail:
    """One answer for what there is not and for what is another's; what is ambiguous is so among its own."""
    if problem.reason is not ErrorReason.NOT_FOUND:
        return problem
    return ErrorDetail(
        ErrorReason.NOT_FOUND,
        f"{principal} has no {noun} {name!r}",
        "a framework sees its own as long as it is registered: ask an operator for others",
        noun,
    )

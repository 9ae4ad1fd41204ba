"""What operators ask and order: one function per method, answered with a response or a refusal."""

from __future__ import annotations

from typing import assert_never

from bursar.core.errors import ErrorDetail
from bursar.core.messages import operator as op
from bursar.core.messages.operator import FlagView, OperatorRequest, OperatorResponse
from bursar.core.tasks import StatusReason
from bursar.core.text import parse_minimum
from bursar.master import (
    device_orders,
    frameworks,
    groups,
    images,
    lending,
    partitions,
    quotas,
    reservations,
    role_views,
    rules,
    vacancies,
    views,
    volumes,
    weights,
)
from bursar.master.agents import tell_ping_settings
from bursar.master.explain import explain_agent, explain_framework, explain_role
from bursar.master.flags import find_flag, read_run_time_value
from bursar.master.gangs.showing import list_gangs
from bursar.master.offers import rescind_forbidden
from bursar.master.records import Audited, FlagRecorded
from bursar.master.state import Cluster, Framework, Turn
from bursar.master.task_listing import list_tasks
from bursar.master.tasks import kill, restart

Answer = OperatorResponse | ErrorDetail

#: Requests that change something: they carry a request_id, are audited, and a repeat gets the first answer.
MUTATING = (
    op.TeardownFrameworkRequest,
    op.KillTaskRequest,
    op.RestartTaskRequest,
    op.ReserveResourcesRequest,
    op.UnreserveResourcesRequest,
    op.SetFlagRequest,
    op.UnsetFlagRequest,
    op.SetWeightsRequest,
    op.SetQuotasRequest,
    op.AddRuleRequest,
    op.RemoveRuleRequest,
    op.SetRoleGroupRequest,
    op.RemoveRoleGroupRequest,
    op.CordonDevicesRequest,
    op.UncordonDevicesRequest,
    op.LendReservationsRequest,
    op.PartitionDeviceRequest,
    op.PullImageRequest,
    op.CancelImagePullRequest,
    op.RebindReservationRequest,
    op.CreateVolumeRequest,
    op.DestroyVolumeRequest,
)


def answer(
    cluster: Cluster, turn: Turn, request: OperatorRequest, principal: str, version: str, address: str
) -> Answer:
    """Answer one request."""
    match request:
        case op.GetMasterRequest():
            return op.GetMasterResponse(views.master_view(cluster, version, address))
        case op.ListAgentsRequest(page):
            agents = sorted(cluster.agents.values(), key=lambda agent: agent.agent_id)
            part, token = views.page_of(agents, lambda agent: agent.agent_id, page)
            return op.ListAgentsResponse(tuple(views.agent_view(cluster, agent) for agent in part), token)
        case op.GetAgentRequest(name):
            agent = views.find_agent(cluster, name)
            return agent if isinstance(agent, ErrorDetail) else op.GetAgentResponse(views.agent_view(cluster, agent))
        case op.ListFrameworksRequest(page):
            known = sorted(cluster.frameworks.values(), key=lambda framework: framework.framework_id)
            shown, token = views.page_of(known, lambda framework: framework.framework_id, page)
            return op.ListFrameworksResponse(tuple(views.framework_view(cluster, f) for f in shown), token)
        case op.GetFrameworkRequest(name):
            framework = views.find_framework(cluster, name)
            if isinstance(framework, ErrorDetail):
                return framework
            return op.GetFrameworkResponse(views.framework_view(cluster, framework))
        case op.ListRolesRequest(page):
            roles, token = views.page_of(role_views.role_names(cluster), lambda role: role, page)
            return op.ListRolesResponse(role_views.role_views(cluster, roles), token)
        case op.ListOffersRequest(page):
            offers = sorted(cluster.offers.values(), key=lambda outstanding: outstanding.offer.offer_id)
            listed, token = views.page_of(offers, lambda outstanding: outstanding.offer.offer_id, page)
            return op.ListOffersResponse(tuple(views.offer_view(cluster, outstanding) for outstanding in listed), token)
        case op.ListTasksRequest():
            return list_tasks(cluster, request)
        case op.GetTaskRequest(name):
            task = views.find_task(cluster, name)
            return task if isinstance(task, ErrorDetail) else op.GetTaskResponse(views.task_view(cluster, task))
        case op.ListDevicesRequest():
            return _list_devices(cluster, request)
        case op.ListReservationsRequest(page):
            expand = groups.expander(cluster)
            kept = [
                view
                for agent_id in sorted(cluster.agents)
                for view in views.reservation_views(cluster, cluster.agents[agent_id], expand)
            ]
            numbered = sorted((f"{view.agent_id}/{index:06d}", view) for index, view in enumerate(kept))
            chosen, token = views.page_of(numbered, lambda item: item[0], page)
            return op.ListReservationsResponse(tuple(view for _, view in chosen), token)
        case op.ListFlagsRequest(page):
            flags, token = views.page_of(cluster.flags.views(), lambda flag: flag.name, page)
            return op.ListFlagsResponse(flags, token)
        case op.GetFlagRequest(name):
            flag = find_flag(name)
            return flag if isinstance(flag, ErrorDetail) else op.GetFlagResponse(cluster.flags.view(flag))
        case op.ListRulesRequest(page):
            return rules.list_rules(cluster, page)
        case op.TryRulesRequest():
            return rules.try_rules(cluster, request)
        case op.AuditRulesRequest():
            return rules.audit_rules(cluster)
        case op.ListRoleGroupsRequest(page):
            names, token = views.page_of(sorted(cluster.holders.groups), lambda name: name, page)
            return op.ListRoleGroupsResponse(groups.group_views(cluster, names), token)
        case op.ExplainFrameworkRequest(name, agent_name, role):
            return _explain_framework(cluster, turn, name, agent_name, role)
        case op.ExplainRoleRequest(role):
            return explain_role(cluster, turn.now, role)
        case op.ExplainAgentRequest(name):
            agent = views.find_agent(cluster, name)
            return agent if isinstance(agent, ErrorDetail) else explain_agent(cluster, turn.now, agent)
        case op.ListWeightsRequest(page):
            set_weights, token = views.page_of(weights.recorded(cluster), lambda weight: weight.role, page)
            return op.ListWeightsResponse(set_weights, token)
        case op.ListQuotasRequest(page):
            set_quotas, token = views.page_of(quotas.views(cluster), lambda view: view.quota.role, page)
            return op.ListQuotasResponse(set_quotas, token)
        case op.ListImagePullsRequest():
            return images.list_pulls(cluster, request)
        case op.ListImagesRequest():
            return images.list_images(cluster, request)
        case op.ListGangsRequest():
            return list_gangs(cluster, turn.now, request)
        case op.ListVolumesRequest(page):
            disks, token = views.page_of(
                list(volumes.views(cluster)), lambda view: f"{view.agent_id}/{view.uuid}", page
            )
            return op.ListVolumesResponse(disks, token)
        case (
            op.TeardownFrameworkRequest()
            | op.KillTaskRequest()
            | op.RestartTaskRequest()
            | op.ReserveResourcesRequest()
            | op.UnreserveResourcesRequest()
            | op.SetFlagRequest()
            | op.UnsetFlagRequest()
            | op.SetWeightsRequest()
            | op.SetQuotasRequest()
            | op.AddRuleRequest()
            | op.RemoveRuleRequest()
            | op.SetRoleGroupRequest()
            | op.RemoveRoleGroupRequest()
            | op.CordonDevicesRequest()
            | op.UncordonDevicesRequest()
            | op.LendReservationsRequest()
            | op.PartitionDeviceRequest()
            | op.PullImageRequest()
            | op.CancelImagePullRequest()
            | op.RebindReservationRequest()
            | op.CreateVolumeRequest()
            | op.DestroyVolumeRequest()
        ):
            result = _change(cluster, turn, request, principal)
            if not isinstance(result, ErrorDetail) and not getattr(request, "dry_run", False):
                action = type(request).__name__.removesuffix("Request")
                turn.persist(Audited(turn.now.wall_ms, principal, action, repr(request)))
            return result
        case _:
            assert_never(request)


def _change(
    cluster: Cluster,
    turn: Turn,
    request: op.TeardownFrameworkRequest
    | op.KillTaskRequest
    | op.RestartTaskRequest
    | op.ReserveResourcesRequest
    | op.UnreserveResourcesRequest
    | op.SetFlagRequest
    | op.UnsetFlagRequest
    | op.SetWeightsRequest
    | op.SetQuotasRequest
    | op.AddRuleRequest
    | op.RemoveRuleRequest
    | op.SetRoleGroupRequest
    | op.RemoveRoleGroupRequest
    | op.CordonDevicesRequest
    | op.UncordonDevicesRequest
    | op.LendReservationsRequest
    | op.PartitionDeviceRequest
    | op.PullImageRequest
    | op.CancelImagePullRequest
    | op.RebindReservationRequest
    | op.CreateVolumeRequest
    | op.DestroyVolumeRequest,
    principal: str,
) -> Answer:
    match request:
        case op.TeardownFrameworkRequest():
            framework = views.find_framework(cluster, request.framework)
            return framework if isinstance(framework, ErrorDetail) else _teardown(cluster, turn, framework)
        case op.KillTaskRequest():
            task = views.find_task(cluster, request.task)
            if isinstance(task, ErrorDetail):
                return task
            kill(cluster, turn, task, StatusReason.KILLED_BY_OPERATOR, request.grace_ms)
            return op.KillTaskResponse(views.task_view(cluster, task))
        case op.RestartTaskRequest():
            task = views.find_task(cluster, request.task)
            if isinstance(task, ErrorDetail):
                return task
            problem = restart(cluster, turn, task, "an operator asked for it", request.grace_ms)
            return problem or op.RestartTaskResponse(views.task_view(cluster, task))
        case op.ReserveResourcesRequest():
            return lending.reserve(cluster, turn, request, principal)
        case op.UnreserveResourcesRequest():
            return reservations.unreserve(cluster, turn, request)
        case op.SetFlagRequest():
            return _set_flag(cluster, turn, request.name, request.value)
        case op.UnsetFlagRequest():
            return _set_flag(cluster, turn, request.name, None)
        case op.SetWeightsRequest():
            return weights.set_weights(cluster, turn, request)
        case op.SetQuotasRequest():
            return quotas.set_quotas(cluster, turn, request)
        case op.AddRuleRequest():
            return rules.add_rule(cluster, turn, request)
        case op.RemoveRuleRequest():
            return rules.remove_rule(cluster, turn, request)
        case op.SetRoleGroupRequest():
            return groups.set_group(cluster, turn, request)
        case op.RemoveRoleGroupRequest():
            return groups.remove_group(cluster, turn, request)
        case op.CordonDevicesRequest():
            return device_orders.cordon(cluster, turn, request, principal)
        case op.UncordonDevicesRequest():
            return device_orders.uncordon(cluster, turn, request)
        case op.LendReservationsRequest():
            return lending.lend(cluster, turn, request)
        case op.PartitionDeviceRequest():
            return partitions.partition(cluster, turn, request, principal)
        case op.PullImageRequest():
            return images.pull(cluster, turn, request, principal)
        case op.CancelImagePullRequest():
            return images.cancel(cluster, turn, request)
        case op.RebindReservationRequest():
            return vacancies.rebind(cluster, turn, request)
        case op.CreateVolumeRequest():
            return volumes.create(cluster, turn, request, principal)
        case op.DestroyVolumeRequest():
            return volumes.destroy(cluster, turn, request)
        case _:
            assert_never(request)


def _teardown(cluster: Cluster, turn: Turn, framework: Framework) -> op.TeardownFrameworkResponse:
    frameworks.remove(cluster, turn, framework, "torn down by an operator")
    # Its tasks are ending; they are shown by `task ls` until they have.
    return op.TeardownFrameworkResponse(
        op.FrameworkView(framework.info, framework.state, subscribed_at_ms=framework.subscribed_at_ms)
    )


def _set_flag(cluster: Cluster, turn: Turn, name: str, value: str | None) -> Answer:
    flags = cluster.flags
    flag = find_flag(name)
    if isinstance(flag, ErrorDetail):
        return flag
    new = read_run_time_value(flag, flags.started[flag][0] if value is None else value)
    if isinstance(new, ErrorDetail):
        return new
    flags.change(flag, None if value is None else new)
    turn.persist(FlagRecorded(flag, None if value is None else new))
    rescinded = apply_flag(cluster, turn, flag)
    view: FlagView = flags.view(flag)
    turn.publish("flag_changed", f"{flag} is {view.value} ({view.source})")
    if value is None:
        return op.UnsetFlagResponse(view, rescinded)
    return op.SetFlagResponse(view, rescinded)


def apply_flag(cluster: Cluster, turn: Turn, name: str) -> int:
    """Make a changed value felt; return how many offers were rescinded because of it."""
    match name:
        case "filter-gpu-resources" | "gpu-headroom":
            return rules.changed(cluster, turn, f"{name} is {cluster.flags.view(name).value} now")
        case "min-allocatable-resources":
            cluster.minimum = parse_minimum(cluster.flags.min_allocatable)
            cluster.touch_all()
        case "region":
            cluster.region = cluster.flags.region
            cluster.touch_all()
            return rescind_forbidden(cluster, turn, f"the master's region is {cluster.region or 'not told'} now")
        case "fair-sharing-excluded-resource-names":
            cluster.shares.set_excluded(cluster.flags.excluded_names)
        case "allocation-interval":
            cluster.deadlines.set(("cycle", ""), turn.now.monotonic_ms + cluster.flags.duration_ms(name))
        case "agent-ping-timeout" | "max-agent-ping-timeouts":
            tell_ping_settings(cluster, turn)
    return 0


def _explain_framework(cluster: Cluster, turn: Turn, name: str, agent_name: str, role: str) -> Answer:
    framework = views.find_framework(cluster, name)
    if isinstance(framework, ErrorDetail):
        return framework
    agent = views.find_agent(cluster, agent_name) if agent_name else None
    return agent if isinstance(agent, ErrorDetail) else explain_framework(cluster, turn.now, framework, agent, role)


def _list_devices(cluster: Cluster, request: op.ListDevicesRequest) -> Answer:
    if request.agent:
        agent = views.find_agent(cluster, request.agent)
        if isinstance(agent, ErrorDetail):
            return agent
        agents = [agent]
    else:
        agents = [cluster.agents[agent_id] for agent_id in sorted(cluster.agents)]
    devices = [view for agent in agents for view in views.device_views(cluster, agent)]
    part, token = views.page_of(
        devices, lambda view: f"{view.agent_id}/{view.device.index:06d}/{view.device.uuid}", request.page
    )
    return op.ListDevicesResponse(part, token)

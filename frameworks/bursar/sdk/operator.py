"""The operators' side: every call of OperatorService, with paging, patience and repeats that do no harm."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Iterable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import grpc
import grpc.aio

from bursar.core.errors import ErrorReason, MasterUnreachable
from bursar.core.resources import ResourceRequest
from bursar.runtime.client import Channels, explained, masters, to_bursar_error, unreachable
from bursar.runtime.codec import encode, encode_request
from bursar.runtime.credentials import Credentials
from bursar.sdk.task_session import TaskSession
from bursar.v1 import agent_service_pb2, operator_service_pb2, operator_service_pb2_grpc, rules_pb2, sessions_pb2

if TYPE_CHECKING:
    from bursar.core.messages.operator import Quota

#: Between two attempts.
_RETRY_S = 0.1
#: Between two looks at whether credentials are why nobody answers.
_EXPLAIN_S = 1.0
_PAGE_SIZE = 500


class OperatorClient:
    """Calls of OperatorService; use it as `async with`. Answers are messages of `bursar.v1`.

    Every method waits up to `timeout_s` for a master and raises MasterUnreachable then; a refusal raises BursarError with its detail.
    An argument that names something takes what the CLI takes: an id, a unique prefix, an agent's hostname, `FRAMEWORK_ID/TASK_ID`.
    """

    def __init__(
        self,
        master: str | Iterable[str] | None = None,
        *,
        timeout_s: float = 10,
        credentials: Credentials | None = None,
    ) -> None:
        """`master` and `credentials` as in `run`. Raises InvalidText."""
        self.addresses = masters(master)
        self.timeout_s = timeout_s
        self._channels = Channels(Credentials.from_environment() if credentials is None else credentials)
        self._current = 0

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._channels.close()

    # --- reading ---------------------------------------------------------------------------------------------------

    async def master(self) -> operator_service_pb2.MasterView:
        """The master itself."""
        return (await self._call("GetMaster", operator_service_pb2.GetMasterRequest())).master  # type: ignore[no-any-return]

    async def agents(self) -> list[operator_service_pb2.AgentView]:
        """All agents."""
        return await self._all("Agents", "agents")

    async def agent(self, agent: str) -> operator_service_pb2.AgentView:
        """One agent."""
        request = operator_service_pb2.GetAgentRequest(agent=agent)
        return (await self._call("GetAgent", request)).agent  # type: ignore[no-any-return]

    async def frameworks(self) -> list[operator_service_pb2.FrameworkView]:
        """All frameworks."""
        return await self._all("Frameworks", "frameworks")

    async def framework(self, framework: str) -> operator_service_pb2.FrameworkView:
        """One framework."""
        request = operator_service_pb2.GetFrameworkRequest(framework=framework)
        return (await self._call("GetFramework", request)).framework  # type: ignore[no-any-return]

    async def roles(self) -> list[operator_service_pb2.RoleView]:
        """All roles that are in use."""
        return await self._all("Roles", "roles")

    async def offers(self) -> list[operator_service_pb2.OfferView]:
        """All outstanding offers."""
        return await self._all("Offers", "offers")

    async def tasks(
        self,
        framework: str = "",
        *,
        ended: bool = False,
        agent: str = "",
        roles: str = "",
        labels: Mapping[str, str] | None = None,
    ) -> list[operator_service_pb2.TaskView]:
        """Tasks, of one framework, agent and role expression and with all `labels`, or of all; also those that have ended where `ended`."""
        return await self._all(
            "Tasks", "tasks", framework=framework, all=ended, agent=agent, roles=roles, labels=labels or {}
        )

    async def task(self, task: str) -> operator_service_pb2.TaskView:
        """One task."""
        return (await self._call("GetTask", operator_service_pb2.GetTaskRequest(task=task))).task  # type: ignore[no-any-return]

    async def devices(self, agent: str = "") -> list[operator_service_pb2.DeviceView]:
        """Devices, of one agent or of all."""
        return await self._all("Devices", "devices", agent=agent)

    async def reservations(self) -> list[operator_service_pb2.ReservationView]:
        """All reservations."""
        return await self._all("Reservations", "reservations")

    async def flags(self) -> list[operator_service_pb2.FlagView]:
        """All flags of the master."""
        return await self._all("Flags", "flags")

    async def flag(self, name: str) -> operator_service_pb2.FlagView:
        """One flag."""
        return (await self._call("GetFlag", operator_service_pb2.GetFlagRequest(name=name))).flag  # type: ignore[no-any-return]

    async def role_groups(self) -> list[operator_service_pb2.RoleGroupView]:
        """All role groups."""
        return await self._all("RoleGroups", "groups")

    async def explain_framework(
        self, framework: str, *, agent: str = "", role: str = ""
    ) -> operator_service_pb2.ExplainFrameworkResponse:
        """Why a framework is (not) offered what it wants: of all agents or of one, in all its roles or in one."""
        request = operator_service_pb2.ExplainFrameworkRequest(framework=framework, agent=agent, role=role)
        return await self._call("ExplainFramework", request)  # type: ignore[no-any-return]

    async def explain_role(self, role: str) -> operator_service_pb2.ExplainRoleResponse:
        """Why the frameworks in a role, and in those below it, are (not) offered what they want."""
        return await self._call("ExplainRole", operator_service_pb2.ExplainRoleRequest(role=role))  # type: ignore[no-any-return]

    async def explain_agent(self, agent: str) -> operator_service_pb2.ExplainAgentResponse:
        """Why an agent is (not) offered, and to whom."""
        return await self._call("ExplainAgent", operator_service_pb2.ExplainAgentRequest(agent=agent))  # type: ignore[no-any-return]

    # --- ordering --------------------------------------------------------------------------------------------------

    async def teardown_framework(self, framework: str) -> operator_service_pb2.FrameworkView:
        """End a framework and all its tasks; its id can never come back."""
        request = operator_service_pb2.TeardownFrameworkRequest(request_id=_fresh_id(), framework=framework)
        return (await self._call("TeardownFramework", request)).framework  # type: ignore[no-any-return]

    async def kill_task(self, task: str, grace_ms: int | None = None) -> operator_service_pb2.TaskView:
        """End a task: SIGTERM, grace, SIGKILL. Answers at once."""
        request = operator_service_pb2.KillTaskRequest(request_id=_fresh_id(), task=task, grace_ms=grace_ms)
        return (await self._call("KillTask", request)).task  # type: ignore[no-any-return]

    async def restart_task(self, task: str, grace_ms: int | None = None) -> operator_service_pb2.TaskView:
        """Start a running task again on its agent, with its devices looked up anew. Answers at once."""
        request = operator_service_pb2.RestartTaskRequest(request_id=_fresh_id(), task=task, grace_ms=grace_ms)
        return (await self._call("RestartTask", request)).task  # type: ignore[no-any-return]

    async def reserve(
        self,
        agent: str,
        role: str,
        resources: ResourceRequest,
        labels: Mapping[str, str] | None = None,
        *,
        force: bool = False,
        roles: str = "",
        source: str = "",
    ) -> operator_service_pb2.ReservationView:
        """Keep resources of an agent for a role; the answer names the devices that were picked. `force`: also beyond a limit.

        `roles`: a role expression instead, with an empty `role`. `source`: take it from what is reserved to that role or expression.
        """
        request = operator_service_pb2.ReserveResourcesRequest(
            request_id=_fresh_id(),
            agent=agent,
            role=role,
            resources=encode_request(resources),
            labels=labels or {},
            force=force,
            roles=roles,
            source=source,
        )
        return (await self._call("ReserveResources", request)).reservation  # type: ignore[no-any-return]

    async def reserve_where(
        self,
        roles: str,
        resources: ResourceRequest,
        where: str = "",
        *,
        role: str = "",
        agent: str = "",
        source: str = "",
        labels: Mapping[str, str] | None = None,
        force: bool = False,
        dry_run: bool = False,
        lend: bool = False,
    ) -> operator_service_pb2.ReserveResourcesResponse:
        """Keep resources for whom a role expression covers, on the agents and devices that the master picks among those that
        predicates (`gpu.model=H100,rack=r1`) are true of: all that is asked for, or nothing. `dry_run`: only say which. `role`: a plain role, with empty `roles`.
        """
        request = operator_service_pb2.ReserveResourcesRequest(
            request_id=_fresh_id(),
            agent=agent,
            role=role,
            roles=roles,
            resources=encode_request(resources),
            labels=labels or {},
            force=force,
            source=source,
            where=where,
            dry_run=dry_run,
            lend=lend,
        )
        return await self._call("ReserveResources", request)  # type: ignore[no-any-return]

    async def lend_reservations(
        self,
        *,
        role: str = "",
        roles: str = "",
        agent: str = "",
        labels: Mapping[str, str] | None = None,
        withdraw: bool = False,
    ) -> operator_service_pb2.LendReservationsResponse:
        """Lend to others what is idle of a holder's reservations, static ones too, on one agent or on all. `withdraw`: lend it no
        longer; offers are rescinded at once, and tasks get a notice.
        """
        request = operator_service_pb2.LendReservationsRequest(
            request_id=_fresh_id(), agent=agent, role=role, roles=roles, labels=labels or {}, withdraw=withdraw
        )
        return await self._call("LendReservations", request)  # type: ignore[no-any-return]

    async def unreserve_where(
        self,
        roles: str,
        resources: ResourceRequest,
        where: str = "",
        *,
        role: str = "",
        agent: str = "",
        labels: Mapping[str, str] | None = None,
        dry_run: bool = False,
    ) -> operator_service_pb2.UnreserveResourcesResponse:
        """Give back what is kept for a role expression, on the agents that the master picks. `dry_run`: only say which."""
        request = operator_service_pb2.UnreserveResourcesRequest(
            request_id=_fresh_id(),
            agent=agent,
            role=role,
            roles=roles,
            resources=encode_request(resources),
            labels=labels or {},
            where=where,
            dry_run=dry_run,
        )
        return await self._call("UnreserveResources", request)  # type: ignore[no-any-return]

    async def unreserve(
        self,
        agent: str,
        role: str,
        resources: ResourceRequest,
        labels: Mapping[str, str] | None = None,
        *,
        roles: str = "",
    ) -> operator_service_pb2.ReservationView:
        """Give reserved resources back; only what no task holds. `roles`: of a role expression instead, with an empty `role`."""
        request = operator_service_pb2.UnreserveResourcesRequest(
            request_id=_fresh_id(),
            agent=agent,
            role=role,
            resources=encode_request(resources),
            labels=labels or {},
            roles=roles,
        )
        return (await self._call("UnreserveResources", request)).reservation  # type: ignore[no-any-return]

    async def set_flag(self, name: str, value: str) -> operator_service_pb2.SetFlagResponse:
        """Change a flag at run time; offers that it forbids are rescinded before this returns."""
        request = operator_service_pb2.SetFlagRequest(request_id=_fresh_id(), name=name, value=value)
        return await self._call("SetFlag", request)  # type: ignore[no-any-return]

    async def unset_flag(self, name: str) -> operator_service_pb2.UnsetFlagResponse:
        """Undo a change at run time."""
        request = operator_service_pb2.UnsetFlagRequest(request_id=_fresh_id(), name=name)
        return await self._call("UnsetFlag", request)  # type: ignore[no-any-return]

    async def weights(self) -> list[operator_service_pb2.RoleWeight]:
        """The weights that are not 1."""
        return await self._all("Weights", "weights")

    async def set_weights(self, weights_milli: Mapping[str, int]) -> list[operator_service_pb2.RoleWeight]:
        """Set weights of roles, in thousandths, all or none; others keep theirs, 1000 forgets one."""
        weights = [
            operator_service_pb2.RoleWeight(role=role, weight_milli=milli) for role, milli in weights_milli.items()
        ]
        request = operator_service_pb2.SetWeightsRequest(request_id=_fresh_id(), weights=weights)
        return list((await self._call("SetWeights", request)).weights)

    async def quotas(self) -> list[operator_service_pb2.QuotaView]:
        """All quotas, with what counts against them."""
        return await self._all("Quotas", "quotas")

    async def set_quotas(
        self, quotas: Iterable[Quota], *, force: bool = False
    ) -> operator_service_pb2.SetQuotasResponse:
        """Replace quotas of roles, all or none; others keep theirs, an empty one is removed."""
        request = operator_service_pb2.SetQuotasRequest(
            request_id=_fresh_id(), quotas=[encode(quota) for quota in quotas], force=force
        )
        return await self._call("SetQuotas", request)  # type: ignore[no-any-return]

    async def rules(self) -> list[rules_pb2.RuleView]:
        """The visibility rules in the order in which they are asked, the built-in one last."""
        return await self._all("Rules", "rules")

    async def try_rules(self, framework: str = "", agent: str = "") -> list[rules_pb2.RuleVerdict]:
        """Which rule decides, for every framework in each of its roles on every agent, or for those that are named."""
        items: list[rules_pb2.RuleVerdict] = []
        token = ""
        while True:
            page = operator_service_pb2.Page(page_size=_PAGE_SIZE, page_token=token)
            request = operator_service_pb2.TryRulesRequest(framework=framework, agent=agent, page=page)
            response = await self._call("TryRules", request)
            items += response.verdicts
            token = response.next_page_token
            if not token:
                return items

    async def audit_rules(self) -> list[rules_pb2.RuleAudit]:
        """What the rules in audit mode would do now if they were enforced."""
        response = await self._call("AuditRules", operator_service_pb2.AuditRulesRequest())
        return list(response.audits)

    async def add_rule(
        self, rule: rules_pb2.Rule, *, before: str = "", replace: bool = False, force: bool = False
    ) -> operator_service_pb2.AddRuleResponse:
        """Add a visibility rule, or replace the one of its name; offers that it forbids are rescinded before this returns."""
        request = operator_service_pb2.AddRuleRequest(
            request_id=_fresh_id(), rule=rule, before=before, replace=replace, force=force
        )
        return await self._call("AddRule", request)  # type: ignore[no-any-return]

    async def remove_rule(self, name: str) -> operator_service_pb2.RemoveRuleResponse:
        """Forget a visibility rule."""
        request = operator_service_pb2.RemoveRuleRequest(request_id=_fresh_id(), name=name)
        return await self._call("RemoveRule", request)  # type: ignore[no-any-return]

    async def rebind_reservation(
        self, device: str, *, to: str = "", give_up: bool = False, dry_run: bool = False
    ) -> operator_service_pb2.RebindReservationResponse:
        """Have a reservation keep another device of its agent instead of one that vanished or is ill, or one less; uuids or unique prefixes."""
        request = operator_service_pb2.RebindReservationRequest(
            request_id=_fresh_id(), device=device, to=to, give_up=give_up, dry_run=dry_run
        )
        return await self._call("RebindReservation", request)  # type: ignore[no-any-return]

    async def volumes(self) -> list[operator_service_pb2.VolumeView]:
        """All persistent volumes, and data of some on agents of which there is no record."""
        return await self._all("Volumes", "volumes")

    async def create_volume(
        self,
        role: str,
        volume_id: str,
        size_bytes: int,
        agent: str,
        *,
        labels: Mapping[str, str] | None = None,
        adopt: bool = False,
    ) -> operator_service_pb2.CreateVolumeResponse:
        """Make a persistent volume of disk that an agent keeps for a role; offers in the way are rescinded. `adopt`: of data that the agent
        has and of which there is no record.
        """
        request = operator_service_pb2.CreateVolumeRequest(
            request_id=_fresh_id(),
            agent=agent,
            role=role,
            volume_id=volume_id,
            size_bytes=size_bytes,
            labels=labels or {},
            adopt=adopt,
        )
        return await self._call("CreateVolume", request)  # type: ignore[no-any-return]

    async def destroy_volume(
        self, role: str, volume_id: str, agent: str, *, stray: bool = False, size_bytes: int = 0
    ) -> operator_service_pb2.DestroyVolumeResponse:
        """End a persistent volume and have its data removed; refused while a task has it. `stray`: data without a record instead, of this
        size where there is some of several.
        """
        request = operator_service_pb2.DestroyVolumeRequest(
            request_id=_fresh_id(), agent=agent, role=role, volume_id=volume_id, stray=stray, size_bytes=size_bytes
        )
        return await self._call("DestroyVolume", request)  # type: ignore[no-any-return]

    async def images(self, agent: str = "") -> list[operator_service_pb2.ImageView]:
        """Which agents have which images; of one agent or of all."""
        return await self._all("Images", "images", agent=agent)

    async def gangs(self) -> list[operator_service_pb2.GangView]:
        """The gangs that wait, or whose bundle is on offer; the oldest first."""
        return await self._all("Gangs", "gangs")

    async def image_pulls(self) -> list[operator_service_pb2.ImagePullView]:
        """Pulls that were ordered, the oldest first."""
        return await self._all("ImagePulls", "pulls")

    async def image_pull(self, pull: str) -> operator_service_pb2.ImagePullView:
        """One of them, by its id."""
        return (await self._all("ImagePulls", "pulls", pull=pull))[0]  # type: ignore[no-any-return]

    async def pull_image(
        self, image: str, *, agents: Iterable[str] = (), where: str = "", everywhere: bool = False
    ) -> operator_service_pb2.ImagePullView:
        """Have agents pull an image before a task needs it: those that are named, those that predicates are true of, or all."""
        request = operator_service_pb2.PullImageRequest(
            request_id=_fresh_id(), image=image, agents=list(agents), where=where, all=everywhere
        )
        return (await self._call("PullImage", request)).pull  # type: ignore[no-any-return]

    async def cancel_image_pull(self, pull: str) -> operator_service_pb2.ImagePullView:
        """End a pull wherever it is not over."""
        request = operator_service_pb2.CancelImagePullRequest(request_id=_fresh_id(), pull=pull)
        return (await self._call("CancelImagePull", request)).pull  # type: ignore[no-any-return]

    async def cordon_devices(
        self, devices: Iterable[str], reason: str = ""
    ) -> operator_service_pb2.CordonDevicesResponse:
        """Take devices out of service, all or none: uuids or unique prefixes. Tasks that hold them are told, and go on."""
        request = operator_service_pb2.CordonDevicesRequest(
            request_id=_fresh_id(), devices=list(devices), reason=reason
        )
        return await self._call("CordonDevices", request)  # type: ignore[no-any-return]

    async def uncordon_devices(self, devices: Iterable[str]) -> operator_service_pb2.UncordonDevicesResponse:
        """Put devices back into service, all or none; those that failed, or were retired, are probed first."""
        request = operator_service_pb2.UncordonDevicesRequest(request_id=_fresh_id(), devices=list(devices))
        return await self._call("UncordonDevices", request)  # type: ignore[no-any-return]

    async def partition_device(self, device: str, layout: str) -> operator_service_pb2.PartitionDeviceResponse:
        """Order a GPU to be cut (`1g.10gb=3`) or made whole (`whole`); an event `device_cut` or `device_not_cut` says how it ended."""
        request = operator_service_pb2.PartitionDeviceRequest(request_id=_fresh_id(), device=device, layout=layout)
        return await self._call("PartitionDevice", request)  # type: ignore[no-any-return]

    async def set_role_group(self, name: str, members: Iterable[str]) -> operator_service_pb2.SetRoleGroupResponse:
        """Make a role group of these roles or role expressions; offers that it forbids are rescinded before this returns."""
        request = operator_service_pb2.SetRoleGroupRequest(request_id=_fresh_id(), name=name, members=list(members))
        return await self._call("SetRoleGroup", request)  # type: ignore[no-any-return]

    async def remove_role_group(
        self, name: str, *, force: bool = False
    ) -> operator_service_pb2.RemoveRoleGroupResponse:
        """Forget a role group; refused where reservations or groups name it, unless `force`."""
        request = operator_service_pb2.RemoveRoleGroupRequest(request_id=_fresh_id(), name=name, force=force)
        return await self._call("RemoveRoleGroup", request)  # type: ignore[no-any-return]

    # --- streams ---------------------------------------------------------------------------------------------------

    async def read_task_log(
        self, task: str, *, follow: bool = False, tail_bytes: int | None = None
    ) -> AsyncIterator[agent_service_pb2.LogChunk]:
        """A task's outputs, once; `LogReader` is the one that survives interruptions. Raises BursarError."""
        address = self.addresses[self._current]
        request = operator_service_pb2.ReadTaskLogRequest(task=task, follow=follow, tail_bytes=tail_bytes)
        try:
            async for response in self._stub(address).ReadTaskLog(request):
                yield response.chunk
        except grpc.aio.AioRpcError as error:
            raise await explained(to_bursar_error(error, address), address, self._channels.credentials) from None

    async def task_output(self, task: str, *, tail_bytes: int | None = None) -> tuple[bytes, bytes]:
        """What a task has printed until now: stdout and stderr; with `tail_bytes` only the end of each. Raises BursarError."""
        outputs = bytearray(), bytearray()
        async for chunk in self.read_task_log(task, tail_bytes=tail_bytes):
            outputs[chunk.stream == agent_service_pb2.LOG_STREAM_STDERR].extend(chunk.data)
        return bytes(outputs[0]), bytes(outputs[1])

    async def open_session(
        self,
        task: str,
        kind: sessions_pb2.SessionKind.ValueType,
        *,
        command: Iterable[str] = (),
        path: str = "",
        terminal: tuple[int, int] | None = None,
    ) -> TaskSession:
        """Begin a session with a running task; `terminal`: rows and columns. A refusal comes with the first `read`. Raises BursarError."""
        size = None if terminal is None else sessions_pb2.TerminalSize(rows=terminal[0], columns=terminal[1])
        start = sessions_pb2.SessionStart(kind=kind, command=list(command), path=path, terminal=size)
        address = self.addresses[self._current]
        return await TaskSession.begin(self._stub(address).OpenTaskSession(), address, task, start)

    async def watch(self) -> AsyncIterator[operator_service_pb2.ClusterEvent]:
        """What happens in the cluster, from now on. Raises BursarError."""
        address = self.addresses[self._current]
        try:
            async for response in self._stub(address).Watch(operator_service_pb2.WatchRequest()):
                for event in response.events:
                    yield event
        except grpc.aio.AioRpcError as error:
            raise await explained(to_bursar_error(error, address), address, self._channels.credentials) from None

    # --- how -------------------------------------------------------------------------------------------------------

    def _stub(self, address: str) -> Any:
        return operator_service_pb2_grpc.OperatorServiceStub(self._channels.to(address))

    async def _call(self, method: str, request: Any) -> Any:
        """Call until a master answers; a repeat is harmless, because reading is and orders carry a `request_id`."""
        deadline = time.monotonic() + self.timeout_s
        ask_at = 0.0
        while True:
            address = self.addresses[self._current]
            left = deadline - time.monotonic()
            try:
                return await getattr(self._stub(address), method)(request, timeout=max(0.1, left))
            except grpc.aio.AioRpcError as error:
                problem = to_bursar_error(error, address)
                if time.monotonic() >= ask_at:
                    ask_at = time.monotonic() + _EXPLAIN_S
                    problem = await explained(problem, address, self._channels.credentials)
                away = isinstance(problem, MasterUnreachable) or problem.detail.reason is ErrorReason.SHUTTING_DOWN
                if not away:
                    raise problem from None
            self._current = (self._current + 1) % len(self.addresses)
            if time.monotonic() + _RETRY_S >= deadline:
                raise unreachable(",".join(self.addresses), f"tried for {self.timeout_s:g} s") from None
            await asyncio.sleep(_RETRY_S)

    async def _all(self, noun: str, field: str, **fields: Any) -> list[Any]:
        """All pages of a list."""
        items: list[Any] = []
        token = ""
        while True:
            page = operator_service_pb2.Page(page_size=_PAGE_SIZE, page_token=token)
            request = getattr(operator_service_pb2, f"List{noun}Request")(page=page, **fields)
            response = await self._call(f"List{noun}", request)
            items += getattr(response, field)
            token = response.next_page_token
            if not token:
                return items


def _fresh_id() -> str:
    return str(uuid.uuid4())

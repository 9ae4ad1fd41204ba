"""The whole machine under random peers: after every event its invariants hold, its records mean its durable state, no GPU has two
tasks, nobody is offered what the rules forbid, and a full cycle makes no offer when event-driven work is quiet.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from bursar.core.messages.agent import DevicesChanged, KillTask, ResyncRequest
from bursar.core.messages.framework import Teardown
from bursar.core.messages.offers import Operation, Reserve, Shape, Unreserve
from bursar.core.messages.operator import (
    ExplainFrameworkRequest,
    KillTaskRequest,
    ListAgentsRequest,
    ListDevicesRequest,
    ListQuotasRequest,
    ListReservationsRequest,
    ListRolesRequest,
    ListTasksRequest,
    ListWeightsRequest,
    Quota,
    RebindReservationRequest,
    RebindReservationResponse,
)
from bursar.core.resources import ReservedResources, Resources
from bursar.core.roles import covers
from bursar.core.tasks import TaskState
from bursar.master.vacant import without_vacancies

AGENTS = {"a": 0, "b": 2, "c": 4}
ROLES = ["*", "ml", "ml/train", "eng"]
ENDS = [TaskState.FINISHED, TaskState.FAILED, TaskState.KILLED]


class Cluster(RuleBasedStateMachine):
    """A small cluster, and what must hold in it after every step."""

    new_book: Any

    def __init__(self) -> None:
        super().__init__()
        self.book = self.new_book()
        self.names = 0
        self.version = 0

    @initialize(static=st.booleans(), gpu=st.booleans(), roles=st.permutations(ROLES))
    def a_small_cluster(self, static: bool, gpu: bool, roles: list[str]) -> None:
        for name in AGENTS:
            self.agent_comes(name, static)
        self.framework_comes("f", roles[:2], True, 3_600_000)
        self.framework_comes("g", roles[2:3], gpu, 60_000)

    def agent(self, data: st.DataObject, connected: bool | None = None) -> Any:
        found = [
            peer
            for peer in self.book.agents.values()
            if connected is None or (peer.connection is not None) == connected
        ]
        return data.draw(st.sampled_from(found)) if found else None

    def framework(self, data: st.DataObject, connected: bool | None = True) -> Any:
        found = [
            peer
            for name, peer in self.book.frameworks.items()
            if (connected is None or (peer.connection is not None) == connected)
            and name not in self.book.registry.removed_frameworks
        ]
        return data.draw(st.sampled_from(found)) if found else None

    @rule(name=st.sampled_from(sorted(AGENTS)), static=st.booleans())
    def agent_comes(self, name: str, static: bool) -> None:
        peer = self.book.agents.get(name)
        if peer is not None:
            if peer.connection is None:
                peer.connect()
            return
        gpus = AGENTS[name]
        devices = self.book.linked(name, [range(gpus)]) if gpus == 2 else self.book.devices(name, gpus)
        uuids = [device.uuid for device in devices]
        parts = [ReservedResources((), self.book.resources(4, 8, uuids[static:], ports="1-4"))]
        if static:
            parts.append(ReservedResources(self.book.static("ml"), self.book.resources(2, 2, uuids[:static])))
        self.book.agent(name, parts=parts, devices=devices)

    @rule(
        name=st.sampled_from("fgh"),
        roles=st.lists(st.sampled_from(ROLES), min_size=1, max_size=2, unique=True),
        gpu=st.booleans(),
        failover_ms=st.sampled_from([0, 60_000, 3_600_000]),
    )
    def framework_comes(self, name: str, roles: list[str], gpu: bool, failover_ms: int) -> None:
        if name in self.book.registry.removed_frameworks:
            name = f"{name}{len(self.book.registry.removed_frameworks)}"
            if name in self.book.registry.removed_frameworks:
                return
        peer = self.book.frameworks.get(name)
        if peer is None:
            self.book.framework(name, roles=roles, gpu=gpu, failover_ms=failover_ms)
        else:
            peer.connect(roles=tuple(roles), capabilities=("GPU_RESOURCES",) if gpu else ())

    @rule(
        role=st.sampled_from([*ROLES, "ml/other"]),
        kind=st.sampled_from(["gpus", "cpus"]),
        guarantee=st.none() | st.integers(0, 3),
        limit=st.none() | st.integers(0, 4),
        force=st.booleans(),
    )
    def quota(self, role: str, kind: str, guarantee: int | None, limit: int | None, force: bool) -> None:
        amounts = [{} if amount is None else {kind: 1000 * amount} for amount in (guarantee, limit)]
        self.book.set_quotas(Quota(role, *amounts), force=force)

    @rule(role=st.sampled_from([*ROLES, "ml/."]), weight_milli=st.sampled_from([1, 500, 1000, 3000]))
    def weight(self, role: str, weight_milli: int) -> None:
        self.book.set_weights({role: weight_milli})

    @precondition(lambda self: self.book.agents)
    @invariant()
    def a_full_cycle_has_nothing_to_offer(self) -> None:
        assert self.book.full_cycle_offers() == 0

    @invariant()
    def nobody_is_offered_what_the_rules_forbid(self) -> None:
        cluster = self.book.machine.cluster
        for outstanding in cluster.offers.values():
            offer = outstanding.offer
            for part in offer.resources:
                assert not part.stack or covers(part.stack[-1].holder, offer.role)
            has_gpus = any(part.resources.devices for part in cluster.agents[offer.agent_id].info.resources)
            capable = "GPU_RESOURCES" in cluster.frameworks[offer.framework_id].info.capabilities
            assert capable or not has_gpus or cluster.flags.filter_gpu_resources == "false"
            assert offer.role in cluster.frameworks[offer.framework_id].info.roles

    @invariant()
    def no_device_has_two_tasks(self) -> None:
        holders: dict[str, Any] = {}
        for key, task in self.book.machine.cluster.tasks.items():
            if not task.state.is_terminal:
                for uuid in task.assigned.device_uuids:
                    assert holders.setdefault(uuid, key) == key, (uuid, key, holders[uuid])


class Quiet(Cluster):
    """Frameworks that want, decline and accept: after each step, a full cycle has nothing left to offer."""

    @rule(data=st.data(), state=st.sampled_from([TaskState.STARTING, TaskState.RUNNING, *ENDS]), deliver=st.booleans())
    def task_moves(self, data: st.DataObject, state: TaskState, deliver: bool) -> None:
        if (agent := self.agent(data)) is None:
            return
        keys = [key for key, report in agent.tasks.items() if not report.state.is_terminal]
        if keys:
            framework, task_id = data.draw(st.sampled_from(sorted(keys)))
            agent.update(task_id, state, framework=framework, deliver=deliver and agent.connection is not None)

    @rule(
        data=st.data(),
        refuse_ms=st.sampled_from([None, 0, 3_600_000]),
        partial=st.booleans(),
        size=st.sampled_from([1, 2, 9]),
    )
    def accept(self, data: st.DataObject, refuse_ms: int | None, partial: bool, size: int) -> None:
        framework = self.framework(data)
        if framework is None or not framework.offers:
            return
        first = data.draw(st.sampled_from(sorted(framework.offers)))
        role = framework.offers[first].role
        others = sorted(key for key, offer in framework.offers.items() if offer.role == role and key != first)
        offers = [first, *(data.draw(st.lists(st.sampled_from(others), unique=True)) if others else [])]
        agents = {framework.offers[key].agent_id for key in offers}
        stacks = {part.stack: part.resources for part in framework.offers[first].resources}
        operations = []
        for _ in range(data.draw(st.integers(0, 3))):
            self.names += 1
            agent_id = data.draw(st.sampled_from(sorted(agents)))
            kind = data.draw(st.sampled_from(["launch", "launch", "reserve", "unreserve"]))
            if kind == "launch":
                task = self.book.spec(
                    f"t{self.names}",
                    cpus=size / 2,
                    mem=data.draw(st.sampled_from([0, 1])),
                    gpus=data.draw(st.integers(0, 2)),
                    ports=data.draw(st.sampled_from(["", "", "2-3"])),
                    agent_id=agent_id,
                )
                operations.append(self.book.launch(task, operation_id=f"o{self.names}"))
            elif kind == "reserve":
                asked = self.book.request(cpus=1, gpus=data.draw(st.integers(0, 1)))
                operations.append(Operation(f"o{self.names}", Reserve(agent_id, asked, role)))
            elif dynamic := [stack for stack in stacks if stack and stack[-1].type == 2]:
                part = ReservedResources(dynamic[0], stacks[dynamic[0]])
                operations.append(Operation(f"o{self.names}", Unreserve(framework.offers[first].agent_id, part)))
        result = framework.accept(
            offers, *operations, call_id=f"c{self.names}-{first}", refuse_ms=refuse_ms, partial=partial
        )
        assert len(result.operations) == len(operations)
        assert partial or bool(result.error) == any(operation.error for operation in result.operations)

    @rule(data=st.data(), refuse_ms=st.sampled_from([None, 0, 3_600_000]))
    def decline(self, data: st.DataObject, refuse_ms: int | None) -> None:
        framework = self.framework(data)
        if framework is not None and framework.offers:
            chosen = data.draw(st.lists(st.sampled_from(sorted(framework.offers)), min_size=1, unique=True))
            framework.decline(*[framework.offers[key] for key in chosen], refuse_ms=refuse_ms)

    @rule(data=st.data(), counts=st.lists(st.integers(0, 3), max_size=3))
    def want(self, data: st.DataObject, counts: list[int]) -> None:
        if (framework := self.framework(data)) is not None:
            self.version += 1
            shapes = [
                Shape(
                    data.draw(st.sampled_from(framework.info.roles)),
                    self.book.request(
                        cpus=data.draw(st.sampled_from([0.5, 1, 3, 6])),
                        gpus=data.draw(st.integers(0, 2)),
                        ports=data.draw(st.sampled_from(["", "", "1-2"])),
                    ),
                    count,
                )
                for count in counts
            ]
            framework.want(*shapes, version=self.version)

    @rule(data=st.data(), revive=st.booleans(), roles=st.sets(st.sampled_from(ROLES)))
    def suppress_or_revive(self, data: st.DataObject, revive: bool, roles: set[str]) -> None:
        if (framework := self.framework(data)) is not None:
            (framework.revive if revive else framework.suppress)(*sorted(roles))

    @rule(ms=st.sampled_from([1, 1000, 5000, 31_000, 80_000, 700_000]))
    def time_passes(self, ms: int) -> None:
        self.book.advance(ms)


class Everything(Quiet):
    """All that peers and operators may do, at the worst moments."""

    @rule(data=st.data(), boot=st.booleans(), lost=st.booleans())
    def agent_reconnects(self, data: st.DataObject, boot: bool, lost: bool) -> None:
        if (agent := self.agent(data)) is None:
            return
        if boot or lost:
            # A task that it lost and never reported, or a machine that was started anew.
            for key in [key for key, report in agent.tasks.items() if not report.state.is_terminal]:
                if data.draw(st.booleans()) and not boot:
                    agent.never_got(key[1], framework=key[0])
                elif boot or data.draw(st.booleans()):
                    del agent.tasks[key]
        info = agent.info
        if boot:
            agent.connect(boot_id=info.boot_id + "+", incarnation=info.incarnation + 1)
        else:
            agent.connect()

    @rule(data=st.data())
    def agent_leaves(self, data: st.DataObject) -> None:
        if (agent := self.agent(data, connected=True)) is not None:
            agent.disconnect()

    @rule(data=st.data())
    def agent_obeys_kills(self, data: st.DataObject) -> None:
        if (agent := self.agent(data, connected=True)) is None:
            return
        orders = [order for state in agent.inbox for order in getattr(state, "kill", ())]
        agent.inbox.clear()
        for order in orders:
            assert isinstance(order, KillTask) and order.reason
            report = agent.tasks.get((order.framework_id, order.task_id))
            if report is not None and not report.state.is_terminal and agent.connection is not None:
                agent.update(order.task_id, TaskState.KILLED, framework=order.framework_id)

    @rule(data=st.data())
    def agent_repeats_updates(self, data: st.DataObject) -> None:
        if (agent := self.agent(data, connected=True)) is not None:
            for report in list(agent.tasks.values()):
                for status in report.unacknowledged:
                    agent.repeat(status)

    @rule(data=st.data(), sick=st.sets(st.integers(0, 3)), vanished=st.sets(st.integers(0, 3), max_size=1))
    def devices_change(self, data: st.DataObject, sick: set[int], vanished: set[int]) -> None:
        agent = self.agent(data, connected=True)
        if agent is None or not AGENTS[agent.agent_id]:
            return
        everything = self.book.devices(agent.agent_id, AGENTS[agent.agent_id], unhealthy=sorted(sick))
        devices = tuple(device for device in everything if device.index not in vanished)
        gone = {device.uuid for device in everything} - {device.uuid for device in devices}
        whole = self.__dict__.setdefault("whole", {}).setdefault(agent.agent_id, agent.info.resources)
        parts = tuple(
            ReservedResources(
                part.stack,
                Resources(part.resources.scalars, part.resources.ports, part.resources.devices - gone),
            )
            for part in whole
        )
        agent.say(DevicesChanged(devices, parts))
        # The agent goes on with what it announced only where that was taken over; a refused registration is tried elsewhere.
        if without_vacancies(self.book.machine.cluster.agents[agent.agent_id].info).resources == parts:
            agent.info = replace(agent.info, devices=devices, resources=parts)

    @rule(data=st.data(), give_up=st.booleans(), dry_run=st.booleans())
    def reservation_is_rebound(self, data: st.DataObject, give_up: bool, dry_run: bool) -> None:
        kept = [
            (view, uuid)
            for view in self.book.ask(ListReservationsRequest()).reservations
            for uuid in sorted(view.resources.devices)
        ]
        if not kept:
            return
        self.names += 1
        view, uuid = data.draw(st.sampled_from(kept))
        answer = self.book.ask(RebindReservationRequest(f"rebind-{self.names}-{uuid}", uuid, "", give_up, dry_run))
        if isinstance(answer, RebindReservationResponse):
            left = answer.reservation.resources.devices
            assert dry_run or (uuid not in left and len(left) == len(view.resources.devices) - give_up)
            assert not dry_run or answer.reservation == view

    @rule(data=st.data())
    def agent_resyncs(self, data: st.DataObject) -> None:
        if (agent := self.agent(data, connected=True)) is not None:
            agent.say(ResyncRequest(self.book.machine.cluster.agents[agent.agent_id].generation))

    @rule(data=st.data())
    def framework_leaves(self, data: st.DataObject) -> None:
        if (framework := self.framework(data)) is not None:
            framework.disconnect()

    @rule(data=st.data())
    def framework_tears_down(self, data: st.DataObject) -> None:
        if (framework := self.framework(data)) is not None and data.draw(st.integers(0, 3)) == 0:
            framework.call(Teardown())

    @rule(data=st.data())
    def acknowledge(self, data: st.DataObject) -> None:
        if (framework := self.framework(data)) is not None:
            statuses = framework.statuses()
            chosen = [status for status in statuses if status.update_id and data.draw(st.booleans())]
            framework.acknowledge(*chosen)

    @rule(data=st.data())
    def kill_or_reconcile(self, data: st.DataObject) -> None:
        framework = self.framework(data)
        if framework is None:
            return
        mine = sorted(key.task_id for key in self.book.machine.cluster.tasks if key[0] == framework.info.framework_id)
        task_id = data.draw(st.sampled_from([*mine, "nobody's"]))
        if data.draw(st.booleans()):
            framework.kill(task_id)
        else:
            known = self.book.machine.cluster.tasks
            for status in framework.reconcile(*data.draw(st.sampled_from([[], [task_id]]))):
                task = known.get((framework.info.framework_id, status.task_id))
                assert status.state == (TaskState.UNKNOWN if task is None else task.state)

    @rule(
        data=st.data(),
        role=st.sampled_from([*ROLES, "a//b"]),
        cpus=st.integers(0, 3),
        gpus=st.integers(0, 3),
        undo=st.booleans(),
    )
    def reserve(self, data: st.DataObject, role: str, cpus: int, gpus: int, undo: bool) -> None:
        if (agent := self.agent(data)) is not None:
            tasks = {key: task.assigned for key, task in self.book.machine.cluster.tasks.items()}
            act = self.book.unreserve if undo else self.book.reserve
            act(agent.agent_id, role, self.book.request(cpus=cpus, gpus=gpus))
            assert tasks == {key: task.assigned for key, task in self.book.machine.cluster.tasks.items()}

    @rule(value=st.sampled_from(["true", "false"]))
    def toggle(self, value: str) -> None:
        self.book.set_flag("filter-gpu-resources", value)

    @rule(names=st.sampled_from(["", "gpus", "cpus,mem"]))
    def exclude(self, names: str) -> None:
        self.book.set_flag("fair-sharing-excluded-resource-names", names)

    @rule(data=st.data())
    def operator_kills(self, data: st.DataObject) -> None:
        if tasks := sorted(self.book.machine.cluster.tasks):
            self.book.ask(KillTaskRequest("", "/".join(data.draw(st.sampled_from(tasks)))))

    @rule()
    def operator_looks(self) -> None:
        for request in (
            ListAgentsRequest(),
            ListDevicesRequest(),
            ListReservationsRequest(),
            ListRolesRequest(),
            ListTasksRequest(all=True),
            ListQuotasRequest(),
            ListWeightsRequest(),
            *(ExplainFrameworkRequest(name) for name in self.book.machine.cluster.frameworks),
        ):
            self.book.ask(request)

    @rule(ms=st.sampled_from([3000, 100_000]))
    def process_stalls(self, ms: int) -> None:
        self.book.stall(ms)

    @rule()
    def master_restarts(self) -> None:
        before = self.book.machine.cluster
        self.book.restart()
        after = self.book.machine.cluster
        assert before.tasks.keys() == after.tasks.keys()
        for key, task in before.tasks.items():
            assert task.assigned == after.tasks[key].assigned
            assert task.state.is_terminal == after.tasks[key].state.is_terminal
        for agent_id, agent in before.agents.items():
            assert before.ledger.books[agent_id].allocated_sum == after.ledger.books[agent_id].allocated_sum
            assert before.ledger.books[agent_id].total == after.ledger.books[agent_id].total, agent.info


@pytest.fixture(autouse=True)
def _book(new_book: Any) -> None:
    Cluster.new_book = new_book


SETTINGS = settings(
    max_examples=40,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.filter_too_much],
)


class TestQuiet(Quiet.TestCase):  # type: ignore[misc, valid-type]
    settings = SETTINGS


class TestEverything(Everything.TestCase):  # type: ignore[misc, valid-type]
    settings = SETTINGS

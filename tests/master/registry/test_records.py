"""Whatever was committed, in whatever batches, is loaded as the fold of it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bursar.core.devices import Device
from bursar.core.errors import ErrorDetail, ErrorReason
from bursar.core.ids import AgentId, DeviceUuid, FrameworkId, TaskId
from bursar.core.messages.agent import AgentInfo, DeviceOrder
from bursar.core.messages.framework import FrameworkInfo
from bursar.core.messages.offers import CallResult, OperationResult
from bursar.core.messages.operator import Quota, RoleWeight
from bursar.core.resources import (
    PortRange,
    Reservation,
    ReservationType,
    ReservedResources,
    ResourceRequest,
    Resources,
)
from bursar.core.tasks import AssignedTask, EnvironmentVariable, StatusReason, TaskSpec, TaskState, TaskStatus
from bursar.master import records as r
from bursar.master.registry import schema
from bursar.master.registry.store import Registry

#: Texts that databases and JSON may stumble over.
AWKWARD = ["", "a", "'; DROP TABLE tasks; --", "ünï\u2028", '"quoted"\\', "🙂", "%(x)s :y"]
FAMILY = ("one", "two", "three")


class History:
    """Draws records that may follow each other, as the machine would emit them."""

    def __init__(self, draw: Callable[[Any], Any]) -> None:
        self.draw = draw
        self.records: list[Any] = []
        self.durable = r.Durable()
        self.names = 0

    def text(self) -> str:
        return str(self.draw(st.sampled_from(AWKWARD)))

    def number(self) -> int:
        return int(self.draw(st.sampled_from([0, 1, 1_700_000_000_000, 2**53])))

    def add(self, record: Any) -> None:
        self.durable.apply(copy.deepcopy(record))
        self.records.append(record)

    def step(self) -> None:
        choices = [name for name in dir(self) if name.startswith("do_")]
        getattr(self, str(self.draw(st.sampled_from(choices))))()

    def pick(self, items: Any) -> Any:
        known = sorted(items)
        return self.draw(st.sampled_from(known)) if known else None

    # --- one method per kind of record ---

    def do_agent(self) -> None:
        agent_id = AgentId(self.draw(st.sampled_from(FAMILY)))
        uuid = DeviceUuid(f"GPU-{agent_id}")
        parts = (
            ReservedResources(
                (Reservation(ReservationType.STATIC, "ml", "p", (("k", self.text()),)),),
                Resources({"cpus": 500, "mem": 2**40}, (PortRange(1, 9),), frozenset({uuid})),
            ),
        )
        info = AgentInfo(
            agent_id, 1, self.text(), hostname=self.text(), attributes={"rack": self.text(), "n": 3}, resources=parts,
            devices=(Device(uuid, "gpu"),),
        )  # fmt: skip
        self.add(r.AgentRecorded(info, self.number(), self.number()))

    def do_reachability(self) -> None:
        if agent_id := self.pick(self.durable.agents):
            self.add(r.AgentReachabilityRecorded(agent_id, self.draw(st.booleans())))

    def do_reservations(self) -> None:
        if agent_id := self.pick(self.durable.agents):
            stack = (
                Reservation(ReservationType.DYNAMIC, "a"),
                Reservation(ReservationType.DYNAMIC, "a/b", self.text()),
            )
            count = self.draw(st.integers(0, 2))
            parts = tuple(ReservedResources(stack[: n + 1], Resources({"cpus": 1 + n})) for n in range(count))
            self.add(r.ReservationsRecorded(agent_id, parts))

    def do_device_orders(self) -> None:
        if agent_id := self.pick(self.durable.agents):
            order = DeviceOrder(DeviceUuid("GPU-1"), self.draw(st.booleans()), self.text(), self.number())
            self.add(r.DeviceOrdersRecorded(agent_id, (order,)))

    def do_lending(self) -> None:
        if agent_id := self.pick(self.durable.agents):
            holders = self.draw(st.lists(st.sampled_from(["a", "a/**", "ml & !@g"]), unique=True, max_size=2))
            lent = tuple(
                (Reservation(ReservationType.STATIC, holder, "p", (("k", self.text()),)),) for holder in sorted(holders)
            )
            self.add(r.LendingRecorded(agent_id, lent))

    def do_agent_principal(self) -> None:
        if agent_id := self.pick(self.durable.agents):
            self.add(r.AgentPrincipalRecorded(agent_id, self.text()))

    def do_preemption(self) -> None:
        if key := self.pick(key for key, task in self.durable.tasks.items() if task.end is None):
            self.add(r.PreemptionRecorded(*key, self.number()))

    def do_framework(self) -> None:
        framework_id = FrameworkId(self.draw(st.sampled_from(FAMILY)))
        if framework_id in self.durable.removed_frameworks:
            framework_id = FrameworkId(f"{framework_id}-{len(self.records)}")
        info = FrameworkInfo(
            framework_id, "1", self.text(), ("a", "a/b"), ("GPU_RESOURCES",), 5, labels={"k": self.text()}
        )
        self.add(r.FrameworkRecorded(info, self.number()))

    def do_failover(self) -> None:
        if framework_id := self.pick(self.durable.frameworks):
            self.add(r.FailoverDeadlineRecorded(framework_id, self.number()))

    def do_removal(self) -> None:
        if framework_id := self.pick(self.durable.frameworks):
            self.add(r.FrameworkRemoved(framework_id))

    def do_task(self) -> None:
        framework_id = self.pick(self.durable.frameworks)
        if framework_id is None:
            return
        self.names += 1
        task_id = TaskId(f"t{self.names}")
        spec = TaskSpec(
            task_id,
            self.text(),
            command=("sh", "-c", self.text()),
            environment=(EnvironmentVariable("K", self.text()),),
            resources=ResourceRequest({"cpus": 100}, gpus=1, devices=(DeviceUuid("GPU-1"),)),
            kill_grace_ms=self.draw(st.sampled_from([None, 0, 5])),
            labels={"k": self.text()},
        )
        holds = (ReservedResources((), Resources({"cpus": 100}, (), frozenset({DeviceUuid("GPU-1")}))),)
        task = AssignedTask(framework_id, "a", spec, holds, self.number())
        self.add(r.TaskRecorded(AgentId("one"), task, self.text(), self.text()))

    def do_forgotten_and_again(self) -> None:
        ended = [key for key, task in self.durable.tasks.items() if task.end_acknowledged]
        if key := self.pick(ended):
            task = self.durable.tasks[key].task
            self.add(r.TaskForgotten(*key))
            if self.draw(st.booleans()):
                self.add(r.TaskRecorded(AgentId("two"), task))

    def do_kill(self) -> None:
        if key := self.pick(key for key, task in self.durable.tasks.items() if task.end is None):
            grace = self.draw(st.sampled_from([None, 0, 100]))
            self.add(r.KillRecorded(*key, StatusReason.KILLED_BY_FRAMEWORK, grace))

    def do_end(self) -> None:
        if key := self.pick(key for key, task in self.durable.tasks.items() if task.end is None):
            framework_id, task_id = key
            code = self.draw(st.sampled_from([None, 0, 137]))
            status = TaskStatus(
                task_id, framework_id, AgentId("one"), TaskState.FAILED, message=self.text(), exit_code=code
            )
            self.add(r.TaskEnded(status, self.number()))

    def do_acknowledge(self) -> None:
        if key := self.pick(key for key, task in self.durable.tasks.items() if task.end is not None):
            self.add(r.EndAcknowledged(*key))

    def do_call(self) -> None:
        if framework_id := self.pick(self.durable.frameworks):
            call_id = f"c{self.draw(st.integers(0, 9))}"
            error = self.draw(st.sampled_from([None, ErrorDetail(ErrorReason.CALL_REFUSED, self.text(), "hint", "f")]))
            self.add(r.CallDone(framework_id, CallResult(call_id, False, error, (OperationResult("o"),))))

    def do_role_group(self) -> None:
        name = self.draw(st.sampled_from(FAMILY))
        members = self.draw(st.none() | st.lists(st.sampled_from(AWKWARD), max_size=3).map(tuple))
        self.add(r.RoleGroupRecorded(name, members))

    def do_flag(self) -> None:
        name = self.draw(st.sampled_from(FAMILY))
        self.add(r.FlagRecorded(name, self.draw(st.sampled_from([None, "true", self.text()]))))

    def do_request(self) -> None:
        self.add(r.RequestDone(f"r{self.draw(st.integers(0, 9))}", "SetFlagResponse", self.text()))

    def do_weights(self) -> None:
        roles = self.draw(st.lists(st.sampled_from(["a", "a/b", "a/.", "'ü"]), min_size=1, unique=True))
        self.add(
            r.WeightsRecorded(tuple(RoleWeight(role, self.draw(st.sampled_from([1, 1000, 10**9]))) for role in roles))
        )

    def do_quotas(self) -> None:
        roles = self.draw(st.lists(st.sampled_from(["a", "a/b", "*", "'ü"]), min_size=1, unique=True))
        amounts = st.sampled_from([{}, {"gpus": 0}, {"mem": 2**53, "x.y": 1}])
        self.add(r.QuotasRecorded(tuple(Quota(role, self.draw(amounts), self.draw(amounts)) for role in roles)))

    def do_audit(self) -> None:
        self.add(r.Audited(self.number(), self.text(), self.text(), self.text()))


@pytest.fixture
def registry(new_url: Callable[[], str]) -> Iterator[Registry]:
    opened = Registry(new_url())
    opened.open()
    yield opened
    opened.close()


@pytest.fixture
def small_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that what is pruned is pruned."""
    monkeypatch.setattr(r, "MAX_CALLS_PER_FRAMEWORK", 3)
    monkeypatch.setattr(r, "MAX_REQUESTS", 3)
    monkeypatch.setattr(r, "MAX_REMOVED_FRAMEWORKS", 2)


@settings(
    max_examples=30,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(data=st.data())
def test_what_is_loaded_is_the_fold_of_what_was_committed(registry: Registry, small_memory: None, data: Any) -> None:
    history = History(data.draw)
    # One database for all examples: to make one costs a second.
    with registry.engine.begin() as connection:
        for table in schema.metadata.sorted_tables:
            if table is not schema.meta:
                connection.execute(sa.delete(table))
    begun = registry.load()
    expected = r.Durable(begun.cluster_id, begun.term)
    for _ in range(data.draw(st.integers(1, 4), label="batches")):
        start = len(history.records)
        for _ in range(data.draw(st.integers(1, 15), label="records")):
            history.step()
        batch = history.records[start:]
        registry.commit_now(batch)
        expected.apply_all(copy.deepcopy(batch))
        loaded = registry.load()
        assert loaded == expected
        # What is pruned or shown "oldest first" keeps its order over a restart.
        for name in ("removed_frameworks", "tasks", "requests"):
            assert list(getattr(loaded, name)) == list(getattr(expected, name)), name
        for framework_id in expected.frameworks:
            assert loaded.calls_of(framework_id) == expected.calls_of(framework_id)


def test_every_kind_of_record_can_be_written() -> None:
    from typing import get_args

    from bursar.master.registry.store import _WRITERS

    assert set(_WRITERS) == set(get_args(r.Record))


def test_a_batch_is_all_or_nothing(new_url: Callable[[], str]) -> None:
    registry = Registry(new_url())
    try:
        before = registry.open()
        good = r.FlagRecorded("one", "1")
        info = FrameworkInfo(FrameworkId("f"), "1", "f")
        task = AssignedTask(FrameworkId("f"), "*", TaskSpec(TaskId("t")), ())
        registry.commit_now([r.FrameworkRecorded(info, 0), r.TaskRecorded(AgentId("a"), task)])
        before = registry.load()
        with pytest.raises(sa.exc.IntegrityError):
            registry.commit_now([good, r.TaskRecorded(AgentId("a"), task), r.FlagRecorded("two", "2")])
        assert registry.load() == before
        # And the next one is not disturbed.
        registry.commit_now([good])
        assert registry.load().flags == {"one": "1"}
    finally:
        registry.close()


async def test_commits_happen_in_the_order_of_the_calls(new_url: Callable[[], str]) -> None:
    import asyncio

    registry = Registry(new_url())
    try:
        registry.open()
        await asyncio.gather(*(registry.commit([r.FlagRecorded("n", str(n))]) for n in range(50)))
        assert registry.load().flags == {"n": "49"}
        assert registry.commits_total == 50 and registry.records_total == 50
    finally:
        registry.close()


def test_the_audit_log_only_grows(new_url: Callable[[], str]) -> None:
    registry = Registry(new_url())
    try:
        registry.open()
        for number in range(3):
            registry.commit_now([r.Audited(number, "p", "flag set", AWKWARD[2])])
        with registry.engine.connect() as connection:
            rows = connection.execute(sa.select(schema.audit).order_by(schema.audit.c.position)).all()
        assert [(row.at_ms, row.detail) for row in rows] == [(n, AWKWARD[2]) for n in range(3)]
    finally:
        registry.close()

"""The SDK against a simulated master over real gRPC."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from bursar.core.errors import ErrorDetail, ErrorReason
from bursar.core.messages.executor import ExecutorMessage
from bursar.core.messages.framework import (
    Accept,
    Acknowledge,
    AgentFailure,
    Decline,
    FrameworkHeartbeat,
    Kill,
    LookupCalls,
    OfferSettings,
    Preemption,
    PreemptionNotice,
    Reconcile,
    Revive,
    StreamError,
    Subscribe,
    Suppress,
    Teardown,
    UpdateDemand,
    UpdateFramework,
)
from bursar.core.tasks import TaskState
from bursar.sdk import (
    BursarError,
    Framework,
    FrameworkSession,
    InvalidText,
    MasterUnreachable,
    Offer,
    RestartMode,
    RestartPolicy,
    Status,
    Task,
    TaskGroup,
)


class Sweep(Framework):
    """As in the documentation, and it remembers what it heard."""

    name, role, capabilities = "sweep", "ml/sweep", {"GPU_RESOURCES"}
    stop_when_done = True

    def __init__(self, *tasks: Task) -> None:
        self.todo = list(tasks)
        self.statuses: list[tuple[Task, Status]] = []
        self.offers: list[Offer] = []
        self.heard: list[Any] = []

    def wants(self) -> list[Any]:
        return [(task, 1) for task in self.todo]

    def on_offer(self, offer: Offer) -> Any:
        self.offers.append(offer)
        while self.todo and offer.fits(self.todo[-1]):
            yield self.todo.pop()

    def on_status(self, task: Task, status: Status) -> None:
        self.statuses.append((task, status))
        if status.retryable:
            self.todo.append(task)
        if self.stop_when_done and not self.todo and not self.running:
            self.stop()

    def on_subscribed(self, again: bool) -> None:
        self.heard.append(("subscribed", again))

    def on_disconnected(self, error: ErrorDetail) -> None:
        self.heard.append(("disconnected",))

    def on_agent_failure(self, agent_id: str, message: str) -> None:
        self.heard.append(("agent failure", agent_id))

    def on_rescinded(self, offer_id: str, reason: str) -> None:
        self.heard.append(("rescinded", offer_id))


@asynccontextmanager
async def running(framework: Framework, master: Any) -> AsyncIterator[FrameworkSession]:
    session = FrameworkSession(framework, master.address)
    job = asyncio.get_running_loop().create_task(session.run())
    try:
        yield session
    finally:
        job.cancel()
        await asyncio.gather(job, return_exceptions=True)


def states(framework: Sweep) -> list[TaskState]:
    return [status.state for _, status in framework.statuses]


async def test_a_framework_of_25_lines_runs_its_tasks_and_unregisters(master: Any) -> None:
    framework = Sweep(Task("exit 0"), Task(["sh", "-c", "exit 3"], gpus=1, mem="1GiB"))
    await asyncio.wait_for(FrameworkSession(framework, master.address).run(), 20)
    ends = {task.name or task.gpus: status for task, status in framework.statuses if status.terminal}
    assert ends[0].ok and ends[0].exit_code == 0
    assert ends[1].state is TaskState.FAILED and ends[1].exit_code == 3 and len(ends[1].device_uuids) == 1
    assert not ends[1].retryable
    await master.until(lambda: master.torn_down)
    assert not master.unacknowledged, "every update is acknowledged before the framework leaves"
    subscribe = master.said(Subscribe)[0]
    assert subscribe.info.roles == ("ml/sweep",) and subscribe.info.capabilities == ("GPU_RESOURCES",)
    assert subscribe.info.failover_timeout_ms == 60_000 and subscribe.cluster_id == ""
    assert subscribe.demand.version == 1 and sum(shape.count for shape in subscribe.demand.shapes) == 2


async def test_an_offer_that_is_not_used_is_declined_at_once(master: Any) -> None:
    class Idle(Framework):
        pass

    async with running(Idle(), master):
        decline = (await master.until(lambda: master.said(Decline)))[0]
    assert decline.offer_ids == ("1-O1",)
    assert master.said(Subscribe)[0].demand.version == 0, "without wants() no demand is stated"


async def test_an_offer_shrinks_while_tasks_are_yielded(master: Any) -> None:
    seen: list[Any] = []

    class Greedy(Framework):
        def on_offer(self, offer: Offer) -> Any:
            seen.append(
                (offer.cpus, offer.gpus, offer.text, offer.hostname, dict(offer.attributes), len(offer.devices))
            )
            yield Task("sleep 60", cpus="2.5", gpus=1, mem="1GiB")
            seen.append(
                (
                    offer.cpus,
                    offer.gpus,
                    offer.fits(cpus=2),
                    offer.fits(cpus=1.5, mem="7GiB", gpus=1),
                    offer.fits(gpus=2),
                )
            )
            seen.append(offer)

    async with running(Greedy(), master):
        accept = (await master.until(lambda: master.said(Accept)))[0]
    assert seen[0] == (4.0, 2, "cpus:4;mem:8GiB;gpus:2", "node-1", {"rack": "r1", "generation": 3.5}, 2)
    assert seen[1] == (1.5, 1, False, True, False)
    assert [len(operation.operation.tasks) for operation in accept.operations] == [1]


async def test_a_group_is_one_launch(master: Any) -> None:
    class Pairs(Framework):
        def on_offer(self, offer: Offer) -> Any:
            small, large = Task("true", cpus=3), Task("true", cpus=2)
            assert not offer.fits(TaskGroup([small, large]))
            yield Task("alone", cpus="0.5")
            group = TaskGroup([Task("a", cpus=1), Task("b", cpus=2, gpus=1)], "pair")
            assert offer.fits(group)
            yield group
            assert offer.cpus == 0.5

    async with running(Pairs(), master):
        accept = (await master.until(lambda: master.said(Accept)))[0]
    alone, pair = accept.operations
    assert len(alone.operation.tasks) == 1 and alone.operation.tasks[0].task_group is None
    a, b = pair.operation.tasks
    assert a.task_group == b.task_group and a.task_group.name == "pair"
    assert a.task_group.task_ids == (a.task_id, b.task_id)


async def test_a_group_that_does_not_fit_is_the_authors_error(master: Any) -> None:
    class Wrong(Framework):
        def on_offer(self, offer: Offer) -> list[TaskGroup]:
            return [TaskGroup([Task("true", cpus=3), Task("true", cpus=3)])]

    with pytest.raises(BursarError, match=r"2 tasks of group.*offer.fits\(group\)"):
        await asyncio.wait_for(FrameworkSession(Wrong(), master.address).run(), 10)


@pytest.mark.parametrize(
    "tasks",
    [
        [],
        [Task("true", restart=RestartPolicy(RestartMode.ALWAYS))],
        [Task("true")] * 2,
        [Task("true", service_ports=["web:80"]), Task("true", service_ports=["api:80"])],
    ],
)
def test_groups_that_cannot_be(tasks: list[Task]) -> None:
    with pytest.raises(InvalidText):
        TaskGroup(tasks)


async def test_a_task_that_does_not_fit_is_the_authors_error(master: Any) -> None:
    class Wrong(Framework):
        def on_offer(self, offer: Offer) -> list[Task]:
            return [Task("true", cpus=3), Task("true", cpus=3)]

    with pytest.raises(BursarError, match=r"cpus: 3 wanted, 1 there.*offer.fits"):
        await asyncio.wait_for(FrameworkSession(Wrong(), master.address).run(), 10)


async def test_an_exception_of_the_author_leaves_run_and_is_not_acknowledged(master: Any) -> None:
    class Broken(Sweep):
        def on_status(self, task: Task, status: Status) -> None:
            raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        await asyncio.wait_for(FrameworkSession(Broken(Task("sleep 60")), master.address).run(), 10)
    await master.until(lambda: not master._streams)
    assert master.unacknowledged and not master.said(Teardown)


async def test_a_broken_connection_is_healed_with_the_same_ids(master: Any) -> None:
    framework = Sweep(Task("sleep 60"))
    framework.stop_when_done = False
    async with running(framework, master) as session:
        await master.until(lambda: master.said(Acknowledge))
        master.cut()
        await master.until(lambda: len(master.said(Subscribe)) == 2)
        reconcile = (await master.until(lambda: master.said(Reconcile)))[0]
        first, second = master.said(Subscribe)
        assert first.info == second.info and second.cluster_id == master.cluster_id == session.cluster_id
        assert reconcile.task_ids == tuple(session.running)
        session.kill(next(iter(session.running)))
        await master.until(lambda: not master.unacknowledged and not session.running)
    assert [status.state for _, status in framework.statuses] == [TaskState.RUNNING, TaskState.KILLED]
    assert framework.heard == [("subscribed", False), ("disconnected",), ("subscribed", True)]


async def test_a_restarted_master_is_found_again(master: Any) -> None:
    framework = Sweep(Task("sleep 60"))
    async with running(framework, master) as session:
        await master.until(lambda: master.said(Acknowledge))
        await master.stop()
        await asyncio.sleep(0.5)
        await master.start()
        await master.until(lambda: len(master.said(Subscribe)) == 2)
        framework.kill(next(iter(session.running.values())))
        await master.until(lambda: master.torn_down)
    assert states(framework) == [TaskState.RUNNING, TaskState.KILLED]


async def test_an_accept_whose_answer_was_lost_is_asked_for(master: Any) -> None:
    master.lose_results = 1
    framework = Sweep(Task("exit 0"))
    launched: list[Task] = []
    framework.on_launched = launched.append  # type: ignore[method-assign]
    await asyncio.wait_for(FrameworkSession(framework, master.address).run(), 10)
    assert len(master.tasks) == 1, "it was not launched twice"
    assert TaskState.FINISHED in states(framework) and len(launched) == 1
    assert master.said(LookupCalls)[0].call_ids == (master.said(Accept)[0].call_id,)


async def test_an_accept_that_never_arrived_is_tried_again(master: Any) -> None:
    master.swallow_accepts = 1
    framework = Sweep(Task("exit 0"))
    await asyncio.wait_for(FrameworkSession(framework, master.address).run(), 10)
    assert states(framework)[0] is TaskState.DROPPED and states(framework)[-1] is TaskState.FINISHED
    first, second = master.said(Accept)
    assert first.operations[0].operation.tasks[0].task_id != second.operations[0].operation.tasks[0].task_id
    assert first.call_id != second.call_id and len(master.tasks) == 1


async def test_a_refused_accept_puts_its_tasks_back(master: Any) -> None:
    master.refuse_accepts = [ErrorDetail(ErrorReason.INVALID_OFFERS, "the offer was rescinded")]
    framework = Sweep(Task("exit 0"))
    await asyncio.wait_for(FrameworkSession(framework, master.address).run(), 10)
    assert states(framework)[0] is TaskState.DROPPED and "rescinded" in framework.statuses[0][1].message
    assert states(framework)[-1] is TaskState.FINISHED


async def test_an_invalid_task_is_not_retryable(master: Any) -> None:
    master.refuse_accepts = [ErrorDetail(ErrorReason.TASK_INVALID, "no such thing")]
    framework = Sweep(Task("exit 0"))
    await asyncio.wait_for(FrameworkSession(framework, master.address).run(), 10)
    assert states(framework) == [TaskState.ERROR] and not framework.statuses[0][1].retryable


async def test_a_repeated_update_is_acknowledged_and_not_delivered_again(master: Any) -> None:
    from bursar.core.messages.framework import StatusUpdates

    framework = Sweep(Task("sleep 60"))
    async with running(framework, master):
        await master.until(lambda: master.said(Acknowledge))
        ref = master.said(Acknowledge)[0].updates[0]
        task = master.tasks[ref.task_id]
        master.say(StatusUpdates((master.status(task, ref.update_id),)))
        await master.until(lambda: len(master.said(Acknowledge)) == 2)
    assert master.said(Acknowledge)[1].updates == (ref,)
    assert states(framework) == [TaskState.RUNNING]


async def test_the_demand_follows_wants_and_heartbeats_repeat_it(master: Any) -> None:
    framework = Sweep(Task("true", cpus=100))
    async with running(framework, master) as session:
        beat = (await master.until(lambda: master.said(FrameworkHeartbeat)))[0]
        assert beat.demand == master.said(Subscribe)[0].demand
        framework.todo.append(Task("true", cpus=200))
        threading.Thread(target=framework.update).start()
        update = (await master.until(lambda: master.said(UpdateDemand)))[0]
        assert update.demand.version == 2 and len(update.demand.shapes) == 2
        await master.until(lambda: master.said(Revive))
        framework.todo.clear()
        session.update()
        await master.until(lambda: len(master.said(UpdateDemand)) == 2)
        assert master.said(UpdateDemand)[1].demand.shapes == ()
        assert len(master.said(Revive)) == 1, "wanting less needs no revive"


async def test_the_same_words_after_a_launch_are_said_again(master: Any) -> None:
    """The master subtracts what is launched: wanting one, launching it and wanting another leaves nothing unsaid."""

    class OneByOne(Sweep):
        def wants(self) -> list[Any]:
            return [(self.todo[-1], 1)] if self.todo else []

        def on_offer(self, offer: Offer) -> Any:
            if self.todo and offer.fits(self.todo[-1]):
                yield self.todo.pop()

    framework = OneByOne(*(Task("true") for _ in range(3)))
    await asyncio.wait_for(FrameworkSession(framework, master.address).run(), 20)
    assert states(framework).count(TaskState.FINISHED) == 3
    assert len(master.said(UpdateDemand)) == 3, "of which two say the same"
    assert len(master.said(Revive)) == 2, "more is wanted than was left, so declines do not count"


async def test_suppress_lasts_over_a_reconnect(master: Any) -> None:
    framework = Sweep()
    async with running(framework, master):
        await master.until(lambda: master.said(Subscribe))
        framework.suppress()
        await master.until(lambda: master.said(Suppress))
        master.cut()
        await master.until(lambda: len(master.said(Subscribe)) == 2)
        assert master.said(Subscribe)[1].suppressed_roles == ("ml/sweep",)
        framework.revive("ml/sweep")
        await master.until(lambda: master.said(Revive))


async def test_a_kill_is_repeated_after_a_reconnect(master: Any) -> None:
    framework = Sweep(Task("sleep 60"))
    framework.stop_when_done = False
    async with running(framework, master) as session:
        await master.until(lambda: master.said(Acknowledge))
        master._kill = lambda task: None  # the kill is lost
        session.kill(next(iter(session.running)))
        await master.until(lambda: master.said(Kill))
        del master._kill
        master.cut()
        await master.until(lambda: not session.running)
    assert states(framework)[-1] is TaskState.KILLED


async def test_a_notice_reaches_the_author_of_the_task_alone(master: Any) -> None:
    class Borrowing(Sweep):
        capabilities = ("GPU_RESOURCES", "REVOCABLE_RESOURCES")

        def on_preempted(self, task: Task, seconds: float, reason: str) -> None:
            self.heard.append((task.id, seconds, reason))
            self.kill(task)

    framework = Borrowing(Task("sleep 60"))
    framework.stop_when_done = False
    async with running(framework, master) as session:
        await master.until(lambda: master.said(Acknowledge))
        task_id = next(iter(session.running))
        master.say(PreemptionNotice((Preemption("of-nobody", 1), Preemption(task_id, 2_500)), "wanted back"))
        await master.until(lambda: not session.running)
    assert [heard for heard in framework.heard if len(heard) == 3] == [(task_id, 2.5, "wanted back")]
    assert states(framework)[-1] is TaskState.KILLED


async def test_messages_go_to_executors_and_come_from_them(master: Any) -> None:
    class Talking(Sweep):
        def on_message(self, executor: Task, data: bytes) -> None:
            self.heard.append((executor.id, data))

    framework = Talking(Task("sleep 60"))
    framework.stop_when_done = False
    async with running(framework, master) as session:
        await master.until(lambda: master.said(Acknowledge))
        (task,) = session.running.values()
        with pytest.raises(InvalidText, match="too large"):
            framework.message(task, bytes(65_537))
        framework.message(task, b"hello")
        framework.message("of-nobody", b"hello")
        await master.until(lambda: master.said(ExecutorMessage))
        assert master.said(ExecutorMessage) == [ExecutorMessage(executor_id=task.id, data=b"hello")]
        master.say(
            ExecutorMessage(executor_id="of-nobody", data=b"?"), ExecutorMessage(executor_id=task.id, data=b"hi")
        )
        await master.until(lambda: (task.id, b"hi") in framework.heard)
        assert b"?" not in [heard[-1] for heard in framework.heard]
        framework.kill(task)
        await master.until(lambda: not session.running)


async def test_tasks_of_an_earlier_life_are_taken_over(master: Any) -> None:
    first = Sweep(Task("sleep 60"))
    async with running(first, master) as session:
        await master.until(lambda: master.said(Acknowledge))
        framework_id, task_id = session.framework_id, next(iter(session.running))
    second = Sweep()
    second.framework_id = framework_id
    second.stop_when_done = False
    async with running(second, master) as session:
        await master.until(lambda: task_id in session.running)
        session.kill(task_id)
        await master.until(lambda: not session.running and not master.unacknowledged)
    assert [(task.id, status.state) for task, status in second.statuses] == [
        (task_id, TaskState.RUNNING),
        (task_id, TaskState.KILLED),
    ]


async def test_a_task_that_nobody_knows_is_reported(master: Any) -> None:
    framework = Sweep(Task("sleep 60"))
    framework.stop_when_done = False
    async with running(framework, master) as session:
        await master.until(lambda: master.said(Acknowledge))
        task = master.tasks.pop(next(iter(session.running)))
        master.offering = False
        master.cut()
        await master.until(lambda: TaskState.UNKNOWN in states(framework))
        assert framework.statuses[-1][1].terminal and framework.statuses[-1][1].retryable and not session.running
        master.tasks["for cleaning up"] = task


async def test_reconciliation_is_repeated_until_it_is_answered(master: Any) -> None:
    framework = Sweep(Task("sleep 60"))
    async with running(framework, master):
        await master.until(lambda: master.said(Acknowledge))
        master.silent_reconcile = 1
        master.cut()
        await master.until(lambda: len(master.said(Reconcile)) == 2)
        assert master.said(Reconcile)[0] == master.said(Reconcile)[1]


@pytest.mark.parametrize(
    "reason", [ErrorReason.SUPERSEDED, ErrorReason.FRAMEWORK_REMOVED, ErrorReason.CLUSTER_MISMATCH]
)
async def test_a_fatal_error_says_what_and_what_to_do(master: Any, reason: ErrorReason) -> None:
    session = FrameworkSession(Sweep(), master.address)
    job = asyncio.get_running_loop().create_task(session.run())
    await master.until(lambda: master.said(Subscribe))
    master.say(StreamError(ErrorDetail(reason, "what is wrong", "what to do")))
    with pytest.raises(BursarError, match=r"what is wrong \(what to do\)") as caught:
        await asyncio.wait_for(job, 30)
    assert caught.value.detail.reason is reason


async def test_another_error_is_followed_by_another_attempt(master: Any) -> None:
    async with running(Sweep(), master):
        await master.until(lambda: master.said(Subscribe))
        master.say(StreamError(ErrorDetail(ErrorReason.TOO_SLOW, "you do not read")))
        await master.until(lambda: len(master.said(Subscribe)) == 2)


async def test_a_silent_master_is_left(master: Any) -> None:
    """Nothing is said for three heartbeats, though the connection stands."""
    async with running(Sweep(), master):
        await master.until(lambda: len(master.said(FrameworkHeartbeat)) > 4)
        assert len(master.said(Subscribe)) == 1
        master.silent = True
        await master.until(lambda: len(master.said(Subscribe)) == 2)


async def test_the_second_address_is_tried(master: Any, unused_tcp_port: int) -> None:
    framework = Sweep(Task("exit 0"))
    await asyncio.wait_for(FrameworkSession(framework, f"127.0.0.1:{unused_tcp_port},{master.address}").run(), 10)
    assert framework.statuses[-1][1].ok


async def test_no_master_is_an_error_once_patience_ends(unused_tcp_port: int) -> None:
    with pytest.raises(MasterUnreachable, match=rf"no master answers at 127.0.0.1:{unused_tcp_port}.*bursar-master"):
        await FrameworkSession(Sweep(), f"127.0.0.1:{unused_tcp_port}", connect_timeout=0.5).run()


async def test_stop_before_any_master_was_found(unused_tcp_port: int) -> None:
    framework = Sweep()
    session = FrameworkSession(framework, f"127.0.0.1:{unused_tcp_port}")
    asyncio.get_running_loop().call_later(0.3, framework.stop)
    await asyncio.wait_for(session.run(), 30)


async def test_teardown_is_repeated_until_it_is_certain(master: Any) -> None:
    """The connection breaks with the teardown on its way."""
    framework = Sweep()
    session = FrameworkSession(framework, master.address)
    job = asyncio.get_running_loop().create_task(session.run())
    await master.until(lambda: master.said(Subscribe))
    await master.stop()
    framework.stop()
    await asyncio.sleep(0.3)
    await master.start()
    await asyncio.wait_for(job, 30)
    assert master.torn_down == {session.framework_id}


async def test_other_events_reach_the_author(master: Any) -> None:
    framework = Sweep()
    async with running(framework, master):
        await master.until(lambda: master.said(Subscribe))
        master.say(AgentFailure("agent-1", "gone"))  # type: ignore[arg-type]
        master.offers["7-O7"] = None
        master.rescind_all()
        async with asyncio.timeout(30):
            while len(framework.heard) < 3:
                await asyncio.sleep(0.01)
    assert framework.heard[1:] == [("agent failure", "agent-1"), ("rescinded", "7-O7")]


async def test_an_accept_beyond_the_limit_of_a_message_is_refused_here(master: Any) -> None:
    # Each task may be; all together in one answer may not.
    framework = Sweep(*(Task(["echo", *["x" * 100_000] * 9], cpus="0.01", mem="1MiB") for _ in range(6)))
    await asyncio.wait_for(FrameworkSession(framework, master.address).run(), 10)
    assert set(states(framework)) == {TaskState.ERROR} and "too large" in framework.statuses[0][1].message
    assert not master.said(Accept)


def test_a_task_beyond_what_the_kernel_takes_is_refused_where_it_is_made() -> None:
    with pytest.raises(InvalidText, match="longer than"):
        Task(["echo", "x" * 5_000_000])


@pytest.mark.parametrize(
    ("attributes", "words"),
    [
        ({"role": "a//b"}, "//"),
        ({"roles": ("a", "a")}, "twice"),
        ({"roles": "ab"}, "one text"),
        ({"capabilities": "GPU_RESOURCES"}, "several"),
        ({"failover_timeout": "soon"}, "duration"),
        ({"framework_id": "a/b"}, "framework_id"),
    ],
)
def test_wrong_attributes_are_refused_with_a_remedy(attributes: dict[str, Any], words: str) -> None:
    framework = Framework()
    for name, value in attributes.items():
        setattr(framework, name, value)
    with pytest.raises(BursarError, match=words) as caught:
        FrameworkSession(framework, "127.0.0.1:1")
    assert caught.value.detail.hint


@pytest.mark.parametrize(
    "address", ["", "localhost", "localhost:", "localhost:0", "localhost:99999", "http://a:1", "a b:1", "::1:5"]
)
def test_wrong_addresses_are_refused(address: str) -> None:
    with pytest.raises(BursarError, match="HOST:PORT"):
        FrameworkSession(Framework(), address or " ")


# --- updates ---


async def test_roles_and_capabilities_change_without_a_restart(master: Any) -> None:
    heard: list[Any] = []

    class Mover(Sweep):
        stop_when_done = False

        def on_subscribed(self, again: bool) -> None:
            self.update(roles=("ml/b", "ml/c"), capabilities=(), name="mover")

        def wants(self) -> list[Any]:
            return [({"cpus": 1}, 2)]

        def on_updated(self, error: ErrorDetail | None) -> None:
            heard.append((error, self.roles, self.capabilities, self.name))
            if len(heard) == 1:
                self.update(roles=("ml/d",))

    master.refuse_updates = []
    framework = Mover()
    async with running(framework, master):
        await master.until(lambda: len(master.said(UpdateFramework)) == 2)
        await asyncio.sleep(0.3)
    assert heard == [(None, ("ml/b", "ml/c"), frozenset(), "mover"), (None, ("ml/d",), frozenset(), "mover")]
    (info,) = master.frameworks.values()
    assert info.roles == ("ml/d",) and info.failover_timeout_ms == 60_000


async def test_a_refused_update_is_told_and_the_framework_goes_on(master: Any) -> None:
    heard: list[Any] = []

    class Refused(Sweep):
        def on_subscribed(self, again: bool) -> None:
            self.update(roles=("ml/b",))

        def on_updated(self, error: ErrorDetail | None) -> None:
            heard.append((error, self.roles))
            self.todo.append(Task("exit 0"))

    no = ErrorDetail(ErrorReason.INVALID_ARGUMENT, "not for you", "ask the operator")
    master.refuse_updates = [no]
    framework = Refused()
    await asyncio.wait_for(FrameworkSession(framework, master.address).run(), 20)
    assert heard == [(no, ("ml/sweep",))] and framework.statuses[-1][1].ok


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"roles": ()}, "there is none"),
        ({"roles": "x"}, "one text"),
        ({"roles": ("a//b",)}, "a//b"),
        ({"roles": ("x", "x")}, "twice"),
        ({"capabilities": "GPU_RESOURCES"}, "one text"),
        ({"failover_timeout": -1}, "failover_timeout"),
        ({"framework_id": "x"}, "cannot be changed"),
    ],
)
def test_what_cannot_be_updated_is_said_to_the_caller(changes: dict[str, Any], words: str) -> None:
    session = FrameworkSession(Sweep())
    with pytest.raises(InvalidText, match=words):
        session.framework.update(**changes)


async def test_which_offers_are_taken_is_said_role_by_role_and_can_change(master: Any) -> None:
    heard: list[Any] = []

    class Picky(Sweep):
        roles = ("ml/a", "ml/b")
        stop_when_done = False

        def on_subscribed(self, again: bool) -> None:
            self.update(roles=("ml/a",))

        def on_updated(self, error: ErrorDetail | None) -> None:
            heard.append((error, self.constraints, self.min_allocatable))
            if len(heard) == 1:
                self.update(constraints=["rack=r2"], min_allocatable="gpus:1")

    framework = Picky()
    framework.constraints = {"ml/a": ["gpu.model=H100,gpus>=2", "rack=r1"], "ml/b": ["zone=z"]}
    framework.min_allocatable = {"ml/b": ""}
    async with running(framework, master):
        await master.until(lambda: len(master.said(UpdateFramework)) == 2)
        await asyncio.sleep(0.3)
    a, b = ("gpu.model=H100,gpus>=2", "rack=r1"), ("zone=z",)
    said = [master.said(Subscribe)[0].info.offer_settings]
    said += [call.info.offer_settings for call in master.said(UpdateFramework)]
    assert said == [
        (OfferSettings("ml/a", a), OfferSettings("ml/b", b, "")),
        (OfferSettings("ml/a", a),),
        (OfferSettings("ml/a", ("rack=r2",), "gpus:1"),),
    ]
    assert [error for error, *_ in heard] == [None, None] and heard[-1][1:] == (("rack=r2",), "gpus:1")


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"constraints": "rack=r1"}, "one text"),
        ({"constraints": [""]}, "empty"),
        ({"constraints": ["gpus>=x"]}, "x"),
        ({"constraints": {"other": ["rack"]}}, "not a role"),
        ({"min_allocatable": "cpus"}, "cpus"),
        ({"min_allocatable": {"other": ""}}, "not a role"),
    ],
)
def test_offers_that_cannot_be_described_are_refused_before_connecting(said: dict[str, Any], words: str) -> None:
    framework = Sweep()
    session = FrameworkSession(framework)
    with pytest.raises(InvalidText, match=words):
        session.update(**said)
    for name, value in said.items():
        setattr(framework, name, value)
    with pytest.raises(InvalidText, match=words):
        FrameworkSession(framework)

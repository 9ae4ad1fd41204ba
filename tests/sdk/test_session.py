"""The SDK against a simulated master over real gRPC: offers, tasks, groups and what the author hears."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest
from sweep import Sweep, running, states

from bursar.core.errors import ErrorDetail, ErrorReason
from bursar.core.messages.executor import ExecutorMessage
from bursar.core.messages.framework import (
    Accept,
    Acknowledge,
    AgentFailure,
    Decline,
    FrameworkHeartbeat,
    Preemption,
    PreemptionNotice,
    Revive,
    Subscribe,
    Teardown,
    UpdateDemand,
)
from bursar.core.tasks import TaskState
from bursar.sdk import (
    BursarError,
    Framework,
    FrameworkSession,
    InvalidText,
    Offer,
    RestartMode,
    RestartPolicy,
    Status,
    Task,
    TaskGroup,
)


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

"""Dialogues with the agent's machine: its conversation with the master, and a task's way from launch to end."""

from __future__ import annotations

from dataclasses import replace

import pytest
from agent_dialogue import AGENT, GPUS, Agent, F, R, S, container, info, key, of, said, states, statuses, task

from bursar.agent.effects import (
    CloseConnection,
    EndStray,
    KillContainer,
    Log,
    OpenLogStream,
    OpenSessionStream,
    RemoveContainer,
    RemoveSandbox,
    StartContainer,
)
from bursar.agent.events import (
    ContainerLaunchFailed,
    ContainersRecovered,
    ContainerStarted,
    DevicesDiscovered,
    MasterDisconnected,
    MasterMessageReceived,
)
from bursar.agent.state import TaskSaved
from bursar.core.devices import Device, DeviceCondition, DeviceHealth
from bursar.core.errors import ErrorDetail, ErrorReason
from bursar.core.ids import Generation, TaskId
from bursar.core.machine import Persist, Stalled, TimePassed
from bursar.core.messages.agent import (
    DesiredState,
    DevicesChanged,
    OpenLog,
    OpenSession,
    Ping,
    Pong,
    Refused,
    Register,
    Registered,
    ResyncRequest,
    TaskRef,
    TaskReports,
)
from bursar.core.messages.sessions import SessionKind, SessionStart
from bursar.core.tasks import AssignedTask, EnvironmentVariable, StatusReason, TaskSpec, TaskState

# --- registration ---------------------------------------------------------------------------------------------------


def test_the_agent_speaks_first() -> None:
    agent = Agent()
    assert said(agent.connect()) == [], "not before it knows what runs"
    register, reports = said(agent.step(ContainersRecovered(())))
    assert register == Register(info(), "", Generation())
    assert reports == TaskReports((), True)
    assert not agent.machine.registered
    agent.register()
    assert agent.machine.registered and agent.durable.cluster_id == "c1"


def test_many_tasks_are_reported_in_parts_and_completed_once() -> None:
    agent = Agent().ready()
    agent.launch(*(task(f"t{n}") for n in range(450)))
    _, *reports = said(agent.connect())
    assert [(len(part.tasks), part.complete) for part in reports if isinstance(part, TaskReports)] == [
        (200, False),
        (200, False),
        (50, True),
    ]


def test_large_tasks_are_reported_in_smaller_parts() -> None:
    agent = Agent().ready()
    agent.launch(*(task(f"t{n}", command=("x" * 100_000,)) for n in range(10)))
    _, *reports = said(agent.connect())
    sizes = [len(part.tasks) for part in reports if isinstance(part, TaskReports)]
    assert sum(sizes) == 10 and max(sizes) <= 2


def test_another_cluster_is_refused_and_logged_once() -> None:
    agent = Agent().ready()
    agent.connect()
    effects = agent.register("c2")
    assert of(effects, CloseConnection) and "belongs to cluster c1" in str(of(effects, Log)[0].fields)
    agent.connect()
    effects = agent.register("c2")
    assert of(effects, CloseConnection) and not of(effects, Log)
    assert agent.durable.cluster_id == "c1"
    agent.connect()
    agent.register("c1")
    assert agent.machine.registered and agent.machine.refusal == ""


def test_a_master_of_an_older_term_is_refused() -> None:
    agent = Agent().ready()
    agent.hear(DesiredState(Generation(7, 1)))
    agent.connect()
    assert of(agent.register(term=6), CloseConnection)
    agent.connect()
    agent.register(term=7)
    assert agent.machine.registered


def test_a_refusal_is_logged_once_per_change_and_ends_nothing() -> None:
    agent = Agent().ready()
    agent.run(task("t", 0))
    logs = []
    for text in ("no", "no", "other"):
        agent.connect()
        effects = agent.hear(Refused(ErrorDetail(ErrorReason.INCOMPATIBLE_RESOURCES, text, "do this")))
        assert of(effects, CloseConnection) and not of(effects, KillContainer)
        logs += [log.fields["reason"] for log in of(effects, Log)]
    assert logs == ["no (do this)", "other (do this)"]


def test_words_of_an_old_connection_are_not_heard() -> None:
    agent = Agent().ready()
    old = agent.connection
    agent.connect()
    agent.register()
    assert agent.step(MasterMessageReceived(old, DesiredState(Generation(9, 9), launch=(task("t"),)))) == []
    assert agent.step(MasterDisconnected(old)) == [] and agent.machine.registered


def test_pings_are_answered_and_silence_closes() -> None:
    agent = Agent().ready()
    agent.ms += 70_000
    assert said(agent.hear(Ping(3))) == [Pong(3)]
    assert not of(agent.wait(74_000), CloseConnection)
    assert of(agent.wait(1_000), CloseConnection)
    assert agent.machine.next_deadline_ms() is not None, "pruning goes on"


def test_silence_ends_repeats_that_are_due_in_the_same_moment() -> None:
    agent = Agent().ready()
    agent.run(task("t"))
    assert of(agent.wait(5 * 15_000), CloseConnection), "no ping came, and the statuses were due long ago"
    assert not agent.machine.registered


def test_the_interval_of_pings_may_change() -> None:
    agent = Agent().ready()
    agent.hear(Registered("c1", 1, 100, 2))
    assert not of(agent.wait(199), CloseConnection)
    assert of(agent.wait(1), CloseConnection)


def test_after_a_stall_the_master_gets_its_time() -> None:
    agent = Agent().ready()
    agent.ms += 100_000
    agent.step(Stalled(100_000))
    assert not of(agent.wait(0), CloseConnection)
    assert of(agent.wait(75_000), CloseConnection)


def test_a_master_that_does_not_answer_is_left() -> None:
    agent = Agent()
    agent.step(ContainersRecovered(()))
    agent.connect()
    assert of(agent.wait(15_000), CloseConnection)


# --- generations ----------------------------------------------------------------------------------------------------


def test_a_task_that_it_was_told_of_and_has_lost_is_not_begun_again() -> None:
    agent = Agent().ready()
    agent.launch(task("other"))
    lost = replace(task("t", 0), generation=agent.durable.generation)
    effects = agent.launch(lost)
    assert of(effects, EndStray) == [EndStray(container("t"))] and not of(effects, StartContainer)
    assert not statuses(effects) and set(agent.machine.live_devices()) == {GPUS[0].uuid}, "it may run"
    assert states(agent.exit("t", None, R.CONTAINER_LOST)) == [S.GONE] and not agent.machine.live_devices()
    assert key("t") in agent.durable.finished, "and it never will be"
    new = replace(task("u", 0), generation=replace(agent.durable.generation, sequence=99))
    assert of(agent.launch(new), StartContainer)


def test_lower_generations_are_refused() -> None:
    agent = Agent().ready()
    agent.hear(DesiredState(Generation(2, 5)))
    for lower in (Generation(2, 4), Generation(1, 9)):
        effects = agent.hear(DesiredState(lower, launch=(task("t"),)))
        assert of(effects, Log) and not of(effects, StartContainer)
    assert agent.durable.generation == Generation(2, 5)


def test_a_delta_that_does_not_build_on_ours_asks_for_everything_once() -> None:
    agent = Agent().ready()
    own = agent.durable.generation
    wrong = Generation(own.term, own.sequence + 5)
    ahead = Generation(own.term, own.sequence + 6)
    assert said(agent.hear(DesiredState(ahead, wrong, launch=(task("t"),)))) == [ResyncRequest(own)]
    assert said(agent.hear(DesiredState(ahead, wrong, launch=(task("t"),)))) == []
    assert agent.durable.generation == own
    assert of(agent.hear(DesiredState(ahead, None, launch=(task("t"),))), StartContainer)
    assert agent.durable.generation == ahead


def test_the_same_desired_state_again_does_nothing() -> None:
    agent = Agent().ready()
    agent.launch(task("t", 0))
    same = DesiredState(agent.durable.generation, None, launch=(task("t", 0),))
    assert agent.hear(same) == [] and agent.hear(same) == []


def test_parts_take_effect_together() -> None:
    agent = Agent().ready()
    generation = Generation(3, 1)
    assert agent.hear(DesiredState(generation, None, True, launch=(task("a"),))) == []
    # A newer one replaces what was gathered.
    generation = Generation(3, 2)
    assert agent.hear(DesiredState(generation, None, True, launch=(task("b"),))) == []
    effects = agent.hear(DesiredState(generation, None, False, launch=(task("c"),)))
    assert [effect.container_id for effect in of(effects, StartContainer)] == [container("b"), container("c")]
    assert agent.durable.generation == generation


def test_absence_never_kills() -> None:
    agent = Agent().ready()
    agent.run(task("t", 0))
    agent.connect()
    agent.register(term=2)
    effects = agent.hear(DesiredState(Generation(2, 1)))
    assert not of(effects, KillContainer) and not statuses(effects)


# --- a task's life --------------------------------------------------------------------------------------------------


def test_a_task_is_recorded_before_it_starts_and_runs_to_its_end() -> None:
    agent = Agent().ready()
    effects = agent.launch(task("t", 2, 1))
    recorded = next(
        n for n, effect in enumerate(effects) if isinstance(effect, Persist) and isinstance(effect.record, TaskSaved)
    )
    started = next(n for n, effect in enumerate(effects) if isinstance(effect, StartContainer))
    assert recorded < started
    (start,) = of(effects, StartContainer)
    assert [device.uuid for device in start.devices] == ["GPU-1", "GPU-2"] and start.image == ""
    assert states(effects) == [S.STARTING]
    assert states(agent.step(ContainerStarted(container("t")))) == [S.RUNNING]
    assert set(agent.machine.live_devices()) == {"GPU-1", "GPU-2"}
    effects = agent.exit("t", 0)
    (status,) = statuses(effects)
    assert (status.state, status.reason, status.exit_code) == (S.FINISHED, R.COMMAND_EXITED, 0)
    assert status.device_uuids == ("GPU-1", "GPU-2") and status.update_id == "3" and status.agent_id == AGENT
    assert of(effects, RemoveContainer) == [RemoveContainer(container("t"))]
    assert agent.machine.live_devices() == {}
    agent.ack_all("t")
    assert agent.durable.tasks == {} and agent.durable.finished[key("t")].status == status


@pytest.mark.parametrize(
    ("code", "reason", "state", "text"),
    [
        (7, R.COMMAND_EXITED, S.FAILED, "exited with 7"),
        (137, R.COMMAND_EXITED, S.FAILED, "signal 9"),
        (137, R.MEM_LIMIT, S.FAILED, "signal 9"),
        (None, R.CONTAINER_LOST, S.GONE, "nobody knows"),
        (None, R.ENGINE_LOST, S.GONE, "nobody knows"),
    ],
)
def test_other_ends(code: int | None, reason: StatusReason, state: TaskState, text: str) -> None:
    agent = Agent().ready()
    agent.run(task("t"))
    (status,) = statuses(agent.exit("t", code, reason))
    assert (status.state, status.reason, status.exit_code) == (state, reason, code) and text in status.message


def test_a_container_may_end_before_its_start_is_told() -> None:
    agent = Agent().ready()
    agent.launch(task("t"))
    assert states(agent.exit("t", 0)) == [S.FINISHED]
    assert agent.step(ContainerStarted(container("t"))) == []


def test_a_failed_launch() -> None:
    agent = Agent().ready()
    agent.launch(task("t", 0))
    (status,) = statuses(agent.step(ContainerLaunchFailed(container("t"), R.IMAGE_NOT_FOUND, "no such image")))
    assert (status.state, status.reason, status.message) == (S.FAILED, R.IMAGE_NOT_FOUND, "no such image")
    assert agent.machine.live_devices() == {}


@pytest.mark.parametrize(
    ("runtime", "default_image", "image", "accepted"),
    [
        ("process", "", "", ""),
        ("process", "", "busybox", None),
        ("process", "ignored", "", ""),
        ("docker", "", "", None),
        ("docker", "default", "", "default"),
        ("docker", "default", "own", "own"),
        ("simulated", "", "", ""),
    ],
)
def test_images(runtime: str, default_image: str, image: str, accepted: str | None) -> None:
    agent = Agent(runtime=runtime, default_image=default_image).ready()
    effects = agent.launch(task("t", image=image))
    if accepted is None:
        (status,) = statuses(effects)
        assert (status.state, status.reason) == (S.ERROR, R.AGENT_REFUSED) and status.message
        assert not of(effects, StartContainer)
    else:
        assert [start.image for start in of(effects, StartContainer)] == [accepted]


def test_devices_are_verified() -> None:
    agent = Agent().ready()
    agent.launch(task("holder", 0))
    sick = (
        GPUS[0],
        GPUS[1],
        Device(GPUS[2].uuid, "gpus", index=2, health=DeviceHealth.UNHEALTHY, health_reason="XID 79"),
    )
    effects = agent.step(DevicesDiscovered(sick, ()))
    (changed,) = said(effects)
    assert isinstance(changed, DevicesChanged)
    assert [device.condition for device in changed.devices] == [
        DeviceCondition.UNSPECIFIED,
        DeviceCondition.UNSPECIFIED,
        DeviceCondition.CORDONED,
    ]
    assert (changed.devices[2].health, changed.devices[2].health_reason) == (DeviceHealth.UNHEALTHY, "XID 79")
    assert [
        "GPU-2 is cordoned: XID 79" in log.text or "GPU-3 is cordoned: it is not there" in log.text
        for log in of(effects, Log)
    ] == [True] * 2
    effects = agent.launch(task("held", 0), task("sick", 2), task("absent", 3), task("good", 1))
    found = {status.task_id: (status.state, status.reason) for status in statuses(effects)}
    assert found == {
        "held": (S.DROPPED, R.AGENT_REFUSED),
        "sick": (S.DROPPED, R.DEVICES_CHANGED),
        "absent": (S.DROPPED, R.DEVICES_CHANGED),
        "good": (S.STARTING, R.UNSPECIFIED),
    }
    assert [start.container_id for start in of(effects, StartContainer)] == [container("good")]


def test_two_tasks_of_one_launch_cannot_share_a_device() -> None:
    agent = Agent().ready()
    effects = agent.launch(task("a", 0), task("b", 0))
    assert states(effects) == [S.STARTING, S.DROPPED]


def test_devices_found_before_the_answer_are_told_after_it() -> None:
    agent = Agent()
    agent.step(ContainersRecovered(()))
    agent.connect()
    assert said(agent.step(DevicesDiscovered(GPUS[:1], ()))) == []
    assert DevicesChanged(GPUS[:1], ()) in said(agent.register())
    assert agent.step(DevicesDiscovered(GPUS[:1], ())) == []


def test_a_bad_task_is_an_error_not_a_crash() -> None:
    agent = Agent().ready()
    bad = task("t", command=("a\x00b",))
    assert states(agent.launch(bad)) == [S.ERROR]
    spec = TaskSpec(TaskId("u"), command=("x",), environment=(EnvironmentVariable("A=B", ""),))
    assert states(agent.launch(AssignedTask(F, "*", spec, ()))) == [S.ERROR]


# --- kill -----------------------------------------------------------------------------------------------------------


def test_kill_a_running_task() -> None:
    agent = Agent().ready()
    agent.run(task("t", 0, grace_ms=500))
    effects = agent.kill("t", R.KILLED_BY_OPERATOR)
    assert of(effects, KillContainer) == [KillContainer(container("t"), 500)] and states(effects) == [S.KILLING]
    assert not of(agent.kill("t", R.KILLED_BY_FRAMEWORK), KillContainer), "the second asks for nothing new"
    assert of(agent.kill("t", grace_ms=100), KillContainer) == [KillContainer(container("t"), 100)]
    (status,) = statuses(agent.exit("t", 143))
    assert (status.state, status.reason, status.exit_code) == (S.KILLED, R.KILLED_BY_OPERATOR, 143)


@pytest.mark.parametrize(
    ("own", "asked", "grace_ms"), [(None, None, 3000), (500, None, 500), (500, 70, 70), (None, 0, 0)]
)
def test_grace(own: int | None, asked: int | None, grace_ms: int) -> None:
    agent = Agent().ready()
    agent.run(task("t", grace_ms=own))
    assert of(agent.kill("t", grace_ms=asked), KillContainer) == [KillContainer(container("t"), grace_ms)]


def test_a_kill_that_does_nothing_is_repeated() -> None:
    agent = Agent().ready()
    agent.run(task("t", grace_ms=500))
    agent.kill("t")
    assert not of(agent.wait(10_499), KillContainer)
    assert of(agent.wait(1), KillContainer) == [KillContainer(container("t"), 0)]
    agent.exit("t", 137)
    assert not of(agent.wait(60_000), KillContainer)


def test_kill_during_launch_waits_for_the_start() -> None:
    agent = Agent().ready()
    agent.launch(task("t", 0), task("u", 1))
    assert not of(agent.kill("t"), KillContainer) and not of(agent.kill("u"), KillContainer)
    assert of(agent.step(ContainerStarted(container("t"))), KillContainer)
    (status,) = statuses(agent.exit("t", 143))
    assert (status.state, status.reason) == (S.KILLED, R.KILLED_BY_FRAMEWORK)
    (status,) = statuses(agent.step(ContainerLaunchFailed(container("u"), R.LAUNCH_FAILED, "x")))
    assert (status.state, status.reason) == (S.KILLED, R.KILLED_DURING_LAUNCH)


def test_kill_of_an_unknown_task_is_answered_and_prevents_it() -> None:
    agent = Agent().ready()
    assert not statuses(agent.kill("t")), "it may run, and we have lost it"
    assert not of(agent.launch(task("t")), StartContainer)
    (status,) = statuses(agent.exit("t", None, R.CONTAINER_LOST))
    assert (status.state, status.reason) == (S.KILLED, R.KILLED_DURING_LAUNCH)
    effects = agent.launch(task("t"))
    assert not of(effects, StartContainer) and statuses(effects) == [status]
    assert statuses(agent.kill("t")) == [status]


def test_a_task_that_should_be_kept_but_is_unknown_is_gone() -> None:
    agent = Agent().ready()
    agent.run(task("t"))
    keep = (TaskRef(F, TaskId("t")), TaskRef(F, TaskId("lost")))
    effects = agent.full(keep=keep)
    assert of(effects, EndStray) == [EndStray(container("lost"))] and not statuses(effects)
    assert not of(agent.full(keep=keep), EndStray), "it is being ended"
    (status,) = statuses(agent.exit("lost", None, R.CONTAINER_LOST))
    assert (status.task_id, status.state, status.reason) == ("lost", S.GONE, R.CONTAINER_LOST)


# --- statuses -------------------------------------------------------------------------------------------------------


def test_updates_are_repeated_until_acknowledged() -> None:
    agent = Agent().ready()
    agent.run(task("t"))
    agent.hear(Ping(1))
    waited = []
    for pause in (10_000, 20_000, 40_000):
        agent.wait(pause - 1)
        agent.hear(Ping(1))
        waited.append(states(agent.wait(1)))
    assert waited == [[S.STARTING, S.RUNNING]] * 3
    agent.ack("t", "1")
    assert states(agent.wait(10_000)) == [S.RUNNING]
    agent.ack("t", "1")
    agent.ack("t", "99")
    agent.ack("unknown", "1")
    agent.ack("t", "2")
    agent.hear(Ping(1))
    assert states(agent.wait(60_000)) == []


def test_the_pause_stops_growing_at_ten_minutes() -> None:
    agent = Agent().ready()
    agent.connect()
    agent.hear(Registered("c1", 1, 0, 0))
    agent.run(task("t"))
    pauses: list[int] = []
    last = agent.ms
    while len(pauses) < 9:
        due = agent.machine.next_deadline_ms()
        assert due is not None
        agent.ms = due
        if statuses(agent.step(TimePassed())):
            pauses.append(agent.ms - last)
            last = agent.ms
    assert pauses == [10_000, 20_000, 40_000, 80_000, 160_000, 320_000, 600_000, 600_000, 600_000]


def test_a_later_acknowledgement_covers_earlier_updates() -> None:
    agent = Agent().ready()
    agent.run(task("t"))
    agent.exit("t")
    agent.ack("t", "3")
    assert key("t") in agent.durable.finished


def test_what_is_not_acknowledged_is_reported_again() -> None:
    agent = Agent().ready()
    agent.run(task("t", 0))
    agent.ack("t", "1")
    agent.step(MasterDisconnected(agent.connection))
    assert agent.exit("t", 3) and agent.machine.next_deadline_ms() is not None
    _, reports = said(agent.connect())
    assert isinstance(reports, TaskReports)
    (report,) = reports.tasks
    assert report.state is S.FAILED and [status.update_id for status in report.unacknowledged] == ["2", "3"]
    assert statuses(agent.register()) == [], "they were in the report"
    assert states(agent.wait(10_000)) == [S.RUNNING, S.FAILED]


def test_what_happens_between_report_and_answer_is_told_after_the_answer() -> None:
    agent = Agent().ready()
    agent.run(task("t"))
    agent.connect()
    assert said(agent.exit("t", 0)) == []
    assert states(agent.register()) == [S.FINISHED]


def test_a_finished_task_is_never_started_again() -> None:
    agent = Agent().ready()
    agent.run(task("t", 0))
    agent.exit("t", 0)
    agent.ack_all("t")
    again = Agent(agent.durable).ready()
    effects = again.full(launch=(task("t", 0),), keep=(TaskRef(F, TaskId("t")),))
    assert not of(effects, StartContainer) and states(effects) == [S.FINISHED] * 2


def test_memory_and_sandboxes_of_finished_tasks_are_bounded() -> None:
    agent = Agent(sandbox_limit=2, finished_limit=3).ready()
    removed = []
    for n in range(5):
        agent.run(task(f"t{n}"))
        agent.exit(f"t{n}")
        removed += of(agent.ack_all(f"t{n}"), RemoveSandbox)
    assert [effect.container_id for effect in removed] == [container(f"t{n}") for n in range(3)]
    assert list(agent.durable.finished) == [key("t2"), key("t3"), key("t4")]
    agent.ms += 8 * 86_400_000
    agent.hear(Ping())
    agent.step(MasterDisconnected(agent.connection))
    assert [effect.container_id for effect in of(agent.wait(1), RemoveSandbox)] == [container("t3"), container("t4")]
    agent.wait(30 * 86_400_000)
    assert agent.durable.finished == {}


def test_a_refused_task_leaves_no_sandbox() -> None:
    agent = Agent(sandbox_limit=0).ready()
    agent.launch(task("t", image="x"))
    assert not of(agent.ack_all("t"), RemoveSandbox)


# --- logs -----------------------------------------------------------------------------------------------------------


def test_logs_of_known_tasks_are_opened() -> None:
    agent = Agent().ready()
    agent.run(task("t"))
    (opened,) = of(agent.hear(OpenLog("s1", F, TaskId("t"), True, 10)), OpenLogStream)
    assert opened == OpenLogStream(agent.connection, "s1", container("t"), True, 10)
    (refused,) = of(agent.hear(OpenLog("s2", F, TaskId("unknown"))), OpenLogStream)
    assert refused.error is not None and refused.error.reason is ErrorReason.NOT_FOUND


def test_sessions_are_opened_with_what_runs_alone() -> None:
    agent = Agent().ready()
    start = SessionStart(SessionKind.EXEC, ("true",))

    def ask(name: str) -> OpenSessionStream:
        (opened,) = of(agent.hear(OpenSession("s", F, TaskId(name), start)), OpenSessionStream)
        return opened

    agent.run(task("t"))
    assert ask("t") == OpenSessionStream(agent.connection, "s", container("t"), start)
    agent.full(launch=(task("u", 0),))
    for name, words in (("u", "does not run yet"), ("unknown", "was never here")):
        error = ask(name).error
        assert error is not None and words in error.message and error.hint
    agent.exit("t", 0)
    error = ask("t").error
    assert error is not None and "has ended" in error.message

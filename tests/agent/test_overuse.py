"""Dialogues about tasks that use more of a card's memory than their share of it (pain 6)."""

from __future__ import annotations

from dataclasses import replace

from agent_dialogue import GPUS, Agent, R, S, container, key, of, statuses, task
from hypothesis import given
from hypothesis import strategies as st

from bursar.agent.books import AgentConfig
from bursar.agent.containers.runtime import ContainerExit, RecoveredContainer
from bursar.agent.devices.users import DeviceUser
from bursar.agent.effects import AgentEffect, KillContainer, MeasureShares
from bursar.agent.events import ContainerExited, ContainerStarted, ExecutorCalled, SharesMeasured
from bursar.agent.machine import AgentMachine
from bursar.agent.overuse import LOOK_MS
from bursar.core.ids import DeviceUuid, TaskId
from bursar.core.lives import RestartMode, RestartPolicy
from bursar.core.messages.executor import ExecutorSubscribe, ExecutorUpdate
from bursar.core.tasks import StatusReason, TaskExecutor

GIB = 1 << 30
GRACE_MS = 30_000
#: Two quarters of one card that are soft, one of a second card that is not, and a whole card.
CARD, OTHER = DeviceUuid("GPU-c0"), DeviceUuid("GPU-c1")
SHARES = tuple(
    replace(GPUS[n], kind=kind, mem_bytes=10 * GIB, attributes={"enforcement": kind.rpartition("-")[2]})
    for n, kind in enumerate(("gpu-250-soft", "gpu-250-soft", "gpu-250-none"))
)


class Sharing(Agent):
    """An agent whose GPUs 0 to 2 are shares."""

    def __init__(self, grace_ms: int | None = GRACE_MS, before: Agent | None = None) -> None:
        super().__init__(before.durable if before else None)
        config: AgentConfig = self.machine.books.config
        info = replace(config.info, devices=(*SHARES, GPUS[3]))
        self.machine = AgentMachine(replace(config, info=info, share_grace_ms=grace_ms), self.durable.copy())

    def ready(self, *found: object) -> Sharing:
        super().ready(*found)  # type: ignore[arg-type]
        return self

    def look(self, *users: tuple[str, int | None], at: int = 0, after_ms: int = LOOK_MS) -> list[AgentEffect]:
        """Time passes, and then a look is made, and this is what the processes of each container use of a share's card."""
        self.wait(after_ms)
        who = tuple(
            DeviceUser(1 + number, mem_bytes=None if used is None else used * GIB, container_id=container(name))
            for number, (name, used) in enumerate(users)
        )
        return self.step(SharesMeasured({GPUS[at].uuid: who}))


def reasons(effects: list[AgentEffect]) -> list[StatusReason]:
    return [status.reason for status in statuses(effects)]


def test_who_passes_a_soft_share_is_told_and_ended_after_the_grace_with_the_figures() -> None:
    agent = Sharing().ready()
    agent.run(task("t", 0))
    (question,) = of(agent.wait(LOOK_MS), MeasureShares)
    assert question.uuids == (GPUS[0].uuid,)
    assert not statuses(agent.look(("t", 10), ("u", 30))), "what others use is not its own"
    (warning,) = statuses(agent.look(("t", 6), ("t", 5)))
    assert (warning.state, warning.reason) == (S.RUNNING, R.DEVICE_MEM_EXCEEDED)
    assert warning.message == (
        "it uses 11GiB of the memory of GPU-0, and its share (gpu-250-soft) is 10GiB; it is ended unless it uses less within 30s;"
        " ask for more or larger shares, or use less: a process's CUDA context counts, too"
    )
    for _ in range(5):
        assert not statuses(agent.look(("t", 12))), "it is told once"
    effects = agent.look(("t", 12))
    assert reasons(effects) == [R.DEVICE_MEM_LIMIT] and of(effects, KillContainer)
    assert not of(agent.look(("t", 12)), KillContainer)
    (end,) = statuses(agent.step(ContainerExited(container("t"), ContainerExit(143, R.COMMAND_EXITED, "ended"))))
    assert (end.state, end.reason, end.exit_code) == (S.FAILED, R.DEVICE_MEM_LIMIT, 143)
    assert end.message.startswith("it used 12GiB of the memory of GPU-0, and its share (gpu-250-soft) is 10GiB for 30s")
    assert agent.machine.overuse.passed == {"soft": 1, "none": 0} and agent.machine.overuse.ended == 1
    assert not of(agent.wait(LOOK_MS), MeasureShares) and agent.machine.overuse.used == {}


def test_who_comes_back_in_time_goes_on_and_the_grace_begins_anew() -> None:
    agent = Sharing().ready()
    agent.run(task("t", 0))
    for _ in range(3):
        for used in (11,) * 5 + (10,):
            effects = agent.look(("t", used))
            assert not of(effects, KillContainer)
    assert agent.machine.overuse.passed["soft"] == 3
    assert [status.reason for status in agent.machine.state.tasks[key("t")].unacknowledged].count(
        R.DEVICE_MEM_EXCEEDED
    ) == 1, "its framework hears of it once a run"


def test_a_look_is_made_when_the_grace_is_over() -> None:
    agent = Sharing(grace_ms=7_000).ready()
    agent.run(task("t", 0))
    agent.look(("t", 11))
    assert not of(agent.look(("t", 11)), KillContainer)
    assert of(agent.wait(2_000), MeasureShares)
    assert of(agent.look(("t", 11), after_ms=0), KillContainer)


def test_without_a_grace_it_is_ended_at_once() -> None:
    agent = Sharing(grace_ms=0).ready()
    agent.run(task("t", 0))
    effects = agent.look(("t", 11))
    assert reasons(effects) == [R.DEVICE_MEM_LIMIT] and of(effects, KillContainer)


def test_two_shares_of_what_is_one_card_count_together_and_those_of_another_do_not() -> None:
    agent = Sharing().ready()
    named = [
        replace(SHARES[n], uuid=DeviceUuid(f"gpu-250-soft@250/{card}/s{n}"))
        for n, card in enumerate((CARD, CARD, OTHER))
    ]
    agent.machine.books.devices.update({one.uuid: one for one in named})
    assigned = task("t")
    (part,) = assigned.resources
    devices = frozenset(one.uuid for one in named)
    part = replace(part, resources=replace(part.resources, devices=devices))
    agent.run(replace(assigned, resources=(part,)))
    agent.wait(LOOK_MS)
    on_card, on_other = (DeviceUser(1, "", 18 * GIB, container("t")),), (DeviceUser(1, "", 11 * GIB, container("t")),)
    effects = agent.step(SharesMeasured({named[0].uuid: on_card, named[1].uuid: on_card, named[2].uuid: on_other}))
    (warning,) = statuses(effects)
    assert f"it uses 11GiB of the memory of {OTHER}" in warning.message
    used = {card: figures for (_, card), figures in agent.machine.overuse.used.items()}
    assert used == {CARD: (18 * GIB, 20 * GIB), OTHER: (11 * GIB, 10 * GIB)}


def test_of_a_share_that_nothing_enforces_it_is_only_said() -> None:
    agent = Sharing().ready()
    agent.run(task("t", 2))
    (warning,) = statuses(agent.look(("t", 40), at=2))
    assert warning.reason is R.DEVICE_MEM_EXCEEDED and "nothing holds it to that" in warning.message
    for _ in range(20):
        assert not statuses(agent.look(("t", 40), at=2))
    assert agent.machine.overuse.passed == {"soft": 0, "none": 1}


def test_what_nobody_can_say_ends_nobody_and_is_said_to_the_operator() -> None:
    agent = Sharing().ready()
    agent.run(task("t", 0))
    for _ in range(10):
        assert not statuses(agent.look(("t", None), ("t", 30)))
    assert not statuses(agent.step(SharesMeasured({GPUS[0].uuid: None})))
    assert not statuses(agent.step(SharesMeasured({})))


def test_who_has_no_share_is_not_looked_at_nor_anybody_where_no_driver_can_say() -> None:
    agent = Sharing().ready()
    agent.run(task("t", 3))
    assert not of(agent.wait(10 * LOOK_MS), MeasureShares)
    agent = Sharing(grace_ms=None).ready()
    agent.run(task("t", 0))
    assert not of(agent.wait(10 * LOOK_MS), MeasureShares)


def test_another_run_has_a_grace_of_its_own() -> None:
    agent = Sharing().ready()
    assigned = task("t", 0)
    policy = RestartPolicy(RestartMode.ON_FAILURE, 5, 100)
    agent.run(replace(assigned, spec=replace(assigned.spec, restart=policy)))
    for _ in range(6):
        agent.look(("t", 11))
    agent.exit("t", 1)
    agent.wait(200)
    agent.step(ContainerStarted(container("t")))
    assert reasons(agent.look(("t", 11))) == [R.DEVICE_MEM_EXCEEDED], "told again, and not ended"


def test_another_life_of_the_agent_looks_on() -> None:
    agent = Sharing().ready()
    agent.run(task("t", 0))
    agent.look(("t", 11))
    again = Sharing(before=agent)
    again.ready(RecoveredContainer(container("t"), None))
    assert of(again.wait(LOOK_MS), MeasureShares)


@given(
    st.lists(st.tuples(st.integers(8, 12), st.integers(1, 12_000)), max_size=30), st.sampled_from((0, 1_000, GRACE_MS))
)
def test_it_is_ended_at_the_first_look_after_a_whole_grace_of_looks_that_found_too_much(
    looks: list[tuple[int, int]], grace_ms: int
) -> None:
    agent = Sharing(grace_ms).ready()
    agent.run(task("t", 0))
    since: int | None = None
    ended = False
    for used, pause_ms in looks:
        effects = agent.look(("t", used), after_ms=pause_ms)
        since = None if used <= 10 else agent.ms if since is None else since
        expected = not ended and since is not None and agent.ms - since >= grace_ms
        assert bool(of(effects, KillContainer)) == expected
        ended = ended or expected


def test_what_an_executor_and_its_tasks_have_is_theirs_together() -> None:
    agent = Sharing().ready()
    whole = task("x", 0)
    agent.run(replace(whole, spec=replace(whole.spec, executor=TaskExecutor(serves=True))))
    part = task("t", 2)
    agent.launch(replace(part, spec=replace(part.spec, command=(), executor=TaskExecutor(False, TaskId("x")))))
    agent.step(ExecutorCalled(container("x"), ExecutorSubscribe((), ())))
    agent.step(ExecutorCalled(container("x"), ExecutorUpdate(TaskId("t"), 1, S.RUNNING, "", None)))
    (question,) = of(agent.wait(LOOK_MS), MeasureShares)
    assert question.uuids == (GPUS[0].uuid, GPUS[2].uuid)
    (warning,) = statuses(agent.look(("x", 11), at=2))
    assert (warning.task_id, warning.reason) == ("x", R.DEVICE_MEM_EXCEEDED), "its processes are the executor's"

"""What the master wants of tasks, and what the runtime tells of their containers, becomes their lives.

A task is begun at most once, whatever is sent again and whenever the agent dies; its end follows that of its container.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from bursar.agent.admission import admission_problem
from bursar.agent.alone import Alone
from bursar.agent.books import Books, names
from bursar.agent.checkups import Checkups
from bursar.agent.containers.runtime import ContainerExit, ContainerId, RecoveredContainer
from bursar.agent.effects import PullImage, RemoveContainer, StartContainer
from bursar.agent.events import ContainerLaunchFailed
from bursar.agent.executors import Executors
from bursar.agent.leaving import BUSY_PAUSE_MS, Leaving
from bursar.agent.overuse import Overuse
from bursar.agent.pinning import granted_devices
from bursar.agent.reach import Reach
from bursar.agent.reporting import Reporting
from bursar.agent.restarts import may_restart, next_in_row, wants_restart, words_for
from bursar.agent.state import GenerationSeen, TaskSaved
from bursar.agent.strays import Strays
from bursar.agent.task_groups import TaskGroups, network_of, together, undone
from bursar.agent.tasks import (
    MAX_MESSAGE_LENGTH,
    TaskKey,
    TaskRecord,
    Verdict,
    container_of,
    devices_problem,
    end_of,
    grace_ms_of,
    has_container,
    killed_early,
    lost_device,
    never_seen,
)
from bursar.core.ids import DeviceUuid
from bursar.core.messages.agent import DesiredState, KillTask, RestartTask
from bursar.core.service_ports import ServicePort
from bursar.core.tasks import DEFAULT_KILL_GRACE_MS, AssignedTask, StatusReason, TaskState


class Lives:
    """Launches, kills, and the ends of containers."""

    def __init__(self, books: Books, reporting: Reporting, leaving: Leaving) -> None:
        self._books = books
        self._reporting = reporting
        self._leaving = leaving
        self.checkups = Checkups(books, reporting, self._kill_here)
        self.overuse = Overuse(books, reporting, self._kill_here)
        self.alone = Alone(books, self._kill_here)
        self.strays = Strays(books, reporting, leaving)
        self.reach = Reach(books, reporting)
        self.groups = TaskGroups(books, self._kill, leaving)
        self.executors = Executors(books, self._runs, self._end, lambda key, end: self._leave(key, end, final=True))
        for key, record in books.state.tasks.items():
            if not record.state.is_terminal:
                container_id = container_of(books.info.agent_id, key)
                books.live[container_id] = key
                if not record.pulling:
                    books.hold(container_id, key, record.task)

    def check(self) -> None:
        """Assert what must hold."""
        books = self._books
        self.groups.check(self._leaving)
        self.strays.check()
        held: dict[DeviceUuid, ContainerId] = {}
        for container_id, devices in books.orphans.items():
            held.update(dict.fromkeys(devices, container_id))
        live = {}
        for key, record in books.state.tasks.items():
            assert key == record.key
            assert key not in books.state.finished, f"{key} is live and finished"
            if record.state.is_terminal:
                assert record.unacknowledged, f"{key} has ended and is acknowledged, but is not finished"
                continue
            container_id = container_of(books.info.agent_id, key)
            live[container_id] = key
            if record.pulling:
                continue
            for uuid in record.task.device_uuids:
                assert uuid not in held, f"{uuid} is held by {held[uuid]} and {container_id}"
                held[uuid] = container_id
        assert held == books.held
        assert live == books.live
        assert books.starting <= live.keys()
        assert books.live.keys().isdisjoint(books.orphans)

    # --- what the master wants ---------------------------------------------------------------------------------------

    def converge(self, parts: Iterable[DesiredState]) -> None:
        """Do what a desired state, complete by now, says; its generation is recorded with what follows from it."""
        generation = self._books.state.generation
        parts = tuple(parts)
        for tasks in together(task for part in parts for task in part.launch):
            self._launch(tasks)
        for part in parts:
            generation = part.generation
            for kill in part.kill:
                self._kill(kill)
            for kept in part.keep:
                self._keep(TaskKey(kept.framework_id, kept.task_id))
        if generation > self._books.state.generation:
            self._books.persist(GenerationSeen(generation))

    def _launch(self, tasks: Iterable[AssignedTask]) -> None:
        """One task, or those of a group: all or none."""
        fresh = []
        for task in tasks:
            key = TaskKey(task.framework_id, task.spec.task_id)
            container_id = container_of(self._books.info.agent_id, key)
            if key in self._books.state.finished:
                self.strays.repeat_end(key)
            elif key in self._books.state.tasks:
                continue
            elif task.was_told_by(self._books.state.generation):
                # It was here, and we lost it: whatever became of it, it is not begun again.
                words = "this agent was told of the task before, and does not know it any more"
                gone = Verdict(TaskState.GONE, StatusReason.CONTAINER_LOST, words)
                self.strays.unknown(key, gone, task.device_uuids)
            elif container_id in self._books.orphans:
                words = f"container {container_id} of it ran here already, and nobody knew why; it was ended"
                self.strays.unknown(key, Verdict(TaskState.DROPPED, StatusReason.AGENT_REFUSED, words))
            else:
                fresh.append(task)
        problems = [(task, problem) for task in fresh if (problem := self._problem(task, fresh)) is not None]
        for task in fresh:
            record = TaskRecord(task, TaskState.STAGING, self._books.info.boot_id)
            group = task.spec.task_group
            if problems:
                own = next((problem for culprit, problem in problems if culprit is task), None)
                assert own or group
                self._reporting.report(record, own or undone(group, *problems[0]))  # type: ignore[arg-type]
            else:
                self._reporting.report(record, Verdict(TaskState.STARTING, StatusReason.UNSPECIFIED, ""))
        for task in () if problems else fresh:
            begin = self.executors.begin if task.spec.runs_on else self._start
            begin(TaskKey(task.framework_id, task.spec.task_id))

    def _problem(self, task: AssignedTask, fresh: Sequence[AssignedTask]) -> Verdict | None:
        """Why a task cannot be launched, with these others at once; or nothing."""
        return admission_problem(self._books, task, fresh) or self.executors.problem(task)

    def _start(self, key: TaskKey) -> None:
        """Its launch is recorded: from now on it has its devices."""
        books, task = self._books, self._books.state.tasks[key].task
        container_id = container_of(books.info.agent_id, key)
        books.hold(container_id, key, task)
        books.starting.add(container_id)
        devices = granted_devices(task, books.devices)
        network_id = network_of(books.info.agent_id, task)
        ports = self._ports_of_group(task)
        books.effects.append(StartContainer(container_id, task, self._image_of(task), devices, network_id, ports))

    def _ports_of_group(self, task: AssignedTask) -> tuple[ServicePort, ...]:
        """The service ports of all tasks of its group: their network is made with the first of them."""
        group = task.spec.task_group
        keys = [TaskKey(task.framework_id, task_id) for task_id in group.task_ids] if group is not None else []
        records = [self._books.state.tasks[key] for key in keys if key in self._books.state.tasks]
        return tuple(one for record in records for one in record.task.spec.service_ports)

    def _image_of(self, task: AssignedTask) -> str:
        return "" if self._books.info.runtime == "process" else task.spec.image or self._books.config.default_image

    def _kill(self, kill: KillTask, message: str = "") -> None:
        """`message` says why, where it is the agent that wants it."""
        key = TaskKey(kill.framework_id, kill.task_id)
        record = self._books.state.tasks.get(key)
        if record is None:
            if key in self._books.state.finished:
                self.strays.repeat_end(key)
            else:
                words = "killed; its agent had nothing of it"
                self.strays.unknown(key, Verdict(TaskState.KILLED, StatusReason.KILLED_DURING_LAUNCH, words))
            return
        container_id = container_of(self._books.info.agent_id, key)
        if record.state.is_terminal or container_id in self._leaving:
            return
        earlier = record.kill
        if earlier is not None and grace_ms_of(record.task, kill) >= grace_ms_of(record.task, earlier):
            return
        if earlier is not None:
            # Only the grace is new; the recorded reason stays.
            self._books.persist(TaskSaved(replace(record, kill=replace(earlier, grace_ms=kill.grace_ms))))
        else:
            record = replace(record, kill=kill, kill_message=message[:MAX_MESSAGE_LENGTH])
            self._reporting.report(record, Verdict(TaskState.KILLING, kill.reason, record.kill_message))
        if record.waiting:
            self._end(key, Verdict(TaskState.KILLED, kill.reason, "ended as asked, between two runs"))
        elif record.pulling:
            self._end(key, killed_early(record))
        elif container_id not in self._books.starting:
            self._end_container(record, grace_ms_of(record.task, kill))

    def _end_container(self, record: TaskRecord, grace_ms: int) -> None:
        """End what runs a task, or have its executor end it."""
        if record.task.spec.runs_on:
            self.executors.kill(record.key, grace_ms)
        elif not self.executors.shut_down(record, grace_ms):
            self._books.kill_container(container_of(self._books.info.agent_id, record.key), grace_ms)

    def kill_due(self, container_id: ContainerId) -> None:
        """What was to end by now has not."""
        key = self._books.live.get(container_id)
        self._books.log("warning", "a container does not end; asking again", container=container_id)
        if container_id in self._books.orphans:
            self.strays.end(container_id)
        elif key is not None and self._books.state.tasks[key].task.spec.runs_on:
            self.executors.kill(key, 0)
        else:
            self._books.kill_container(container_id, 0)

    def _keep(self, key: TaskKey) -> None:
        if key in self._books.state.tasks:
            return
        if key in self._books.state.finished:
            self.strays.repeat_end(key)
            return
        words = "its agent came back without it, and nothing of it runs there"
        self.strays.unknown(key, Verdict(TaskState.GONE, StatusReason.CONTAINER_LOST, words))

    # --- what the runtime tells ------------------------------------------------------------------------------------

    def recovered(self, containers: Iterable[RecoveredContainer]) -> None:
        """What an earlier life left: taken over, or ended. First of all, and once."""
        assert not self._books.recovered, "containers are recovered once"
        self._books.recovered = True
        found = {container.container_id: container for container in containers}
        for container_id, key in list(self._books.live.items()):
            if container_id not in self._books.live:
                continue  # its executor has ended, and it with that
            record = self._books.state.tasks[key]
            container = found.pop(container_id, None)
            if record.task.spec.runs_on:
                self.executors.adopt(key)
            elif record.pulling:
                # It has never begun, for certain: go on where it was.
                self._pull(key)
            elif record.waiting and (container is None or container.exit is not None):
                if container is not None:
                    self._books.effects.append(RemoveContainer(container_id))
                self._books.deadlines.set(("restart", key), self._books.now.monotonic_ms)
            elif container is None:
                if record.boot_id == self._books.info.boot_id and record.state is not TaskState.STARTING:
                    self._books.repaired(
                        "container-missing", "a task's container vanished while the agent was down", key
                    )
                self._leave(key, never_seen(record, self._books.info.boot_id), final=True)
            elif container.exit is not None:
                self._leave(key, end_of(record, container.exit, self._books.info.boot_id))
            else:
                self._adopt(container_id, record)
        for container_id, container in found.items():
            if container.exit is not None:
                self._books.effects.append(RemoveContainer(container_id))
            else:
                self.strays.found(container_id)
        self.groups.recovered()

    def _adopt(self, container_id: ContainerId, record: TaskRecord) -> None:
        self._books.log("info", "adopted a running task", **names(record.key))
        if record.kill is not None:
            self._books.kill_container(container_id, grace_ms_of(record.task, record.kill))
        else:
            self._runs(record)

    def _runs(self, record: TaskRecord) -> None:
        """Its container runs: from its first moment, or found so by another life of the agent."""
        if record.relaunching or record.waiting:
            record = replace(record, relaunching=False, waiting=False, run_began_ms=self._books.now.wall_ms)
            again = f"restarted, for the {record.restarts}. time" if record.restarts > 1 else "restarted"
            self._reporting.report(record, Verdict(record.state, StatusReason.RESTARTED, again))
            record = self._books.state.tasks[record.key]
        elif record.restart_asked:
            container_id = container_of(self._books.info.agent_id, record.key)
            self._books.kill_container(container_id, DEFAULT_KILL_GRACE_MS)
        if record.state is TaskState.STARTING:
            self._reporting.report(record, Verdict(TaskState.RUNNING, StatusReason.UNSPECIFIED, ""))
            record = self._books.state.tasks[record.key]
        allowed_ms, now = record.task.spec.max_run_ms, self._books.now
        if allowed_ms is not None:
            left_ms = max(0, record.running_at_ms + allowed_ms - now.wall_ms)
            self._books.deadlines.set(("run_time", record.key), now.monotonic_ms + min(left_ms, allowed_ms))
        self.checkups.begin(record)
        self.overuse.begin(record)
        self.alone.begin(record)

    def run_time_over(self, key: TaskKey) -> None:
        """It has run for as long as it may (TSK-10)."""
        self._kill_here(key, StatusReason.MAX_RUN_TIME, "it has run for as long as it may")

    def sandbox_overfilled(self, container_id: ContainerId) -> None:
        """It has written more than it asked for."""
        key = self._books.live.get(container_id)
        if key is not None:
            self._kill_here(key, StatusReason.DISK_LIMIT, "its sandbox holds more than the disk that it asked for")

    def _kill_here(self, key: TaskKey, reason: StatusReason, message: str) -> None:
        """The agent itself wants the end of a running task, and will say why when it has come."""
        record = self._books.state.tasks[key]
        gone = container_of(self._books.info.agent_id, key) in self._leaving
        if record.state is not TaskState.RUNNING or record.waiting or gone:
            return
        if reason is StatusReason.UNHEALTHY and may_restart(record):
            if not record.restart_asked:
                self._end_run(record, message)
            return
        kill = KillTask(key.framework_id, key.task_id, reason)
        self._books.log("warning", "ending a task", **names(key), reason=message)
        record = replace(record, kill=kill, kill_message=message)
        self._reporting.report(record, Verdict(TaskState.KILLING, reason, message))
        self._end_container(self._books.state.tasks[key], grace_ms_of(record.task, kill))

    def compared(self, missing: Iterable[ContainerId], strays: Iterable[ContainerId]) -> None:
        """What the engine has is not what the books have, and stays so: each is repaired, and said (B-18)."""
        for container_id in missing:
            key = self._books.live.get(container_id)
            if key is None or container_id in self._books.starting or container_id in self._leaving:
                continue
            if not has_container(self._books.state.tasks[key]):
                continue
            self._books.repaired("container-missing", "a task's container is gone, and nobody said so", key)
            self._leave(key, never_seen(self._books.state.tasks[key], self._books.info.boot_id), final=True)
        for container_id in strays:
            if container_id not in self._books.live and container_id not in self._books.orphans:
                self.strays.found(container_id)

    def started(self, container_id: ContainerId) -> None:
        """A start has succeeded; the container may have ended already."""
        self._books.starting.discard(container_id)
        key = self._books.live.get(container_id)
        if key is None or container_id in self._leaving:
            return
        record = self._books.state.tasks[key]
        if record.kill is not None:
            self._books.kill_container(container_id, grace_ms_of(record.task, record.kill))
        else:
            self._runs(record)

    def image_missed(self, container_id: ContainerId) -> None:
        """A start was undone for want of its image: have it pulled, and give the devices back meanwhile (B-01)."""
        books = self._books
        books.starting.discard(container_id)
        key = books.live.get(container_id)
        if key is None:
            return
        record = books.state.tasks[key]
        image = self._image_of(record.task)
        if record.kill is not None:
            self._end(key, killed_early(record))
        elif record.pulled:
            self._end(
                key, Verdict(TaskState.FAILED, StatusReason.IMAGE_NOT_FOUND, f"image {image} was pulled and is gone")
            )
        else:
            books.release(container_id, record.task)
            words = Verdict(record.state, StatusReason.PULLING_IMAGE, f"pulling image {image}")
            self._reporting.report(replace(record, pulling=True, pulled=True), words)
            self._pull(key)

    def _pull(self, key: TaskKey) -> None:
        task = self._books.state.tasks[key].task
        container_id = container_of(self._books.info.agent_id, key)
        self._books.effects.append(PullImage(container_id, self._image_of(task)))

    def image_pulled(self, container_id: ContainerId) -> None:
        """The image is here: launch, if its devices still are."""
        key = self._books.live.get(container_id)
        record = self._books.state.tasks[key] if key is not None else None
        if key is None or record is None or not record.pulling:
            return
        problem = devices_problem(record.task, self._books.devices, self._books.held)
        if problem is not None and record.relaunching:
            problem = Verdict(
                TaskState.FAILED, StatusReason.DEVICE_LOST, f"it cannot be started again: {problem.message}"
            )
        if problem is not None:
            self._end(key, problem)
            return
        self._books.persist(TaskSaved(replace(record, pulling=False, boot_id=self._books.info.boot_id)))
        self._start(key)

    def launch_failed(self, event: ContainerLaunchFailed) -> None:
        """A start has failed, and nothing is left of it."""
        self._books.starting.discard(event.container_id)
        key = self._books.live.get(event.container_id)
        if key is None:
            return
        message = event.message[:MAX_MESSAGE_LENGTH]
        self._books.log("warning", "a task could not be started", **names(key), reason=message)
        if self._books.state.tasks[key].kill is not None:
            self._end(key, killed_early(self._books.state.tasks[key]))
        else:
            self._ended(key, Verdict(TaskState.FAILED, event.reason, message, event.exit_code))

    def exited(self, container_id: ContainerId, exit: ContainerExit) -> None:
        """A container is no more."""
        self._books.starting.discard(container_id)
        key = self._books.live.get(container_id)
        if key is not None:
            if exit.reason is StatusReason.ENGINE_LOST:
                self._books.log("error", "a task is lost with the container engine", **names(key), reason=exit.message)
            self._leave(key, end_of(self._books.state.tasks[key], exit, self._books.info.boot_id, self._books.devices))
            return
        self.strays.exited(container_id)

    def _leave(self, key: TaskKey, verdict: Verdict, *, final: bool = False) -> None:
        """The container of a task is no more; what follows from that follows once it is known who still uses its devices."""
        books, record = self._books, self._books.state.tasks[key]
        container_id = container_of(books.info.agent_id, key)
        if container_id in self._leaving:
            return
        books.starting.discard(container_id)
        books.deadlines.cancel(("kill", container_id))
        books.deadlines.cancel(("run_time", key))
        self.checkups.stop(key)
        ended = self._end if final else self._ended
        self._leaving.depart(container_id, record.task.device_uuids, key.task_id, lambda: ended(key, verdict))

    # --- restarts ----------------------------------------------------------------------------------------------------

    def _ended(self, key: TaskKey, verdict: Verdict) -> None:
        """The container of a task is no more, and the task has ended with it, or is started again."""
        books, record = self._books, self._books.state.tasks[key]
        if not wants_restart(record, verdict):
            self._end(key, verdict)
            return
        container_id, policy = container_of(books.info.agent_id, key), record.task.spec.restart
        row = next_in_row(record, books.now.wall_ms)
        asked = record.restart_asked and record.healthy is not False
        delay_ms = 0 if asked or policy is None else policy.backoff(row)
        message = words_for(record, verdict, delay_ms)
        books.log("info", "a task is started again", **names(key), reason=message)
        books.starting.discard(container_id)
        books.deadlines.cancel(("kill", container_id))
        books.deadlines.cancel(("run_time", key))
        self.checkups.stop(key)
        record = replace(
            record,
            kill=None,
            kill_message="",
            healthy=None,
            check=None,
            restarts=record.restarts + 1,
            restarts_in_row=row,
            waiting=True,
            relaunching=False,
            restart_asked="",
        )
        self._reporting.report(record, Verdict(record.state, StatusReason.RESTARTING, message))
        books.effects.append(RemoveContainer(container_id))
        books.deadlines.set(("restart", key), books.now.monotonic_ms + delay_ms)

    def restart_due(self, key: TaskKey) -> None:
        """Begin another run: its devices are looked up anew, as they may have changed (B-03)."""
        books, record = self._books, self._books.state.tasks[key]
        container_id = container_of(books.info.agent_id, key)
        if any(uuid in books.busy for uuid in record.task.device_uuids) and not lost_device(record.task, books.devices):
            books.deadlines.set(("restart", key), books.now.monotonic_ms + BUSY_PAUSE_MS)
            return
        if lost := lost_device(record.task, books.devices):
            self._end(key, Verdict(TaskState.FAILED, StatusReason.DEVICE_LOST, f"it cannot be started again: {lost}"))
            return
        books.persist(
            TaskSaved(replace(record, waiting=False, relaunching=True, pulled=False, boot_id=books.info.boot_id))
        )
        books.release(container_id, record.task)
        self._start(key)

    def restart(self, message: RestartTask) -> None:
        """Somebody wants it to begin again; what does not run is left as it is, and an order is carried out once."""
        key = TaskKey(message.framework_id, message.task_id)
        record = self._books.state.tasks.get(key)
        if record is None or record.state is not TaskState.RUNNING:
            return
        if message.number and message.number <= record.restart_order:
            return
        if message.number:
            record = replace(record, restart_order=message.number)
            self._books.persist(TaskSaved(record))
        if record.relaunching or record.restart_asked:
            # It begins anew already: once is enough.
            return
        ended = container_of(self._books.info.agent_id, key) in self._leaving
        spec = record.task.spec
        if ended or spec.task_group is not None or spec.executor is not None:
            return
        if record.waiting:
            self._books.deadlines.set(("restart", key), self._books.now.monotonic_ms)
            return
        self._end_run(record, message.message or "somebody asked for it", message.grace_ms)

    def _end_run(self, record: TaskRecord, why: str, grace_ms: int | None = None) -> None:
        """End its container, not the task."""
        key = record.key
        self._reporting.report(
            replace(record, restart_asked=why), Verdict(TaskState.RUNNING, StatusReason.RESTARTING, f"ending it: {why}")
        )
        kill = KillTask(key.framework_id, key.task_id, grace_ms=grace_ms)
        self._books.kill_container(container_of(self._books.info.agent_id, key), grace_ms_of(record.task, kill))

    def _end(self, key: TaskKey, verdict: Verdict) -> None:
        """The container of a task is no more, and so is the task."""
        container_id = container_of(self._books.info.agent_id, key)
        record = self._books.state.tasks[key]
        self._books.starting.discard(container_id)
        del self._books.live[container_id]
        self._books.release(container_id, record.task)
        self._books.deadlines.cancel(("kill", container_id))
        self._books.deadlines.cancel(("restart", key))
        self._books.deadlines.cancel(("run_time", key))
        self.checkups.stop(key)
        self._reporting.report(record, verdict)
        if record.task.spec.runs_on:
            return
        if record.task.spec.is_executor:
            self.executors.ended(key)
        self._books.effects.append(RemoveContainer(container_id))

"""Tasks as containers of a Docker engine.

The engine keeps everything: what runs is found again by label, exit codes and outputs stay with the container until it is
removed. One thread reads the engine's events; all other calls go to bounded pools. When the engine goes away its containers
are given `engine_patience_s` to be seen again, then they are reported lost; one that turns out to have survived is removed.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
import socket
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import docker.errors

from bursar.agent.containers import checks, docker_sessions
from bursar.agent.containers.device_reach import out_of_reach
from bursar.agent.containers.docker_engine import (
    CONNECTION_ERRORS,
    ENGINE_ERRORS,
    LABEL_CONTAINER,
    DockerEngine,
    Phase,
    Seen,
    root_cause,
    words_of,
)
from bursar.agent.containers.docker_events import EventThread
from bursar.agent.containers.docker_images import DockerImages
from bursar.agent.containers.docker_launch import launch
from bursar.agent.containers.docker_logs import LogPumps
from bursar.agent.containers.docker_network import release_holder, sweep_holders
from bursar.agent.containers.docker_watch import Watch, Watched
from bursar.agent.containers.logs import DEFAULT_LOG_LIMIT_BYTES
from bursar.agent.containers.process import boot_id
from bursar.agent.containers.runtime import (
    ContainerExit,
    ContainerId,
    ContainerSpec,
    ExitCallback,
    ImageMissing,
    LaunchFailed,
    NetworkId,
    ProgressCallback,
    RecoveredContainer,
    RuntimeUnavailable,
)
from bursar.agent.containers.sessions import Session, SessionRefused
from bursar.core.ids import AgentId
from bursar.core.images import Image
from bursar.core.lives import Check, CheckStatus
from bursar.core.messages.sessions import SessionStart
from bursar.core.tasks import StatusReason

log = logging.getLogger(__name__)

_T = TypeVar("_T")

#: More starts in flight per core only add latency.
_STARTS_PER_CORE = 2
_CALLS = 4
_PULLS = 2
_CHECKS = 8
#: So long is waited for the end of a container that nobody accounts for, before that is tried again.
_STRAY_ENDS_S, _STRAY_PAUSE_S = 8.0, 0.05
#: What an engine that is being stopped makes of its containers.
_CODES_OF_A_STOPPING_ENGINE = (137, 143)
#: What an engine makes of a container that it lost sight of.
_CODES_OF_A_LOST_ENGINE = (137, 255)


class DockerRuntime:
    """Runs tasks in containers.

    `network_mode` is Docker's (`bridge`, `none`, `host`, …); `base_url` of None takes `DOCKER_HOST` or the usual socket.
    `log_limit_bytes` holds for each output in the sandbox; the engine keeps about twice that for both together.
    """

    name = "docker"

    def __init__(
        self,
        agent_id: AgentId,
        *,
        network_mode: str = "bridge",
        log_limit_bytes: int = DEFAULT_LOG_LIMIT_BYTES,
        log_check_interval_s: float = 1.0,
        engine_patience_s: float = 10.0,
        base_url: str | None = None,
    ) -> None:
        self.own_network = network_mode != "host"
        starts = _STARTS_PER_CORE * (os.cpu_count() or 1)
        self._engine = DockerEngine(
            agent_id, "", network_mode, log_limit_bytes, base_url, starts + _CALLS + _PULLS + _CHECKS + 8
        )
        self._starts = ThreadPoolExecutor(starts, "docker-start")
        self._calls = ThreadPoolExecutor(_CALLS, "docker-call")
        self._pulls = ThreadPoolExecutor(_PULLS, "docker-pull")
        self._checks = ThreadPoolExecutor(_CHECKS, "docker-check")
        self._images = DockerImages(self._engine, self._pulls)
        self._log_check_interval_s = log_check_interval_s
        self._engine_patience_s = engine_patience_s
        self._watch = Watch()
        #: Reported lost while the engine was away; removed when it is back, before anything is started again.
        self._lost: set[ContainerId] = set()
        self._pumps = LogPumps(self._engine, log_limit_bytes)
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_up = False
        #: Set while the engine does not answer.
        self._gone = asyncio.Event()
        self._is_closing = threading.Event()
        self._events: EventThread | None = None
        self._patience_timer: asyncio.TimerHandle | None = None
        self._log_timer: asyncio.TimerHandle | None = None
        self._first_connect = asyncio.Event()

    async def open(self, on_exit: ExitCallback) -> None:
        """Connect to the engine and listen to its events. Raises RuntimeUnavailable."""
        loop = asyncio.get_running_loop()
        self._watch.open(on_exit)
        self._engine.boot_id = boot_id()
        try:
            await loop.run_in_executor(self._calls, self._engine.connect)
        except ENGINE_ERRORS as error:
            raise RuntimeUnavailable(
                f"no Docker engine can be used here: {root_cause(error)}; start one and see that this user may talk to it, "
                "or run tasks as plain processes with --runtime process"
            ) from error
        self._first_connect = asyncio.Event()
        self._events = EventThread(
            self._engine, loop, self._is_closing, self._on_event, self._connected, self._disconnected
        )
        self._events.start()
        try:
            await asyncio.wait_for(self._first_connect.wait(), self._engine_patience_s)
        except TimeoutError:
            raise RuntimeUnavailable(
                "the Docker engine answers, but tells no events; restart it, or use --runtime process"
            ) from None
        self._log_timer = loop.call_later(self._log_check_interval_s, self._look_round)

    async def recover(self) -> list[RecoveredContainer]:
        """List this agent's containers; those never started are removed. Raises RuntimeUnavailable."""
        try:
            return await self._recover()
        except ENGINE_ERRORS as error:
            raise RuntimeUnavailable(f"the Docker engine went away: {root_cause(error)}") from error

    async def _recover(self) -> list[RecoveredContainer]:
        recovered = []
        for seen in await self._call(self._engine.containers):
            if seen.container_id in self._watch:
                continue
            if seen.phase is Phase.CREATED:
                await self._call(self._engine.remove, seen.container_id, True)
            elif seen.phase is Phase.RUNNING:
                watched = self._watch.begin(Watched(seen.container_id, Path(seen.sandbox)))
                watched.is_started = True
                watched.witness_of(seen.pid)
                recovered.append(RecoveredContainer(seen.container_id, None))
            else:
                recovered.append(RecoveredContainer(seen.container_id, seen.exit))
        # One may have ended between the listing and our watching.
        await self._look_again([found.container_id for found in recovered if found.exit is None])
        await self._call(sweep_holders, self._engine)
        engine = self._engine
        if left := await self._call(docker_sessions.end_left, engine.api, engine.agent_id, engine.life):
            log.warning("ended %d programs that an earlier life of this agent had started in containers", left)
        return recovered

    async def start(self, spec: ContainerSpec) -> None:
        """Create and start a container. Raises LaunchFailed, ImageMissing."""
        if not spec.image:
            raise LaunchFailed(
                StatusReason.LAUNCH_FAILED,
                "a task without an image cannot run in Docker: name one, or set --default-image",
            )
        if not self._is_up:
            raise LaunchFailed(StatusReason.ENGINE_LOST, "the Docker engine does not answer at the moment")
        watched = self._watch.begin(Watched(spec.container_id, spec.sandbox, spec.memory))
        try:
            end = await self._launch(spec, watched)
        except BaseException as error:
            if not isinstance(error, LaunchFailed):
                self._lost.add(spec.container_id)
            self._watch.drop(watched)
            raise
        if watched.asked_signal:
            self._send(watched, watched.asked_signal)
        self._watch.started(watched, end)

    async def _launch(self, spec: ContainerSpec, watched: Watched) -> ContainerExit | None:
        """The same, with the engine's errors as the interface has them."""
        try:
            return await self._call(launch, self._engine, spec, watched, pool=self._starts)
        except docker.errors.ImageNotFound as error:
            raise ImageMissing(spec.image) from error
        except docker.errors.DockerException as error:
            raise LaunchFailed(StatusReason.LAUNCH_FAILED, words_of(error)) from error
        except CONNECTION_ERRORS as error:
            self._lost.add(spec.container_id)  # it may have come to life all the same
            raise LaunchFailed(StatusReason.ENGINE_LOST, f"the Docker engine went away: {root_cause(error)}") from error

    async def pull(self, image: str, on_progress: ProgressCallback | None = None) -> None:
        """As the interface says."""
        await self._images.pull(image, on_progress)

    async def images(self) -> list[Image]:
        """As the interface says."""
        try:
            return await self._images.listed()
        except ENGINE_ERRORS:
            return []

    async def kill(self, container_id: ContainerId, grace_ms: int) -> None:
        """SIGTERM to the first process, SIGKILL to all after the grace. A second kill can only shorten the grace."""
        watched = self._watch.get(container_id)
        if watched is None:
            return
        loop = asyncio.get_running_loop()
        due = loop.time() + grace_ms / 1000
        if watched.kill_timer is not None:
            if watched.kill_timer.when() <= due:
                return
            watched.kill_timer.cancel()
        elif grace_ms > 0:
            self._send(watched, "SIGTERM")
        if grace_ms <= 0:
            self._send(watched, "SIGKILL")
        else:
            watched.kill_timer = loop.call_at(due, self._send, watched, "SIGKILL")

    async def end_stray(self, container_id: ContainerId) -> None:
        """As the interface says; one of somebody else's that has its name is left alone."""
        loop, pause_s = asyncio.get_running_loop(), _STRAY_PAUSE_S
        until = loop.time() + _STRAY_ENDS_S
        while (seen := await self._call(self._engine.inspect, container_id)) is not None:
            if seen.phase is Phase.ENDED or seen.agent_id != self._engine.agent_id:
                break
            if loop.time() > until:
                raise TimeoutError(f"container {container_id} does not end")
            if seen.phase is Phase.CREATED:
                await self._call(self._engine.remove, container_id, True)
            else:
                await self._call(self._engine.signal, container_id, "SIGKILL")
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, 1.0)
        if (watched := self._watch.get(container_id)) is not None:
            self._apply(watched, seen)

    async def pid_of(self, container_id: ContainerId) -> int:
        """The container's first process, as this machine numbers it; 0 where there is none or the engine does not say."""
        try:
            return await self._call(self._engine.pid, container_id)
        except ENGINE_ERRORS:
            return 0

    async def check(self, container_id: ContainerId, check: Check) -> CheckStatus:
        """A command by the engine's `exec`; a port from inside the network namespace, or by the container's address."""
        try:
            if check.command:
                code = await self._call(
                    self._engine.execute, container_id, check.command, check.timeout, pool=self._checks
                )
                return CheckStatus(exit_code=code)
            return await self._call(self._look, container_id, check, pool=self._checks)
        except ENGINE_ERRORS as error:
            log.warning("container %s: a check cannot be made: %s", container_id, root_cause(error))
            return CheckStatus()

    def _look(self, container_id: ContainerId, check: Check) -> CheckStatus:
        """In a thread."""
        seen = self._engine.inspect(container_id)
        if seen is None or not seen.pid:
            return CheckStatus()
        try:
            connection = checks.socket_of(seen.pid)
        except OSError:
            # Not allowed to go there: by its address then, which is 127.0.0.1 on the host's network.
            make = functools.partial(socket.socket, socket.AF_INET, socket.SOCK_STREAM)
            return checks.look(check, make, seen.address or "127.0.0.1")
        return checks.look(check, lambda: connection)

    async def remove(self, container_id: ContainerId) -> None:
        """Save the outputs in the sandbox and remove the container."""
        if container_id in self._watch:
            log.warning("container %s still runs: not removed", container_id)
            return
        try:
            seen = await self._call(self._engine.inspect, container_id)
            if seen is None or seen.agent_id != self._engine.agent_id:
                return
            if seen.sandbox and Path(seen.sandbox).is_dir():
                await self._pumps.save(container_id, Path(seen.sandbox))
            await self._call(self._engine.remove, container_id)
        except ENGINE_ERRORS as error:
            # It is found again, by its label, when the engine is back and the agent asks what there is.
            log.warning("container %s cannot be removed now: %s", container_id, root_cause(error))

    async def release_network(self, network_id: NetworkId) -> None:
        """Remove the container that held it."""
        await self._call(release_holder, self._engine, network_id)

    async def prepare_logs(self, container_id: ContainerId) -> None:
        """Copy the outputs to the sandbox from now on, beginning with what was printed before."""
        if (watched := self._watch.get(container_id)) is not None:
            self._pumps.follow(container_id, watched.sandbox)

    def pinning(self, uuids: Sequence[str]) -> str:
        """How GPUs are given to containers of this engine, as it was when the agent connected."""
        return self._engine.facts.devices.way(uuids).value

    async def open_session(self, container_id: ContainerId, start: SessionStart) -> Session:
        """As the interface says."""
        if container_id not in self._watch:
            raise SessionRefused("the task does not run any more")
        if not self._is_up:
            raise SessionRefused("the Docker engine does not answer at the moment")
        return await docker_sessions.open_session(self._engine, self._calls, container_id, start)

    def running(self) -> set[ContainerId]:
        """See `ContainerLister`."""
        return {seen.container_id for seen in self._engine.containers() if seen.phase is Phase.RUNNING}

    def usages(self, container_ids: Iterable[ContainerId]) -> dict[ContainerId, dict[str, int]]:
        """See `UsageReader`."""
        return docker_sessions.usages(self._engine, container_ids)

    def out_of_reach(self, container_ids: Iterable[ContainerId]) -> dict[ContainerId, tuple[str, ...]]:
        """See `ReachTeller`. What comes by names of CDI is not known by its nodes, and the engine knows it itself."""
        given = {}
        for container_id in container_ids:
            with contextlib.suppress(docker.errors.NotFound):
                given[container_id] = self._engine.given_nodes(container_id)
        return out_of_reach(given)

    async def close(self) -> None:
        """Stop listening; containers run on."""
        self._is_closing.set()
        for timer in (self._patience_timer, self._log_timer):
            if timer is not None:
                timer.cancel()
        self._watch.close()
        self._pumps.stop()
        if self._events is not None:
            await asyncio.to_thread(self._events.stop)
        for task in list(self._tasks):
            task.cancel()
        for pool in (self._starts, self._calls, self._pulls, self._checks):
            pool.shutdown(wait=False, cancel_futures=True)
        self._engine.close()

    # What the event thread tells, in the event loop.

    def _on_event(self, event: dict[str, Any]) -> None:
        attributes = (event.get("Actor") or {}).get("Attributes") or {}
        watched = self._watch.get(ContainerId(attributes.get(LABEL_CONTAINER, "")))
        if watched is None:
            return
        if event.get("Action", event.get("status")) == "oom":
            watched.note_oom()
            return
        try:
            code = int(attributes.get("exitCode", ""))
        except ValueError:
            code = None
        if code in _CODES_OF_A_STOPPING_ENGINE and not watched.asked_signal:
            self._spawn(self._suspect(watched, code))
        elif code is None or (code != 0 and (watched.had_oom or code == 137)):
            self._spawn(self._look_again([watched.container_id]))
        else:
            self._watch.ended(watched, ContainerExit(code, StatusReason.COMMAND_EXITED, f"exited with code {code}"))

    async def _suspect(self, watched: Watched, code: int) -> None:
        """A task was killed, and not by us: is the engine being stopped?

        Then it takes no new calls, though it tells of ends until its last container is stopped, which may take long.
        Where systemd holds its socket, a new call is neither refused nor answered, and its going away tells.
        """
        gone = asyncio.ensure_future(self._gone.wait())
        answer = asyncio.ensure_future(self._call(self._engine.takes_calls, self._engine_patience_s))
        try:
            await asyncio.wait({gone, answer}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            gone.cancel()
        if not self._gone.is_set() and answer.result():
            await self._look_again([watched.container_id])
        else:
            self._lost.add(watched.container_id)  # what is left of it cannot be removed now
            self._watch.ended(watched, ContainerExit(code, StatusReason.ENGINE_LOST, "the Docker engine was stopped"))

    def _connected(self, after_outage: bool) -> None:
        self._gone.clear()
        if self._patience_timer is not None:
            self._patience_timer.cancel()
            self._patience_timer = None
        self._first_connect.set()
        if after_outage:
            self._spawn(self._reconcile())
        else:
            self._is_up = True

    def _disconnected(self, why: str) -> None:
        if self._is_closing.is_set():
            return
        if self._is_up:
            log.warning("the Docker engine is gone: %s", why)
        self._is_up = False
        self._gone.set()
        if self._patience_timer is None:
            loop = asyncio.get_running_loop()
            self._patience_timer = loop.call_later(self._engine_patience_s, self._give_up, why)

    def _give_up(self, why: str) -> None:
        """The engine did not come back in time: its tasks are lost."""
        for watched in self._watch:
            if watched.is_started:
                self._lost.add(watched.container_id)
                self._watch.ended(
                    watched, ContainerExit(None, StatusReason.ENGINE_LOST, f"the Docker engine is gone: {why}")
                )

    async def _reconcile(self) -> None:
        """The engine is back: what has become of its containers?"""
        try:
            there = {seen.container_id: seen for seen in await self._call(self._engine.containers)}
        except ENGINE_ERRORS as error:
            log.warning("the Docker engine is back, but does not answer: %s", root_cause(error))
            if self._events is not None:
                self._events.reconnect()
            return
        await self._remove_lost()
        log.info("the Docker engine is back")
        self._is_up = True
        for watched in self._watch:
            if watched.is_started:
                self._apply(watched, there.get(watched.container_id), after_outage=True)

    async def _remove_lost(self) -> None:
        """What was reported lost must not live on: its devices are somebody else's by now."""
        for container_id in list(self._lost):
            try:
                await self._call(self._engine.remove, container_id, True)
            except ENGINE_ERRORS as error:
                log.warning("container %s cannot be removed now: %s", container_id, root_cause(error))
            else:
                self._lost.discard(container_id)

    async def _look_again(self, container_ids: list[ContainerId]) -> None:
        """Ask the engine itself how containers are."""
        for container_id in container_ids:
            try:
                seen = await self._call(self._engine.inspect, container_id)
            except ENGINE_ERRORS as error:
                log.warning("container %s: %s", container_id, root_cause(error))
                continue  # its end will be found when the engine is back
            if (watched := self._watch.get(container_id)) is not None:
                self._apply(watched, seen)

    def _apply(self, watched: Watched, seen: Seen | None, after_outage: bool = False) -> None:
        if seen is None:
            self._watch.ended(
                watched, ContainerExit(None, StatusReason.CONTAINER_LOST, "the container was removed by somebody")
            )
        elif seen.exit is not None:
            end = seen.exit
            if after_outage and end.reason is StatusReason.COMMAND_EXITED and end.exit_code in _CODES_OF_A_LOST_ENGINE:
                end = ContainerExit(
                    end.exit_code, StatusReason.ENGINE_LOST, "the task ended when the Docker engine did"
                )
            self._watch.ended(watched, end)

    # Small parts.

    def _send(self, watched: Watched, name: str) -> None:
        if self._watch.get(watched.container_id) is watched:
            watched.asked_signal = name
            self._spawn(self._signal(watched.container_id, name))

    async def _signal(self, container_id: ContainerId, name: str) -> None:
        try:
            await self._call(self._engine.signal, container_id, name)
        except ENGINE_ERRORS as error:
            log.warning("container %s: cannot send %s: %s", container_id, name, root_cause(error))

    def _look_round(self) -> None:
        for watched in self._watch:
            watched.look()
        self._pumps.cut()
        self._log_timer = asyncio.get_running_loop().call_later(self._log_check_interval_s, self._look_round)

    async def _call(self, function: Callable[..., _T], *arguments: Any, pool: ThreadPoolExecutor | None = None) -> _T:
        return await asyncio.get_running_loop().run_in_executor(pool or self._calls, function, *arguments)

    def _spawn(self, coroutine: Any) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

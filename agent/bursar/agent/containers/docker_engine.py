"""Docker's engine as this agent uses it: blocking calls, called from threads, with the engine's refusals put into our words.

Containers are addressed by their name, which is our container id.
"""

from __future__ import annotations

import contextlib
import datetime
import enum
import http.client
import logging
import os
import signal
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import docker
import docker.errors
import psutil
import requests.exceptions
import urllib3.exceptions
from docker.types import LogConfig, Mount
from docker.utils import parse_repository_tag

from bursar.agent.containers.device_access import EngineDevices, access, engine_devices
from bursar.agent.containers.evidence import BUS_ERROR, Testimony, judge
from bursar.agent.containers.limits import host_limits
from bursar.agent.containers.logs import LogStream
from bursar.agent.containers.runtime import ContainerExit, ContainerId, ContainerSpec, LaunchFailed
from bursar.agent.pinning import CONTAINER_SANDBOX
from bursar.core.ids import AgentId
from bursar.core.images import Image
from bursar.core.service_ports import ServicePort
from bursar.core.tasks import StatusReason

log = logging.getLogger(__name__)

LABEL_AGENT = "bursar.agent_id"
LABEL_FRAMEWORK = "bursar.framework_id"
LABEL_TASK = "bursar.task_id"
LABEL_CONTAINER = "bursar.container_id"
LABEL_SANDBOX = "bursar.sandbox"
LABEL_BOOT = "bursar.boot_id"
#: In the environment of every program that an agent starts in a container: `AGENT_ID/LIFE`. What an earlier life left is known by it.
SESSION_VARIABLE = "BURSAR_SESSION"

#: The engine refuses less.
_MIN_MEM_BYTES = 6 * 2**20
_CPU_PERIOD_US = 100_000
_MIN_CPU_QUOTA_US = 1000
_MIN_CPU_SHARES, _MAX_CPU_SHARES = 2, 262_144
#: Rarely rotated: one who follows an output while the engine rotates it quickly is left behind, or loses lines.
_MIN_ENGINE_LOG_BYTES = 4 * 2**20
_CALL_TIMEOUT_S = 60

#: What talking to an engine that is not there, or goes away meanwhile, raises.
CONNECTION_ERRORS: tuple[type[Exception], ...] = (
    requests.exceptions.RequestException,
    urllib3.exceptions.HTTPError,
    http.client.HTTPException,
    OSError,
)
#: The same, and what an engine that is there refuses.
ENGINE_ERRORS: tuple[type[Exception], ...] = (docker.errors.DockerException, *CONNECTION_ERRORS)


class Phase(enum.Enum):
    """Where the engine says that a container is."""

    #: Made, never started.
    CREATED = enum.auto()
    RUNNING = enum.auto()
    ENDED = enum.auto()


@dataclass(frozen=True, slots=True)
class Seen:
    """A container as the engine describes it."""

    container_id: ContainerId
    phase: Phase
    sandbox: str
    agent_id: str
    #: Set where it has ended.
    exit: ContainerExit | None = None
    #: Of its first process, as the engine counts; 0 where it does not run.
    pid: int = 0
    #: In the engine's network; empty on the host's.
    address: str = ""


@dataclass(slots=True)
class EngineFacts:
    """What was learnt at connecting."""

    devices: EngineDevices = EngineDevices()
    version: str = ""
    #: Whether containers may be allowed to lock memory; until one was refused (an engine that is itself in a container).
    raises_memlock: bool = True


@dataclass(slots=True)
class DockerEngine:
    """One connection pool to the engine. All methods block; all but `connect` may raise CONNECTION_ERRORS."""

    agent_id: AgentId
    boot_id: str
    network_mode: str
    log_limit_bytes: int
    base_url: str | None
    connections: int
    facts: EngineFacts = field(default_factory=EngineFacts)
    #: Of this object: no other one has it.
    nonce: str = field(default_factory=lambda: uuid.uuid4().hex[:12])
    _client: Any = None

    def connect(self) -> None:
        """Find the engine and ask what it can do. Raises DockerException and CONNECTION_ERRORS."""
        client = self._new_client(version="auto", timeout=_CALL_TIMEOUT_S, max_pool_size=self.connections)
        info = client.info()
        self.facts = EngineFacts(engine_devices(info), str(info.get("ServerVersion", "")))
        self._client = client

    def _new_client(self, **options: Any) -> Any:
        if self.base_url:
            return docker.DockerClient(base_url=self.base_url, **options)
        return docker.from_env(**options)

    def takes_calls(self, timeout_s: float) -> bool:
        """Whether a new connection is answered in time: an engine closes its door before it stops its containers."""
        try:
            client = self._new_client(version=self._api.api_version, timeout=timeout_s)
            try:
                return bool(client.ping())
            finally:
                client.close()
        except ENGINE_ERRORS:
            return False

    def close(self) -> None:
        """Close idle connections."""
        if self._client is not None:
            self._client.close()

    @property
    def life(self) -> str:
        """The value of SESSION_VARIABLE."""
        return f"{self.agent_id}/{self.nonce}"

    @property
    def api(self) -> Any:
        """The client itself, for sessions."""
        return self._client.api

    @property
    def _api(self) -> Any:
        return self._client.api

    def usage(self, container_id: ContainerId) -> dict[str, Any]:
        """What the engine says that a container uses. Raises DockerException too."""
        found: dict[str, Any] = self._api.stats(str(container_id), stream=False, one_shot=True)
        return found

    def create(self, spec: ContainerSpec, network_mode: str = "") -> None:
        """Make a container, in a network of its own unless `network_mode` says otherwise. Raises ImageNotFound (docker's), LaunchFailed, FileExistsError for a name that is taken."""
        try:
            self._api.create_container_from_config(self._config(spec, network_mode), str(spec.container_id))
        except docker.errors.ImageNotFound:
            raise
        except docker.errors.APIError as error:
            if error.status_code == 409:
                raise FileExistsError(str(spec.container_id)) from error
            if error.status_code == 404 and "image" in words_of(error).lower():
                raise docker.errors.ImageNotFound(str(error), error.response, error.explanation) from error
            raise LaunchFailed(StatusReason.LAUNCH_FAILED, words_of(error)) from error

    def start(self, container_id: ContainerId) -> ContainerExit | None:
        """Start a container; or say how it ended where its command cannot be run. Raises LaunchFailed."""
        try:
            self._api.start(str(container_id))
        except docker.errors.APIError as error:
            words = words_of(error)
            code = _shell_code(words)
            if code is not None:
                return ContainerExit(code, StatusReason.COMMAND_EXITED, words)
            raise LaunchFailed(StatusReason.LAUNCH_FAILED, words) from error
        return None

    def pull(self, image: str) -> Any:
        """Pull an image: an iterator over what the engine tells, with `close()`. Raises DockerException too."""
        repository, tag = parse_repository_tag(image)
        return self._api.pull(repository, tag=tag or "latest", stream=True, decode=True)

    def images(self) -> list[Image]:
        """Every image that has a name, or is nobody's layer. Raises DockerException too."""
        found = []
        for one in self._api.images():
            names = [name for name in one.get("RepoTags") or () if name != "<none>:<none>"]
            found.append(Image(str(one.get("Id", "")), tuple(sorted(names)), int(one.get("Size") or 0)))
        return found

    def signal(self, container_id: ContainerId, name: str) -> None:
        """Send a signal; a container that is not there or has ended is none of our concern."""
        try:
            self._api.kill(str(container_id), signal=name)
        except docker.errors.APIError as error:
            if error.status_code not in (404, 409):
                log.warning("container %s: cannot send %s: %s", container_id, name, words_of(error))

    def remove(self, container_id: ContainerId, force: bool = False) -> None:
        """Remove a container and its anonymous volumes; idempotent."""
        try:
            self._api.remove_container(str(container_id), v=True, force=force)
        except docker.errors.APIError as error:
            if error.status_code not in (404, 409):
                log.warning("container %s: cannot remove it: %s", container_id, words_of(error))

    def execute(self, container_id: ContainerId, command: Sequence[str], timeout_ms: int) -> int | None:
        """Run a command in a running container; its exit code, or None where it had to be ended. What it prints is dropped.

        Raises APIError.
        """
        mark = {SESSION_VARIABLE: self.life}
        made = self._api.exec_create(str(container_id), list(command), stdout=False, stderr=False, environment=mark)
        self._api.exec_start(made["Id"], detach=True)
        until = time.monotonic() + timeout_ms / 1000
        pause_s = 0.01
        while True:
            state = self._api.exec_inspect(made["Id"])
            if not state.get("Running") and state.get("ExitCode") is not None:
                return int(state["ExitCode"])
            if time.monotonic() > until:
                # The engine has no call for this; where its processes are not ours to see, it stays until the task ends.
                if pid := state.get("Pid"):
                    with contextlib.suppress(OSError):
                        os.kill(int(pid), signal.SIGKILL)
                return None
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, 0.5)

    def inspect(self, container_id: ContainerId) -> Seen | None:
        """One container, None where there is none of this name."""
        try:
            return self._seen(self._api.inspect_container(str(container_id)))
        except docker.errors.NotFound:
            return None

    def pid(self, container_id: ContainerId) -> int:
        """Its first process; 0 where it does not run. Raises NotFound."""
        return int(self._api.inspect_container(str(container_id))["State"].get("Pid") or 0)

    def given_nodes(self, container_id: ContainerId) -> tuple[int, tuple[str, ...]]:
        """Its first process (0: it does not run), and the machine's device nodes that it was given. Raises NotFound."""
        seen = self._api.inspect_container(str(container_id))
        nodes = seen["HostConfig"].get("Devices") or ()
        return int(seen["State"].get("Pid") or 0), tuple(str(node["PathOnHost"]) for node in nodes)

    def containers(self) -> list[Seen]:
        """Every container of this agent, whatever its state."""
        found = []
        for summary in self._api.containers(all=True, filters={"label": f"{LABEL_AGENT}={self.agent_id}"}):
            name = (summary.get("Labels") or {}).get(LABEL_CONTAINER)
            if name and (seen := self.inspect(ContainerId(name))) is not None:
                found.append(seen)
        return found

    def events(self) -> Any:
        """Ends and out-of-memory kills of this agent's containers, as they happen: an iterator with `close()`."""
        filters = {"type": "container", "label": f"{LABEL_AGENT}={self.agent_id}", "event": ["die", "oom"]}
        return self._api.events(decode=True, filters=filters)

    def logs(self, container_id: ContainerId, stream: LogStream, follow: bool) -> Any:
        """One output from its beginning: an iterator over bytes with `close()`. Raises NotFound, APIError."""
        return self._api.logs(
            str(container_id),
            stdout=stream is LogStream.STDOUT,
            stderr=stream is LogStream.STDERR,
            stream=True,
            follow=follow,
        )

    def ping(self) -> None:
        """See whether the engine answers. Raises DockerException too."""
        self._api.ping()

    def _config(self, spec: ContainerSpec, network_mode: str) -> dict[str, Any]:
        mounts = [Mount(CONTAINER_SANDBOX, os.fspath(spec.sandbox.absolute()), type="bind")]
        for extra in (*spec.decoration.mounts, *spec.volumes):
            mounts.append(Mount(extra.target, extra.source, type="bind", read_only=extra.read_only))
        limits = host_limits(spec, lock=self.facts.raises_memlock)
        if spec.mem_bytes:
            limits["mem_limit"] = limits["memswap_limit"] = max(spec.mem_bytes, _MIN_MEM_BYTES)
        if spec.cpus_milli:
            # Not nano_cpus: the engine refuses more than the machine has, and an operator may declare more.
            limits["cpu_period"] = _CPU_PERIOD_US
            limits["cpu_quota"] = max(spec.cpus_milli * _CPU_PERIOD_US // 1000, _MIN_CPU_QUOTA_US)
        if spec.cpuset:
            limits["cpuset_cpus"] = spec.cpuset
        # In a network that others share, it is their holder that has the ports.
        published = {} if network_mode else published_ports(spec.service_ports, self.network_mode)
        requests_, nodes = access(spec.decoration, self.facts.devices)
        host_config = self._api.create_host_config(
            init=True,
            network_mode=network_mode or self.network_mode,
            mounts=mounts,
            cpu_shares=min(max(spec.cpus_milli * 1024 // 1000, _MIN_CPU_SHARES), _MAX_CPU_SHARES),
            log_config=LogConfig(
                type=LogConfig.types.JSON,
                config={"max-size": str(max(self.log_limit_bytes, _MIN_ENGINE_LOG_BYTES)), "max-file": "2"},
            ),
            device_requests=requests_,
            devices=nodes,
            port_bindings=published,
            **limits,
        )
        labels = {
            **spec.labels,
            LABEL_AGENT: self.agent_id,
            LABEL_FRAMEWORK: spec.framework_id,
            LABEL_TASK: spec.task_id,
            LABEL_CONTAINER: spec.container_id,
            LABEL_SANDBOX: os.fspath(spec.sandbox),
            LABEL_BOOT: self.boot_id,
        }
        config: dict[str, Any] = self._api.create_container_config(
            image=spec.image,
            # The command is what runs, whatever entry point the image has; without one the image's own.
            command=None,
            entrypoint=list(spec.command) or None,
            environment={**spec.decoration.environment, **spec.environment},
            working_dir=CONTAINER_SANDBOX,
            user=spec.settings.user or None,
            labels=labels,
            host_config=host_config,
            stop_signal="SIGTERM",
            ports=[(one.container_port, str(one.protocol)) for one in spec.service_ports] if published else None,
        )
        return config

    def _seen(self, description: Mapping[str, Any]) -> Seen:
        state: Mapping[str, Any] = description["State"]
        labels: Mapping[str, str] = description["Config"].get("Labels") or {}
        status = state.get("Status")
        if status == "created":
            phase = Phase.CREATED
        elif status in ("running", "paused", "restarting"):
            phase = Phase.RUNNING
        else:
            phase = Phase.ENDED
        return Seen(
            container_id=ContainerId(description["Name"].lstrip("/")),
            phase=phase,
            sandbox=labels.get(LABEL_SANDBOX, ""),
            agent_id=labels.get(LABEL_AGENT, ""),
            exit=self._exit(state, labels) if phase is Phase.ENDED else None,
            pid=int(state.get("Pid") or 0),
            address=str((description.get("NetworkSettings") or {}).get("IPAddress") or ""),
        )

    def _exit(self, state: Mapping[str, Any], labels: Mapping[str, str]) -> ContainerExit:
        code = int(state.get("ExitCode", 0))
        if labels.get(LABEL_BOOT, self.boot_id) != self.boot_id and _finished_after_boot(state.get("FinishedAt", "")):
            return ContainerExit(None, StatusReason.AGENT_REBOOTED, "the machine was booted again while the task ran")
        error = str(state.get("Error") or "")
        if not error and (state.get("OOMKilled") or code == BUS_ERROR):
            return judge(code, Testimony(), engine_says_oom=bool(state.get("OOMKilled")))
        if error and (shell := _shell_code(error)) is not None:
            code = shell
        return ContainerExit(code, StatusReason.COMMAND_EXITED, error or f"exited with code {code}")


def published_ports(services: Sequence[ServicePort], network_mode: str) -> dict[str, int]:
    """Port inside → port of the host; empty on the host's network, where the task listens there itself. Raises LaunchFailed."""
    if network_mode == "none" and services:
        raise LaunchFailed(
            StatusReason.LAUNCH_FAILED,
            f"containers have no network here, so nobody could reach {services[0].name!r}; leave the service ports out",
        )
    if network_mode == "host":
        return {}
    return {f"{one.container_port}/{one.protocol}": one.host_port for one in services}


def words_of(error: Exception) -> str:
    """The engine's own words, without the request around them."""
    explanation = getattr(error, "explanation", None)
    if isinstance(explanation, bytes):
        explanation = explanation.decode("utf-8", "replace")
    return str(explanation or error).strip()


def root_cause(error: BaseException) -> str:
    """The innermost cause, which is what an operator can act upon (`Permission denied`, `Connection refused`)."""
    seen = set()
    while id(error) not in seen:
        seen.add(id(error))
        inner = error.__cause__ or error.__context__
        if inner is None:
            nested = [part for part in error.args if isinstance(part, BaseException)]
            if not nested:
                break
            inner = nested[0]
        error = inner
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    return words_of(error) if isinstance(error, Exception) else str(error)


def _shell_code(words: str) -> int | None:
    """What a shell would exit with, where the OCI runtime could not run the command itself."""
    lowered = words.lower()
    if "executable file not found" in lowered or ("exec:" in lowered and "no such file or directory" in lowered):
        return 127
    if "exec" in lowered and "permission denied" in lowered:
        return 126
    return None


def _finished_after_boot(text: str) -> bool:
    try:
        finished = datetime.datetime.fromisoformat(text[:19] + "+00:00").timestamp()
    except ValueError:
        return True
    return finished >= psutil.boot_time()

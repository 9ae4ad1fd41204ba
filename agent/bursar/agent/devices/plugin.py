"""Drivers that are not ours, each in a process of its own (field.md F108-12, F108-13).

A plugin may crash, hang or talk nonsense: its process is ended, its devices are unknown (shown, not offered), and it is started again
at a later look, after a pause that grows. Nothing of it is ever loaded into the agent.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NoReturn

from bursar.agent.containers.runtime import Decoration, LaunchFailed, Mount
from bursar.agent.devices.driver import DriverUnavailable
from bursar.agent.devices.external import DockerKeys
from bursar.agent.devices.names import kind_problem, on_this_machine
from bursar.agent.devices.node_users import users_of_nodes
from bursar.agent.devices.script import decoration_of, shown
from bursar.agent.devices.several import unknown
from bursar.agent.devices.users import DeviceUser
from bursar.agent.pinning import visible_id
from bursar.core.devices import Device, DeviceHealth, DeviceLink
from bursar.core.ids import DeviceUuid
from bursar.core.tasks import StatusReason

log = logging.getLogger(__name__)

#: For an answer, the first one included.
TIMEOUT_S = 10.0
#: Between two starts of a process that failed: doubled each time.
FIRST_PAUSE_S, LAST_PAUSE_S = 5.0, 600.0
MAX_DEVICES = 4096
MAX_LINE_BYTES = 4 * 2**20


class _Process:
    """One life of a plugin. Raises DriverUnavailable from its calls, and is dead then."""

    def __init__(self, name: str, params: Mapping[str, str], timeout_s: float) -> None:
        self._name, self._timeout_s = name, timeout_s
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bursar.agent.devices.plugin_host", name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        self._answers: queue.Queue[bytes | None] = queue.Queue()
        for work in (self._read_answers, self._read_words):
            threading.Thread(target=work, daemon=True).start()
        #: What it last wrote to its log.
        self._words = ""
        self.ask(params)

    def ask(self, call: Mapping[str, Any]) -> dict[str, Any]:
        """One call, and its answer."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(call).encode() + b"\n")
            self._process.stdin.flush()
            line = self._answers.get(timeout=self._timeout_s)
        except queue.Empty:
            self._end(f"it did not answer within {self._timeout_s:g} s")
        except OSError:
            line = None
        if line is None:
            self._end("")
        try:
            said = json.loads(line)
        except ValueError:
            self._end(f"its answer is no JSON: {shown(line[:200].decode('utf-8', 'replace'))}")
        if not isinstance(said, dict):
            self._end("its answer is no JSON object")
        if "error" in said:
            self._end(shown(str(said["error"])))
        return said

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    def close(self) -> None:
        """End it, with whatever it started."""
        with contextlib.suppress(OSError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()

    def _end(self, why: str) -> NoReturn:
        """Raises DriverUnavailable with `why`, or with how the process ended."""
        self.close()
        status = self._process.returncode
        if not why:
            how = f"by signal {-status}" if status < 0 else f"with status {status}"
            why = f"its process ended {how}" + (f": {shown(self._words)}" if self._words else "")
        raise DriverUnavailable(f"plugin {self._name}: {why}")

    def _read_answers(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as pipe, contextlib.suppress(OSError, ValueError):
            while line := pipe.readline(MAX_LINE_BYTES):
                self._answers.put(line)
        self._answers.put(None)

    def _read_words(self) -> None:
        assert self._process.stderr is not None
        with self._process.stderr as pipe, contextlib.suppress(OSError, ValueError):
            while line := pipe.readline(MAX_LINE_BYTES):
                self._words = line.decode("utf-8", "replace").strip() or self._words
                log.info("plugin %s: %s", self._name, shown(self._words))


class PluginDevices:
    """The devices of one plugin."""

    #: Its answers come from another process.
    may_block = True

    def __init__(
        self,
        name: str,
        params: Mapping[str, str] | None = None,
        docker: DockerKeys | None = None,
        *,
        timeout_s: float = TIMEOUT_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = f"plugin:{os.path.basename(name)}"
        self._plugin, self._params, self._docker = name, dict(params or {}), docker or DockerKeys()
        self._timeout_s, self._clock = timeout_s, clock
        self._process: _Process | None = None
        self._found: tuple[Device, ...] = ()
        #: Of each device the files that nobody opens but who uses it.
        self._nodes: dict[DeviceUuid, tuple[str, ...]] = {}
        self._pause_s, self._not_before, self._why = 0.0, 0.0, ""
        self._lock = threading.Lock()

    def discover(self) -> tuple[Device, ...]:
        """What the plugin finds; unknown devices while it fails. Raises DriverUnavailable where it never found any."""
        try:
            said = self._ask({"call": "discover"})
            found = tuple(self._device(index, item) for index, item in enumerate(_list_of(said, "devices")))
            if len({device.uuid for device in found}) < len(found):
                raise DriverUnavailable(f"plugin {self._plugin}: it named one device twice")
        except DriverUnavailable as error:
            if not self._found:
                raise
            return tuple(unknown(device, str(error)) for device in self._found)
        self._found = found
        self._nodes = {
            device.uuid: tuple(item.get("nodes", ())) for device, item in zip(found, said["devices"], strict=True)
        }
        return found

    def decorate(self, granted: Sequence[Device], runtime: str) -> Decoration:
        """What the plugin adds, or the settings' `.docker.*` keys where it has no such hook. Raises LaunchFailed."""
        plain = [{"id": visible_id(device), "uuid": device.uuid, "index": device.index} for device in granted]
        settings = decoration_of(self._docker, granted, runtime)
        if not granted and self._process is None:
            return settings
        try:
            said = self._ask({"call": "decorate", "granted": plain, "runtime": runtime}).get("decoration")
            return settings if said is None else _read_decoration(said, settings)
        except (DriverUnavailable, TypeError, AttributeError, KeyError) as error:
            if not granted:
                return settings
            raise LaunchFailed(
                StatusReason.LAUNCH_FAILED,
                f"the devices cannot be given to a container: {error}; launch the task again",
            ) from error

    def users(self, uuids: Collection[DeviceUuid]) -> Mapping[DeviceUuid, tuple[DeviceUser, ...]]:
        """Who has a device's files open, where the plugin names them; itself it may."""
        process = self._process
        asked = {uuid: nodes for uuid in uuids if (nodes := self._nodes.get(uuid))}
        return users_of_nodes(asked, () if process is None else (process.pid,))

    def close(self) -> None:
        """End the plugin's process."""
        with self._lock:
            if self._process is not None:
                self._process.close()
                self._process = None

    def _ask(self, call: Mapping[str, Any]) -> dict[str, Any]:
        """One call, to a new process where the last one failed and the pause is over. Raises DriverUnavailable."""
        with self._lock:
            if self._process is None and self._clock() < self._not_before:
                raise DriverUnavailable(self._why)
            try:
                if self._process is None:
                    self._process = _Process(self._plugin, self._params, self._timeout_s)
                said = self._process.ask(call)
            except (DriverUnavailable, OSError) as error:
                self._process = None
                self._pause_s = min(max(2 * self._pause_s, FIRST_PAUSE_S), LAST_PAUSE_S)
                self._not_before = self._clock() + self._pause_s
                self._why = str(error)
                log.warning("%s; starting it again in %g s at the earliest", error, self._pause_s)
                raise DriverUnavailable(self._why) from error
            self._pause_s = 0.0
            return said

    def _device(self, index: int, item: object) -> Device:
        """One device as the plugin describes it. Raises DriverUnavailable."""
        try:
            return _read_device(index, item, os.path.basename(self._plugin))
        except (ValueError, TypeError, AttributeError, KeyError) as error:
            raise DriverUnavailable(f"plugin {self._plugin}: device {index} is described wrongly: {error}") from error


def _list_of(said: Mapping[str, Any], key: str) -> list[Any]:
    found = said.get(key)
    if not isinstance(found, list) or len(found) > MAX_DEVICES:
        raise DriverUnavailable(f"it answered without a list of at most {MAX_DEVICES} {key}")
    return found


def _read_device(index: int, item: Any, driver: str) -> Device:
    kind, native = str(item["kind"]), str(item["id"])
    if problem := kind_problem(kind):
        raise ValueError(problem)
    numa, nodes = item.get("numa_node"), item.get("nodes", [])
    if not isinstance(nodes, list) or not all(isinstance(node, str) for node in nodes):
        raise ValueError("its nodes are no list of paths")
    reason = str(item.get("unhealthy", "") or "")
    links = [
        DeviceLink(on_this_machine(kind, str(to)), "link", int(strength)) for to, strength in item.get("links", ())
    ]
    return Device(
        uuid=DeviceUuid(on_this_machine(kind, native)),
        kind=kind,
        model=shown(str(item.get("model", ""))),
        mem_bytes=max(0, int(item.get("mem_bytes", 0))),
        index=index,
        numa_node=None if numa is None else int(numa),
        pci_address=str(item.get("pci_address", "")),
        links=tuple(links),
        health=DeviceHealth.UNHEALTHY if reason else DeviceHealth.HEALTHY,
        health_reason=shown(reason),
        driver=driver,
        attributes={
            "visible_as": native,
            **{str(name): str(value) for name, value in item.get("attributes", {}).items()},
        },
    )


def _read_decoration(said: Mapping[str, Any], settings: Decoration) -> Decoration:
    """A plain map of the plugin, on top of the settings'."""
    mounts = [
        Mount(str(one["source"]), str(one["target"]), bool(one.get("read_only", True)))
        for one in said.get("mounts", ())
    ]
    return Decoration(
        device_nodes=(*settings.device_nodes, *map(str, said.get("device_nodes", ()))),
        mounts=tuple(mounts),
        cdi=tuple(map(str, said.get("cdi", ()))),
        pinning={**settings.pinning, **{str(name): str(value) for name, value in said.get("environment", {}).items()}},
    )

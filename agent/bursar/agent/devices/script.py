"""FLIP-108's discovery script (field.md F108-05): a program prints which devices there are, and the agent offers those.

The contract: the first argument is the amount, then the user's own; standard output is one line, comma-separated, blanks dropped;
further lines are warned about and ignored; another exit status than 0 means that discovery failed; 10 seconds at most. The path is
absolute or relative to the home directory, and is checked when the agent starts.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shlex
import signal
import subprocess
import threading
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from bursar.agent.containers.runtime import Decoration
from bursar.agent.devices.driver import DriverUnavailable
from bursar.agent.devices.external import DockerKeys, ExternalResource
from bursar.agent.devices.names import id_problem, on_this_machine
from bursar.agent.devices.node_users import users_of_nodes
from bursar.agent.devices.users import DeviceUser
from bursar.agent.pinning import visible_id
from bursar.core.devices import Device
from bursar.core.errors import InvalidText
from bursar.core.ids import DeviceUuid

log = logging.getLogger(__name__)

PATH_KEY, ARGS_KEY = "discovery-script.path", "discovery-script.args"
TIMEOUT_S = 10.0
#: What is read of each output, and what of it is logged.
MAX_OUTPUT_BYTES, MAX_LOGGED = 65_536, 2000


class ScriptDevices:
    """The devices that a script names. It is asked until it has answered well, and then not again: what it says holds."""

    def __init__(self, resource: ExternalResource, home: Path, timeout_s: float = TIMEOUT_S) -> None:
        """Raises InvalidText where the script is not there or cannot be executed."""
        self.name = f"script:{resource.name}"
        self._resource = resource
        self._timeout_s = timeout_s
        self._command = script_command(resource, home)
        self._found: tuple[Device, ...] = ()

    def discover(self) -> tuple[Device, ...]:
        """What the script names, at most the amount. Raises DriverUnavailable with what it did wrong."""
        if not self._found:
            items = self._read(_run(self._command, self._timeout_s))
            self._found = tuple(
                Device(
                    uuid=on_this_machine(self._resource.kind, item),
                    kind=self._resource.kind,
                    index=index,
                    driver="script",
                    attributes={"index": item, "visible_as": item},
                )
                for index, item in enumerate(items)
            )
        return self._found

    def decorate(self, granted: Sequence[Device], runtime: str) -> Decoration:
        """As the `.docker.*` keys say."""
        return decoration_of(self._resource.docker, granted, runtime)

    def users(self, uuids: Collection[DeviceUuid]) -> Mapping[DeviceUuid, tuple[DeviceUser, ...]]:
        """Who has the nodes of a device open that are its own: those that are named by its `{index}`."""
        own = [text for text in self._resource.docker.devices if "{index}" in text]
        items = {device.uuid: visible_id(device) for device in self._found}
        return users_of_nodes(
            {uuid: [text.replace("{index}", items[uuid]) for text in own] for uuid in uuids if uuid in items}
        )

    def close(self) -> None:
        """Nothing to let go of."""

    def _read(self, output: str) -> list[str]:
        script, resource = self._command[0], self._resource
        lines = [line for line in output.splitlines() if line.strip()]
        if len(lines) > 1:
            log.warning("%s printed %d lines, only the first counts: %s", script, len(lines), shown(lines[0]))
        items = [item.strip() for item in (lines[0] if lines else "").split(",") if item.strip()]
        for item in items:
            if problem := id_problem(item):
                raise DriverUnavailable(f"{script} printed what is no list of devices: {problem}")
        if twice := [item for item in dict.fromkeys(items) if items.count(item) > 1]:
            raise DriverUnavailable(f"{script} named {twice[0]!r} twice: each device is to be named once")
        if len(items) < resource.amount:
            raise DriverUnavailable(
                f"{script} named {len(items)} {resource.kind}, external-resource.{resource.name}.amount wants {resource.amount}:"
                " lower the amount, or find out why the script does not see them all"
            )
        if len(items) > resource.amount:
            log.warning("%s named %d %s, the first %d are offered", script, len(items), resource.kind, resource.amount)
        return items[: resource.amount]


def script_command(resource: ExternalResource, home: Path) -> list[str]:
    """The program and its arguments. Raises InvalidText."""
    key = f"external-resource.{resource.name}.param.{PATH_KEY}"
    text = resource.params.get(PATH_KEY, "")
    if not text:
        raise InvalidText(
            f"external-resources: {key} is missing", "name the script, absolute or relative to the home directory"
        )
    path = home / Path(text).expanduser()
    if not path.is_file():
        raise InvalidText(f"external-resources: {key}: {path} is not there", "give the path of the discovery script")
    if not os.access(path, os.X_OK):
        raise InvalidText(f"external-resources: {key}: {path} is not executable", f"chmod +x {shlex.quote(str(path))}")
    try:
        arguments = shlex.split(resource.params.get(ARGS_KEY, ""))
    except ValueError as error:
        raise InvalidText(
            f"external-resources: {key.removesuffix(PATH_KEY)}{ARGS_KEY}: {error}", "close the quotes"
        ) from None
    return [str(path), str(resource.amount), *arguments]


def decoration_of(keys: DockerKeys, granted: Sequence[Device], runtime: str) -> Decoration:
    """The variables everywhere, the device nodes in `docker`; without devices the variables are empty."""
    items = [visible_id(device) for device in granted]
    nodes = [text.replace("{index}", item) for item in items for text in keys.devices] if runtime == "docker" else []
    pinning: Mapping[str, str] = {
        name: ",".join(items) or ("void" if name == "NVIDIA_VISIBLE_DEVICES" else "") for name in keys.env
    }
    return Decoration(device_nodes=tuple(dict.fromkeys(nodes)), pinning=pinning)


def _run(command: Sequence[str], timeout_s: float) -> str:
    """Standard output. Raises DriverUnavailable."""
    script = command[0]
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            close_fds=True,
        )
    except OSError as error:
        raise DriverUnavailable(f"{script} cannot be run: {error.strerror or error}") from error
    outputs: list[bytes] = [b"", b""]
    assert process.stdout is not None and process.stderr is not None
    readers = [
        threading.Thread(target=_read_some, args=(pipe, outputs, number), daemon=True)
        for number, pipe in enumerate((process.stdout, process.stderr))
    ]
    for reader in readers:
        reader.start()
    try:
        status = process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        status = None
    # What it left behind would keep the pipes open.
    with contextlib.suppress(OSError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for reader in readers:
        reader.join(1.0)
    process.stdout.close()
    process.stderr.close()
    said = " ".join(shown(text.decode("utf-8", "replace")) for text in outputs if text.strip())
    if status is None:
        raise DriverUnavailable(
            f"{script} did not end within {timeout_s:g} s and was killed; it printed: {said or 'nothing'}"
        )
    if status != 0:
        raise DriverUnavailable(f"{script} exited with {status}; it printed: {said or 'nothing'}")
    if outputs[1].strip():
        log.info("%s wrote to standard error: %s", script, shown(outputs[1].decode("utf-8", "replace")))
    if len(outputs[0]) >= MAX_OUTPUT_BYTES:
        raise DriverUnavailable(f"{script} printed more than {MAX_OUTPUT_BYTES} bytes: that is no list of devices")
    try:
        return outputs[0].decode("utf-8")
    except UnicodeDecodeError:
        raise DriverUnavailable(f"{script} printed what is no text: {shown(repr(outputs[0][:200]))}") from None


def _read_some(pipe: object, outputs: list[bytes], number: int) -> None:
    """Keep the first bytes, and drop the rest so that the writer is not held up."""
    read = pipe.read1  # type: ignore[attr-defined]
    with contextlib.suppress(OSError, ValueError):
        while chunk := read(65_536):
            outputs[number] = (outputs[number] + chunk)[:MAX_OUTPUT_BYTES]


def shown(text: str) -> str:
    """Words of a stranger, for a log: printable, and not too long."""
    clean = "".join(character if character.isprintable() else " " for character in text).strip()
    return clean if len(clean) <= MAX_LOGGED else clean[:MAX_LOGGED] + "…"

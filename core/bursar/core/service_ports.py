"""Ports at which others reach a task, by name; mirrors `ServicePort` of `bursar/v1/containers.proto`.

A service port is a port of the agent's machine (the *host port*, taken from the `ports` of the offer) that leads to one inside the
task (the *container port*). With a network of its own the engine connects the two; on the machine's own network – plain
processes, `--network host` – the task itself listens on the host port. Either way it listens on `BURSAR_PORT_NAME`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import IntEnum

from bursar.core.errors import InvalidText
from bursar.core.resources import PortRange, Ports, normalize_ports, subtract_ports

MAX_SERVICE_PORTS = 32
_NAME = re.compile(r"[a-z][a-z0-9-]{0,30}", re.ASCII)
_TEXT = re.compile(r"([^:@/]*)(?::([0-9]{1,5})(?:/([a-z]+))?)?(?:@([0-9]{1,5}))?", re.ASCII)
_HOW = "write NAME:PORT[/udp][@HOST_PORT], such as web:8080, or a preset: "


@dataclass(frozen=True, slots=True)
class Preset:
    """A service that many know: where it listens, and how people reach it."""

    container_port: int
    #: For people; `{host}` and `{port}` are replaced.
    reach: str


#: All presets (B-07). Another one is a line here and in docs/agent.md.
PRESETS = {
    "jupyter": Preset(8080, "http://{host}:{port}"),
    "lab": Preset(8090, "http://{host}:{port}"),
    "ssh": Preset(2200, "ssh -p {port} {host}"),
    "tensorboard": Preset(6006, "http://{host}:{port}"),
}


class PortProtocol(IntEnum):
    """Mirrors `bursar.v1.PortProtocol`."""

    #: TCP.
    UNSPECIFIED = 0
    UDP = 1

    def __str__(self) -> str:
        return "udp" if self is PortProtocol.UDP else "tcp"


@dataclass(frozen=True, slots=True)
class ServicePort:
    """One named port of a task; mirrors `bursar.v1.ServicePort`."""

    name: str
    container_port: int
    protocol: PortProtocol = PortProtocol.UNSPECIFIED
    #: 0: any of the offer; the master fills it in at the launch.
    host_port: int = 0

    @property
    def variable(self) -> str:
        """Where the task finds the port that it is to listen on."""
        return f"BURSAR_PORT_{self.name.upper().replace('-', '_')}"

    def listens_on(self, own_network: bool) -> int:
        """The port inside: its own where the task has a network of its own, else the host port."""
        return self.container_port if own_network else self.host_port

    def reach(self, host: str) -> str:
        """How people get there: by a preset's scheme, or `HOST:PORT`."""
        shown = f"[{host}]" if ":" in host else host
        preset = PRESETS.get(self.name)
        if preset is None:
            return f"{shown}:{self.host_port}"
        return preset.reach.format(host=host if preset.reach.startswith("ssh") else shown, port=self.host_port)


def parse_service_port(text: str) -> ServicePort:
    """Read `PRESET` or `NAME:PORT`, each with `/udp` and `@HOST_PORT` where wanted. Raises InvalidText."""
    how = _HOW + ", ".join(PRESETS)
    match = _TEXT.fullmatch(text)
    if match is None:
        raise InvalidText(f"port {text!r} cannot be read", how)
    name, inside, protocol, host = match.groups()
    if protocol not in (None, "tcp", "udp"):
        raise InvalidText(f"port {text!r}: {protocol!r} is neither tcp nor udp", how)
    if inside is None and name not in PRESETS:
        raise InvalidText(f"port {text!r}: {name!r} is no preset, so it needs the port that the task listens on", how)
    port = ServicePort(
        name,
        PRESETS[name].container_port if inside is None else int(inside),
        PortProtocol.UDP if protocol == "udp" else PortProtocol.UNSPECIFIED,
        int(host or 0),
    )
    if host is not None and not port.host_port:
        raise InvalidText(f"port {text!r}: 0 is no port of a machine; leave @0 out for any", how)
    if problem := _problem(port):
        raise InvalidText(f"port {text!r}: {problem}", how)
    return port


def ports_of(services: Sequence[ServicePort]) -> tuple[Ports, int]:
    """What to ask for: the host ports that are named, and how many others."""
    named = normalize_ports(PortRange(one.host_port, one.host_port) for one in services if one.host_port)
    return named, sum(not one.host_port for one in services)


def service_ports_problem(services: Sequence[ServicePort], asked: Ports, count: int) -> tuple[str, str] | None:
    """Say what is wrong with a task's service ports as (field, problem), or nothing; `asked` and `count` are its request's."""
    if len(services) > MAX_SERVICE_PORTS:
        return "service_ports", f"{len(services)} are more than {MAX_SERVICE_PORTS}"
    names: set[str] = set()
    inside: set[tuple[int, PortProtocol]] = set()
    hosts: set[int] = set()
    for number, one in enumerate(services):
        field = f"service_ports[{number}]"
        if problem := _problem(one):
            return field, problem
        if one.name in names:
            return field, f"the name {one.name!r} is there twice"
        if (one.container_port, one.protocol) in inside:
            return field, f"{one.name!r}: another one leads to {one.container_port}/{one.protocol} already"
        if one.host_port and one.host_port in hosts:
            return field, f"{one.name!r}: another one has the host port {one.host_port} already"
        names.add(one.name)
        inside.add((one.container_port, one.protocol))
        hosts.add(one.host_port)
    open_ones = sum(not _is_named(one, asked) for one in services)
    if open_ones > count:
        return (
            "service_ports",
            f"{open_ones} may have any host port, but the task asks for {count} of them (port_count)",
        )
    return None


def common_port(members: Sequence[Sequence[ServicePort]], names: Sequence[str]) -> tuple[int, str] | None:
    """Say as (index, problem) which task of a group listens where another one does, or nothing: they share a network.

    `names`: what to call each of them.
    """
    taken: dict[tuple[int, PortProtocol], tuple[int, str]] = {}
    for index, services in enumerate(members):
        for one in services:
            other, name = taken.setdefault((one.container_port, one.protocol), (index, one.name))
            if other != index:
                words = (
                    f"task {names[index]!r} listens on {one.container_port}/{one.protocol} ({one.name}), and so does"
                    f" task {names[other]!r} ({name}): the tasks of a group share a network"
                )
                return index, words
    return None


def unasked_port(services: Sequence[ServicePort], asked: Ports) -> tuple[str, str] | None:
    """Say as (field, problem) which host port a framework names without asking for it, or nothing; before the launch, that is."""
    for number, one in enumerate(services):
        if one.host_port and not _is_named(one, asked):
            words = f"{one.name!r}: the host port {one.host_port} is not among the ports that the task asks for"
            return f"service_ports[{number}]", words
    return None


def with_host_ports(services: Sequence[ServicePort], asked: Ports, granted: Ports) -> tuple[ServicePort, ...]:
    """Give those without a host port one of the granted ports that were not asked for by number: in order, the lowest first."""
    others = (port for span in subtract_ports(granted, asked) for port in range(span.first, span.last + 1))
    return tuple(one if one.host_port else replace(one, host_port=next(others)) for one in services)


def _is_named(one: ServicePort, asked: Ports) -> bool:
    return bool(one.host_port) and not subtract_ports((PortRange(one.host_port, one.host_port),), asked)


def _problem(one: ServicePort) -> str:
    if not _NAME.fullmatch(one.name):
        return f"{one.name!r} is not a name: lower-case letters, digits and '-', a letter first, not more than 31"
    if not 1 <= one.container_port <= 65535 or not 0 <= one.host_port <= 65535:
        return f"{one.name!r}: a port is a number from 1 to 65535"
    return ""

"""Host ports of tasks: are they free, who has them, and what the task is told of them."""

from __future__ import annotations

import contextlib
import errno
import re
import socket
from collections.abc import Iterable, Sequence

import psutil

from bursar.agent.containers.runtime import LaunchFailed
from bursar.core.service_ports import PortProtocol, ServicePort
from bursar.core.tasks import StatusReason

#: `listen tcp4 0.0.0.0:31000: bind: address already in use`, `Bind for 0.0.0.0:31000 failed: port is already allocated`.
_ENGINE_WORDS = re.compile(r":(\d+)(?:: bind: address already in use| failed: port is already allocated)")


def port_variables(services: Iterable[ServicePort], own_network: bool) -> dict[str, str]:
    """What a task finds in its environment: where to listen, and where others come from outside."""
    found = {}
    for one in services:
        found[one.variable] = str(one.listens_on(own_network))
        found[one.variable.replace("BURSAR_PORT_", "BURSAR_HOST_PORT_", 1)] = str(one.host_port)
    return found


def check_free(services: Sequence[ServicePort]) -> None:
    """See that the task itself will be able to listen. Raises LaunchFailed (PORT_IN_USE)."""
    for one in services:
        kind = socket.SOCK_DGRAM if one.protocol is PortProtocol.UDP else socket.SOCK_STREAM
        with socket.socket(socket.AF_INET, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("", one.host_port))
            except OSError as error:
                if error.errno == errno.EADDRINUSE:
                    raise in_use(one) from None
                # Whatever else it is (a low port, say), the task meets it itself.


def engine_conflict(words: str, services: Sequence[ServicePort]) -> LaunchFailed | None:
    """What an engine's refusal says of a port, in our words; None where it is about something else."""
    match = _ENGINE_WORDS.search(words)
    if match is None:
        return None
    return next((in_use(one) for one in services if one.host_port == int(match[1])), None)


def in_use(one: ServicePort) -> LaunchFailed:
    """The refusal of a launch, with who is in its way."""
    return LaunchFailed(
        StatusReason.PORT_IN_USE,
        f"port {one.host_port} of this machine, which was to be {one.name!r}, is in use{_by_whom(one)}; launch the task again for"
        " another port, or have the agent offer others (--resources 'ports:[…]')",
    )


def _by_whom(one: ServicePort) -> str:
    with contextlib.suppress(psutil.Error, OSError):
        kind = "udp" if one.protocol is PortProtocol.UDP else "tcp"
        for connection in psutil.net_connections(kind):
            listens = kind == "udp" or connection.status == psutil.CONN_LISTEN
            if listens and connection.laddr and connection.laddr.port == one.host_port and connection.pid:
                return f" by {psutil.Process(connection.pid).name()} (pid {connection.pid})"
    return ""

"""Looks at a task over the network, from inside its network namespace (HC-5): the target is its own 127.0.0.1.

A socket belongs for ever to the namespace in which it was made, so it is made by a thread that visits that of the container;
from then on it is like any other.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import http.client
import os
import signal
import socket
import ssl
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from bursar.core.lives import Check, CheckStatus, HttpCheck

_LOCALHOST = "127.0.0.1"
_CLONE_NEWNET = 0x40000000

MakeSocket = Callable[[], socket.socket]


def socket_of(pid: int) -> socket.socket:
    """A TCP socket in the network namespace of a process. Blocks. Raises OSError where this agent may not go there."""
    libc = ctypes.CDLL(None, use_errno=True)
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        there = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            if libc.setns(there, _CLONE_NEWNET) != 0:
                raise OSError(ctypes.get_errno(), "cannot enter the network namespace")
        finally:
            os.close(there)
        try:
            return socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        finally:
            if libc.setns(home, _CLONE_NEWNET) != 0:
                # This thread would make other people's sockets in a stranger's namespace.
                os.abort()
    finally:
        os.close(home)


def look(check: Check, make: MakeSocket, address: str = _LOCALHOST) -> CheckStatus:
    """Over TCP or HTTP, once. Blocks for no longer than the check's time-out, roughly."""
    target = check.http or check.tcp
    assert target is not None
    try:
        with make() as connection:
            connection.settimeout(check.timeout / 1000)
            connection.connect((address, target.port))
            if check.http is None:
                return CheckStatus(is_connected=True)
            return CheckStatus(http_status=_ask(check.http, connection, address))
    except (OSError, http.client.HTTPException):
        return CheckStatus(is_connected=False) if check.tcp is not None else CheckStatus()


def _ask(check: HttpCheck, connection: socket.socket, address: str) -> int:
    if check.scheme == "https":
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        # Its certificate is for its own name, if for any; nothing secret is sent.
        context.verify_mode = ssl.CERT_NONE
        connection = context.wrap_socket(connection, server_hostname=address)
    client = http.client.HTTPConnection(address, check.port)
    client.sock = connection
    with contextlib.closing(client):
        client.request("GET", check.path or "/", headers={"User-Agent": "bursar-agent", "Connection": "close"})
        return client.getresponse().status


async def run_command(command: Sequence[str], environment: Mapping[str, str], directory: Path) -> CheckStatus:
    """A command beside a plain process; cancelled, it ends with all its children."""
    try:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
            cwd=directory,
            env=dict(environment),
            start_new_session=True,
        )
    except FileNotFoundError:
        return CheckStatus(exit_code=127)
    except OSError:
        return CheckStatus(exit_code=126)
    try:
        code = await process.wait()
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    return CheckStatus(exit_code=code if code >= 0 else 128 - code)

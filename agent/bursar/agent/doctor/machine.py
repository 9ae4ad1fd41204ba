"""The machine itself: Python, kernel, control groups, clock, rights, directories, disks and ports."""

from __future__ import annotations

import ctypes
import os
import resource
import socket
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import psutil

from bursar.agent.devices.names import machine_id_file
from bursar.agent.doctor.findings import Finding, fail, ok, warn
from bursar.core.memory.pools import format_bytes
from bursar.core.resources import Ports
from bursar.core.text import format_ports
from bursar.runtime.rpc import split_address

MIN_PYTHON = (3, 11)
#: Of control groups: what a task is held to needs each of them.
CONTROLLERS = ("cpu", "cpuset", "io", "memory", "pids")
MIN_OPEN_FILES = 65_536
#: Below these a work directory is small, or too small to begin with.
LITTLE_DISK_BYTES, TOO_LITTLE_DISK_BYTES = 10 * 2**30, 2**30
#: File systems that forget, and those whose locks hold less than the agent needs.
_FORGETFUL = ("tmpfs", "ramfs")
_REMOTE = ("nfs", "nfs4", "cifs", "smb3", "fuse.sshfs", "9p")
#: adjtimex's answer for a clock that nobody keeps.
_TIME_ERROR = 5


def python(version: str) -> Finding:
    """The interpreter."""
    text = f"Python {sys.version.split()[0]}, bursar {version}"
    if tuple(sys.version_info[:2]) < MIN_PYTHON:
        return fail(
            "python",
            text,
            "the agent is written for 3.11 and newer",
            "install it into an environment of a newer Python",
        )
    return ok("python", text)


def kernel() -> Finding:
    """Linux, new enough to wait for processes without asking again and again."""
    release = f"{os.uname().sysname} {os.uname().release}"
    if sys.platform != "linux":
        return fail("kernel", release, "containers, devices and locks are Linux'", "run the agent on Linux")
    if not hasattr(os, "pidfd_open"):
        return warn("kernel", release, "ends of plain processes are found by asking", "use Linux 5.3 or newer")
    return ok("kernel", release)


def cgroups(root: Path = Path("/sys/fs/cgroup")) -> Finding:
    """Control groups, version 2 with every controller, or the older ones with what they lack."""
    unified = root / "cgroup.controllers"
    if unified.is_file():
        there = unified.read_text(encoding="ascii").split()
        missing = [name for name in CONTROLLERS if name not in there]
        if missing:
            return warn(
                "cgroups",
                f"version 2, without {', '.join(missing)}",
                "tasks are not held to limits of what has no controller",
                "switch them on in the parent groups' cgroup.subtree_control (systemd: Delegate=yes)",
            )
        return ok("cgroups", f"version 2 with {', '.join(CONTROLLERS)}")
    old = {"cpu": "cpu", "cpuset": "cpuset", "blkio": "io", "memory": "memory", "pids": "pids"}
    there = [name for path, name in old.items() if (root / path).is_dir()]
    if not there:
        return fail(
            "cgroups",
            f"none under {root}",
            "Docker cannot hold a task to anything",
            "mount the cgroup2 file system there",
        )
    lacking = [name for name in CONTROLLERS if name not in there]
    return warn(
        "cgroups",
        "version 1" + (f", without {', '.join(lacking)}" if lacking else ""),
        "buffered writes escape the I/O limits of version 1, and it counts memory of a task's group less exactly",
        "boot with systemd.unified_cgroup_hierarchy=1 (cgroup_no_v1=all)",
    )


def clock() -> Finding:
    """Whether somebody keeps the machine's clock."""
    answer = -1
    try:
        buffer = ctypes.create_string_buffer(512)
        answer = ctypes.CDLL(None, use_errno=True).adjtimex(buffer)
    except (OSError, AttributeError):
        pass
    if answer == _TIME_ERROR:
        return warn(
            "clock",
            "not synchronised",
            "times of statuses and logs of different machines cannot be compared; nothing else depends on it",
            "run chrony or systemd-timesyncd (timedatectl set-ntp true)",
        )
    return ok("clock", "synchronised" if answer >= 0 else "the kernel does not say whether it is synchronised")


def user(runtime: str) -> Finding:
    """Who the agent is."""
    if os.geteuid() == 0:
        return ok("user", "root")
    text = f"user {os.geteuid()}"
    if runtime == "docker":
        return warn(
            "user",
            text,
            "a sandbox can be given to the agent's own user only, so tasks with --user of somebody else are refused",
            "run it as root, or let tasks run as that user",
        )
    return warn("user", text, "plain processes run as this user, with all its rights", "make a user for it alone")


def open_files() -> Finding:
    """How many files the agent may have open."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < MIN_OPEN_FILES:
        return warn(
            "open files",
            f"at most {soft}",
            "every task that runs needs a few: this may be too little for thousands",
            f"ulimit -n {MIN_OPEN_FILES}, or LimitNOFILE={MIN_OPEN_FILES} in the unit",
        )
    return ok("open files", "without a limit" if soft == resource.RLIM_INFINITY else f"at most {soft}")


def identity() -> Finding:
    """What devices without a name of their own are named after."""
    path = machine_id_file()
    if path is None:
        return warn(
            "machine id",
            "none; the host name takes its place",
            "devices of scripts and plugins are named after it: two machines of one name would have the same devices",
            "systemd-machine-id-setup (in a container: mount the host's /etc/machine-id)",
        )
    return ok("machine id", str(path))


def work_dir(path: Path) -> list[Finding]:
    """The work directory and the disk under it; a directory that is not there yet is judged by where it would be."""
    there = next(parent for parent in (path.absolute(), *path.absolute().parents) if parent.exists())
    is_new = there != path.absolute()
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        problem = "is no directory" if not there.is_dir() else "cannot be written to by this user"
        return [
            fail(
                "work dir",
                f"{there} {problem}",
                "state, sandboxes and logs have to be kept",
                "choose another --work-dir",
            )
        ]
    where = f"{path} (made at the first start)" if is_new else str(path)
    system = _file_system(there)
    findings = [ok("work dir", f"{where}, {system}")]
    if system in _FORGETFUL:
        findings = [
            warn(
                "work dir",
                f"{where} is in memory ({system})",
                "at the next boot the agent has forgotten who it is",
                "choose a --work-dir on a disk",
            )
        ]
    elif system in _REMOTE:
        findings = [
            warn(
                "work dir",
                f"{where} is on {system}",
                "its locks and its database need a local file system",
                "choose a --work-dir on a disk of this machine",
            )
        ]
    return [*findings, disk("disk", there)]


def disk(check: str, path: Path) -> Finding:
    """Room on the file system of a path."""
    usage = psutil.disk_usage(str(path))
    text = f"{format_bytes(usage.free >> 30 << 30)} of {format_bytes(usage.total >> 30 << 30)} free under {path}"
    if usage.free < TOO_LITTLE_DISK_BYTES:
        return fail(check, text, "a full disk stops the checkpoint, and with it every launch", "make room")
    if usage.free < LITTLE_DISK_BYTES:
        return warn(check, text, "images, sandboxes and logs of tasks are kept there", "make room, or use another disk")
    return ok(check, text)


def metrics_port(address: str) -> Finding:
    """Whether metrics can be served."""
    if not address:
        return ok("metrics", "not served (--metrics is off)")
    host, port = split_address(address)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except OSError as error:
        return warn(
            "metrics",
            f"{address}: {error.strerror or error}",
            "the agent does not start where it cannot listen (unless it is the agent itself that listens there now)",
            "stop what uses the port, or choose another one with --metrics",
        )
    return ok("metrics", f"{address} is free")


def offered_ports(ports: Ports, settings: Path = Path("/proc/sys/net/ipv4/ip_local_port_range")) -> Finding:
    """Ports that are offered and are given away by the kernel, or in use, beside."""
    text = format_ports(ports)
    taken = sorted({port for port in _listening() if any(one.first <= port <= one.last for one in ports)})
    try:
        first, last = map(int, settings.read_text(encoding="ascii").split())
    except (OSError, ValueError):
        first, last = 1, 0
    if shared := [one for one in ports if one.first <= last and first <= one.last]:
        return warn(
            "ports",
            f"{text}, of which the kernel hands out {first}-{last} itself",
            f"a task may find a port of {format_ports(tuple(shared))} taken by somebody's outgoing connection",
            "offer others with --resources 'ports:[…]', or reserve these (net.ipv4.ip_local_reserved_ports)",
        )
    if taken:
        listed = ", ".join(map(str, taken[:5])) + (", …" if len(taken) > 5 else "")
        return warn(
            "ports",
            f"{text}, of which {listed} are in use",
            "a task that is given such a port cannot listen on it (unless it is a task of this agent that does)",
            "leave them out with --resources 'ports:[…]'",
        )
    return ok("ports", f"{text} are offered, none is in use")


def _listening() -> Iterable[int]:
    try:
        found: list[Any] = psutil.net_connections("tcp")
        return [int(one.laddr.port) for one in found if one.status == psutil.CONN_LISTEN]
    except (psutil.AccessDenied, OSError):
        return []


def _file_system(path: Path) -> str:
    """The kind of file system under a path."""
    best, kind = "", "unknown"
    for one in psutil.disk_partitions(all=True):
        if path.is_relative_to(one.mountpoint) and len(one.mountpoint) >= len(best):
            best, kind = one.mountpoint, one.fstype
    return kind

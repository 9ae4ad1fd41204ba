"""The flags of `bursar-agent`."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path

from bursar.agent.containers.volumes import parse_volume_roots
from bursar.agent.devices.shares import parse_shares
from bursar.core.errors import BursarError
from bursar.core.flags import Flag, FlagType, FlagValue
from bursar.core.memory.text import parse_pools_text
from bursar.core.resources import MEM
from bursar.core.text import parse_amount, parse_attributes, parse_resources
from bursar.core.ulimits import parse_ulimits
from bursar.runtime.credentials import OPTIONS, Credentials
from bursar.runtime.rpc import split_address
from bursar.runtime.settings import Settings, load

PROGRAM = "bursar-agent"
SUMMARY = (
    "Runs the tasks that a Bursar master assigns to this machine, in containers pinned to the GPUs they were granted."
    " `bursar-agent doctor` with the same flags says what is wrong with a machine."
)


def default_work_dir(environ: Mapping[str, str]) -> str:
    """Where an agent keeps its state: `/var/lib/bursar/agent` for root, the user's state directory otherwise."""
    if os.geteuid() == 0:
        return "/var/lib/bursar/agent"
    state = environ.get("XDG_STATE_HOME") or str(Path(environ.get("HOME") or "~").expanduser() / ".local/state")
    return f"{state}/bursar/agent"


def flags(environ: Mapping[str, str]) -> tuple[Flag, ...]:
    """All of them; the defaults of some depend on the user and the machine."""
    return (
        Flag(
            "master",
            FlagType.LIST,
            ("127.0.0.1:5050",),
            "The masters, tried in turn for ever.",
            metavar="HOST:PORT[,HOST:PORT…]",
            problem=_addresses,
        ),
        Flag(
            "work-dir",
            FlagType.TEXT,
            default_work_dir(environ),
            "State, sandboxes and logs; one agent's alone.",
            metavar="DIR",
        ),
        Flag(
            "resources",
            FlagType.TEXT,
            "",
            "What to offer, such as 'cpus:8;mem:16GiB;gpus(ml):4'; kinds that are not named are discovered.",
            problem=_resources,
        ),
        Flag(
            "memory",
            FlagType.TEXT,
            "",
            "Pools of the machine's memory, such as 'system-reserve=4GiB,cache=2GiB'; what is left is offered (docs/memory.md).",
            metavar="POOL=SIZE[,…]",
            problem=_memory,
        ),
        Flag("attributes", FlagType.TEXT, "", "Such as 'rack:r1;zone:a'.", problem=_attributes),
        Flag(
            "runtime",
            FlagType.CHOICE,
            "docker",
            "What runs tasks: the Docker engine, or plain processes without isolation.",
            choices=("docker", "process"),
        ),
        Flag(
            "devices",
            FlagType.TEXT,
            "nvml",
            "Where GPUs and other devices come from; several drivers are separated by commas.",
            metavar="{nvml|rocm|tpu|simulated:N|simulated:N:MODEL|plugin:NAME|none}[,…]",
        ),
        Flag(
            "external-resources",
            FlagType.TEXT,
            "",
            "Further devices, by the keys of FLIP-108 in this file: discovery scripts and plugins.",
            metavar="FILE",
        ),
        Flag(
            "gpu-shares",
            FlagType.TEXT,
            "",
            "Offer each NVIDIA GPU in shares, too: who takes more memory is told (none), or told and ended (soft).",
            metavar="THOUSANDTHS:{none|soft}",
            problem=_shares,
        ),
        Flag(
            "hostname",
            FlagType.TEXT,
            socket.gethostname() or "localhost",
            "The name shown for this machine.",
            problem=_hostname,
        ),
        Flag(
            "metrics",
            FlagType.TEXT,
            "",
            "Serve Prometheus metrics here; off unless given.",
            metavar="HOST:PORT",
            problem=_optional_address,
        ),
        Flag("default-image", FlagType.TEXT, "", "For tasks without an image, with --runtime docker.", metavar="IMAGE"),
        Flag(
            "volume-roots",
            FlagType.LIST,
            (),
            "Host paths that tasks may mount, with what is below them; ro, rw or rw-delete at most.",
            metavar="DIR[:MODE][,…]",
            problem=_volume_roots,
        ),
        Flag(
            "shared-folders",
            FlagType.TEXT,
            "",
            "The directory of the shared folders that tasks mount by name; ro, rw or rw-delete at most.",
            metavar="DIR[:MODE]",
            problem=_shared_folders,
        ),
        Flag(
            "max-ulimits",
            FlagType.LIST,
            ("nice=0", "rtprio=0"),
            "Limits of a process that tasks may ask for at most; what is not named is not bounded. -1: no limit.",
            metavar="NAME=VALUE[,…]",
            problem=_ulimits,
        ),
        Flag(
            "fetch-cache",
            FlagType.TEXT,
            "2GiB",
            "For files that tasks fetch by a checksum, kept for other tasks; 0 keeps none.",
            metavar="SIZE",
            problem=_size,
        ),
        Flag(
            "device-cool-down",
            FlagType.DURATION,
            60_000,
            "From a device's fault to the probe that may bring it back; doubled with each relapse, an hour at most.",
            minimum=100,
        ),
        Flag(
            "device-relapses",
            FlagType.INT,
            3,
            "With so many faults again within a day, a device is retired until an operator brings it back.",
            minimum=1,
        ),
        Flag(
            "device-release-timeout",
            FlagType.DURATION,
            120_000,
            "A device is not offered while a process of an ended task uses it; after so long it is cordoned.",
            minimum=100,
        ),
        Flag(
            "gpu-share-grace",
            FlagType.DURATION,
            30_000,
            "A task that uses more of a GPU's memory than its soft share is told, and ended after so long; 0s: at once.",
        ),
        Flag(
            "tolerated-programs",
            FlagType.LIST,
            ("Xorg", "Xwayland", "gnome-shell", "kwin_wayland", "nvidia-cuda-mps-server"),
            "Programs that may use GPUs beside tasks; a GPU that another one uses is not offered. *: any.",
            metavar="NAME[,…]",
        ),
        Flag(
            "hang-timeout",
            FlagType.DURATION,
            60_000,
            "An agent that did not react to anything for so long is begun anew; its tasks run on. 0s: never.",
        ),
        Flag("insecure", FlagType.BOOL, False, "Serve metrics in the clear beyond loopback."),
        *(
            Flag(flag, FlagType.TEXT, "", text, metavar="NAME" if field == "server_name" else "FILE")
            for field, flag, text in OPTIONS
        ),
    )


def load_settings(argv: Sequence[str], environ: Mapping[str, str], version: str) -> Settings:
    """Read all flags. Raises BursarError."""
    return load(flags(environ), argv, environ, PROGRAM, summary=SUMMARY, version=version)


def credentials(settings: Settings) -> Credentials:
    """What to show to masters, and to expect of them. Raises InvalidText, BursarError."""
    named = named_credentials(settings)
    named.check()
    return named


def named_credentials(settings: Settings) -> Credentials:
    """The files, in order or not."""
    return Credentials(**{field: settings.text(flag) for field, flag, _ in OPTIONS})


def tolerated_programs(settings: Settings) -> frozenset[str]:
    """Programs that may use devices beside tasks, as the kernel names them: by 15 characters at most."""
    return frozenset(name[:15] for name in settings.items("tolerated-programs"))


def _addresses(value: FlagValue) -> str | None:
    assert isinstance(value, tuple)
    if not value:
        return "no master is named; write HOST:PORT"
    return next(filter(None, map(_address_problem, value)), None)


def _optional_address(value: FlagValue) -> str | None:
    return _address_problem(str(value)) if value else None


def _address_problem(address: str) -> str | None:
    try:
        split_address(address)
    except BursarError as error:
        return str(error)
    return None


def _resources(value: FlagValue) -> str | None:
    try:
        parse_resources(str(value))
    except BursarError as error:
        return str(error).removeprefix("resources: ")
    return None


def _memory(value: FlagValue) -> str | None:
    try:
        parse_pools_text(str(value))
    except BursarError as error:
        return str(error).removeprefix("memory: ")
    return None


def _attributes(value: FlagValue) -> str | None:
    try:
        parse_attributes(str(value))
    except BursarError as error:
        return str(error).removeprefix("attributes: ")
    return None


def _volume_roots(value: FlagValue) -> str | None:
    assert isinstance(value, tuple)
    try:
        parse_volume_roots(value)
    except BursarError as error:
        return str(error)
    return None


def _ulimits(value: FlagValue) -> str | None:
    assert isinstance(value, tuple)
    try:
        parse_ulimits(value)
    except BursarError as error:
        return str(error)
    return None


def _size(value: FlagValue) -> str | None:
    try:
        parse_amount(MEM, str(value))
    except BursarError as error:
        return str(error)
    return None


def _shared_folders(value: FlagValue) -> str | None:
    return _volume_roots((str(value),)) if value else None


def _shares(value: FlagValue) -> str | None:
    try:
        parse_shares(str(value))
    except BursarError as error:
        return str(error).removeprefix("gpu-shares: ")
    return None


def _hostname(value: FlagValue) -> str | None:
    text = str(value)
    if not text or len(text) > 253 or any(character.isspace() or not character.isprintable() for character in text):
        return f"{text!r} is not a name for a machine"
    return None

"""FLIP-108's settings of external resources, key for key (field.md F108-01, F108-02).

external-resources: gpu;fpga
external-resource.gpu.amount: 2
external-resource.gpu.driver-factory.class: script
external-resource.gpu.param.discovery-script.path: /opt/find-gpus.sh
external-resource.gpu.param.discovery-script.args: --only 0,1
external-resource.fpga.amount: 1
external-resource.fpga.driver-factory.class: toy-fpga
external-resource.fpga.docker.devices: /dev/fpga{index}
external-resource.fpga.docker.env: FPGA_VISIBLE_DEVICES
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from bursar.agent.devices.names import kind_of_resource, kind_problem
from bursar.core.errors import InvalidText
from bursar.core.resources import GPUS
from bursar.core.text import parse_resources

_LIST = "external-resources"
_PREFIX = "external-resource."
_HINT = "see docs/devices.md for a whole file"
#: Classes of Flink that mean our own driver.
_FLINK_CLASSES = {"org.apache.flink.externalresource.gpu.GPUDriverFactory": "script"}
MAX_AMOUNT = 1024


@dataclass(frozen=True, slots=True)
class DockerKeys:
    """How a container gets the devices of a resource; `{index}` in a text is the item that the driver named."""

    #: Device nodes.
    devices: tuple[str, ...] = ()
    #: Variables that name the granted ones, separated by commas.
    env: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ExternalResource:
    """One listed resource."""

    name: str
    #: As it is counted: `gpu` → `gpus`.
    kind: str
    amount: int
    #: `script`, or the name of a plugin; empty: it exists, but there is no information about it.
    driver: str = ""
    #: Only what stands under `.param.`.
    params: Mapping[str, str] = field(default_factory=dict)
    docker: DockerKeys = DockerKeys()


def read_external(path: Path) -> list[ExternalResource]:
    """Read a settings file. Raises InvalidText."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise InvalidText(
            f"external-resources: cannot read {path}: {why}", "name a file that this user can read"
        ) from None
    return parse_external(text)


def parse_external(text: str) -> list[ExternalResource]:
    """Read `key: value` lines (`key=value` too, `#` begins a comment). Raises InvalidText.

    Only listed names take effect; keys of others are ignored, as are keys of no interest here.
    """
    settings: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        match = re.fullmatch(r"([^:=\s]+)\s*[:=]\s*(.*)", line)
        if match is None:
            raise InvalidText(f"external-resources: line {number} is not `key: value`: {line[:80]!r}", _HINT)
        key, value = match[1], match[2].strip()
        if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"":
            value = value[1:-1]
        if key in settings:
            raise InvalidText(f"external-resources: {key} is there twice", "keep one of the two lines")
        settings[key] = value
    names = [name.strip() for name in settings.get(_LIST, "").split(";") if name.strip()]
    if not names or names == ["none"]:
        return []
    found = [_resource(name, settings) for name in names]
    kinds = [resource.kind for resource in found]
    if twice := {kind for kind in kinds if kinds.count(kind) > 1}:
        raise InvalidText(f"external-resources: two names are counted as {min(twice)}", "list each kind once")
    return found


def _resource(name: str, settings: Mapping[str, str]) -> ExternalResource:
    prefix = f"{_PREFIX}{name}."
    kind = kind_of_resource(name)
    if problem := kind_problem(kind):
        raise InvalidText(f"external-resources: {problem}", _HINT)
    mine = {key.removeprefix(prefix): value for key, value in settings.items() if key.startswith(prefix)}
    text = mine.get("amount", "")
    if not (text.isascii() and text.isdecimal() and 0 < int(text[:9]) <= MAX_AMOUNT and len(text) < 9):
        what = f"{text!r} is no amount" if text else "there is no amount"
        raise InvalidText(f"external-resources: {prefix}amount: {what}", f"write a whole number from 1 to {MAX_AMOUNT}")
    factory = mine.get("driver-factory.class", "")
    return ExternalResource(
        name,
        kind,
        int(text),
        _FLINK_CLASSES.get(factory, factory),
        {key.removeprefix("param."): value for key, value in mine.items() if key.startswith("param.")},
        DockerKeys(_list(mine.get("docker.devices", "")), _docker_env(kind, mine)),
    )


def _docker_env(kind: str, mine: Mapping[str, str]) -> tuple[str, ...]:
    names = _list(mine.get("docker.env", ""))
    for name in names:
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise InvalidText(f"external-resources: {name!r} is not the name of a variable", _HINT)
    return names or (("CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES") if kind == GPUS else ())


def declared_with(text: str, external: Iterable[ExternalResource]) -> str:
    """A resources text with those external resources that have no driver: they exist, and nothing more is known of them.

    A kind that the text names already is left as it is. Raises InvalidText for GPUs, of which somebody must say which they are.
    """
    named = {item.kind for item in parse_resources(text)}
    parts = [text] if text.strip() else []
    for resource in external:
        if resource.driver or resource.kind in named:
            continue
        if resource.kind == GPUS:
            raise InvalidText(
                f"external-resources: {_PREFIX}{resource.name}.driver-factory.class is missing",
                "GPUs are granted by identity: write `script` and a discovery script, or use --devices nvml",
            )
        parts.append(f"{resource.kind}:{resource.amount}")
    return ";".join(parts)


def _list(text: str) -> tuple[str, ...]:
    return tuple(item.strip() for item in text.split(";") if item.strip())

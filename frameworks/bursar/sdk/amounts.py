"""Amounts as authors write them: numbers or the texts of the command line, made exact at once."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal

from bursar.core.errors import InvalidText
from bursar.core.ids import DeviceUuid
from bursar.core.resources import CPUS, DISK, GPUS, MEM, MILLI, PORTS, ResourceRequest
from bursar.core.text import parse_amount, parse_duration, parse_ports

Amount = int | float | str | Decimal
"""A number, or a text such as `"0.5"` or `"16GiB"`. A bare number of memory or disk is MiB."""


def exact(kind: str, amount: Amount) -> int:
    """One amount in its integer unit: thousandths, or bytes for `mem` and `disk`. Raises InvalidText."""
    if isinstance(amount, bool):
        raise InvalidText(f"{kind}: {amount} is not an amount", "write a number or a text such as '16GiB'")
    return parse_amount(kind, amount if isinstance(amount, str) else str(amount))


def request(
    cpus: Amount = 0,
    mem: Amount = 0,
    gpus: Amount = 0,
    disk: Amount = 0,
    ports: str = "",
    devices: tuple[str, ...] = (),
    custom: Mapping[str, Amount] | None = None,
) -> ResourceRequest:
    """Resources asked for. Raises InvalidText."""
    amounts = {CPUS: cpus, MEM: mem, DISK: disk, **(custom or {})}
    scalars = {kind: value for kind, amount in amounts.items() if (value := exact(kind, amount))}
    return ResourceRequest(
        scalars,
        parse_ports(ports) if ports else (),
        exact(GPUS, gpus) // MILLI,
        tuple(DeviceUuid(uuid) for uuid in devices),
    )


def request_from(shape: Mapping[str, Amount]) -> ResourceRequest:
    """Resources asked for, from `{"cpus": 4, "mem": "16GiB", "gpus": 1}`. Raises InvalidText."""
    rest = dict(shape)
    ports = rest.pop(PORTS, "")
    if not isinstance(ports, str):
        raise InvalidText(f"ports: {ports!r} is not a list of ranges", "write '[31000-32000]'")
    known = {kind: rest.pop(kind, 0) for kind in (CPUS, MEM, GPUS, DISK)}
    return request(known[CPUS], known[MEM], known[GPUS], known[DISK], ports, custom=rest)


def seconds_to_ms(duration: float | str, what: str) -> int:
    """A duration as milliseconds: a number of seconds, or a text such as `10m`. Raises InvalidText."""
    return parse_duration(duration if isinstance(duration, str) else f"{duration}s", what)

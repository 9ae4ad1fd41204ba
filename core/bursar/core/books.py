"""What a master and an agent believe of the same agent, in a few bytes: both compute this, and only where it differs all is said (B-18).

A digest is taken over sorted lines, so that the order of books is no difference. What a task holds is not in it: that is decided once, at
its launch, and never changes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from hashlib import blake2b

from bursar.core.devices import Device
from bursar.core.ids import DeviceUuid, FrameworkId, TaskId
from bursar.core.resources import ReservedResources
from bursar.core.tasks import TaskState

#: From one digest of an agent to the next.
COMPARE_INTERVAL_MS = 60_000
_BYTES = 8


def task_line(framework_id: FrameworkId, task_id: TaskId, state: TaskState, *, is_to_end: bool) -> str:
    """A task that has not ended, for `digest`; `is_to_end`: it was asked to end, by whomever."""
    return f"{framework_id}/{task_id} {'ends' if is_to_end else state.name}"


def device_lines(
    devices: Iterable[Device], resources: Iterable[ReservedResources], orders_ms: Mapping[DeviceUuid, int]
) -> list[str]:
    """What an agent has, for `digest`; `orders_ms`: when the newest order of operators about a device was given."""
    lines = [f"device {device.uuid} {device.health.name} {device.condition.name}" for device in devices]
    lines += [f"order {uuid} {at_ms}" for uuid, at_ms in orders_ms.items()]
    for part in resources:
        stack = "/".join(level.holder for level in part.stack)
        amounts = sorted(part.resources.scalars.items())
        lines.append(f"part {stack} {amounts} {part.resources.ports} {sorted(part.resources.devices)}")
    return lines


def digest(lines: Iterable[str]) -> str:
    """Some bytes that differ where the lines do, whatever their order."""
    return blake2b("\n".join(sorted(lines)).encode(), digest_size=_BYTES).hexdigest()

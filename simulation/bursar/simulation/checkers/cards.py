"""What devices count for, read from their names by the judges themselves."""

from __future__ import annotations

from collections.abc import Iterable

from bursar.core.ids import DeviceUuid


def card_of(uuid: DeviceUuid) -> str:
    """The card of a slice; a whole GPU itself."""
    parts = uuid.split("/")
    return parts[1] if len(parts) == 3 else uuid


def is_slice(uuid: DeviceUuid) -> bool:
    """Whether it is a part of a card."""
    return "/" in uuid


def thousandths(uuids: Iterable[DeviceUuid]) -> int:
    """How much of GPUs these are: 1000 for a whole one, less for a slice."""
    return sum(
        int(uuid.split("/")[0].split("@")[1]) if is_slice(uuid) else 1000 for uuid in uuids if not is_on_disk(uuid)
    )


def is_on_disk(uuid: DeviceUuid) -> bool:
    """Whether it is a persistent volume: no device at all."""
    return uuid.startswith("volumes/")


def disk_of(uuid: DeviceUuid) -> int:
    """The bytes that a volume takes."""
    return int(uuid.split("/")[1])

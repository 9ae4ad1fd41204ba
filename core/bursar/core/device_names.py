"""What the name of a device says: its kind, and of which card it is a slice or share.

A name is `KIND[@THOUSANDTHS]/[PARENT/]ID`, except that of a whole GPU, which is its uuid alone. So everybody can count devices without
having seen their description: a ledger full of them, a registry from before the agent is back, an offer.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from bursar.core.ids import DeviceUuid

_GPUS = "gpus"
#: The kind of persistent volumes: `volumes/BYTES/ROLE/ID` (see `volumes`).
VOLUMES = "volumes"
_VOLUME_PREFIX = f"{VOLUMES}/"


def device_kind(uuid: DeviceUuid) -> str:
    """The kind that a device counts as, which its name says: `fpgas/slot-3` is one of `fpgas`, a name without `/` is a whole GPU.

    The whole form is `KIND[@THOUSANDTHS]/[PARENT/]ID`: a slice or share says of which card it is, and for how many thousandths of a
    GPU it counts in shares and quotas (design.md §4).
    """
    head, slash, _ = uuid.partition("/")
    return head.partition("@")[0] if slash else _GPUS


def gpus_among(devices: frozenset[DeviceUuid]) -> frozenset[DeviceUuid]:
    """The whole GPUs; the same value where there is nothing else, as it mostly is."""
    for uuid in devices:
        if "/" in uuid:
            return frozenset([uuid for uuid in devices if "/" not in uuid])
    return devices


def devices_of_kind(devices: frozenset[DeviceUuid], kind: str) -> frozenset[DeviceUuid]:
    """Those that count as `kind`."""
    if kind == _GPUS:
        return gpus_among(devices)
    return frozenset([uuid for uuid in devices if "/" in uuid and device_kind(uuid) == kind])


def device_kinds(devices: Iterable[DeviceUuid]) -> list[str]:
    """The kinds among devices other than whole GPUs, sorted."""
    return sorted({device_kind(uuid) for uuid in devices if "/" in uuid})


def weight_milli(uuid: DeviceUuid) -> int:
    """The thousandths of a GPU that a slice or share counts for; 0 for whole devices of any kind."""
    head, slash, _ = uuid.partition("/")
    _, at, weight = head.partition("@")
    return int(weight) if slash and at and weight.isascii() and weight.isdecimal() else 0


def parent_of(uuid: DeviceUuid) -> DeviceUuid | None:
    """The card of which a slice or share is a view; None for a whole device."""
    head, slash, rest = uuid.partition("/")
    if not slash or "@" not in head:
        return None
    parent, slash, _ = rest.partition("/")
    return DeviceUuid(parent) if slash else None


def native_id(uuid: DeviceUuid) -> str:
    """What the driver calls it: the last part of the name."""
    return uuid.rpartition("/")[2]


def device_name(kind: str, native: str, *, parent: str = "", weight_milli: int = 0) -> DeviceUuid:
    """The name of a device; `weight_milli` and `parent` for slices and shares only. Raises ValueError for an id with `/`."""
    if "/" in native or "/" in parent or bool(parent) != bool(weight_milli):
        raise ValueError(f"{kind}: {native!r} of {parent!r} cannot be a name")
    if kind == _GPUS:
        return DeviceUuid(native)
    head = f"{kind}@{weight_milli}/{parent}" if parent else kind
    return DeviceUuid(f"{head}/{native}")


def has_views(devices: Iterable[DeviceUuid]) -> bool:
    """Whether slices or shares are among them."""
    for uuid in devices:
        if "@" in uuid:
            return True
    return False


def views_hidden_by(taken: Collection[DeviceUuid], there: Collection[DeviceUuid]) -> frozenset[DeviceUuid]:
    """Which of those `there` cannot be used once others are taken: the slices and shares of a taken card, the card of a taken one.

    Shares of a card beside its slices cannot be used either: what is of one kind was cut once.
    """
    if not has_views(there) and not has_views(taken):
        return frozenset()
    cards: dict[str, set[str]] = {}
    for uuid in taken:
        parent = parent_of(uuid)
        cards.setdefault(parent or uuid, set()).add(device_kind(uuid))
    hidden = []
    for uuid in there:
        if (kinds := cards.get(parent_of(uuid) or uuid)) is not None:
            kind = device_kind(uuid)
            if any(other != kind and not _of_one_cut(other, kind) for other in kinds):
                hidden.append(uuid)
    return frozenset(hidden)


def _of_one_cut(left: str, right: str) -> bool:
    """Slices of different profiles lie side by side on one card; shares are of the whole of it."""
    return left.startswith("mig-") and right.startswith("mig-")


def is_volume(uuid: str) -> bool:
    """Whether it is a persistent volume, and no device of the machine."""
    return uuid.startswith(_VOLUME_PREFIX)


def volume_bytes(uuid: str) -> int:
    """The bytes of disk that a volume takes."""
    return int(uuid.split("/", 2)[1])

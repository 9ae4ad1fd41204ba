"""Shares of GPUs: views of a card that several tasks may have at once, each declared with what holds them to it.

A framework opts in by asking for the kind, whose name says both: `gpu-250-none` is a quarter that nothing enforces (tasks see the whole
card and are trusted), `gpu-250-soft` one whose memory is watched (`overuse`): who keeps more than its share is ended. CUDA's
Multi-Process Service (MPS) holds plain processes that go through it to a soft share besides. Nothing in hardware enforces a share: what is
enforced hard are the instances of MIG.
"""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from bursar.agent.containers.runtime import Decoration
from bursar.agent.devices.driver import (
    ContainerDecorator,
    DeviceDriver,
    DeviceMeter,
    HealthWatcher,
    UserTeller,
    device_meters,
    health_watchers,
    user_tellers,
)
from bursar.agent.devices.health import DeviceSignal, Remedy
from bursar.agent.devices.users import DeviceUser
from bursar.agent.pinning import visible_id
from bursar.core.device_names import device_name, parent_of
from bursar.core.devices import Device, DeviceCondition
from bursar.core.errors import InvalidText
from bursar.core.ids import DeviceUuid
from bursar.core.resources import GPUS

ENFORCEMENTS = ("none", "soft")
MAX_THOUSANDTHS = 500
_HINT = "write THOUSANDTHS:none or THOUSANDTHS:soft, such as 250:none for quarters"


@dataclass(frozen=True, slots=True)
class ShareSetting:
    """Into what every GPU is shared."""

    thousandths: int
    #: `none` or `soft`.
    enforcement: str

    @property
    def kind(self) -> str:
        """What a framework asks for."""
        return f"gpu-{self.thousandths}-{self.enforcement}"


def parse_shares(text: str) -> ShareSetting | None:
    """Read `250:none`; None for nothing. Raises InvalidText."""
    if not text:
        return None
    match = re.fullmatch(r"([0-9]{1,4}):([a-z]+)", text)
    if match is None:
        raise InvalidText(f"gpu-shares: {text!r} is not understood", _HINT)
    thousandths, enforcement = int(match[1]), match[2]
    if not 1 <= thousandths <= MAX_THOUSANDTHS:
        raise InvalidText(f"gpu-shares: {thousandths} thousandths are no share", f"write 1 to {MAX_THOUSANDTHS}")
    if enforcement == "hard":
        raise InvalidText(
            "gpu-shares: nothing in hardware holds a task to a share", "cut the card by MIG, or say soft or none"
        )
    if enforcement not in ENFORCEMENTS:
        raise InvalidText(f"gpu-shares: {enforcement!r} is no enforcement", _HINT)
    return ShareSetting(thousandths, enforcement)


class SharedDevices:
    """A driver whose whole GPUs are there as shares, too: views of one card, of which taking one hides those of the other kind."""

    def __init__(self, driver: DeviceDriver, setting: ShareSetting) -> None:
        self.name = driver.name
        self.may_block = bool(getattr(driver, "may_block", False))
        self._driver, self._setting = driver, setting
        self._watchers: list[HealthWatcher] = list(health_watchers(driver))
        self._tellers: list[UserTeller] = list(user_tellers(driver))
        self._meters: list[DeviceMeter] = list(device_meters(driver))
        self._cards: dict[DeviceUuid, Device] = {}

    def discover(self) -> tuple[Device, ...]:
        """The driver's devices, then the shares of its whole GPUs, as well as their cards. Raises DriverUnavailable."""
        found = self._driver.discover()
        cards = [
            one
            for one in found
            if one.kind == GPUS and parent_of(one.uuid) is None and one.condition is not DeviceCondition.UNCONFIGURED
        ]
        self._cards = {card.uuid: card for card in cards}
        first = 1 + max((one.index for one in found), default=-1)
        shares = [share for card in cards for share in self._shares(card)]
        return (*found, *(dataclasses.replace(share, index=first + number) for number, share in enumerate(shares)))

    def decorate(self, granted: Sequence[Device], runtime: str) -> Decoration:
        """As the driver does for the cards of the shares; for `soft` also what MPS obeys, which containers do not reach. Raises LaunchFailed."""
        if not isinstance(self._driver, ContainerDecorator):
            return Decoration()
        cards = {card.uuid: card for one in granted if (card := self._card(one))}
        decoration = self._driver.decorate(tuple(cards.values()), runtime)
        mine = [one for one in granted if one.kind == self._setting.kind]
        if not mine or self._setting.enforcement != "soft" or runtime == "docker":
            return decoration
        held = [sum(one.uuid == other.uuid for one in map(self._card, mine) if one) for other in cards.values()]
        percent = max(held) * self._setting.thousandths // 10
        limits = ",".join(
            f"{number}={self._mem_bytes(card) * count >> 20}M"
            for number, (card, count) in enumerate(zip(cards.values(), held, strict=True))
            if count
        )
        soft = {"CUDA_MPS_ACTIVE_THREAD_PERCENTAGE": str(max(1, percent)), "CUDA_MPS_PINNED_DEVICE_MEM_LIMIT": limits}
        return dataclasses.replace(decoration, pinning={**decoration.pinning, **soft})

    def watch(self, timeout_s: float) -> tuple[DeviceSignal, ...] | None:
        """What befalls a card befalls its shares."""
        if not self._watchers:
            time.sleep(timeout_s)
            return None
        said = self._watchers[0].watch(timeout_s)
        return said and tuple(
            dataclasses.replace(signal, uuid=uuid) for signal in said for uuid in self._names_of(signal.uuid)
        )

    def remedies(self) -> Mapping[DeviceUuid, Remedy]:
        """Those of the cards, for their shares as well."""
        said = {uuid: remedy for one in self._watchers for uuid, remedy in one.remedies().items()}
        return {name: remedy for uuid, remedy in said.items() for name in self._names_of(uuid)}

    def users(self, uuids: Collection[DeviceUuid]) -> Mapping[DeviceUuid, tuple[DeviceUser, ...]]:
        """Who uses the card uses each share of it, as far as anybody can tell them apart."""
        cards = {uuid: self._card_name(uuid) for uuid in uuids}
        said = {card: who for one in self._tellers for card, who in one.users(set(cards.values())).items()}
        return {uuid: said[card] for uuid, card in cards.items() if card in said}

    def measure(self) -> Mapping[DeviceUuid, Mapping[str, tuple[float, float | None]]]:
        """What the cards do; of a share alone nobody knows."""
        return {uuid: figures for one in self._meters for uuid, figures in one.measure().items()}

    def probe(self, uuid: DeviceUuid) -> str:
        """The card is tried."""
        card = self._card_name(uuid)
        return next(filter(None, (one.probe(card) for one in self._watchers)), "")

    def close(self) -> None:
        """As the driver does."""
        self._driver.close()

    def _shares(self, card: Device) -> Iterable[Device]:
        setting = self._setting
        for number in range(1000 // setting.thousandths):
            yield dataclasses.replace(
                card,
                uuid=device_name(setting.kind, f"s{number}", parent=card.uuid, weight_milli=setting.thousandths),
                kind=setting.kind,
                mem_bytes=self._mem_bytes(card),
                parent_uuid=card.uuid,
                links=(),
                attributes={
                    **card.attributes,
                    "enforcement": setting.enforcement,
                    "thousandths": str(setting.thousandths),
                    "visible_as": visible_id(card),
                },
            )

    def _mem_bytes(self, card: Device) -> int:
        """Of one share, in whole MiB."""
        return card.mem_bytes * self._setting.thousandths // 1000 >> 20 << 20

    def _card_name(self, uuid: DeviceUuid) -> DeviceUuid:
        parent = parent_of(uuid)
        return parent if parent in self._cards else uuid

    def _card(self, device: Device) -> Device | None:
        """What the driver knows it as."""
        return self._cards.get(self._card_name(device.uuid), device)

    def _names_of(self, uuid: DeviceUuid) -> tuple[DeviceUuid, ...]:
        card = self._cards.get(uuid)
        return (uuid,) if card is None else (uuid, *(share.uuid for share in self._shares(card)))

"""What NVIDIA's driver means by its XIDs, as data.

From NVIDIA's catalog of XIDs (docs.nvidia.com/deploy/xid-errors, "Analyzing Xid Errors with the Xid Catalog"): what the number stands
for, and the immediate action that is recommended. The action decides how serious it is here:

* RESTART_APP, IGNORE: the card is well – except where the text says that trouble is coming, which is a warning.
* RESET_GPU, and the workflows that end in a reset: a fault that a reset cures. Drivers from R565 on also say so by the recovery action
  (and XID 154), which is believed over this table: it knows whether the reset has happened.
* RESTART_BM: a fault that only a restart of the machine cures.

A number that is not here is a warning: it is newer than this table.
"""

from __future__ import annotations

from dataclasses import dataclass

from bursar.agent.devices.health import DeviceSignal, Remedy, Severity
from bursar.core.ids import DeviceUuid


@dataclass(frozen=True, slots=True)
class Xid:
    """One line of the table."""

    number: int
    #: What has happened.
    meaning: str
    severity: Severity
    remedy: Remedy = Remedy.NONE
    #: For people: what to do, beyond the remedy.
    advice: str = ""


_APP = "restart the program; look for its mistake"
_HARDWARE = "if it comes back after a reset, the card is to be replaced"
_SOFTWARE = "if it comes back after a reset, look at driver and firmware"


def _noted(meaning: str, *numbers: int, advice: str = _APP) -> list[Xid]:
    return [Xid(number, meaning, Severity.NOTED, Remedy.NONE, advice) for number in numbers]


def _warning(meaning: str, *numbers: int, advice: str = "") -> list[Xid]:
    return [Xid(number, meaning, Severity.SUSPICIOUS, Remedy.NONE, advice) for number in numbers]


def _fault(meaning: str, *numbers: int, remedy: Remedy = Remedy.RESET, advice: str = _HARDWARE) -> list[Xid]:
    return [Xid(number, meaning, Severity.FATAL, remedy, advice) for number in numbers]


XIDS = {
    xid.number: xid
    for xid in (
        *_noted("the GPU stopped processing for a program", 8),
        *_noted("invalid or corrupted push buffer", 11, 25),
        *_noted("graphics engine exception: mostly an access outside an array or an illegal instruction of the program", 13),
        *_noted("made by hand, to test", 14, 106, 107, advice=""),
        *_noted("memory page fault: mostly an illegal address in the program", 31),
        *_warning("corrupted push buffer, mostly by trouble on the PCI bus", 32, advice="look at the PCI link"),
        *_noted("error of the driver's firmware", 37, 38, advice="look at the driver's version if it repeats"),
        *_noted("exception of a copy engine", 39, 40, 41, 70, 71, 72, 75, 76, 77, 85, *range(126, 136)),
        *_noted("a program was ended for a mistake of its own; the GPU is well", 43),
        *_noted("graphics engine fault during a context switch", 44),
        *_noted("what a program left was cleaned up: it was ended, or another error is the cause", 45, advice=""),
        *_fault("the GPU stopped processing", 46),
        *_fault("double-bit ECC error", 48),
        *_fault("auxiliary power is not connected", 54, remedy=Remedy.REBOOT, advice="look at the power cables of the card"),
        *_noted("exception of the video processor", 60),
        *_fault("the internal micro-controller halted", 62, 169),
        *_warning("a memory row was remapped after ECC errors", 63, advice="reset the GPU when convenient"),
        *_fault("remapping a memory row failed", 64),
        *_noted("illegal access by the driver", 66, 67, advice="look at the driver's version if it repeats"),
        *_noted("exception of a video decoder", 68, 83, 84, 88, 89, 96, 97, 98),
        *_noted("graphics engine class error", 69),
        *_fault("NVLink error", 74, advice="look at the card at the other end, too"),
        *_noted("a virtual GPU could not be started", 78, advice="match the versions of host and guest driver"),
        *_fault("the GPU has fallen off the bus", 79, remedy=Remedy.REBOOT, advice="look at PCI link and power; " + _HARDWARE),
        *_noted("corrupted data was sent to the GPU", 80),
        *_noted("exception of a JPEG engine", 82, *range(99, 106)),
        *_noted("exception of the optical flow engine", 86, 139),
        *_warning("high rate of single-bit ECC errors", 92, advice=_HARDWARE),
        *_noted("the InfoROM is not written to spare it", 93, advice=""),
        *_warning("memory error, contained to one program", 94, advice="restart the program; reset the GPU when convenient"),
        *_fault("memory error that is not contained to one program", 95),
        *_noted("illegal NVLink access, mostly by the program at the other end", 108, 137),
        *_fault("timeout of a context switch", 109),
        *_fault("security fault", 110),
        *_fault("the GPU's system processor (GSP) does not answer", 119, advice=_SOFTWARE),
        *_fault("error of the GPU's system processor (GSP)", 120, advice=_SOFTWARE),
        *_noted("corrected errors on the link to the CPU", 121, advice="reset the GPU when convenient"),
        *_fault("an NVLink could not be trained", 136, advice="look at the link's signal"),
        *_fault("unrecovered ECC error", 140),
        *_noted("CUDA fast path error", 141),
        *_warning("exception of a video encoder", 142),
        *_fault("the GPU could not be initialised", 143),
        *_warning("NVLink error, fatal or not", *range(144, 151), advice="the recovery action says whether a reset is due"),
        *_fault("key rotation error", 151, remedy=Remedy.REBOOT),
        *_noted("error of a deep learning accelerator", 152, 153),
        *_noted("the recovery action changed", 154, advice="the action itself is what counts"),
        *_fault("an NVLink was taken down", 155, advice="expected where somebody did it on purpose"),
        *_fault("a part of the GPU was retired", 156),
        *_warning("a part of the GPU could not be retired", 157, advice=_HARDWARE),
        *_fault("fatal timeout of the GPU", 158),
        *_warning("error on the link to the CPU", 159),
        *_warning("a memory channel was retired, or could not be", 160, 161, advice=_HARDWARE),
        *_noted("power smoothing was switched on or off, or wears out", 162, 163, 164, 165, advice="see NVIDIA's notes on power smoothing"),
        *_warning("traffic that confidential computing forbids", 166, 170),
        *_fault("fatal timeout on PCI", 167, advice="look at the PCI link"),
        *_warning("errors in protected memory: it was made smaller", 168, advice="switch ECC on"),
        *_warning("which memory the double-bit ECC error was in", 171, 172, advice="see XID 48"),
    )
}  # fmt: skip


def signal_of(uuid: DeviceUuid, number: int) -> DeviceSignal:
    """What an XID says of a device."""
    xid = XIDS.get(number)
    if xid is None:
        return DeviceSignal(uuid, Severity.SUSPICIOUS, f"XID {number}: not in our table, see NVIDIA's catalog")
    advice = f" ({xid.advice})" if xid.advice and xid.remedy is Remedy.NONE else ""
    return DeviceSignal(uuid, xid.severity, f"XID {number}: {xid.meaning}{advice}", xid.remedy)

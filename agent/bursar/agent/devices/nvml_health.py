"""What NVIDIA's driver says of the health of its GPUs: XIDs as they happen, and what a GPU needs (the recovery action)."""

from __future__ import annotations

import ctypes
import logging
import threading
import time
from collections.abc import Iterable
from typing import Any

import pynvml as _pynvml

from bursar.agent.devices.health import DeviceSignal, Remedy
from bursar.agent.devices.users import DeviceUser
from bursar.agent.devices.xids import signal_of
from bursar.core.ids import DeviceUuid

log = logging.getLogger(__name__)

#: The library has no types.
pynvml: Any = _pynvml

#: `nvmlDeviceGpuRecoveryAction_t`: what each asks for. Those that only need traffic between GPUs or a domain of them to stop
#: need no reset; they are complained of for as long as they last.
_RECOVERY = {
    0: Remedy.NONE,
    1: Remedy.RESET,
    2: Remedy.REBOOT,
    4: Remedy.RESET,
    6: Remedy.RESET,
    7: Remedy.REBOOT,
}
_RECOVERY_COMPLAINTS = {
    3: "its driver asks for traffic with other GPUs to stop",
    5: "its driver asks for its IMEX domain to be recovered",
}
#: The XID of what the driver reports as an event of its own.
_DOUBLE_BIT_ECC_XID = 48
#: Where nothing can be waited for, so long until the next try.
_PAUSE_S = 0.5


def recovery_of(handle: Any) -> tuple[Remedy | None, str]:
    """What the driver says must be done to a GPU, and a complaint for what is not in Remedy; (None, "") where it never says such things."""
    try:
        (value,) = pynvml.nvmlDeviceGetFieldValues(handle, [pynvml.NVML_FI_DEV_GET_GPU_RECOVERY_ACTION])
    except pynvml.NVMLError:
        return None, ""
    if value.nvmlReturn != pynvml.NVML_SUCCESS:
        return None, ""
    action = int(value.value.uiVal)
    return _RECOVERY.get(action, Remedy.NONE), _RECOVERY_COMPLAINTS.get(action, "")


class NvmlEvents:
    """A set of events that the driver is asked to report; waited for by one thread, which alone touches it."""

    def __init__(self) -> None:
        self._set: Any = None
        #: By address of the handle, as a GPU that is lost does not say who it is.
        self._uuids: dict[int, DeviceUuid] = {}
        self._lock = threading.Lock()
        self._asked: frozenset[DeviceUuid] = frozenset()

    def wait(self, timeout_s: float, gpus: Iterable[tuple[DeviceUuid, Any]]) -> tuple[DeviceSignal, ...] | None:
        """What the driver says of these GPUs, each with its handle, within some time; None: nothing. Empty: look at them."""
        known = dict(gpus)
        with self._lock:
            if self._asked != known.keys():
                self._ask(known)
            if self._set is None:
                time.sleep(min(timeout_s, _PAUSE_S))
                return None
            try:
                event = pynvml.nvmlEventSetWait(self._set, int(timeout_s * 1000))
            except pynvml.NVMLError as error:
                if error.value == pynvml.NVML_ERROR_TIMEOUT:
                    return None
                time.sleep(min(timeout_s, _PAUSE_S))
                self._asked = frozenset()
                return ()
        uuid = self._uuids.get(_address(event.device))
        if uuid is None:
            return ()
        if event.eventType == pynvml.nvmlEventTypeXidCriticalError:
            return (signal_of(uuid, int(event.eventData)),)
        if event.eventType == pynvml.nvmlEventTypeDoubleBitEccError:
            return (signal_of(uuid, _DOUBLE_BIT_ECC_XID),)
        return ()

    def close(self) -> None:
        """Wait for the thread that waits, and let go."""
        with self._lock:
            self._free()

    def _ask(self, gpus: dict[DeviceUuid, Any]) -> None:
        """Have the driver report of these GPUs what it can report of them."""
        self._free()
        self._asked = frozenset(gpus)
        self._uuids = {_address(handle): uuid for uuid, handle in gpus.items()}
        wanted = (
            pynvml.nvmlEventTypeXidCriticalError
            | pynvml.nvmlEventTypeDoubleBitEccError
            | pynvml.nvmlEventTypeGpuUnavailableError
            | pynvml.nvmlEventTypeGpuRecoveryAction
        )
        try:
            self._set = pynvml.nvmlEventSetCreate()
        except pynvml.NVMLError as error:
            log.warning("the NVIDIA driver reports no events, GPUs are only looked at: %s", error)
            return
        for uuid, handle in gpus.items():
            try:
                types = pynvml.nvmlDeviceGetSupportedEventTypes(handle) & wanted
                if types:
                    pynvml.nvmlDeviceRegisterEvents(handle, types, self._set)
            except pynvml.NVMLError as error:
                log.warning("GPU %s reports no events, it is only looked at: %s", uuid, error)

    def _free(self) -> None:
        if self._set is not None:
            try:
                pynvml.nvmlEventSetFree(self._set)
            except pynvml.NVMLError as error:
                log.debug("nvmlEventSetFree: %s", error)
            self._set = None


def _address(handle: Any) -> int:
    return int(ctypes.cast(handle, ctypes.c_void_p).value or 0)


def users_of(handle: Any) -> tuple[DeviceUser, ...]:
    """Who has a context on a GPU, or on an instance of one. Raises NVMLError where it does not say."""
    found = {int(one.pid): one.usedGpuMemory for one in _mps_clients(handle)}
    for ask in (pynvml.nvmlDeviceGetComputeRunningProcesses, pynvml.nvmlDeviceGetGraphicsRunningProcesses):
        for process in ask(handle):
            found.setdefault(int(process.pid), process.usedGpuMemory)
    return tuple(DeviceUser(pid, mem_bytes=used) for pid, used in sorted(found.items()))


def _mps_clients(handle: Any) -> Iterable[Any]:
    """Processes that go through MPS: only by this question where the driver tells them apart."""
    try:
        return pynvml.nvmlDeviceGetMPSComputeRunningProcesses(handle)  # type: ignore[no-any-return]
    except (pynvml.NVMLError, AttributeError):
        return ()


def measure_gpu(handle: Any) -> dict[str, tuple[float, float | None]]:
    """What a GPU does and can do at most; what it does not tell is left out."""

    def ask(function: Any, *arguments: Any) -> Any:
        try:
            return function(handle, *arguments)
        except pynvml.NVMLError:
            return None

    found: dict[str, tuple[float, float | None]] = {}
    if (rates := ask(pynvml.nvmlDeviceGetUtilizationRates)) is not None:
        found["gpu_util"] = (float(rates.gpu), 100.0)
        found["mem_util"] = (float(rates.memory), 100.0)
    if (memory := ask(pynvml.nvmlDeviceGetMemoryInfo)) is not None:
        found["mem"] = (float(memory.used), float(memory.total))
    if (celsius := ask(pynvml.nvmlDeviceGetTemperature, pynvml.NVML_TEMPERATURE_GPU)) is not None:
        found["temperature"] = (float(celsius), None)
    if (milliwatts := ask(pynvml.nvmlDeviceGetPowerUsage)) is not None:
        limit = ask(pynvml.nvmlDeviceGetEnforcedPowerLimit)
        found["power"] = (milliwatts / 1000, None if limit is None else limit / 1000)
    return found

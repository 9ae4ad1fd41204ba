"""A stand-in for AMD's package of this name: what it answers is in the JSON file that AMDSMI_STANDIN names.

{"gpus": [{"bdf": …, "uuid": …, "name": …, "vram": …, "numa": …, "error": …}, …], "links": [[0, 1, 1], …], "init_error": …}
"""

import enum
import json
import os


class AmdSmiLibraryException(Exception):
    pass


class AmdSmiMemoryType(enum.IntEnum):
    VRAM = 0


class AmdSmiLinkType(enum.IntEnum):
    AMDSMI_LINK_TYPE_PCIE = 1
    AMDSMI_LINK_TYPE_XGMI = 2


_open = False


def _said():
    with open(os.environ["AMDSMI_STANDIN"], encoding="utf-8") as file:
        return json.load(file)


def _gpu(handle):
    if not _open:
        raise AmdSmiLibraryException("AMDSMI_STATUS_NOT_INIT")
    gpu = _said()["gpus"][handle]
    if gpu.get("error"):
        raise AmdSmiLibraryException(gpu["error"])
    return gpu


def amdsmi_init():
    global _open
    if _said().get("init_error"):
        raise AmdSmiLibraryException(_said()["init_error"])
    _open = True


def amdsmi_shut_down():
    global _open
    _open = False


def amdsmi_get_processor_handles():
    return list(range(len(_said()["gpus"])))


def amdsmi_get_gpu_device_bdf(handle):
    return _said()["gpus"][handle]["bdf"]


def amdsmi_get_gpu_device_uuid(handle):
    return _gpu(handle)["uuid"]


def amdsmi_get_gpu_asic_info(handle):
    return {"market_name": _gpu(handle)["name"], "vendor_id": "0x1002"}


def amdsmi_get_gpu_memory_total(handle, kind):
    assert kind is AmdSmiMemoryType.VRAM
    return _gpu(handle)["vram"]


def amdsmi_topo_get_numa_node_number(handle):
    if "numa" not in _gpu(handle):
        raise AmdSmiLibraryException("AMDSMI_STATUS_NOT_SUPPORTED")
    return _gpu(handle)["numa"]


def amdsmi_topo_get_link_type(left, right):
    for one, other, hops in _said().get("links", []):
        if {one, other} == {left, right}:
            return {"hops": hops, "type": AmdSmiLinkType.AMDSMI_LINK_TYPE_XGMI}
    return {"hops": 2, "type": AmdSmiLinkType.AMDSMI_LINK_TYPE_PCIE}


def amdsmi_get_gpu_process_list(handle):
    if "processes" not in _gpu(handle):
        raise AmdSmiLibraryException("AMDSMI_STATUS_NOT_SUPPORTED")
    return [
        {"name": "N/A", "pid": pid, "mem": vram, "memory_usage": {"gtt_mem": 0, "cpu_mem": 0, "vram_mem": vram}}
        for pid, vram in _gpu(handle)["processes"]
    ]

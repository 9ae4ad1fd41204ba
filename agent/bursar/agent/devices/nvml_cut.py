"""Cutting a GPU by MIG, one call of NVIDIA's library at a time. Needs root."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import pynvml as _pynvml

from bursar.agent.devices.cutting import CannotCut, CardLayout, Part, Profile, Step

#: The library has no types.
pynvml: Any = _pynvml

#: Compute instances of one GPU instance share its engines.
_SHARED = pynvml.NVML_COMPUTE_INSTANCE_ENGINE_PROFILE_SHARED
_NAME = re.compile(r"([0-9]+g\.\S+)")


#: The number of the profile of a compute instance that has so many slices; its id is asked of the GPU instance.
_FULL = {1: 0, 2: 1, 3: 2, 4: 3, 7: 4, 8: 5, 6: 6}


def layout_of(handle: Any) -> CardLayout:
    """Into what a GPU is cut, and could be. Raises CannotCut."""
    try:
        current, pending = pynvml.nvmlDeviceGetMigMode(handle)
        if not current:
            return CardLayout(
                False, bool(current != pending), profiles=tuple(_profiles(handle)) if pending == current else ()
            )
        profiles = tuple(_profiles(handle))
        parts = sorted(_parts(handle, profiles), key=lambda part: part.start)
        return CardLayout(True, bool(current != pending), tuple(parts), profiles)
    except pynvml.NVMLError as error:
        raise CannotCut(f"MIG: {error}") from error


def cut(handle: Any, step: Step) -> None:
    """Do one step. Raises CannotCut with the driver's words."""
    try:
        _STEPS[step.kind](handle, step)
    except pynvml.NVMLError as error:
        raise CannotCut(str(error)) from error


def _switch(mode: int) -> Callable[[Any, Step], None]:
    def switch(handle: Any, step: Step) -> None:
        status = pynvml.nvmlDeviceSetMigMode(handle, mode)
        # RESET_REQUIRED: it is pending, which the next look shows.
        if status not in (pynvml.NVML_SUCCESS, pynvml.NVML_ERROR_RESET_REQUIRED):
            raise pynvml.NVMLError(status)

    return switch


def _destroy_compute(handle: Any, step: Step) -> None:
    instance = pynvml.nvmlDeviceGetGpuInstanceById(handle, step.instance_id)
    pynvml.nvmlComputeInstanceDestroy(pynvml.nvmlGpuInstanceGetComputeInstanceById(instance, step.compute_id))


def _destroy(handle: Any, step: Step) -> None:
    pynvml.nvmlGpuInstanceDestroy(pynvml.nvmlDeviceGetGpuInstanceById(handle, step.instance_id))


def _create(handle: Any, step: Step) -> None:
    place = pynvml.c_nvmlGpuInstancePlacement_t(step.start, step.size)
    pynvml.nvmlDeviceCreateGpuInstanceWithPlacement(handle, step.profile_id, pynvml.byref(place))


def _create_compute(handle: Any, step: Step) -> None:
    instance = pynvml.nvmlDeviceGetGpuInstanceById(handle, step.instance_id)
    info = pynvml.nvmlGpuInstanceGetComputeInstanceProfileInfo(instance, step.profile_id, _SHARED)
    pynvml.nvmlGpuInstanceCreateComputeInstance(instance, info.id)


_STEPS: dict[str, Callable[[Any, Step], None]] = {
    "enable": _switch(1),
    "disable": _switch(0),
    "destroy-compute": _destroy_compute,
    "destroy": _destroy,
    "create": _create,
    "create-compute": _create_compute,
}


def _profiles(handle: Any) -> Iterator[Profile]:
    for number in range(pynvml.NVML_GPU_INSTANCE_PROFILE_COUNT):
        try:
            info = pynvml.nvmlDeviceGetGpuInstanceProfileInfo(handle, number)
            places = _placements(handle, info.id)
        except pynvml.NVMLError:
            continue  # this card has no such profile
        name = info.name.decode("ascii", "replace") if isinstance(info.name, bytes) else str(info.name)
        match = _NAME.search(name)
        if match and places:
            yield Profile(match[1], int(info.id), _FULL.get(int(info.sliceCount), 0), places)


def _placements(handle: Any, profile_id: int) -> tuple[tuple[int, int], ...]:
    count = pynvml.c_uint()
    pynvml.nvmlDeviceGetGpuInstancePossiblePlacements(handle, profile_id, None, pynvml.byref(count))
    places = (pynvml.c_nvmlGpuInstancePlacement_t * count.value)()
    pynvml.nvmlDeviceGetGpuInstancePossiblePlacements(handle, profile_id, places, pynvml.byref(count))
    return tuple(sorted((int(place.start), int(place.size)) for place in places[: count.value]))


def _parts(handle: Any, profiles: tuple[Profile, ...]) -> Iterator[Part]:
    for profile in profiles:
        count = pynvml.c_uint(len(profile.placements))
        instances = (pynvml.c_nvmlGpuInstance_t * max(1, count.value))()
        pynvml.nvmlDeviceGetGpuInstances(handle, profile.profile_id, instances, pynvml.byref(count))
        for instance in instances[: count.value]:
            info = pynvml.nvmlGpuInstanceGetInfo(instance)
            place = info.placement
            compute = tuple(sorted(_compute(instance)))
            yield Part(int(info.id), profile.profile_id, int(place.start), int(place.size), compute)


def _compute(instance: Any) -> Iterator[tuple[int, int]]:
    """Id and number of the profile of each compute instance."""
    seen: set[int] = set()
    for number in range(pynvml.NVML_COMPUTE_INSTANCE_PROFILE_COUNT):
        try:
            info = pynvml.nvmlGpuInstanceGetComputeInstanceProfileInfo(instance, number, _SHARED)
        except pynvml.NVMLError:
            continue  # this instance has no such profile
        count = pynvml.c_uint(int(info.instanceCount))
        found = (pynvml.c_nvmlComputeInstance_t * max(1, count.value))()
        pynvml.nvmlGpuInstanceGetComputeInstances(instance, info.id, found, pynvml.byref(count))
        for one in found[: count.value]:
            compute_id = int(pynvml.nvmlComputeInstanceGetInfo(one).id)
            if compute_id not in seen:
                seen.add(compute_id)
                yield compute_id, number

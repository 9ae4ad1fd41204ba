"""Run as a program: what a device driver says, as JSON. In a process of its own, since NVML's library is loaded once and for all.

    observe.py DEVICES AGENT_ID [LAYOUT…]

Each LAYOUT is copied to $NVML_STANDIN or $AMDSMI_STANDIN before a discovery; without any there are two discoveries.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import shutil
import sys
from pathlib import Path
from typing import Any

from bursar.agent.devices.driver import (
    ContainerDecorator,
    DeviceDriver,
    DriverUnavailable,
    health_watchers,
    user_tellers,
)
from bursar.agent.devices.external import DockerKeys, ExternalResource
from bursar.agent.devices.script import PATH_KEY, ScriptDevices
from bursar.agent.devices.select import bare_drivers
from bursar.core.ids import AgentId


def main(devices: str, agent_id: str, *layouts: str) -> None:
    driver: DeviceDriver
    if devices.startswith("script:"):
        params = {PATH_KEY: devices.removeprefix("script:")}
        resource = ExternalResource("fpga", "fpgas", 2, "script", params, DockerKeys(("/dev/f{index}",), ("FPGAS",)))
        driver = ScriptDevices(resource, Path("/"))
    else:
        (driver,) = bare_drivers(devices, AgentId(agent_id))
    said: dict[str, Any] = {
        "name": driver.name,
        "discoveries": [],
        "heard": [],
        "remedies": [],
        "probes": [],
        "users": [],
        "warnings": [],
    }
    hear = logging.Handler(logging.WARNING)
    hear.emit = lambda record: said["warnings"].append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("bursar").addHandler(hear)
    found = ()
    for layout in layouts or (None, None):
        if layout:
            shutil.copyfile(layout, os.environ.get("NVML_STANDIN") or os.environ["AMDSMI_STANDIN"])
        try:
            found = driver.discover()
        except DriverUnavailable as unavailable:
            said["discoveries"].append({"unavailable": str(unavailable)})
        else:
            said["discoveries"].append([dataclasses.asdict(device) for device in found])
            uuids = [device.uuid for device in found]
            said["users"].append(
                {
                    uuid: [(one.pid, one.mem_bytes) for one in who]
                    for teller in user_tellers(driver)
                    for uuid, who in teller.users(uuids).items()
                }
            )
            for watcher in health_watchers(driver):
                heard = watcher.watch(0.05)
                said["heard"].append(None if heard is None else [dataclasses.asdict(signal) for signal in heard])
                said["remedies"].append({uuid: remedy.name for uuid, remedy in watcher.remedies().items()})
                said["probes"].append({device.uuid: watcher.probe(device.uuid) for device in found})
    assert isinstance(driver, ContainerDecorator)
    said["decorated"] = {
        runtime: {
            "none": dataclasses.asdict(driver.decorate((), runtime)),
            "all": dataclasses.asdict(driver.decorate(found, runtime)),
        }
        for runtime in ("process", "docker")
    }
    driver.close()
    driver.close()
    json.dump(said, sys.stdout)


main(*sys.argv[1:])

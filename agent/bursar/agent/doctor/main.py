"""`bursar-agent doctor`: takes the agent's own flags, and looks at what an agent with these would need."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from bursar.agent.containers.device_access import engine_devices
from bursar.agent.devices.external import declared_with, read_external
from bursar.agent.devices.select import bare_drivers
from bursar.agent.devices.shares import parse_shares
from bursar.agent.doctor import devices, engine, machine, masters
from bursar.agent.doctor.findings import Finding, Verdict, as_plain, as_text, count, fail, ok, warn
from bursar.agent.resources import SYSTEM_RESERVE_MEM_BYTES, discover_host, resolve_resources
from bursar.agent.settings import PROGRAM, flags, named_credentials, tolerated_programs
from bursar.core.devices import Device
from bursar.core.errors import BursarError
from bursar.core.flags import Flag, FlagType
from bursar.core.ids import AgentId
from bursar.core.memory.agents import describe, plan_agent
from bursar.core.memory.pools import format_bytes
from bursar.core.memory.text import parse_pools_text
from bursar.core.resources import sum_resources
from bursar.core.text import format_resources
from bursar.runtime.settings import Settings, load

SUMMARY = "Looks at everything that an agent with these flags needs here, and explains what is wrong. Changes nothing."
JSON = Flag("json", FlagType.BOOL, False, "Print JSON for programs.")


def main(argv: Sequence[str], environ: Mapping[str, str], version: str) -> int:
    """Print what is found. Exit status 0; 1 where something has to be repaired first; 2 for a wrong use."""
    logging.disable(logging.CRITICAL)  # what libraries and drivers say in passing is said here by the findings
    try:
        settings = load(
            (*flags(environ), JSON),
            argv,
            environ,
            PROGRAM,
            summary=SUMMARY,
            version=version,
            command=f"{PROGRAM} doctor",
        )
    except BursarError as error:
        findings = [fail("flags", error.detail.message, "an agent with these does not start", error.detail.hint)]
        print(as_text(findings))
        return 2
    findings = examine(settings, version)
    print(json.dumps(as_plain(findings), indent=2) if settings.switch("json") else as_text(findings))
    sys.stdout.flush()
    return 1 if count(findings)[Verdict.FAIL] else 0


def examine(settings: Settings, version: str) -> list[Finding]:
    """Every finding, in the order in which an agent would stumble over them."""
    runtime, path = settings.text("runtime"), Path(settings.text("work-dir")).expanduser()
    findings = [
        warn("flags", text, "it has no effect", "correct or remove the variable") for text in settings.warnings
    ] or [ok("flags", "all are understood")]
    findings += [machine.python(version), machine.kernel(), machine.cgroups(), machine.clock()]
    findings += [machine.user(runtime), machine.open_files(), machine.identity(), *machine.work_dir(path)]
    info = None
    if runtime == "docker":
        info, said = engine.look(settings.text("default-image"))
        findings += said
    found, said = _devices(settings)
    findings += said
    findings.append(devices.pinning(runtime, found, None if info is None else engine_devices(info)))
    findings += devices.rules(found, info or {})
    findings += _offered(settings, path, found)
    findings.append(machine.metrics_port(settings.text("metrics")))
    return findings + masters.look(settings.items("master"), credentials=named_credentials(settings))


def _devices(settings: Settings) -> tuple[tuple[Device, ...], list[Finding]]:
    found: tuple[Device, ...] = ()
    findings: list[Finding] = []
    try:
        external = read_external(Path(text).expanduser()) if (text := settings.text("external-resources")) else []
        drivers = bare_drivers(
            settings.text("devices"), AgentId("doctor"), external, shares=parse_shares(settings.text("gpu-shares"))
        )
    except BursarError as error:
        return (), [fail("devices", error.detail.message, "an agent with these does not start", error.detail.hint)]
    real: tuple[Device, ...] = ()
    for driver in drivers:
        mine, said = devices.look(driver)
        found += mine
        real += mine if driver.name != "simulated" else ()
        findings += said
        findings += devices.users(mine, driver, tolerated_programs(settings))
        driver.close()
    return found, findings + (devices.owners(real) if real else [])


def _offered(settings: Settings, work_dir: Path, found: Sequence[Device]) -> list[Finding]:
    """What would be offered, and how memory is divided."""
    there = next(parent for parent in (work_dir.absolute(), *work_dir.absolute().parents) if parent.is_dir())
    host = discover_host(there)
    findings = []
    try:
        if text := settings.text("memory"):
            plan = plan_agent(host.mem_bytes, parse_pools_text(text))
            host = replace(host, offerable_mem_bytes=plan["offerable"])
            findings.append(ok("memory", describe(plan)))
        else:
            kept = format_bytes(SYSTEM_RESERVE_MEM_BYTES)
            findings.append(
                ok("memory", f"{kept} is left to the system and to the agent (--memory divides it further)")
            )
    except BursarError as error:
        findings.append(
            fail("memory", error.detail.message, "pools that do not add up are not guessed", error.detail.hint)
        )
    try:
        external = read_external(Path(text).expanduser()) if (text := settings.text("external-resources")) else []
        resolved = resolve_resources(declared_with(settings.text("resources"), external), host, found)
    except BursarError as error:
        return [*findings, fail("offers", error.detail.message, "such an agent does not start", error.detail.hint)]
    total = sum_resources(part.resources for part in resolved.resources)
    findings.append(ok("offers", format_resources(total)))
    findings += [
        warn("offers", text, "what is declared is offered", "declare what is there") for text in resolved.warnings
    ]
    return [*findings, machine.offered_ports(total.ports)]

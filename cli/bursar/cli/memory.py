"""`bursar memory`: how the memory of a task, an agent's machine or a GPU is divided, before anything runs."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import yaml

from bursar.cli import output as out
from bursar.cli import problems
from bursar.core.errors import InvalidText
from bursar.core.memory.agents import plan_agent, plan_gpu
from bursar.core.memory.pools import MemoryPlan, format_bytes
from bursar.core.memory.profiles import JAVA_TOOL_OPTIONS, describe_profiles, runtime_environment
from bursar.core.memory.tasks import plan_task, with_container
from bursar.core.memory.text import parse_memory, parse_pools
from bursar.core.text import parse_bytes

#: What a section may say beside its memory.
_KEYS = {
    "task": {"mem", "memory", "env", "command"},
    "agent": {"mem", "memory"},
    "gpu": {"mem", "memory", "processes"},
}
_MAX_FILE_BYTES = 1 << 20


@click.group()
def memory() -> None:
    """Plans of memory."""


@memory.command()
@click.argument("file")
@click.option(
    "--runtime",
    type=click.Choice(["docker", "process"]),
    default="docker",
    show_default=True,
    help="Of the agent: what enforces the pools depends on it.",
)
@click.option("-o", "--output", type=click.Choice(["table", "json"]), default="table", show_default=True)
def explain(file: str, runtime: str, output: str) -> None:
    """Show what the memory settings in FILE come to, byte for byte, and where each size comes from; - is stdin.

    FILE is YAML (or JSON) with the sections task, agent and gpu, each with mem (the whole) and memory (the pools):

    \b
      task:
        mem: 8GiB
        memory: {profile: jvm, shm: 512MiB, managed: {fraction: 30%, max: 2GiB}}
      agent: {mem: 64GiB, memory: {system-reserve: 4GiB}}
      gpu: {mem: 80GiB, processes: 2}

    Nothing is asked of a cluster: the agent and the master do the same arithmetic. Exit code 2 where the settings do not fit together.
    """  # noqa: D301
    sections = _read(file)
    name = "stdin" if file == "-" else Path(file).name
    plans: dict[str, tuple[MemoryPlan, dict[str, str]]] = {}
    for section, said in sections.items():
        try:
            plans[section] = _plan(section, said, name, runtime)
        except InvalidText as error:
            raise InvalidText(f"{section}: {error.detail.message}", error.detail.hint) from None
    if output == "json":
        out.write(out.dump_json({section: _as_data(*plan) for section, plan in plans.items()}))
        return
    for number, (section, (plan, environment)) in enumerate(plans.items()):
        out.write(("\n" if number else "") + f"{section}\n")
        _print(plan, environment)


@memory.command()
def profiles() -> None:
    """List the profiles of tasks."""
    out.write(describe_profiles() + "\n")


def _read(file: str) -> dict[str, dict[str, Any]]:
    """The sections of a file. Raises UsageError."""
    try:
        text = sys.stdin.read(_MAX_FILE_BYTES + 1) if file == "-" else Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise click.UsageError(f"{file}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if len(text) > _MAX_FILE_BYTES:
        raise click.UsageError(f"{file}: larger than 1 MiB is no file of memory settings")
    try:
        data = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        words = " ".join(str(error).split())
        raise click.UsageError(f"{file}: not YAML: {words}") from None
    if not isinstance(data, dict) or not data:
        raise click.UsageError(f"{file}: there is no section task, agent or gpu")
    for section, said in data.items():
        if section not in _KEYS:
            raise click.UsageError(f"{file}: {section!r} is no section; known: {', '.join(_KEYS)}")
        if not isinstance(said, dict):
            raise click.UsageError(f"{file}: {section} holds no settings; write mem and memory below it")
        if unknown := [str(key) for key in said if key not in _KEYS[section]]:
            raise click.UsageError(
                f"{file}: {section} knows no {', '.join(unknown)}; known: {', '.join(sorted(_KEYS[section]))}"
            )
    return data


def _plan(section: str, said: Mapping[str, Any], name: str, runtime: str) -> tuple[MemoryPlan, dict[str, str]]:
    """The plan of a section, and the environment that follows from it. Raises InvalidText."""
    pools = said.get("memory") or {}
    if not isinstance(pools, dict):
        raise InvalidText("memory: expected pools by name", "write memory: {shm: 1GiB}")
    mem_bytes = parse_bytes(str(said["mem"]), "mem") if said.get("mem") is not None else 0
    if section == "task":
        settings, notes = parse_memory(pools)
        plan = plan_task(with_container(settings, mem_bytes, f"mem in {name}"), name, runtime)
        plan = MemoryPlan(plan.components, (*notes, *plan.notes))
        environment, command = _strings(said.get("env") or {}), said.get("command") or ()
        words = command.split() if isinstance(command, str) else [str(word) for word in command]
        return plan, runtime_environment(settings.profile, plan, environment, words)
    settings_of_pools, notes = parse_pools(pools)
    if not mem_bytes:
        raise InvalidText(f"{section}: mem is missing", "say how much memory there is, such as mem: 64GiB")
    if section == "agent":
        plan = plan_agent(mem_bytes, settings_of_pools, name)
    else:
        processes = said.get("processes", 1)
        if isinstance(processes, bool) or not isinstance(processes, int):
            raise InvalidText(f"processes: {processes!r} is not a number", "write processes: 2")
        plan = plan_gpu(mem_bytes, processes, settings_of_pools, name)
    return MemoryPlan(plan.components, (*notes, *plan.notes)), {}


def _strings(environment: Any) -> dict[str, str]:
    if not isinstance(environment, dict):
        raise InvalidText("env: expected names and values", "write env: {NAME: VALUE}")
    return {str(name): str(value) for name, value in environment.items()}


def _print(plan: MemoryPlan, environment: Mapping[str, str]) -> None:
    out.write_table(
        ("POOL", "SIZE", "BYTES", "MIN", "MAX", "ENFORCED BY", "SOURCE"),
        [
            (
                item.name,
                format_bytes(item.size_bytes),
                str(item.size_bytes),
                "" if item.is_sum else format_bytes(item.min_bytes),
                "" if item.is_sum else "-" if item.max_bytes is None else format_bytes(item.max_bytes),
                item.enforced_by,
                item.source,
            )
            for item in plan.components
        ],
    )
    for note in plan.notes:
        problems.say(f"note: {note}")
    if options := environment.get(JAVA_TOOL_OPTIONS):
        out.write(f"{JAVA_TOOL_OPTIONS}={options}\n")


def _as_data(plan: MemoryPlan, environment: Mapping[str, str]) -> dict[str, Any]:
    return {
        "pools": [
            {
                "name": item.name,
                "size_bytes": item.size_bytes,
                "min_bytes": item.min_bytes,
                "max_bytes": item.max_bytes,
                "enforced_by": item.enforced_by,
                "source": item.source,
                "is_sum": item.is_sum,
            }
            for item in plan.components
        ],
        "notes": list(plan.notes),
        "environment": dict(environment),
    }

"""Whether containers of the real engine reach their devices, and keep reaching them (pain 3)."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import docker
import pytest
from tests.agent.containers.test_docker_agent import S, no_container_left, task

from bursar.agent.containers.device_reach import ReachTeller, out_of_reach
from bursar.agent.containers.runtime import ContainerId, Decoration
from bursar.agent.containers.simulated import SimulatedProgram
from bursar.core.messages.agent import Register
from bursar.core.tasks import StatusReason

__all__ = ["no_container_left"]

#: A device that no container has unless it is given it, and that opening does nothing to.
NODE = "/dev/kmsg"
#: Where a rule is taken from a container behind its engine's back: control groups of version 1.
DENY = Path("/sys/fs/cgroup/devices")

if os.geteuid() != 0:
    pytest.skip("to join a container's control group takes root", allow_module_level=True)


def deny(container_id: str, node: str) -> None:
    """As systemd does when it writes the rules of a container anew and does not know of a device."""
    number = os.stat(node).st_rdev
    client = docker.from_env()
    pid = client.containers.get(container_id).attrs["State"]["Pid"]
    client.close()
    (line,) = [line for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines() if ":devices:" in line]
    group = DENY / line.split(":", 2)[2].lstrip("/")
    (group / "devices.deny").write_text(f"c {os.major(number)}:{os.minor(number)} rwm")


@pytest.fixture
async def bench(make_bench: Any) -> AsyncIterator[Any]:
    async with make_bench("docker") as made:
        yield made


async def test_who_was_given_a_node_reaches_it_also_after_the_engine_wrote_its_rules_anew(bench: Any) -> None:
    text = "until [ -e go ]; do sleep 0.02; done"
    given = bench.spec("given", bench.script(text, SimulatedProgram()))
    given = replace(given, decoration=Decoration(device_nodes=(NODE,)))
    without = bench.spec("without", bench.script(text, SimulatedProgram()))
    runtime = await bench.open()
    for spec in (given, without):
        await runtime.start(spec)
    assert isinstance(runtime, ReachTeller)
    ids = [given.container_id, without.container_id, ContainerId("never")]
    nothing = {given.container_id: ()}
    # Of one that was given no node there is nothing to say.
    assert runtime.out_of_reach(ids) == nothing
    client = docker.from_env()
    client.containers.get(str(given.container_id)).update(cpu_shares=512)
    client.close()
    client = docker.from_env()
    pids = {one: client.containers.get(str(one)).attrs["State"]["Pid"] for one in ids[:2]}
    client.close()
    asked = out_of_reach({one: (pid, (NODE, "/dev/zero", "/dev/no-such")) for one, pid in pids.items()})
    assert asked == {given.container_id: (), without.container_id: (NODE,)}
    assert runtime.out_of_reach(ids) == nothing, "an update of the container takes nothing away"
    for spec in (given, without):
        (spec.sandbox / "go").touch()
        await bench.exit_of(spec.container_id)
    assert runtime.out_of_reach(ids) == {}


@pytest.mark.skipif(
    not DENY.is_dir(), reason="rules are taken away behind the engine's back in control groups of version 1 only"
)
@pytest.mark.usefixtures("no_container_left")
async def test_a_task_that_lost_its_device_is_told(
    scripted_master: Any, agent: Any, docker_image: str, tmp_path: Path
) -> None:
    plugin = tmp_path / "logs.py"
    plugin.write_text(
        "class Logs:\n"
        "    def __init__(self, params): pass\n"
        "    def discover(self): yield {'kind': 'logs', 'id': 'kmsg'}\n"
        f"    def decorate(self, granted, runtime): return {{'device_nodes': [{NODE!r}] if granted else []}}\n"
        "driver = Logs\n"
    )
    flags = ("--devices", f"simulated:1,plugin:{plugin}", "--default-image", docker_image)
    await agent.start("--master", scripted_master.address, *flags)
    await scripted_master.until(lambda: scripted_master.registers() or None)
    register: Register = scripted_master.registers()[-1]
    (uuid,) = [device.uuid for device in register.info.devices if device.kind == "logs"]
    scripted_master.desire(launch=(task("t", "sleep", "100", devices=(uuid,)),))
    await scripted_master.until_status("t", S.RUNNING, 60)
    client = docker.from_env()
    (container,) = client.containers.list(filters={"ancestor": docker_image})
    client.close()
    deny(container.id, NODE)
    # Devices are looked at when a driver says something.
    (agent.work_dir / "simulated-faults").write_text("0 ill it smokes\n")
    told = await scripted_master.until(
        lambda: next((one for one in scripted_master.statuses if one.reason is StatusReason.DEVICE_ACCESS_LOST), None)
    )
    assert told.state is S.RUNNING and f"may not open {NODE} any more" in told.message

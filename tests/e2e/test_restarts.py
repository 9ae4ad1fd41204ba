"""Daemons are killed and come back: what ran goes on, what was recorded holds, and every end is told once."""

from __future__ import annotations

import asyncio
import re
import signal
from pathlib import Path
from typing import Any

import pytest

from bursar.sdk import MasterUnreachable, OperatorClient
from bursar.v1.operator_service_pb2 import AGENT_STATE_ACTIVE, AGENT_STATE_RECOVERING

#: Counts until it is told to end; says its pid first, so that a second start would show.
COUNTING = 'echo "pid $$"; i=0; until [ -e {end} ]; do echo $i; i=$((i+1)); sleep 0.05; done; echo "end $$"; echo last >&2; exit 9'


def check_undisturbed(done: Any) -> None:
    """One life: one pid, every number once and in order, both outputs to their ends, the command's own exit code."""
    lines = done.stdout.splitlines()
    pid = lines[0].removeprefix("pid ")
    assert lines == [f"pid {pid}", *(str(number) for number in range(len(lines) - 2)), f"end {pid}"], done
    assert done.code == 9 and done.stderr == "last\n", done


def numbers(running: Any) -> int:
    return len(re.findall(r"^\d+$", running.stdout(), re.MULTILINE))


def ends(cluster: Any) -> list[dict[str, Any]]:
    return list(cluster.ls("task", "--all"))


async def ask_impatiently(address: str) -> None:
    async with OperatorClient(address, timeout_s=1) as client:
        await client.agents()


def test_a_killed_agent_comes_back_to_its_task(own_cluster: Any, tmp_path: Path) -> None:
    end = tmp_path / "end"
    before = own_cluster.uuids("node-gpu")
    running = own_cluster.start("run", "--gpus", "2", "--", "sh", "-c", COUNTING.format(end=end))
    own_cluster.until(lambda: numbers(running) > 3)
    (task,) = own_cluster.ls("task")
    own_cluster.kill("node-gpu")
    own_cluster.start_agent("node-gpu")
    own_cluster.until_active("node-gpu")
    assert own_cluster.uuids("node-gpu") == before, "simulated devices are the same after a restart"
    (adopted,) = own_cluster.ls("task")
    assert (adopted["state"], adopted["resources"]) == ("RUNNING", task["resources"])
    seen = numbers(running)
    own_cluster.until(lambda: numbers(running) > seen + 3, "output goes on")
    end.touch()
    check_undisturbed(running.finish())
    (ended,) = ends(own_cluster)
    assert (ended["state"], ended["exit_code"]) == ("FAILED", 9)
    assert own_cluster.agent("node-gpu")["free"]["device_uuids"] == sorted(before)


def test_an_end_while_the_agent_was_dead_is_told_once(own_cluster: Any, tmp_path: Path) -> None:
    """The shim keeps the exit code, and the file the output."""
    end = tmp_path / "end"
    running = own_cluster.start("run", "--gpus", "1", "--", "sh", "-c", COUNTING.format(end=end))
    pid = int(running.until_stdout("\n").splitlines()[0].removeprefix("pid "))
    own_cluster.until(lambda: numbers(running) > 3)
    own_cluster.kill("node-gpu")
    end.touch()
    own_cluster.until(lambda: not Path(f"/proc/{pid}").exists(), "the task ended without its agent")
    assert running.alive
    own_cluster.start_agent("node-gpu")
    check_undisturbed(running.finish())
    assert [(task["state"], task["exit_code"]) for task in ends(own_cluster)] == [("FAILED", 9)]


def test_a_stopped_agent_leaves_its_tasks_alone(own_cluster: Any, tmp_path: Path) -> None:
    """SIGTERM to an agent, as an upgrade does."""
    end = tmp_path / "end"
    running = own_cluster.start("run", "--gpus", "1", "--", "sh", "-c", COUNTING.format(end=end))
    own_cluster.until(lambda: numbers(running) > 3)
    assert own_cluster.stop("node-gpu").code == 0
    own_cluster.start_agent("node-gpu")
    own_cluster.until_active("node-gpu")
    end.touch()
    check_undisturbed(running.finish())


def test_a_killed_master_comes_back_to_everything(own_cluster: Any, tmp_path: Path) -> None:
    """Same work directory, same port: agents and frameworks return by themselves, what was set and reserved holds."""
    end = tmp_path / "end"
    own_cluster.start_agent("node-cpu", devices="none")
    own_cluster.until_active("node-cpu")
    reserved = own_cluster.bursar(
        "reserve", "--role", "research", "--agent", "node-gpu", "--resources", "gpus:2;cpus:1", "-o", "json"
    ).json
    own_cluster.bursar("flag", "set", "offer-timeout", "7s")
    own_cluster.bursar("flag", "set", "filter_gpu_resources", "false")
    running = own_cluster.start("run", "--role", "research", "--gpus", "2", "--", "sh", "-c", COUNTING.format(end=end))
    waiting = own_cluster.start("run", "--gpus", "3", "--", "sh", "-c", "echo never")
    own_cluster.until(lambda: numbers(running) > 3)
    waiting.until_stderr("waiting")
    before = {noun: own_cluster.ls(noun) for noun in ("reservation", "flag", "task", "framework")}
    status = own_cluster.bursar("master", "status", "-o", "json").json

    own_cluster.kill("master")
    with pytest.raises(MasterUnreachable):
        asyncio.run(ask_impatiently(own_cluster.address))
    own_cluster.start_master()
    again = own_cluster.bursar("master", "status", "-o", "json").json
    assert again["term"] > status["term"] and again["cluster_id"] == status["cluster_id"]
    own_cluster.until_active("node-gpu", "node-cpu")
    own_cluster.until(
        lambda: [framework["state"] for framework in own_cluster.ls("framework")] == ["ACTIVE"] * 2,
        "frameworks are back",
    )
    after = {noun: own_cluster.ls(noun) for noun in ("reservation", "flag", "task")}
    assert after["reservation"] == before["reservation"]
    assert after["reservation"][0]["resources"]["device_uuids"] == reserved["resources"]["device_uuids"]
    assert after["flag"] == before["flag"]
    assert {flag["name"]: flag["value"] for flag in after["flag"] if flag["source"] == "run time"} == {
        "filter-gpu-resources": "false",
        "offer-timeout": "7s",
    }
    assert [task["resources"] for task in after["task"]] == [task["resources"] for task in before["task"]]

    seen = numbers(running)
    own_cluster.until(lambda: numbers(running) > seen + 3, "output goes on")
    end.touch()
    check_undisturbed(running.finish())
    waiting.signal(signal.SIGTERM)
    assert waiting.finish().code == 143
    assert own_cluster.ls("framework") == []
    assert own_cluster.bursar("run", "--gpus", "2", "--wait", "20s", "--", "true").code == 0


def test_an_end_while_the_master_was_dead_is_told_once(own_cluster: Any, tmp_path: Path) -> None:
    end = tmp_path / "end"
    running = own_cluster.start("run", "--gpus", "4", "--", "sh", "-c", COUNTING.format(end=end))
    pid = int(running.until_stdout("\n").splitlines()[0].removeprefix("pid "))
    own_cluster.kill("master")
    end.touch()
    own_cluster.until(lambda: not Path(f"/proc/{pid}").exists(), "the task ended without a master")
    own_cluster.start_master()
    check_undisturbed(running.finish())
    assert [(task["state"], task["exit_code"]) for task in ends(own_cluster)] == [("FAILED", 9)]


def test_agents_wait_for_a_master_that_is_not_up(bare_cluster: Any) -> None:
    bare_cluster.port = bare_cluster.programs.free_port()
    agent = bare_cluster.start_agent("early")
    agent.until_stderr("no master")
    bare_cluster.start_master()
    bare_cluster.until_active("early")


def test_an_agent_that_is_not_back_is_recovering(own_cluster: Any) -> None:
    """And what it has is not offered to anybody."""
    own_cluster.kill("node-gpu")
    own_cluster.kill("master")
    own_cluster.start_master()
    (agent,) = own_cluster.ls("agent")
    assert (agent["hostname"], agent["state"]) == ("node-gpu", "RECOVERING")
    assert own_cluster.state("node-gpu") == AGENT_STATE_RECOVERING
    assert "recovering" in own_cluster.bursar("agent", "ls").stdout
    done = own_cluster.bursar("run", "--gpus", "1", "--wait", "2500ms", "--", "true")
    assert done.code == 124 and "waiting" in done.stderr, done
    own_cluster.start_agent("node-gpu")
    own_cluster.until(lambda: own_cluster.state("node-gpu") == AGENT_STATE_ACTIVE)
    assert (
        len(own_cluster.ls("agent")) == 1
        and own_cluster.bursar("run", "--gpus", "1", "--wait", "20s", "--", "true").code == 0
    )


def test_an_agent_may_come_back_with_other_resources_that_fit(own_cluster: Any, tmp_path: Path) -> None:
    """Admitted while its tasks and reservations fit; refused with what to do while they do not."""
    end = tmp_path / "end"
    own_cluster.bursar("reserve", "--role", "research", "--agent", "node-gpu", "--resources", "cpus:2")
    running = own_cluster.start("run", "--cpus", "2", "--gpus", "1", "--", "sh", "-c", COUNTING.format(end=end))
    own_cluster.until(lambda: numbers(running) > 1)
    own_cluster.stop("node-gpu")

    refused = own_cluster.start_agent("node-gpu", resources="cpus:3;mem:4GiB")
    words = refused.until_stderr("left the master")
    assert "Traceback" not in words and "cpus" in words and re.search("reservation|reserved|tasks", words), words
    assert own_cluster.state("node-gpu") != AGENT_STATE_ACTIVE
    if refused.alive:
        refused.signal(signal.SIGTERM)
        refused.finish()

    own_cluster.start_agent("node-gpu", resources="cpus:4;mem:2GiB;gpus:1")
    own_cluster.until_active("node-gpu")
    agent = own_cluster.agent("node-gpu")
    assert agent["total"]["cpus_milli"] == 4000 and len(agent["total"]["device_uuids"]) == 1
    assert numbers(running) > 1 and running.alive
    end.touch()
    check_undisturbed(running.finish())


def test_an_agent_without_a_reserved_gpu_is_let_in_and_the_reservation_rebound(own_cluster: Any) -> None:
    def kept() -> tuple[set[str], set[str]]:
        (view,) = own_cluster.ls("reservation")
        return set(view["resources"]["device_uuids"]), set(view["vacant"])

    own_cluster.bursar("reserve", "--role", "research", "--agent", "node-gpu", "--gpus", "2")
    own_cluster.stop("node-gpu")
    own_cluster.start_agent("node-gpu", devices="simulated:1")
    own_cluster.until(lambda: kept()[1], "the agent is let in, without what it lacks")
    own_cluster.until_active("node-gpu")
    before, (gone, *others) = kept()[0], sorted(kept()[1])
    assert len(before) == 2 and gone in before and len(others) < 2
    assert f"{gone} (vacant)" in own_cluster.bursar("reservation", "ls").stdout
    refused = own_cluster.bursar("reservation", "rebind", gone)
    assert refused.code == 1 and "--give-up" in refused.stderr, refused
    own_cluster.stop("node-gpu")
    own_cluster.start_agent("node-gpu", devices="simulated:4")
    own_cluster.until(lambda: not kept()[1], "it is back, and so is the reservation's")
    done = own_cluster.bursar("reservation", "rebind", gone, "-o", "json")
    assert done.code == 0 and gone not in kept()[0] and len(kept()[0]) == 2, done
    (other, *_) = sorted(kept()[0])
    assert own_cluster.bursar("reservation", "rebind", other, "--give-up").code == 0 and len(kept()[0]) == 1


def test_a_work_directory_of_another_cluster(own_cluster: Any, tmp_path: Path) -> None:
    """The agent's memory belongs to one cluster; another master's word is not taken."""
    own_cluster.stop("node-gpu")
    other = type(own_cluster)(own_cluster.programs, tmp_path / "other")
    other.start_master()
    stray = own_cluster.programs.start(
        own_cluster.programs.program("bursar-agent"), "--master", other.address, "--work-dir", str(tmp_path / "node-gpu"),
        "--hostname", "node-gpu", "--runtime", "process", "--devices", "simulated:4",
    )  # fmt: skip
    words = stray.until_stderr("belongs to cluster")
    assert "give the agent another --work-dir, or the right --master" in words
    assert other.ls("agent") == []
    stray.close()
    own_cluster.start_agent("node-gpu")
    own_cluster.until_active("node-gpu")

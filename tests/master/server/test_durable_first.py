"""Nothing is visible before it is durable; and where nothing can be made durable, the master ends and says why."""

from __future__ import annotations

import asyncio
import re
import signal
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from prometheus_client.parser import text_string_to_metric_families

from bursar.core.ids import FrameworkId, TaskId
from bursar.core.messages.agent import DesiredState, TaskReports
from bursar.core.messages.framework import FrameworkInfo, Offers, Subscribe, Subscribed
from bursar.core.messages.offers import Accept, CallResult, Launch, Operation
from bursar.core.resources import ResourceRequest
from bursar.core.tasks import TaskSpec
from bursar.master.records import CallDone, FlagRecorded, TaskRecorded
from bursar.v1 import operator_service_pb2 as pb
from bursar.v1 import operator_service_pb2_grpc


async def test_no_reply_event_or_order_is_visible_before_the_commit(master: Any, registration: Any) -> None:
    agent, framework = await master.agent("a"), await master.framework("f")
    watching = master.operator.Watch(pb.WatchRequest())
    await watching.initial_metadata()
    offers = (await framework.hear_of(Offers)).offers
    await master.driver.settled()
    master.registry.open.clear()

    spec = TaskSpec(TaskId("t"), command=("true",), resources=ResourceRequest({"cpus": 1000}))
    await framework.say(Accept("call", (offers[0].offer_id,), (Operation("op", Launch((spec,))),)))
    flag = asyncio.ensure_future(master.operator.SetFlag(pb.SetFlagRequest(name="filter-gpu-resources", value="false")))
    newcomer = master.framework_stream()
    await newcomer.say(Subscribe(FrameworkInfo(FrameworkId("g"), "1", "g")))
    second = master.agent_stream()
    await second.say(registration("b"), TaskReports((), True))

    outcomes = {
        "the result of the accept": asyncio.ensure_future(framework.hear_of(CallResult)),
        "the launch at the agent": asyncio.ensure_future(agent.hear_of(DesiredState)),
        "the answer to the operator": flag,
        "the subscription": asyncio.ensure_future(newcomer.hear_of(Subscribed)),
        "the registration": asyncio.ensure_future(second.hear_of(DesiredState)),
        "the event": asyncio.ensure_future(watching.read()),
    }
    # The machine has launched the task; what came too late for that batch waits in the inbox.
    async with asyncio.timeout(10):
        while not master.machine.cluster.tasks:
            await asyncio.sleep(0.005)
    done, _ = await asyncio.wait(outcomes.values(), timeout=0.5)
    assert not done, [name for name, task in outcomes.items() if task in done]
    assert not any(isinstance(record, (TaskRecorded, CallDone, FlagRecorded)) for record in master.registry.records)

    master.registry.open.set()
    await asyncio.wait_for(asyncio.gather(*outcomes.values()), 10)
    assert any(isinstance(record, TaskRecorded) for record in master.registry.records)
    watching.cancel()


async def test_where_a_commit_fails_nothing_of_it_gets_out(master: Any) -> None:
    framework = await master.framework("f")
    await master.driver.settled()
    master.registry.failure = OSError("disk full")
    newcomer = master.framework_stream()
    await newcomer.say(Subscribe(FrameworkInfo(FrameworkId("g"), "1", "g")))
    with pytest.raises(OSError, match="disk full"):
        await asyncio.wait_for(asyncio.shield(master.running), 10)
    hearing = asyncio.ensure_future(newcomer.hear())
    done, _ = await asyncio.wait({hearing}, timeout=0.3)
    assert not done
    hearing.cancel()
    framework.cancel()


# --- the program ---


class Program:
    """`bursar-master` as a process."""

    def __init__(self, work_dir: Path, *flags: str) -> None:
        self.work_dir = work_dir
        self.log = work_dir.parent / "master.log"
        command = [sys.executable, "-m", "bursar.master.main", "--listen", "127.0.0.1:0", "--metrics", "127.0.0.1:0"]
        with self.log.open("wb") as output:
            self.process = subprocess.Popen(
                [*command, "--work-dir", str(work_dir), *flags], stdout=output, stderr=subprocess.STDOUT
            )

    def said(self, pattern: str) -> re.Match[str]:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            found = re.search(pattern, self.log.read_text())
            if found:
                return found
            assert self.process.poll() is None, self.log.read_text()
            time.sleep(0.02)
        raise AssertionError(f"not said: {pattern}\n{self.log.read_text()}")

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


@pytest.fixture
def program(tmp_path: Path) -> Iterator[Program]:
    started = Program(tmp_path / "work")
    yield started
    started.close()


def test_a_registry_that_cannot_be_written_ends_the_process(program: Program) -> None:
    address = program.said(r"event=ready address=(\S+)")[1]
    # Somebody holds the write lock of the database for longer than the master waits.
    with sqlite3.connect(program.work_dir / "registry.sqlite", isolation_level=None) as other:
        other.execute("PRAGMA busy_timeout=10000")
        other.execute("BEGIN IMMEDIATE")
        with grpc.insecure_channel(address, options=(("grpc.enable_http_proxy", 0),)) as channel:
            stub = operator_service_pb2_grpc.OperatorServiceStub(channel)
            with pytest.raises(grpc.RpcError):
                stub.SetFlag(pb.SetFlagRequest(name="filter-gpu-resources", value="false"), timeout=30)
        assert program.process.wait(30) == 1
        other.execute("ROLLBACK")
    last = program.log.read_text().strip().splitlines()[-1]
    assert "level=critical" in last and "the registry cannot be written; the master ends" in last
    assert "database is locked" in last
    assert "Traceback" not in program.log.read_text()
    other.close()


def test_metrics_are_served_under_their_names(program: Program) -> None:
    program.said("event=ready")
    port = program.said(r"metrics=(\d+)")[1]
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    text = opener.open(f"http://127.0.0.1:{port}/metrics", timeout=10).read().decode()
    families = {family.name: family for family in text_string_to_metric_families(text)}
    expected = {
        "term": "gauge",
        "agents": "gauge",
        "frameworks": "gauge",
        "offers_outstanding": "gauge",
        "refuse_filters": "gauge",
        "offers": "counter",
        "calls_refused": "counter",
        "allocation_cycles": "counter",
        "tasks_launched": "counter",
        "tasks_preempted": "counter",
        "agent_registrations": "counter",
        "agents_made_unreachable": "counter",
        "framework_subscriptions": "counter",
        "events": "counter",
        "stalls": "counter",
        "registry_commit_seconds": "histogram",
    }
    found = {name.removeprefix("bursar_master_"): family.type for name, family in families.items()}
    assert expected.items() <= found.items()
    assert all(family.documentation for family in families.values())
    states = {sample.labels["state"] for sample in families["bursar_master_agents"].samples}
    assert states == {"active", "disconnected", "unreachable", "recovering"}
    program.process.send_signal(signal.SIGTERM)
    assert program.process.wait(20) == 0

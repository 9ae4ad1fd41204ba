"""Every other command as a process: output forms, exit codes, words on stderr. The JSON is a contract and is tested as one."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import subprocess
import sys
import time
from typing import Any

import click
import pytest

from bursar.cli.main import COMMANDS, LazyGroup, cli, run
from bursar.cli.output import _shorten_ids
from bursar.core.devices import Device
from bursar.core.errors import ErrorDetail, ErrorReason
from bursar.core.ids import AgentId, FrameworkId
from bursar.core.messages import operator as op
from bursar.core.messages.framework import FrameworkInfo
from bursar.core.messages.offers import Offer
from bursar.core.messages.rules import Rule, RuleAction, RuleAudit, RuleMode, RuleVerdict, RuleView
from bursar.core.resources import Reservation, ReservationType, ReservedResources, Resources
from bursar.core.task_groups import TaskGroup
from bursar.core.tasks import StatusReason, TaskSpec, TaskState

GPU = "GPU-11111111-1111-1111-1111-111111111111"
STACK = (Reservation(ReservationType.DYNAMIC, "research", "", (("why", "paper"),)),)
SOME = Resources({"cpus": 4000, "mem": 8 * 2**30}, (), frozenset({GPU}))  # type: ignore[arg-type]
DEVICE = Device(GPU, "gpus", "Simulated", 16 * 2**30, 3, driver="simulated")  # type: ignore[arg-type]
AGENT: Any = op.AgentView(
    "agent-1", "node-1", op.AgentState.RECOVERING, {"rack": "r1", "generation": 3500}, "process", "0.1.0",  # type: ignore[arg-type]
    total=SOME, free=SOME, buckets=(ReservedResources(STACK, SOME),), devices=(DEVICE,), tasks=2, registered_at_ms=1_700_000_000_000,
    incarnation=2**62,
)  # fmt: skip
FRAMEWORK: Any = op.FrameworkView(
    FrameworkInfo("framework-1", "1", "trainer", ("a", "b"), ("GPU_RESOURCES", "OWN")),  # type: ignore[arg-type]
    op.FrameworkState.ACTIVE, tasks=1,
)  # fmt: skip
TASK: Any = op.TaskView(
    "framework-1", "task-1", "train", "a", "agent-1", "node-1", TaskState.FAILED, StatusReason.COMMAND_EXITED, "", 3,  # type: ignore[arg-type]
    (ReservedResources(STACK, SOME),), TaskSpec("task-1", command=("sh", "-c", "x")), 1, 2,  # type: ignore[arg-type]
)  # fmt: skip
ROLE: Any = op.RoleView("research", 2000, 333_333, allocated=SOME, framework_ids=("framework-1",))  # type: ignore[arg-type]
OFFER: Any = op.OfferView(
    Offer("1-O1", "framework-1", "a", "agent-1", 1, (ReservedResources(STACK, SOME),), 30_000),
    "node-1",
    "trainer",
    5,  # type: ignore[arg-type]
)
VIEW: Any = op.DeviceView("agent-1", "node-1", DEVICE, "allocated", "research", "framework-1", "task-1")  # type: ignore[arg-type]
RESERVATION: Any = op.ReservationView("agent-1", "node-1", STACK, SOME)  # type: ignore[arg-type]
FLAG = op.FlagView("filter-gpu-resources", "true", "default")
MASTER = op.MasterView("cluster-1", 3, "0.1.0", "127.0.0.1:5050", 1, 2, 3, 4, 5)


@pytest.fixture
def answers(master: Any) -> Any:
    master.operator |= {
        "GetMaster": lambda r: op.GetMasterResponse(MASTER),
        "ListAgents": lambda r: op.ListAgentsResponse((AGENT,)),
        "GetAgent": lambda r: op.GetAgentResponse(AGENT),
        "ListFrameworks": lambda r: op.ListFrameworksResponse((FRAMEWORK,)),
        "GetFramework": lambda r: op.GetFrameworkResponse(FRAMEWORK),
        "TeardownFramework": lambda r: op.TeardownFrameworkResponse(FRAMEWORK),
        "ListRoles": lambda r: op.ListRolesResponse((ROLE,)),
        "ListOffers": lambda r: op.ListOffersResponse((OFFER,)),
        "ListTasks": lambda r: op.ListTasksResponse((TASK,)),
        "GetTask": lambda r: op.GetTaskResponse(TASK),
        "KillTask": lambda r: op.KillTaskResponse(TASK),
        "RestartTask": lambda r: op.RestartTaskResponse(TASK),
        "ListDevices": lambda r: op.ListDevicesResponse((VIEW,)),
        "ReserveResources": lambda r: op.ReserveResourcesResponse(RESERVATION),
        "UnreserveResources": lambda r: op.UnreserveResourcesResponse(RESERVATION),
        "ListReservations": lambda r: op.ListReservationsResponse((RESERVATION,)),
        "ListFlags": lambda r: op.ListFlagsResponse((FLAG,)),
        "GetFlag": lambda r: op.GetFlagResponse(FLAG),
        "SetFlag": lambda r: op.SetFlagResponse(FLAG, 2),
        "UnsetFlag": lambda r: op.UnsetFlagResponse(FLAG),
        "ListRules": lambda r: op.ListRulesResponse((RULE,)),
        "AddRule": lambda r: op.AddRuleResponse(RULE, 2),
        "RemoveRule": lambda r: op.RemoveRuleResponse(RULE),
        "TryRules": lambda r: op.TryRulesResponse((VERDICT,)),
        "AuditRules": lambda r: op.AuditRulesResponse((AUDIT,)),
    }
    return master


RULE = RuleView(
    Rule("r1-is-closed", RuleAction.HIDE_AGENT, RuleMode.ENFORCE, "role=ml/**", "rack=r1", ("gpus",)), 1, decisions=7
)
VERDICT = RuleVerdict(
    FrameworkId("framework-1"), "sweep", "ml", AgentId("agent-1"), "agent-1", RuleAction.HIDE_AGENT, "r1-is-closed"
)
AUDIT = RuleAudit(RULE.rule, 7, 1, 2, 2, 3)

RESERVE = ("--role", "research", "--agent", "node-1", "--resources", "gpus:2;cpus:4")
LISTS: list[tuple[tuple[str, ...], str]] = [
    (("agent", "ls"), "agent-1"),
    (("framework", "ls"), "framework-1"),
    (("role", "ls"), "research"),
    (("offer", "ls"), "1-O1"),
    (("task", "ls"), "framework-1/task-1"),
    (("gpu", "ls"), GPU),
    (("reservation", "ls"), "agent-1"),
    (("flag", "ls"), "filter-gpu-resources"),
    (("rule", "ls"), "r1-is-closed"),
    (("rule", "test"), "framework-1/agent-1"),
    (("rule", "audit"), "r1-is-closed"),
]
SHOWS: list[tuple[tuple[str, ...], str]] = [
    (("agent", "show", "node-1"), "agent-1"),
    (("framework", "show", "f"), "framework-1"),
    (("framework", "teardown", "f"), "framework-1"),
    (("task", "show", "t"), "framework-1/task-1"),
    (("task", "kill", "t", "--grace", "10s"), "framework-1/task-1"),
    (("task", "restart", "t", "--grace", "10s"), "framework-1/task-1"),
    (("flag", "get", "filter-gpu-resources"), "filter-gpu-resources"),
    (("flag", "set", "filter-gpu-resources", "false"), "filter-gpu-resources"),
    (("flag", "unset", "filter-gpu-resources"), "filter-gpu-resources"),
    (("rule", "add", "--name", "r1-is-closed", "--action", "hide-agent"), "r1-is-closed"),
    (("rule", "rm", "r1-is-closed"), "r1-is-closed"),
    (("master", "status"), "cluster-1"),
    (("reserve", *RESERVE), "agent-1"),
    (("unreserve", *RESERVE), "agent-1"),
]


@pytest.mark.parametrize(
    ("command", "name"), LISTS + SHOWS, ids=lambda value: " ".join(value[:2]) if isinstance(value, tuple) else ""
)
async def test_three_forms(answers: Any, bursar: Any, command: tuple[str, ...], name: str) -> None:
    table, as_json, names = await asyncio.gather(
        bursar(*command), bursar(*command, "-o", "json"), bursar(*command, "-o", "name")
    )
    assert (table.code, as_json.code, names.code) == (0, 0, 0)
    assert names.stdout == name + "\n"
    value = json.loads(as_json.stdout)
    assert isinstance(value, list if (command, name) in LISTS else dict)
    assert name.rpartition("/")[2] in table.stdout and "\x1b" not in table.stdout and table.stdout.isascii()
    if (command, name) in LISTS:
        assert len(table.stdout.splitlines()) == 2 and table.stdout.split()[0].isupper()


OBSTACLE = op.Obstacle(
    op.ObstacleKind.SHAPE, "gpus:9", "gpus: 9 wanted, node-1 has 4", "", "agent-1", "gpus", 9000, 4000
)
REFUSALS = (
    op.Refusal(
        "a", op.RefusalReason.HIDDEN_BY_RULE, 2, "agent-2", "2 agents: a rule", "another rule", 1, "framework-1", 2
    ),
    op.Refusal(
        "a",
        op.RefusalReason.EXCEEDS_AGENT,
        1,
        "agent-1",
        "1 agent: too small",
        "less",
        1,
        "framework-1",
        1,
        (OBSTACLE,),
        3,
    ),
)
PLACES: Any = (
    op.ServingPlace("b", "framework-2", 1, 2),
    op.ServingPlace("a", "framework-1", 2, 2, 125_000, 2500, "web"),
)
EXPLAINED = {
    "ExplainFramework": op.ExplainFrameworkResponse(REFUSALS, 4, 1, 4, 4, 1, 0, PLACES, "framework-1"),
    "ExplainRole": op.ExplainRoleResponse(REFUSALS, 4, 1, 40_000, 4, 1, 0, PLACES, 7),
    "ExplainAgent": op.ExplainAgentResponse(REFUSALS, "agent-1", 1, 4, 4, 1, 0, PLACES, "node-1", 7),
}


@pytest.mark.parametrize(
    ("question", "arguments"),
    [
        (("framework", "f", "--agent", "node-1", "--role", "a"), {"framework": "f", "agent": "node-1", "role": "a"}),
        (("role", "a"), {"role": "a"}),
        (("agent", "node-1"), {"agent": "node-1"}),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
async def test_explain_tells_the_nearest_reason_last(
    answers: Any, bursar: Any, question: tuple[str, ...], arguments: dict[str, str]
) -> None:
    answers.operator |= {name: lambda r, answer=answer: answer for name, answer in EXPLAINED.items()}
    text, as_json, names = await asyncio.gather(
        bursar("explain", *question),
        bursar("explain", *question, "-o", "json"),
        bursar("explain", *question, "-o", "name"),
    )
    assert (text.code, as_json.code, names.code) == (0, 0, 0), text
    asked = answers.operator_calls[-1][1]
    assert {name: getattr(asked, name) for name in arguments} == arguments
    assert names.stdout == "HIDDEN_BY_RULE\nEXCEEDS_AGENT\n"
    assert "2 of 2: framework-1 (web) in role a (the role's share 12.50%, weight 2.5)" in text.stdout
    assert text.stdout.endswith(
        """
EXCEEDS_AGENT in role a
  1 agent: too small
  - gpus: 9 wanted, node-1 has 4
  - and 3 more
  try: less
"""
    )
    found = json.loads(as_json.stdout)
    assert found["refusals"][1] == {
        "role": "a",
        "reason": "EXCEEDS_AGENT",
        "agents": 1,
        "example_agent_id": "agent-1",
        "message": "1 agent: too small",
        "hint": "less",
        "frameworks": 1,
        "example_framework_id": "framework-1",
        "pairs": 1,
        "obstacles": [
            {
                "kind": "SHAPE",
                "name": "gpus:9",
                "framework_id": "",
                "agent_id": "agent-1",
                "resource": "gpus",
                "amount": 9000,
                "of": 4000,
                "until_ms": 0,
                "message": "gpus: 9 wanted, node-1 has 4",
            }
        ],
        "more_obstacles": 3,
    }
    assert found["order"][0] == {
        "role": "b",
        "framework_id": "framework-2",
        "place": 1,
        "places": 2,
        "share_millionths": 0,
        "weight_milli": 1000,
        "framework_name": "",
    }
    assert (found["examined"], found["offered"], found["due"], found["outstanding_offers"]) == (4, 1, 0, 1)
    sampled = "4 of 40000 (evenly spread) pairs" in text.stdout
    assert sampled == (question[0] == "role")


async def test_json_of_a_flag_is_exactly_this(answers: Any, bursar: Any) -> None:
    done = await bursar("flag", "get", "--", "--filter_gpu_resources", "-o", "json")
    assert done.code == 2, "options come before --"
    done = await bursar("flag", "get", "-o", "json", "filter_gpu_resources")
    assert json.loads(done.stdout) == {"name": "filter-gpu-resources", "value": "true", "source": "default"}
    assert answers.operator_calls[-1][1].name == "filter-gpu-resources"


async def test_a_value_of_a_flag_may_begin_with_a_minus(answers: Any, bursar: Any) -> None:
    answers.operator["SetFlag"] = lambda r: op.SetFlagResponse(op.FlagView(r.name, r.value, "run time"))
    done = await bursar("flag", "set", "offer-timeout", "-1", "-o", "json")
    assert done.code == 0, done
    assert (answers.operator_calls[-1][1].name, answers.operator_calls[-1][1].value) == ("offer-timeout", "-1")


async def test_json_of_an_agent_is_the_contract(answers: Any, bursar: Any) -> None:
    resources = {
        "cpus_milli": 4000,
        "mem_bytes": 8 * 2**30,
        "disk_bytes": 0,
        "ports": [],
        "device_uuids": [GPU],
        "custom_milli": {},
    }
    nothing = {**resources, "cpus_milli": 0, "mem_bytes": 0, "device_uuids": []}
    device = {
        "uuid": GPU,
        "kind": "gpus",
        "model": "Simulated",
        "mem_bytes": 16 * 2**30,
        "index": 3,
        "numa_node": None,
        "pci_address": "",
        "parent_uuid": "",
        "links": [],
        "health": "HEALTHY",
        "health_reason": "",
        "driver": "simulated",
        "attributes": {},
        "condition": "UNSPECIFIED",
        "relapses": 0,
    }
    level = {"type": "DYNAMIC", "holder": "research", "principal": "", "labels": {"why": "paper"}}
    agents = json.loads((await bursar("agent", "ls", "-o", "json")).stdout)
    assert agents == [
        {
            "agent_id": "agent-1",
            "hostname": "node-1",
            "state": "RECOVERING",
            "attributes": {"generation": {"scalar_milli": 3500}, "rack": {"text": "r1"}},
            "runtime": "process",
            "version": "0.1.0",
            "total": resources,
            "free": resources,
            "offered": nothing,
            "allocated": nothing,
            "withheld": nothing,
            "withheld_reasons": [],
            "excess": nothing,
            "buckets": [{"stack": [level], "resources": resources}],
            "devices": [device],
            "tasks": 2,
            "registered_at_ms": 1_700_000_000_000,
            "boot_id": "",
            "incarnation": 2**62,
            "runs_without_image": False,
            "loans": [],
        }
    ]


async def test_json_says_null_for_what_is_not_there(answers: Any, bursar: Any) -> None:
    answers.operator["GetTask"] = lambda r: op.GetTaskResponse(op.TaskView("f", "t", state=TaskState.RUNNING))  # type: ignore[arg-type]
    task = json.loads((await bursar("task", "show", "-o", "json", "t")).stdout)
    assert (
        task["exit_code"] is None
        and task["spec"] is None
        and task["state"] == "RUNNING"
        and task["reason"] == "UNSPECIFIED"
    )


async def test_all_pages_are_read(answers: Any, bursar: Any) -> None:
    pages = {"": (op.FlagView("a", "1", "default"), "2"), "2": (op.FlagView("b", "2", "default"), "")}
    answers.operator["ListFlags"] = lambda r: op.ListFlagsResponse(
        (pages[r.page.page_token][0],), pages[r.page.page_token][1]
    )
    assert (await bursar("flag", "ls", "-o", "name")).stdout == "a\nb\n"


async def test_an_empty_list(answers: Any, bursar: Any) -> None:
    answers.operator["ListAgents"] = lambda r: op.ListAgentsResponse(())
    assert (await bursar("agent", "ls", "-o", "json")).stdout == "[]\n"
    assert (await bursar("agent", "ls", "-o", "name")).stdout == ""
    assert (await bursar("agent", "ls")).stdout.split() == [
        "AGENT",
        "HOSTNAME",
        "STATE",
        "TOTAL",
        "FREE",
        "TASKS",
        "RUNTIME",
    ]


async def test_tasks_of_a_group_show_it(answers: Any, bursar: Any) -> None:
    group = TaskGroup("pair", ("task-1", "task-2"))  # type: ignore[arg-type]
    grouped = dataclasses.replace(TASK, spec=dataclasses.replace(TASK.spec, task_group=group))
    answers.operator["ListTasks"] = lambda r: op.ListTasksResponse((grouped, TASK))
    answers.operator["GetTask"] = lambda r: op.GetTaskResponse(grouped)
    listed = (await bursar("task", "ls")).stdout
    assert "GROUP" in listed and "pair" in listed
    assert "pair (with task-2)" in (await bursar("task", "show", "t")).stdout
    answers.operator["ListTasks"] = lambda r: op.ListTasksResponse((TASK,))
    assert "GROUP" not in (await bursar("task", "ls")).stdout


async def test_names_of_others_do_not_reach_the_terminal_raw(answers: Any, bursar: Any) -> None:
    answers.operator["GetTask"] = lambda r: op.GetTaskResponse(op.TaskView("f", "t", "evil\x1b[2J\nname\u202e"))  # type: ignore[arg-type]
    done = await bursar("task", "show", "t", PYTHONIOENCODING="ascii:strict", LC_ALL="C")
    assert done.code == 0 and "evil\\x1b[2J" in done.stdout and "\x1b" not in done.stdout


async def test_nothing_is_cut_off_a_terminal(answers: Any, bursar: Any) -> None:
    long = "x" * 500
    answers.operator["ListFlags"] = lambda r: op.ListFlagsResponse((op.FlagView("a", long, "default"),))
    assert long in (await bursar("flag", "ls", COLUMNS="40")).stdout


async def test_reserve_sends_what_was_asked_and_names_the_devices(answers: Any, bursar: Any) -> None:
    done = await bursar("reserve", *RESERVE, "--label", "why=paper")
    assert done.code == 0 and GPU in done.stdout
    again = await bursar("unreserve", *RESERVE)
    (_, first), (_, second) = answers.operator_calls
    assert (first.agent, first.role, first.resources.gpus, first.resources.cpus_milli) == (
        "node-1",
        "research",
        2,
        4000,
    )
    assert dict(first.labels) == {"why": "paper"} and again.code == 0
    assert first.request_id and second.request_id and first.request_id != second.request_id


async def test_a_rule_is_sent_as_it_was_written(answers: Any, bursar: Any) -> None:
    done = await bursar(
        *("rule", "add", "--name", "r1-is-closed", "--action", "strip", "--mode", "audit", "--before", "other"),
        *("--framework", "lacks=GPU_RESOURCES,role=ml/**", "--agent", "gpus>=1,rack=r1", "--resources", "gpus,disk"),
        *("--headroom", "25%", "--reason", "why not", "--expires", "7d", "--replace", "--force"),
    )
    assert (done.code, done.stderr) == (0, "2 outstanding offers were rescinded\n")
    ((_, request),) = answers.operator_calls
    rule = request.rule
    assert (request.before, request.replace, request.force) == ("other", True, True) and request.request_id
    assert (rule.name, rule.action, rule.mode) == ("r1-is-closed", RuleAction.STRIP, RuleMode.AUDIT)
    assert (rule.framework, rule.agent) == ("lacks=GPU_RESOURCES,role=ml/**", "gpus>=1,rack=r1")
    assert (list(rule.resources), rule.headroom, rule.reason) == (["gpus", "disk"], "25%", "why not")
    assert abs(rule.expires_at_ms / 1000 - time.time() - 7 * 86_400) < 60


async def test_rescinded_offers_are_told_on_stderr(answers: Any, bursar: Any) -> None:
    done = await bursar("flag", "set", "filter-gpu-resources", "false", "-o", "name")
    assert (done.stdout, done.stderr) == ("filter-gpu-resources\n", "2 outstanding offers were rescinded\n")


@pytest.mark.parametrize(
    ("reason", "code"),
    [
        (ErrorReason.NOT_FOUND, 3),
        (ErrorReason.AMBIGUOUS, 3),
        (ErrorReason.RESOURCES_IN_USE, 1),
        (ErrorReason.INVALID_ARGUMENT, 1),
        (ErrorReason.NEEDS_RESTART, 1),
        (ErrorReason.AGENT_UNAVAILABLE, 1),
        (ErrorReason.INTERNAL, 1),
    ],
)
async def test_a_refusal_says_what_and_what_to_do(answers: Any, bursar: Any, reason: ErrorReason, code: int) -> None:
    answers.operator["GetAgent"] = lambda r: ErrorDetail(reason, "what is wrong", "what to do")
    done = await bursar("agent", "show", "x")
    assert (done.code, done.stdout, done.stderr) == (code, "", "error: what is wrong\nhint: what to do\n")


async def test_no_master_within_ten_seconds(bursar: Any, unused_tcp_port: int) -> None:
    """A question; work; and work that would not wait so long."""
    begin = time.monotonic()
    master = ("--master", f"127.0.0.1:{unused_tcp_port}")
    asked, run_, impatient = await asyncio.gather(
        bursar("agent", "ls", *master), bursar(*master, "run", "true"), bursar(*master, "run", "--wait", "1s", "true")
    )
    assert 8 < time.monotonic() - begin < 30
    assert asked.code == 4 and asked.stdout == "" and "no master answers" in asked.stderr and "hint: " in asked.stderr
    assert run_.code == 125 and "no master answers at" in run_.stderr and "bursar-master" in run_.stderr
    assert impatient.code == 124


async def test_a_master_that_comes_late_is_waited_for(answers: Any, bursar: Any) -> None:
    await answers.stop()
    process = await bursar.start("agent", "ls", "-o", "name")
    await asyncio.sleep(2)
    await answers.start()
    assert (await bursar.finish(process)).stdout == "agent-1\n"


async def test_a_repeated_order_carries_the_same_request_id(answers: Any, bursar: Any) -> None:
    failures = [ErrorDetail(ErrorReason.SHUTTING_DOWN, "ending")]
    answers.operator["SetFlag"] = lambda r: failures.pop() if failures else op.SetFlagResponse(FLAG)
    assert (await bursar("flag", "set", "filter-gpu-resources", "false")).code == 0
    (_, first), (_, second) = answers.operator_calls
    assert first.request_id == second.request_id


@pytest.mark.parametrize(
    "command",
    [
        "nope",
        "--nope",
        "agent ls --nope",
        "agent ls -o yaml",
        "agent show",
        "agent ls --master nowhere",
        "run",
        "run --nope true",
        "run --gpus -1 true",
        "run --gpus 0.5 true",
        "run --gpus 1e3 true",
        "run --cpus nan true",
        "run --cpus 0.0001 true",
        "run --cpus 99999999999999999 true",
        "run --mem 1GB true",
        "run --cpus 0 --mem 0 true",
        "run --role a//b true",
        "run --role -x true",
        "run --wait 5 true",
        "run --env =1 true",
        "batch true",
        "batch --count 0 true",
        "batch --count 1",
        "batch --count 1 --file /dev/null true",
        "batch --file /dev/null",
        "batch --file /nonexistent",
        "batch --count 1 --retries -1 true",
        "batch --count 1 --backoff soon true",
        "reserve --role * --agent a --resources gpus:1",
        "reserve --role a --agent a --resources gpus:0.5",
        "reserve --role a --agent a --resources gpus(b):1",
        "reserve --role a --agent a --resources nothing",
        "reserve --resources gpus:1",
        "reserve --role a",
        "reserve --role a --roles b --resources gpus:1",
        "reserve --role a --gpus 1 --resources gpus:1",
        "reserve --roles a|(b --gpus 1",
        "task logs --tail -1 t",
        "task kill --grace soon t",
    ],
)
def test_wrong_usage_is_2_and_says_why(capsys: pytest.CaptureFixture[str], command: str) -> None:
    code, said = run(command.split()), capsys.readouterr()
    assert code == 2 and said.out == "" and "Error: " in said.err and said.err.count("\n") >= 2


def test_a_bug_of_ours_is_named_without_a_traceback(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bursar.cli.version.metadata", None)
    code, said = run(["version"]), capsys.readouterr()
    assert code == 1 and "this is a bug in bursar: AttributeError" in said.err and "Traceback" not in said.err


async def test_a_wrong_environment_is_wrong_usage(bursar: Any) -> None:
    done = await bursar("agent", "ls", BURSAR_MASTER="nowhere")
    assert done.code == 2 and "BURSAR_MASTER" in done.stderr


async def test_logs_go_where_they_came_from(answers: Any, bursar: Any) -> None:
    from types import SimpleNamespace

    log = [(1, b"out \xff\n"), (2, b"err\n")]
    answers.tasks["task-1"] = SimpleNamespace(log=log, grew=asyncio.Event(), state=TaskState.FINISHED, process=None)
    for arguments in (["task-1"], ["-f", "task-1"]):
        process = await bursar.start("task", "logs", *arguments)
        assert await process.communicate() == (b"out \xff\n", b"err\n") and process.returncode == 0


async def test_logs_of_nothing(answers: Any, bursar: Any) -> None:
    answers.operator["GetTask"] = lambda r: ErrorDetail(ErrorReason.NOT_FOUND, "no task t", "see bursar task ls --all")
    assert (await bursar("task", "logs", "t")).code == 3


async def test_a_reader_that_went_away_is_no_error_message(answers: Any, bursar: Any) -> None:
    answers.operator["ListFlags"] = lambda r: op.ListFlagsResponse(
        tuple(op.FlagView(f"f{n}", "x" * 99, "default") for n in range(5000))
    )
    process = await bursar.start("flag", "ls")
    await asyncio.wait_for(process.stdout.readline(), 20)
    process._transport.get_pipe_transport(1).close()
    assert await asyncio.wait_for(process.wait(), 20) == 141
    assert await process.stderr.read() == b""


async def test_version_needs_no_master(bursar: Any) -> None:
    done = await bursar("version", BURSAR_MASTER="127.0.0.1:1")
    assert done.code == 0 and done.stdout.startswith("bursar ")
    assert json.loads((await bursar("version", "-o", "json")).stdout)["version"] == done.stdout.split()[1]


async def test_help(bursar: Any) -> None:
    """As a program; `test_help_of_every_command` looks at the rest."""
    done = await bursar("--help")
    commands = [line.split()[0] for line in done.stdout.partition("Commands:")[2].splitlines() if line.strip()]
    assert done.code == 0 and commands == list(COMMANDS)
    for path in (("agent", "ls"), ("batch",), ("memory", "explain")):
        done = await bursar(*path, "--help")
        assert done.code == 0 and f"Usage: bursar {' '.join(path)}" in done.stdout
        assert "\\b" not in done.stdout, "the mark that keeps lines as they are"


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_every_command(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """And of all below it; what the table of commands says of it is how its own help begins."""

    def look(path: list[str], command: click.Command) -> None:
        assert run([*path, "--help"]) == 0
        help_text = capsys.readouterr().out
        assert f"Usage: bursar {' '.join(path)}" in help_text and "\\b" not in help_text
        for below, inner in getattr(command, "commands", {}).items():
            look([*path, below], inner)

    command = cli.get_command(click.Context(cli), name)
    assert isinstance(cli, LazyGroup) and command is not None and command.help is not None
    assert " ".join(command.help.split()).startswith(COMMANDS[name][1].rstrip("."))
    look([name], command)


def test_help_and_usage_errors_do_not_wait_for_what_only_a_question_needs() -> None:
    """Half of a second on a small machine."""
    code = "import sys, bursar.cli.main as main; main.run(['--help']); print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert "click" in modules and {"grpc", "asyncio", "bursar.sdk.session", "bursar.cli.run"}.isdisjoint(modules)


async def test_a_terminal_gets_short_ids_that_are_accepted(answers: Any, bursar: Any) -> None:
    """On a terminal; the same prefix for two would not do."""
    import os
    import pty

    near = "11111111-2222-4333-8444-55555555555"
    views = [dataclasses.replace(AGENT, agent_id=near + last) for last in "67"]
    answers.operator["ListAgents"] = lambda r: op.ListAgentsResponse(tuple(views))
    ours, theirs = pty.openpty()
    environment = {"PATH": os.environ["PATH"], "BURSAR_MASTER": bursar.address, "TERM": "xterm", "COLUMNS": "140"}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "bursar.cli.main", "agent", "ls", stdin=-3, stdout=theirs, stderr=-1, env=environment
    )
    os.close(theirs)
    assert await asyncio.wait_for(process.wait(), 20) == 0
    shown = os.read(ours, 65536).decode()
    os.close(ours)
    assert near + "6" in shown and near + "7" in shown and "\x1b[1m" in shown
    assert (
        _shorten_ids([near + "6 x/" + near + "6", "GPU-" + near + "7"])(f"{near}6/t GPU-{near}7")
        == f"11111111/t GPU-{near}7"
    )

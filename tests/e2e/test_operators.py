"""What operators ask and order, on a real cluster: three forms, ids by prefix, reservations, flags at run time."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

HOLD = "echo up; exec sleep 1000"


@pytest.fixture(scope="class")
def busy(cluster: Any) -> Iterator[Any]:
    """Something of every noun: a task with two GPUs, a reservation of one, an outstanding offer, a flag."""
    kept = ("--role", "research", "--agent", "node-gpu", "--resources", "gpus:1;cpus:1;mem:64MiB")
    started = [cluster.start("run", "--role", "eng", "--name", "training", "--gpus", "2", "--", "sh", "-c", HOLD)]
    try:
        started[0].until_stdout("up")
        started.append(cluster.start("run", "--gpus", "4", "--name", "waits", "--", "true"))
        started[1].until_stderr("waiting")
        assert cluster.bursar("reserve", *kept).code == 0
        yield cluster
        assert cluster.bursar("unreserve", *kept).code == 0
    finally:
        for one in started:
            one.signal(15)
            one.finish()


LISTS = ["agent", "framework", "role", "task", "gpu", "reservation", "flag"]


class TestEveryNoun:
    """What is shown of a cluster on which something of every noun is."""

    @pytest.mark.parametrize("noun", LISTS)
    def test_the_three_forms_of_a_list(self, busy: Any, noun: str) -> None:
        """The same things in each; nothing boxed, coloured or cut off a terminal; names are accepted wherever an id is."""
        table = busy.bursar(noun, "ls", COLUMNS="20")
        array = busy.bursar(noun, "ls", "-o", "json").json
        names = busy.bursar(noun, "ls", "-o", "name")
        assert table.code == 0 and table.stderr == "" and names.stderr == ""
        assert isinstance(array, list) and array
        assert len(table.stdout.splitlines()) == len(array) + 1
        assert re.fullmatch(r"[ -~…]*(\n[ -~…]*)*\n", table.stdout), "no box, no colour"
        assert all(name in table.stdout for name in names.names), "nothing is cut"
        assert len(names.stdout.splitlines()) == len(array) == len(names.names)
        text = json.dumps(array)
        assert re.search(r'"[a-z]+[A-Z]', text) is None, "snake_case"
        assert all(not re.fullmatch(r"\d{6,}", value) for value in re.findall(r'_(?:bytes|ms|milli)": "([^"]*)"', text))

    @pytest.mark.parametrize("noun", ["agent", "framework", "task"])
    def test_what_name_prints_is_accepted(self, busy: Any, noun: str) -> None:
        for name in busy.bursar(noun, "ls", "-o", "name").names[:1]:
            shown = busy.bursar(noun, "show", name, "-o", "json").json
            assert isinstance(shown, dict)
            assert busy.bursar(noun, "show", name, "-o", "name").stdout == f"{name}\n"

    def test_ids_by_prefix_and_hostname(self, busy: Any) -> None:
        (task,) = [task for task in busy.ls("task") if task["name"] == "training"]
        agent = busy.agent("node-gpu")
        full = f"{task['framework_id']}/{task['task_id']}"
        assert busy.bursar("agent", "show", agent["agent_id"][:8], "-o", "name").names == [agent["agent_id"]]
        assert busy.bursar("framework", "show", task["framework_id"][:9], "-o", "name").names == [task["framework_id"]]
        for text in (
            task["task_id"],
            full,
            full[:-1],
            task["task_id"][:-1],
            f"{task['framework_id'][:9]}/{task['task_id']}",
        ):
            assert busy.bursar("task", "show", text, "-o", "name").names == [full], text
        ambiguous = busy.bursar("framework", "show", "")
        assert ambiguous.code in (2, 3) and ambiguous.stdout == ""
        for noun in ("agent", "framework", "task"):
            nothing = busy.bursar(noun, "show", "no-such-thing")
            assert nothing.code == 3 and nothing.stdout == "" and "no-such-thing" in nothing.stderr

    def test_gpus_and_who_holds_them(self, busy: Any) -> None:
        gpus = busy.ls("gpu")
        assert sorted((gpu["use"], gpu["reserved_to"]) for gpu in gpus) in (
            [("allocated", ""), ("allocated", ""), ("free", ""), ("free", "research")],
            [("allocated", ""), ("allocated", ""), ("free", "research"), ("offered", "")],
        )
        (task,) = busy.ls("task")
        held = [gpu["device"]["uuid"] for gpu in gpus if gpu["use"] == "allocated"]
        assert sorted(uuid for part in task["resources"] for uuid in part["resources"]["device_uuids"]) == sorted(held)
        assert {gpu["task_id"] for gpu in gpus if gpu["use"] == "allocated"} == {task["task_id"]}
        assert busy.bursar("gpu", "ls", "-o", "name").names == [gpu["device"]["uuid"] for gpu in gpus]


def test_logs_are_followed_to_the_end(cluster: Any) -> None:
    """`task logs -f` shows what was and what comes, to the right stream, and ends with the task."""
    script = "echo first; echo oops >&2; until [ -e go ]; do sleep 0.05; done; echo second"
    running = cluster.start("run", "--", "sh", "-c", f"{script}; pwd")
    running.until_stdout("first")
    (name,) = [f"{t['framework_id']}/{t['task_id']}" for t in cluster.ls("task") if "first" in str(t["spec"])]
    following = cluster.start("task", "logs", "-f", name)
    following.until_stdout("first")
    once = cluster.bursar("task", "logs", name)
    assert (once.stdout, once.stderr) == ("first\n", "oops\n")
    sandboxes = cluster.where.glob("node-*/sandboxes/*")
    for sandbox in sandboxes:
        (sandbox / "go").touch()
    done = running.finish()
    assert done.code == 0 and done.stdout.startswith("first\nsecond\n")
    followed = following.finish()
    assert (followed.code, followed.stdout, followed.stderr) == (0, done.stdout, "oops\n")
    tail = cluster.bursar("task", "logs", "--tail", "7", name)
    assert tail.stdout == done.stdout[-7:]


# --- reservations ---------------------------------------------------------------------------------------------------


def reserve(
    cluster: Any, verb: str = "reserve", role: str = "lab", resources: str = "gpus:1", agent: str = "node-gpu"
) -> Any:
    return cluster.bursar(verb, "--role", role, "--agent", agent, "--resources", resources, "-o", "json")


def test_reserving_picks_devices_and_shows_them(cluster: Any) -> None:
    made = reserve(cluster, resources="gpus:2;cpus:1").json
    uuids = made["resources"]["device_uuids"]
    try:
        assert len(uuids) == 2 and made["resources"]["cpus_milli"] == 1000
        (view,) = [view for view in cluster.ls("reservation") if view["stack"][-1]["holder"] == "lab"]
        assert view["resources"]["device_uuids"] == uuids
        table = cluster.bursar("reservation", "ls").stdout
        assert all(uuid in table for uuid in uuids)
        inside = cluster.bursar(
            "run", "--role", "lab/vision", "--gpus", "2", "--", "sh", "-c", "echo $CUDA_VISIBLE_DEVICES"
        )
        assert inside.code == 0 and set(inside.stdout.strip().split(",")) == set(uuids)
        outside = cluster.bursar("run", "--role", "other", "--gpus", "4", "--wait", "2300ms", "--", "true")
        assert outside.code == 124 and "reserved" in outside.stderr, outside
    finally:
        back = reserve(cluster, "unreserve", resources="gpus:2;cpus:1")
    assert back.code == 0, "what `run` used is free when it has returned"
    assert [view for view in cluster.ls("reservation") if view["stack"][-1]["holder"] == "lab"] == []


def test_what_a_run_used_can_be_unreserved_at_once(cluster: Any) -> None:
    """Several times: no race between the end of `run` and what the master thinks is free."""
    for _ in range(4):
        assert reserve(cluster, resources="gpus:1;cpus:1;mem:128MiB").code == 0
        assert cluster.bursar("run", "--role", "lab", "--gpus", "1", "--", "true").code == 0
        assert reserve(cluster, "unreserve", resources="gpus:1;cpus:1;mem:128MiB").code == 0


def test_a_refused_reservation_changes_nothing(cluster: Any) -> None:
    before = cluster.ls("reservation")
    for resources in ("gpus:5", "cpus:9", "gpus:1;mem:1TiB"):
        refused = reserve(cluster, resources=resources)
        assert refused.code == 1 and refused.stdout == "" and "error:" in refused.stderr, refused
    refused = reserve(cluster, "unreserve", resources="gpus:1")
    assert refused.code in (1, 3) and refused.stdout == "" and "error:" in refused.stderr
    assert reserve(cluster, agent="nowhere").code == 3
    assert cluster.ls("reservation") == before


def test_what_a_task_holds_is_never_reserved(cluster: Any) -> None:
    running = cluster.start("run", "--gpus", "3", "--", "sh", "-c", HOLD)
    running.until_stdout("up")
    try:
        refused = reserve(cluster, resources="gpus:2")
        assert refused.code == 1 and refused.stdout == "", refused
        done = reserve(cluster, resources="gpus:1")
        held = {
            uuid
            for task in cluster.ls("task")
            for part in task["resources"]
            for uuid in part["resources"]["device_uuids"]
        }
        assert not held & set(done.json["resources"]["device_uuids"])
        assert reserve(cluster, "unreserve", resources="gpus:1").code == 0
    finally:
        running.signal(15)
        running.finish()


@pytest.mark.parametrize(
    ("role", "resources"),
    [
        ("*", "gpus:1"), ("a//b", "gpus:1"), ("-x", "gpus:1"), ("a b", "gpus:1"), (".", "gpus:1"), ("a/..", "gpus:1"),
        ("/a", "gpus:1"), ("a/", "gpus:1"), ("", "gpus:1"), ("r", "gpus:0.5"), ("r", "gpus:-1"), ("r", "gpus:1e0"),
        ("r", "gpus:nan"), ("r", "cpus:0.0001"), ("r", "cpus:inf"), ("r", "mem:99999999999TiB"), ("r", "nonsense"), ("r", ""),
        ("r", "mem:1XiB"),
    ],
)  # fmt: skip
def test_bad_roles_and_resources_are_wrong_usage(cluster: Any, role: str, resources: str) -> None:
    done = cluster.bursar("reserve", f"--role={role}", "--agent", "node-gpu", "--resources", resources)
    assert done.code == 2 and done.stdout == "" and "Error" in done.stderr, done


def test_reserving_for_several_roles_where_the_master_picks(cluster: Any) -> None:
    expression = "(lab/** | crew) & !lab/guests"
    what = ("--roles", expression, "--gpus", "2", "--cpus", "1", "--where", "hostname=node-gpu,gpus>=2")
    dry = cluster.bursar("reserve", *what, "--dry-run", "-o", "json")
    assert dry.code == 0 and "dry run" in dry.stderr, dry
    assert not cluster.ls("reservation")
    try:
        (made,) = cluster.bursar("reserve", *what, "-o", "json").json
        assert made["stack"][-1]["holder"] == expression and made["hostname"] == "node-gpu"
        assert made["resources"]["device_uuids"] == dry.json[0]["resources"]["device_uuids"]
        count = ("--gpus", "2", "--", "sh", "-c", "echo $CUDA_VISIBLE_DEVICES")
        inside = cluster.bursar("run", "--role", "lab/vision", *count)
        assert inside.code == 0 and set(inside.stdout.strip().split(",")) == set(made["resources"]["device_uuids"])
        for role in ("lab", "lab/guests"):
            assert cluster.bursar("run", "--role", role, "--gpus", "4", "--wait", "1500ms", "--", "true").code == 124
        assert expression in cluster.bursar("reservation", "ls", "--wide").stdout
    finally:
        back = cluster.bursar("unreserve", "--roles", expression, "--gpus", "2", "--cpus", "1", "-o", "json")
    assert back.code == 0 and not cluster.ls("reservation"), back


def test_what_cannot_be_reserved_says_the_closest_that_can(cluster: Any) -> None:
    done = cluster.bursar("reserve", "--role", "lab", "--gpus", "4000")
    assert done.code == 1 and "the closest is gpus:" in done.stderr, done
    done = cluster.bursar("reserve", "--role", "lab", "--gpus", "1", "--where", "rack=nowhere")
    assert done.code == 1 and "no agent matches 'rack=nowhere'" in done.stderr, done
    done = cluster.bursar("reserve", "--roles", "lab & !lab", "--gpus", "1")
    assert done.code == 1 and "covers no role" in done.stderr, done
    done = cluster.bursar("reserve", "--roles", "lab | (crew", "--gpus", "1")
    assert done.code == 2 and "')' is expected" in done.stderr, done
    assert not cluster.ls("reservation")


def test_a_group_is_made_used_changed_and_removed(cluster: Any) -> None:
    assert cluster.bursar("group", "set", "crew", "lab/vision", "lab/text/**").code == 0
    (group,) = cluster.ls("group")
    assert group["members"] == ["lab/vision", "lab/text/**"]
    assert cluster.bursar("group", "ls", "-o", "name").stdout == "crew\n"
    assert cluster.bursar("reserve", "--roles", "@crew", "--gpus", "1").code == 0
    try:
        refused = cluster.bursar("group", "rm", "crew")
        assert refused.code == 1 and "1 reservation" in refused.stderr and "--force" in refused.stderr
        changed = cluster.bursar("group", "set", "@crew", "lab/text").stdout
        assert "MEMBERS:      lab/text\n" in changed and "RESERVATIONS: 1" in changed
        assert cluster.bursar("group", "set", "crew", "@crew").code == 1
    finally:
        assert cluster.bursar("unreserve", "--roles", "@crew", "--gpus", "1").code == 0
    assert cluster.bursar("group", "rm", "crew").code == 0
    assert cluster.bursar("group", "rm", "crew").code == 3
    assert cluster.ls("group") == []


# --- flags ----------------------------------------------------------------------------------------------------------


def test_a_flag_is_set_shown_and_unset(cluster: Any) -> None:
    assert cluster.bursar("flag", "get", "offer-timeout", "-o", "json").json == {
        "name": "offer-timeout", "value": "30s", "source": "default",
    }  # fmt: skip
    try:
        for spelled, value in (("offer_timeout", "500ms"), ("offer-timeout", "1m")):
            done = cluster.bursar("flag", "set", spelled, value, "-o", "json")
            assert done.json == {"name": "offer-timeout", "value": value, "source": "run time"}
        assert cluster.bursar("flag", "get", "offer_timeout", "-o", "name").names == ["offer-timeout"]
    finally:
        done = cluster.bursar("flag", "unset", "offer-timeout", "-o", "json")
    assert done.json == {"name": "offer-timeout", "value": "30s", "source": "default"}


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("set", "listen", "127.0.0.1:1"), 1, "needs a restart"),
        (("set", "work-dir", "/tmp/x"), 1, "needs a restart"),
        (("set", "insecure", "true"), 1, "needs a restart"),
        (("set", "no-such-flag", "1"), 3, "no-such-flag"),
        (("get", "no-such-flag"), 3, "no-such-flag"),
        (("unset", "no-such-flag"), 3, "no-such-flag"),
        (("get", "filter-gpu-resource"), 3, "did you mean filter-gpu-resources"),
        (("set", "filter-gpu-resources", "maybe"), 1, "maybe"),
        (("set", "offer-timeout", "soon"), 1, "soon"),
        (("set", "offer-timeout", "-1s"), 1, "-1s"),
        (("set", "offer-timeout", "0s"), 1, "offer-timeout"),
        (("set", "max-agent-ping-timeouts", "0"), 1, "max-agent-ping-timeouts"),
    ],
)  # fmt: skip
def test_what_cannot_be_set(cluster: Any, arguments: tuple[str, ...], code: int, words: str) -> None:
    before = cluster.ls("flag")
    verb, *rest = arguments
    done = cluster.bursar("flag", verb, "--", *rest)
    assert done.code == code and done.stdout == "" and words in done.stderr, done
    assert cluster.ls("flag") == before


def test_the_filter_is_toggled_at_run_time(cluster: Any) -> None:
    """A framework without the capability waits for a GPU until the filter is switched off."""
    running = cluster.start(
        "run", "--gpus", "1", "--capability", "LEGACY", "--", "sh", "-c", "echo $CUDA_VISIBLE_DEVICES"
    )
    running.until_stderr("filter-gpu-resources")
    try:
        assert cluster.bursar("flag", "set", "filter-gpu-resources", "false").code == 0
        done = running.finish()
        assert done.code == 0 and done.stdout.strip() in cluster.uuids("node-gpu")
    finally:
        assert cluster.bursar("flag", "unset", "filter-gpu-resources").code == 0


# --- without a cluster, without sense -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [("agent", "ls", "-o", "xml"), ("agent", "ls", "extra"), ("nonsense",), ("agent", "nonsense"), ("task", "kill"),
     ("--master", "nowhere", "agent", "ls"), ("reserve", "--role", "r")],
    ids=" ".join,
)  # fmt: skip
def test_wrong_usage(cluster: Any, arguments: tuple[str, ...]) -> None:
    done = cluster.bursar(*arguments)
    assert done.code == 2 and done.stdout == "" and done.stderr, done

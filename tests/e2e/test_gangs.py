"""Gangs on a real cluster, as a user meets them: together or not at all, over killed masters, frameworks and agents."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any


def holding(cluster: Any) -> int:
    """GPUs that are withheld for a gang."""
    return sum(str(view["use"]).startswith("withheld") for view in cluster.ls("gpu"))


def busy(cluster: Any, go: Path, gpus: int) -> Any:
    """A run that holds GPUs until the file is there."""
    running = cluster.start(
        "run", "--gpus", str(gpus), "--cpus", "0.5", "--name", "busy", "--",
        "sh", "-c", f"echo begun; until [ -e {go} ]; do sleep 0.02; done",
    )  # fmt: skip
    running.until_stdout("begun")
    return running


def gang(cluster: Any, count: int, command: str, *options: str) -> Any:
    """A gang with one GPU for each job."""
    return cluster.start(
        "batch", "--gang", "--count", str(count), "--gpus", "1", "--cpus", "0.25", "-o", "json", *options, "--",
        "sh", "-c", command,
    )  # fmt: skip


def test_the_jobs_of_a_gang_meet(own_cluster: Any, tmp_path: Path) -> None:
    """Each waits for all others, which would never come if they were started one after the other."""
    place = tmp_path / "meet"
    place.mkdir()
    meet = f"touch {place}/$BURSAR_GANG_RANK; until [ $(ls {place} | wc -l) = $BURSAR_GANG_SIZE ]; do sleep 0.02; done"
    done = gang(own_cluster, 4, f'test "$BURSAR_GANG_HOSTS" = node-gpu,node-gpu,node-gpu,node-gpu && {meet}').finish()
    summary = json.loads(done.out)
    assert done.code == 0 and summary["succeeded"] and summary["finished"] == 4, done
    assert len({uuid for task in summary["tasks"] for uuid in task["device_uuids"]}) == 4


def test_where_one_fails_all_are_run_again(own_cluster: Any, tmp_path: Path) -> None:
    script = f"echo {{index}} >> {tmp_path}/log; [ -e {tmp_path}/seen ] && exit 0; [ {{index}} = 2 ] && {{ touch {tmp_path}/seen; exit 3; }}; sleep 60"
    done = gang(own_cluster, 3, script, "--retries", "1", "--backoff", "50ms").finish()
    summary = json.loads(done.out)
    assert done.code == 0 and {task["launches"] for task in summary["tasks"]} == {2}, done
    assert "job 2: exited with 3; again in 50ms" in done.stderr
    assert "2" in (tmp_path / "log").read_text().split()


def test_what_cannot_be_is_refused_with_what_is_missing(own_cluster: Any, tmp_path: Path) -> None:
    done = gang(own_cluster, 5, "true").finish()
    assert done.code == 1 and "its tasks need gpus:5, and there are gpus:4" in done.stderr, done
    assert "hint: ask for less, or add agents" in done.stderr
    done = gang(own_cluster, 2, "true", "--same", "rack").finish()
    assert done.code == 1 and "no agent has the attribute rack" in done.stderr, done
    for options, said in (
        (("--parallel", "2"), "leave out --parallel"),
        (("--wait", "1ms"), "a gang waits for at least 1s"),
    ):
        done = gang(own_cluster, 2, "true", *options).finish()
        assert done.code in (1, 2) and said in done.stderr, done
    done = own_cluster.bursar("batch", "--count", "2", "--nvlink", "--", "true")
    assert done.code == 2 and "--nvlink is about gangs" in done.stderr, done
    go = tmp_path / "go"
    running = busy(own_cluster, go, 1)
    done = gang(own_cluster, 4, "true", "--wait", "1s").finish()
    assert done.code == 1 and "no bundle within 1s: 3 of its 4 tasks had room" in done.stderr, done
    go.touch()
    assert running.finish().code == 0


def test_a_gang_that_holds_outlives_its_master(own_cluster: Any, tmp_path: Path) -> None:
    """Gangs are not durable: the one who waits asks again, and what it held is held again."""
    go = tmp_path / "go"
    running = busy(own_cluster, go, 1)
    waiting = gang(own_cluster, 4, "true")
    own_cluster.until(lambda: holding(own_cluster) == 3, "what is free is withheld")
    (framework,) = [f for f in own_cluster.ls("framework") if f["info"]["name"] == "sh"]
    said = own_cluster.bursar("explain", "framework", framework["info"]["framework_id"]).stdout
    assert "1 of 1 in line, holding what becomes free" in said and "tasks need gpus:4, and there are gpus:3" in said, (
        said
    )
    (seen,) = own_cluster.ls("gang")
    assert (seen["phase"], seen["held"]["gpus"], seen["missing"]) == ("FILLING", 3000, {"gpus": 1000}), seen
    assert seen["standing"]["framework_name"] == "sh" and seen["requested_at_ms"] and seen["holds_until_ms"], seen
    table = own_cluster.bursar("gang", "ls").stdout.splitlines()
    assert "filling (1 of 1)" in table[1] and "gpus:3 on 1 agent" in table[1], table
    shown = own_cluster.bursar("gang", "show", seen["standing"]["gang_id"])
    assert "tasks need gpus:4, and there are gpus:3" in shown.stdout, shown
    assert own_cluster.bursar("gang", "show", "nobody").code == 3
    own_cluster.kill("master")
    own_cluster.start_master()
    own_cluster.until_active("node-gpu")
    own_cluster.until(lambda: holding(own_cluster) == 3, "it is withheld again")
    go.touch()
    done = waiting.finish()
    assert done.code == 0 and json.loads(done.out)["finished"] == 4, done
    assert running.finish().code == 0


def test_a_gang_that_runs_outlives_its_master(own_cluster: Any, tmp_path: Path) -> None:
    """Tasks are durable: they go on, none is launched twice, and their ends are heard."""
    go, log = tmp_path / "go", tmp_path / "log"
    script = f"echo {{index}} >> {log}; until [ -e {go} ]; do sleep 0.02; done"
    running = gang(own_cluster, 4, script)
    own_cluster.until(lambda: log.exists() and len(log.read_text().split()) == 4, "all have begun")
    own_cluster.kill("master")
    go.touch()
    own_cluster.start_master()
    done = running.finish()
    assert done.code == 0 and json.loads(done.out)["finished"] == 4, done
    assert sorted(log.read_text().split()) == ["0", "1", "2", "3"]


def test_a_framework_that_dies_while_it_holds_gives_all_back(own_cluster: Any, tmp_path: Path) -> None:
    go = tmp_path / "go"
    running = busy(own_cluster, go, 1)
    waiting = gang(own_cluster, 4, "true")
    own_cluster.until(lambda: holding(own_cluster) == 3, "what is free is withheld")
    waiting.signal(signal.SIGKILL)
    # Only what was withheld is enough for it.
    assert own_cluster.bursar("run", "--gpus", "3", "--cpus", "0.5", "--", "true").code == 0
    assert holding(own_cluster) == 0
    go.touch()
    assert running.finish().code == 0


def test_an_agent_that_is_lost_while_it_is_held_is_told_and_held_again_when_it_is_back(
    own_cluster: Any, tmp_path: Path
) -> None:
    go = tmp_path / "go"
    running = busy(own_cluster, go, 1)
    own_cluster.start_agent("node-2")
    own_cluster.until_active("node-2")
    waiting = gang(own_cluster, 8, "true")
    own_cluster.until(lambda: holding(own_cluster) == 7, "what is free on both is withheld")
    own_cluster.kill("node-2")
    own_cluster.until(lambda: holding(own_cluster) == 0, "in vain without node-2")
    (framework,) = [f for f in own_cluster.ls("framework") if f["info"]["name"] == "sh"]
    (standing,) = own_cluster.bursar("explain", "framework", framework["info"]["framework_id"], "-o", "json").json[
        "gangs"
    ]
    assert (standing["reason"], standing["with_room"]) == ("AGENT_INACTIVE", 3)
    own_cluster.start_agent("node-2")
    own_cluster.until(lambda: holding(own_cluster) == 7, "it is held again")
    go.touch()
    done = waiting.finish()
    assert done.code == 0 and json.loads(done.out)["finished"] == 8, done
    assert running.finish().code == 0

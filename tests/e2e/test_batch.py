"""A batch on a real cluster whose master is killed in the middle: every job ends once, and its command ran once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

JOBS = 24


def test_a_batch_outlives_its_master(own_cluster: Any, tmp_path: Path) -> None:
    log, go = tmp_path / "log", tmp_path / "go"
    # The first ones run on while the master is away, and end then.
    script = f"echo begin {{index}} >> {log}; until [ -e {go} ]; do sleep 0.02; done; echo end {{index}} >> {log}"
    batch = own_cluster.start(
        "batch", "--count", str(JOBS), "--gpus", "1", "--cpus", "0.5", "-o", "json", "--", "sh", "-c", script
    )
    own_cluster.until(lambda: log.exists() and log.read_text().count("begin") == 4, "four GPUs are busy")
    own_cluster.kill("master")
    go.touch()
    own_cluster.until(lambda: log.read_text().count("end") == 4, "they end while nobody hears it")
    assert batch.alive
    own_cluster.start_master()
    own_cluster.until(lambda: log.read_text().count("end") >= 8, "it goes on")
    own_cluster.kill("master")
    own_cluster.start_master()

    done = batch.finish(120)
    summary = json.loads(done.out)
    assert done.code == 0 and summary["succeeded"] and summary["finished"] == JOBS, done
    assert [task["index"] for task in summary["tasks"]] == list(range(JOBS))
    said = log.read_text().splitlines()
    relaunched = {task["index"] for task in summary["tasks"] if task["relaunched"]}
    for index in range(JOBS):
        assert said.count(f"end {index}") == 1, f"job {index} ran to its end once"
        assert said.count(f"begin {index}") == 1 or index in relaunched
    tasks = own_cluster.ls("task", "--all")
    assert sum(task["state"] == "FINISHED" for task in tasks) == JOBS
    assert own_cluster.ls("framework") == []


def test_retries_and_the_summary(own_cluster: Any, tmp_path: Path) -> None:
    """Every job fails once; the bar is for terminals, so lines are said."""
    script = f"test -e {tmp_path}/seen-{{index}} || {{ touch {tmp_path}/seen-{{index}}; exit 3; }}"
    jobs = tmp_path / "jobs"
    jobs.write_text("".join(f"{script.replace('{index}', str(index))}\n" for index in range(6)))
    done = own_cluster.bursar(
        "batch",
        "--file",
        str(jobs),
        "--retries",
        "1",
        "--backoff",
        "50ms",
        "--cpus",
        "0.5",
        "--capability",
        "GPU_RESOURCES",
    )
    _titles, values = done.stdout.splitlines()
    assert done.code == 0 and values.split()[:6] == ["6", "6", "0", "0", "6", "0"], done
    assert done.stderr.count("exited with 3; again in 50ms") == 6, done

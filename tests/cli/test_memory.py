"""`bursar memory explain`: plans as tables and as data, and files that are wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bursar.cli.main import run

GOOD = """
task:
  mem: 8GiB
  memory: {profile: jvm, shm: 512MiB, managed: {fraction: 30%, max: 2GiB}}
agent: {mem: 64GiB, memory: {system-reserve: 4GiB}}
gpu: {mem: 80GiB, processes: 2}
"""


@pytest.fixture
def explain(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    def ask(text: str, *options: str) -> tuple[int, str, str]:
        file = tmp_path / "task.yaml"
        file.write_text(text)
        code = run(["memory", "explain", str(file), *options])
        said = capsys.readouterr()
        return code, said.out, said.err

    return ask


def test_every_pool_is_shown_with_its_bounds_and_its_source(explain: Any) -> None:
    code, out, err = explain(GOOD)
    assert (code, err) == (0, "")
    rows = {line.split()[0]: line.split() for line in out.splitlines() if line}
    assert rows["shm"] == ["shm", "512MiB", "536870912", "64MiB", "-", "ShmSize", "shm", "in", "task.yaml"]
    assert rows["container"][1:4] == ["8GiB", str(8 << 30), "memory.max"]
    assert "-XX:MaxDirectMemorySize=2147483648" in out
    assert rows["offerable"][1] == "59.5GiB"
    assert rows["context-overhead"][1] == "1GiB"


def test_as_data_the_pools_sum_up(explain: Any) -> None:
    code, out, _ = explain(GOOD, "-o", "json", "--runtime", "process")
    assert code == 0
    data = json.loads(out)
    for section, whole in (("task", "container"), ("agent", "host"), ("gpu", "device")):
        sizes = {pool["name"]: pool["size_bytes"] for pool in data[section]["pools"]}
        assert sizes[whole] == sum(pool["size_bytes"] for pool in data[section]["pools"] if not pool["is_sum"])
    assert data["task"]["environment"]["BURSAR_MEM_SHM_BYTES"] == str(512 << 20)
    assert {pool["name"]: pool["enforced_by"] for pool in data["task"]["pools"]}["shm"] == "advisory"


def test_a_conflict_is_one_error_with_everything_in_it(explain: Any) -> None:
    code, out, err = explain("task: {memory: {total: 8GiB, app: 7GiB, shm: 2GiB}}")
    assert (code, out) == (2, "")
    assert err == (
        "error: task: memory: the parts of total take 1GiB more than it has: total 8GiB (total in task.yaml),"
        " app 7GiB (app in task.yaml), shm 2GiB (shm in task.yaml), tmpfs 0 (default: 0)\n"
        "hint: raise total to 9GiB or more, or lower app\n"
    )


def test_an_old_name_is_noted(explain: Any) -> None:
    code, _, err = explain("task: {memory: {limit: 8GiB}}")
    assert (code, err) == (0, "note: limit is called container here\n")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no section"),
        ("[1]", "no section"),
        ("{", "not YAML"),
        ("job: {}", "'job' is no section"),
        ("task: 8GiB", "holds no settings"),
        ("task: {memroy: {}}", "knows no memroy"),
        ("task: {memory: 8GiB}", "expected pools by name"),
        ("task: {memory: {shm: [1]}}", "is not an amount"),
        ("task: {memory: {1: 1}}", "not the name of a pool"),
        ("task: {memory: {container: {min: 1}}}", "a sum has a size"),
        ("task: {memory: {container: 8GiB, consumers: {A: 0}}}", "no usable weight"),
        ("task: {mem: .inf}", "mem"),
        ("agent: {memory: {}}", "mem is missing"),
        ("gpu: {mem: 8GiB, processes: many}", "not a number"),
        ("task: {mem: 8GiB, memory: {profile: jvm}, env: {JAVA_TOOL_OPTIONS: -Xmx4g}}", "-Xmx4g"),
        ("task: {mem: 8GiB, memory: {container: 9GiB}}", "two sizes"),
        ("task: {mem: 8GiB, env: [1]}", "names and values"),
    ],
)
def test_a_file_that_is_wrong_says_where(explain: Any, text: str, words: str) -> None:
    code, out, err = explain(text)
    assert (code, out) == (2, "")
    assert words in err and "Traceback" not in err


def test_a_file_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["memory", "explain", "/no/such/file"]) == 2
    assert "cannot be read" in capsys.readouterr().err


def test_profiles_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["memory", "profiles"]) == 0
    assert capsys.readouterr().out.startswith("plain: any program\njvm: ")

"""Devices that Bursar has never heard of, from a stranger's driver to a task: no file of ours knows what an FPGA is (F108-12)."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest

SLOTS = (f"fpga{os.getpid()}x0", f"fpga{os.getpid()}x1")
GPUS = (f"{os.getpid()}4", f"{os.getpid()}5")
PAGE = Path(__file__).resolve().parents[2] / "docs" / "devices.md"

SETTINGS = """
external-resources: gpu;tape
external-resource.gpu.amount: 2
external-resource.gpu.driver-factory.class: org.apache.flink.externalresource.gpu.GPUDriverFactory
external-resource.gpu.param.discovery-script.path: {script}
external-resource.gpu.param.discovery-script.args: {gpus}
external-resource.tape.amount: 3
"""


def plugin_of_the_page() -> str:
    """The driver that the documentation shows: what people copy has to work."""
    (code,) = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert code.count("\n") <= 20, "it promises 20 lines"
    return code


@pytest.fixture
def plugin(tmp_path: Path) -> Path:
    """The page's driver, for two FPGAs whose names no other run of these tests has."""
    (tmp_path / "dev").mkdir()
    for slot in SLOTS:
        (tmp_path / "dev" / slot).touch()
    path = tmp_path / "fpga.py"
    path.write_text(plugin_of_the_page().replace('"/dev"', repr(str(tmp_path / "dev"))))
    return path


def test_a_task_gets_fpgas_of_a_plugin_gpus_of_a_script_and_is_pinned(
    bare_cluster: Any, plugin: Path, tmp_path: Path
) -> None:
    script, settings = tmp_path / "find.sh", tmp_path / "external"
    script.write_text('#!/bin/sh\necho "$2, $3"\n')
    script.chmod(0o755)
    settings.write_text(SETTINGS.format(script=script, gpus=" ".join(GPUS)))
    bare_cluster.start_master()
    bare_cluster.start_agent(
        "node", "--external-resources", str(settings), devices=f"plugin:{plugin}", resources="cpus:8;mem:4GiB"
    )
    bare_cluster.until_active("node")
    show = 'echo "$FPGA_VISIBLE_DEVICES $CUDA_VISIBLE_DEVICES"'
    run = ("run", "--capability", "GPU_RESOURCES", "--env", "FPGA_VISIBLE_DEVICES=all")
    both = bare_cluster.bursar(*run, "--devices", "fpgas:2;tapes:1", "--gpus", "2", "--", "sh", "-c", show)
    assert (both.code, both.stdout) == (0, f"{','.join(SLOTS)} {','.join(GPUS)}\n"), "the user's word is dropped"
    none = bare_cluster.bursar(*run, "--", "sh", "-c", show)
    assert (none.code, none.stdout) == (0, " \n")
    more = bare_cluster.bursar(*run, "--wait", "4s", "--devices", "fpgas:3", "--", "true")
    assert more.code == 124 and "fpgas" in more.stderr, more
    kinds = {one["device"]["kind"] for one in bare_cluster.ls("gpu")}
    assert kinds == {"gpus", "fpgas"}


def test_a_second_agent_of_the_machine_never_gets_a_device_that_a_task_of_the_first_has(
    bare_cluster: Any, plugin: Path, tmp_path: Path
) -> None:
    """F108-08: neither while the first agent runs, nor after it was killed and its task runs on."""

    def names(host: str) -> list[str]:
        return [one["device"]["uuid"].rpartition(".")[2] for one in bare_cluster.ls("gpu") if one["hostname"] == host]

    bare_cluster.start_master()
    bare_cluster.start_agent("first", devices=f"plugin:{plugin}", resources="cpus:8;mem:4GiB")
    bare_cluster.until_active("first")
    go = tmp_path / "go"
    wait = f"echo $FPGA_VISIBLE_DEVICES; until [ -e {go} ]; do sleep 0.05; done"
    task = bare_cluster.start("run", "--capability", "GPU_RESOURCES", "--devices", "fpgas:1", "--", "sh", "-c", wait)
    task.until_stdout("fpga")
    assert task.stdout() == f"{SLOTS[0]}\n"
    bare_cluster.start_agent("second", devices=f"plugin:{plugin}", resources="cpus:8;mem:4GiB")
    bare_cluster.until_active("second")
    assert (names("first"), names("second")) == (list(SLOTS), [])
    bare_cluster.stop("second")
    bare_cluster.kill("first")
    bare_cluster.start_agent("third", devices=f"plugin:{plugin}", resources="cpus:8;mem:4GiB")
    bare_cluster.until_active("third")
    assert names("third") == [SLOTS[1]], "the other one's task runs on"
    assert "that runs on" in bare_cluster.log("third")
    bare_cluster.start_agent("first", devices=f"plugin:{plugin}", resources="cpus:8;mem:4GiB")
    go.touch()
    assert task.finish().code == 0, "its own agent has adopted it"


def test_two_tasks_share_a_card_and_nobody_gets_it_whole_meanwhile(bare_cluster: Any, tmp_path: Path) -> None:
    bare_cluster.start_master()
    bare_cluster.start_agent("node", "--gpu-shares", "500:none", devices="simulated:1", resources="cpus:8;mem:4GiB")
    bare_cluster.until_active("node")
    (card,) = (one["device"]["uuid"] for one in bare_cluster.ls("gpu") if one["device"]["kind"] == "gpus")
    go = tmp_path / "go"
    wait = f"echo $CUDA_VISIBLE_DEVICES; until [ -e {go} ]; do sleep 0.05; done"
    run = ("run", "--capability", "GPU_RESOURCES")
    both = [bare_cluster.start(*run, "--devices", "gpu-500-none:1", "--", "sh", "-c", wait) for _ in range(2)]
    for task in both:
        assert task.until_stdout("\n") == f"{card}\n"
    whole = bare_cluster.bursar(*run, "--wait", "3s", "--gpus", "1", "--", "true")
    assert whole.code == 124, whole
    go.touch()
    assert [task.finish().code for task in both] == [0, 0]
    assert bare_cluster.bursar(*run, "--wait", "20s", "--gpus", "1", "--", "true").code == 0

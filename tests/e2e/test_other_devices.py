"""Devices that Bursar has never heard of, from a stranger's driver to a task: no file of ours knows what an FPGA is (F108-12)."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

PAGE = Path(__file__).resolve().parents[2] / "docs" / "devices.md"

SETTINGS = """
external-resources: gpu;tape
external-resource.gpu.amount: 2
external-resource.gpu.driver-factory.class: org.apache.flink.externalresource.gpu.GPUDriverFactory
external-resource.gpu.param.discovery-script.path: {script}
external-resource.gpu.param.discovery-script.args: 4 5
external-resource.tape.amount: 3
"""


def plugin_of_the_page() -> str:
    """The driver that the documentation shows: what people copy has to work."""
    (code,) = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert code.count("\n") <= 20, "it promises 20 lines"
    return code


def test_a_task_gets_fpgas_of_a_plugin_gpus_of_a_script_and_is_pinned(bare_cluster: Any, tmp_path: Path) -> None:
    plugin, script, settings = tmp_path / "fpga.py", tmp_path / "find.sh", tmp_path / "external"
    for name in ("fpga0", "fpga1"):
        (tmp_path / "dev").mkdir(exist_ok=True)
        (tmp_path / "dev" / name).touch()
    plugin.write_text(plugin_of_the_page().replace('"/dev"', repr(str(tmp_path / "dev"))))
    script.write_text('#!/bin/sh\necho "$2, $3"\n')
    script.chmod(0o755)
    settings.write_text(SETTINGS.format(script=script))
    bare_cluster.start_master()
    bare_cluster.start_agent(
        "node", "--external-resources", str(settings), devices=f"plugin:{plugin}", resources="cpus:8;mem:4GiB"
    )
    bare_cluster.until_active("node")
    show = 'echo "$FPGA_VISIBLE_DEVICES $CUDA_VISIBLE_DEVICES"'
    run = ("run", "--capability", "GPU_RESOURCES", "--env", "FPGA_VISIBLE_DEVICES=all")
    both = bare_cluster.bursar(*run, "--devices", "fpgas:2;tapes:1", "--gpus", "2", "--", "sh", "-c", show)
    assert (both.code, both.stdout) == (0, "fpga0,fpga1 4,5\n"), "what the user says of a pinning variable is dropped"
    none = bare_cluster.bursar(*run, "--", "sh", "-c", show)
    assert (none.code, none.stdout) == (0, " \n")
    more = bare_cluster.bursar(*run, "--wait", "4s", "--devices", "fpgas:3", "--", "true")
    assert more.code == 124 and "fpgas" in more.stderr, more
    kinds = {one["device"]["kind"] for one in bare_cluster.ls("gpu")}
    assert kinds == {"gpus", "fpgas"}

"""`bursar-agent doctor` beside a master and an agent that run."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

AGENT = str(Path(sys.executable).with_name("bursar-agent"))


def test_beside_a_running_cluster_nothing_has_to_be_repaired(bare_cluster: Any, tmp_path: Path) -> None:
    bare_cluster.start_master()
    flags = ("--runtime", "process", "--devices", "none", "--work-dir", str(tmp_path / "work"))
    command = (AGENT, "doctor", "--master", bare_cluster.address, *flags)
    done = bare_cluster.programs.run(*command)
    assert done.code == 0, done
    assert f"ok    master      {bare_cluster.address} serves\n" in done.stdout
    assert done.stdout.endswith(", 0 to repair\n")
    said = json.loads(bare_cluster.programs.run(*command, "--json").stdout)
    assert said["fail"] == 0 and all(one["why"] and one["todo"] for one in said["findings"] if one["verdict"] != "ok")

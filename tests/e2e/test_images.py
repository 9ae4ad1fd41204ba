"""`bursar image` with a Docker agent, a plain one, and a registry on this machine."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from tests.registry import Registry, a_registry


@pytest.fixture
def machines(bare_cluster: Any, engine: Any) -> Any:
    bare_cluster.start_master()
    bare_cluster.start_agent("boxes", "--runtime", "docker", devices="simulated:2")
    bare_cluster.start_agent("plain", devices="none")
    bare_cluster.until_active("boxes", "plain")
    return bare_cluster


@pytest.fixture
def registry(require: Callable[[bool, str], None], tmp_path: Any, engine: Any) -> Iterator[Registry]:
    with a_registry(require, tmp_path) as made:
        yield made


@pytest.mark.docker
def test_an_image_is_there_before_a_task_needs_it(machines: Any, registry: Registry) -> None:
    image = registry.push("team/train:1")
    done = machines.bursar("image", "pull", image, "--where", "gpus>=1")
    assert done.code == 0 and "boxes: pulled (1/1 layers" in done.stdout, done
    assert done.stderr.startswith("bursar: boxes: waiting"), done
    listed = machines.bursar("image", "ls", "--agent", "boxes", "-o", "json").json
    assert any(image in one["image"]["names"] for one in listed)

    everywhere = machines.bursar("image", "pull", image, "--all")
    assert everywhere.code == 1 and "plain: failed, no images: this agent runs plain processes" in everywhere.stdout
    missing = machines.bursar("image", "pull", f"{registry.address}/team/nothing:1", "--agents", "boxes")
    assert missing.code == 1 and "boxes: failed, image not found: " in missing.stdout, missing
    nowhere = machines.bursar("image", "pull", "127.0.0.1:1/x:1", "--agents", "boxes")
    assert nowhere.code == 1 and "boxes: failed, registry unreachable: " in nowhere.stdout, nowhere
    shell = machines.bursar("image", "pull", "x;reboot", "--all")
    assert shell.code == 1 and "is not an image name" in shell.stderr


@pytest.mark.docker
def test_a_pull_is_known_after_a_restart_of_master_and_agent(machines: Any, registry: Registry) -> None:
    image = registry.push("team/train:2")
    ordered = json.loads(machines.bursar("image", "pull", image, "--agents", "boxes", "--detach", "-o", "json").stdout)
    machines.kill("master")
    machines.start_master()
    machines.until_active("boxes", "plain")

    def state() -> str:
        shown = machines.bursar("image", "pulls", ordered["pull_id"], "-o", "json")
        return shown.json["members"][0]["pull"]["state"] if shown.code == 0 else ""

    machines.until(lambda: state() == "PULLED", "the agent has told the new master")
    cancelled = machines.bursar("image", "cancel", ordered["pull_id"])
    assert cancelled.code == 0 and "1 pulled" in cancelled.stdout, "what is over stays so"
    assert machines.bursar("image", "pulls", "pull-9-9").code == 3

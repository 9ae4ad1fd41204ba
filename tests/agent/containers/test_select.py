"""`--runtime` in words."""

from __future__ import annotations

from pathlib import Path

import pytest

from bursar.agent.containers.select import RUNTIMES, runtime_for
from bursar.core.errors import InvalidText
from bursar.core.ids import AgentId


@pytest.mark.parametrize("name", RUNTIMES)
async def test_each_name_makes_its_runtime_and_touches_nothing(tmp_path: Path, name: str) -> None:
    assert runtime_for(name, AgentId("agent"), tmp_path).name == name
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["", "podman", "Docker", "process:1"])
def test_anything_else_is_refused_with_what_to_write(tmp_path: Path, text: str) -> None:
    with pytest.raises(InvalidText, match="docker or process"):
        runtime_for(text, AgentId("agent"), tmp_path)

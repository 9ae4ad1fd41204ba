"""The steps of starting a container, and what undoes them; with an engine that does as told and writes down what it is asked."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bursar.agent.containers.docker_engine import Phase, Seen
from bursar.agent.containers.docker_launch import launch
from bursar.agent.containers.docker_watch import Watched
from bursar.agent.containers.runtime import ContainerExit, ContainerId, ContainerSpec, LaunchFailed
from bursar.core.ids import AgentId, FrameworkId, TaskId
from bursar.core.tasks import StatusReason

ONE = ContainerId("bursar-1")
OURS = AgentId("agent-1")


class ScriptedEngine:
    """What its calls come to, one after another; a call whose script is over succeeds."""

    def __init__(self, seen: Seen | None = None, **outcomes: list[Any]) -> None:
        self.agent_id = OURS
        self.facts = SimpleNamespace(raises_memlock=True)
        self.calls: list[str] = []
        self._seen, self._outcomes = seen, outcomes

    def create(self, spec: ContainerSpec, network_mode: str) -> None:
        self._next("create")

    def start(self, container_id: ContainerId) -> Any:
        return self._next("start")

    def remove(self, container_id: ContainerId, force: bool) -> None:
        self._next("remove")

    def inspect(self, container_id: ContainerId) -> Seen | None:
        return self._seen

    def _next(self, name: str) -> Any:
        self.calls.append(name)
        outcome = self._outcomes[name].pop(0) if self._outcomes.get(name) else None
        if isinstance(outcome, Exception):
            raise outcome
        return outcome


def launched(engine: Any, sandbox: Path) -> ContainerExit | None:
    spec = ContainerSpec(ONE, FrameworkId("f"), TaskId("t"), ("true",), "busybox", {}, sandbox, 1000, 0)
    return launch(engine, spec, Watched(ONE, sandbox))


def there(phase: Phase, agent_id: AgentId = OURS, end: ContainerExit | None = None) -> Seen:
    return Seen(ONE, phase, "", agent_id, end, 0, "")


def failed(words: str) -> LaunchFailed:
    return LaunchFailed(StatusReason.LAUNCH_FAILED, words)


def test_it_is_created_and_started(tmp_path: Path) -> None:
    engine = ScriptedEngine()
    assert launched(engine, tmp_path) is None
    assert engine.calls == ["create", "start"]


def test_what_does_not_start_is_removed(tmp_path: Path) -> None:
    engine = ScriptedEngine(start=[failed("no such device")])
    with pytest.raises(LaunchFailed, match="no such device"):
        launched(engine, tmp_path)
    assert engine.calls == ["create", "start", "remove"]


def test_the_limit_of_locked_memory_is_given_up_once(tmp_path: Path) -> None:
    refused = "error setting rlimit type 8: operation not permitted"
    engine = ScriptedEngine(start=[failed(refused), failed(refused)])
    with pytest.raises(LaunchFailed, match="rlimit"):
        launched(engine, tmp_path)
    assert engine.calls == ["create", "start", "remove"] * 2
    assert engine.facts.raises_memlock is False


def test_a_command_that_cannot_be_run_is_an_end_that_the_task_sees(tmp_path: Path) -> None:
    end = ContainerExit(127, StatusReason.COMMAND_EXITED, "executable file not found")
    engine = ScriptedEngine(start=[end])
    assert launched(engine, tmp_path) == end
    assert (tmp_path / "stderr").read_text() == "executable file not found\n"


def test_what_an_earlier_life_started_is_never_started_twice(tmp_path: Path) -> None:
    end = ContainerExit(0, StatusReason.COMMAND_EXITED, "exited with code 0")
    engine = ScriptedEngine(there(Phase.ENDED, end=end), create=[FileExistsError()])
    assert launched(engine, tmp_path) == end
    assert engine.calls == ["create"]


def test_what_an_earlier_life_only_created_is_created_anew(tmp_path: Path) -> None:
    engine = ScriptedEngine(there(Phase.CREATED), create=[FileExistsError()])
    launched(engine, tmp_path)
    assert engine.calls == ["create", "remove", "create", "start"]


def test_a_container_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    engine = ScriptedEngine(there(Phase.RUNNING, AgentId("agent-2")), create=[FileExistsError()])
    with pytest.raises(LaunchFailed, match="not ours"):
        launched(engine, tmp_path)
    assert engine.calls == ["create"]

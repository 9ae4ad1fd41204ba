"""A launch is all or nothing: whatever step fails, the ones before it are undone in reverse."""

from __future__ import annotations

from pathlib import Path

import pytest

from bursar.agent.containers.runtime import ContainerId, ImageMissing, LaunchFailed
from bursar.agent.containers.simulated import SimulatedEngine, SimulatedRuntime
from bursar.agent.containers.volumes import VolumeRules
from bursar.agent.effects import StartContainer
from bursar.agent.launch import Draft, Launcher, Step
from bursar.agent.work_dir import WorkDir
from bursar.core.ids import FrameworkId, TaskId
from bursar.core.resources import ReservedResources, ResourceRequest, Resources
from bursar.core.tasks import AssignedTask, StatusReason, TaskSpec

C = ContainerId("c")


@pytest.fixture
def work_dir(tmp_path: Path) -> WorkDir:
    return WorkDir(tmp_path / "agent")


@pytest.fixture
def engine() -> SimulatedEngine:
    return SimulatedEngine()


def launcher(engine: SimulatedEngine, work_dir: WorkDir) -> Launcher:
    runtime = SimulatedRuntime(engine)
    return Launcher(runtime, object(), VolumeRules(work_dir.volumes), work_dir)


def start(image: str = "") -> StartContainer:
    spec = TaskSpec(TaskId("t"), command=("sleep", "60"), image=image, resources=ResourceRequest({"cpus": 1000}))
    task = AssignedTask(FrameworkId("f"), "*", spec, (ReservedResources((), Resources({"cpus": 1000})),))
    return StartContainer(C, task, image, ())


async def test_every_step_is_done(engine: SimulatedEngine, work_dir: WorkDir) -> None:
    await launcher(engine, work_dir).launch(start())
    assert engine.running == [C]
    assert (work_dir.sandbox(C) / "bursar-devices.json").exists()


@pytest.mark.parametrize(
    "error", [ImageMissing("big:1"), LaunchFailed(StatusReason.LAUNCH_FAILED, "no"), OSError("disk")]
)
async def test_a_failure_undoes_in_reverse(engine: SimulatedEngine, work_dir: WorkDir, error: Exception) -> None:
    made = launcher(engine, work_dir)
    order: list[str] = []

    def noted(step: Step) -> Step:
        async def do(draft: Draft) -> None:
            order.append(step.name)
            await step.do(draft)

        async def undo(draft: Draft) -> None:
            order.append(f"undo {step.name}")
            if step.undo is not None:
                await step.undo(draft)

        return Step(step.name, do, undo)

    async def fail(draft: Draft) -> None:
        raise error

    made.steps = [noted(step) for step in made.steps[:-1]] + [Step("container", fail)]
    with pytest.raises(type(error)):
        await made.launch(start())
    names = [step.name for step in made.steps[:-1]]
    assert order == names + [f"undo {name}" for name in reversed(names)]
    assert not work_dir.sandbox(C).exists() and engine.running == []


async def test_an_undo_that_fails_keeps_no_other_from_being_undone(engine: SimulatedEngine, work_dir: WorkDir) -> None:
    made = launcher(engine, work_dir)

    async def nothing(draft: Draft) -> None: ...

    async def broken(draft: Draft) -> None:
        raise RuntimeError("broken")

    made.steps[-1:] = [Step("broken", nothing, broken), Step("container", broken)]
    with pytest.raises(RuntimeError):
        await made.launch(start())
    assert not work_dir.sandbox(C).exists()


async def test_a_missing_image_leaves_nothing_and_the_next_launch_succeeds(
    engine: SimulatedEngine, work_dir: WorkDir
) -> None:
    engine.missing_images.add("big:1")
    engine.registry.add("big:1")
    made = launcher(engine, work_dir)
    with pytest.raises(ImageMissing):
        await made.launch(start("big:1"))
    assert not work_dir.sandbox(C).exists()
    await SimulatedRuntime(engine).pull("big:1")
    await made.launch(start("big:1"))
    assert engine.running == [C]

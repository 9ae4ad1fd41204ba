"""What a Docker container is held to: seen from inside, and tried to be broken out of."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from bursar.agent.containers.limits import disk_of, kept_capabilities
from bursar.agent.containers.runtime import LaunchFailed, Mount
from bursar.agent.containers.simulated import SimulatedProgram
from bursar.core.surroundings import ContainerSettings
from bursar.core.tasks import StatusReason

NOTHING = SimulatedProgram()


@pytest.fixture
async def bench(make_bench: Any) -> AsyncIterator[Any]:
    async with make_bench("docker") as made:
        yield made


async def output_of(bench: Any, text: str, **more: Any) -> str:
    runtime = await bench.open()
    spec = bench.spec("task", bench.script(text, NOTHING), **more)
    end = await bench.run(runtime, spec)
    await runtime.remove(spec.container_id)
    assert end.exit_code == 0, bench.output(spec, "stderr")
    return str(bench.output(spec))


async def test_no_container_has_more_rights_than_it_needs(bench: Any) -> None:
    printed = await output_of(
        bench, "grep -E 'CapBnd|CapEff|NoNewPrivs' /proc/self/status; ps | head -2; ls -l /proc/1/exe"
    )
    seen = dict(line.split(":\t") for line in printed.splitlines() if ":\t" in line)
    kept = {0, 1, 3, 4, 5, 6, 7, 10}  # CHOWN … SETUID, NET_BIND_SERVICE, by their numbers in linux/capability.h
    assert int(seen["CapBnd"], 16) == int(seen["CapEff"], 16) == sum(1 << number for number in kept)
    assert seen["NoNewPrivs"] == "1"
    assert "docker-init" in printed, "an init process reaps what tasks leave behind"


async def test_a_task_can_give_up_more(bench: Any) -> None:
    settings = ContainerSettings(user="1234:77", drop_capabilities=("ALL",))
    printed = await output_of(
        bench, "grep CapBnd /proc/self/status; id -u; id -g; touch mine; stat -c %u mine", settings=settings
    )
    assert printed.split() == ["CapBnd:", "0" * 16, "1234", "77", "1234"]
    assert kept_capabilities(ContainerSettings(drop_capabilities=("KILL",))) == [
        "CHOWN",
        "DAC_OVERRIDE",
        "FOWNER",
        "FSETID",
        "NET_BIND_SERVICE",
        "SETGID",
        "SETUID",
    ]


async def test_forking_without_end_meets_the_limit_and_only_its_own(bench: Any) -> None:
    # It stays for a look, and without another process: there is no room for one.
    text = "(i=0; while [ $i -lt 60 ]; do sleep 30 & i=$((i+1)); done 2>/dev/null; echo never); code=$?; until [ -e go ]; do :; done; exit $code"
    runtime = await bench.open()
    spec = bench.spec("bomb", bench.script(text, NOTHING), settings=ContainerSettings(pids_limit=20))
    await runtime.start(spec)
    witness = runtime._watch.get(spec.container_id).witness
    if witness is not None and witness._pids is not None:
        async with asyncio.timeout(30):
            while not witness._seen.refused_forks:
                await asyncio.sleep(0.05)
    (spec.sandbox / "go").touch()
    end = await bench.exit_of(spec.container_id)
    await runtime.remove(spec.container_id)
    assert end.exit_code != 0 and "never" not in bench.output(spec), "the shell could not fork"
    if witness is not None and witness._pids is not None:
        assert "it met its limit of 20 processes and threads" in end.message
    other = bench.spec("other", bench.script("exit 3", NOTHING))
    assert (await bench.run(runtime, other)).exit_code == 3


async def test_shared_memory_is_as_large_as_asked_for_and_no_larger(bench: Any) -> None:
    text = "dd if=/dev/zero of=/dev/shm/x bs=1M count=9 2>&1; stat -c %s /dev/shm/x"
    printed = await output_of(bench, text, settings=ContainerSettings(shm_bytes=8 * 2**20))
    assert "No space left" in printed and str(8 * 2**20) in printed


async def test_filling_the_shared_memory_beyond_the_limit_of_all_memory_is_its_end(bench: Any) -> None:
    runtime = await bench.open()
    # It begins when it is watched and stays for a look: of one that is gone at once only the engine can know, and may miss it.
    text = "until [ -e go ]; do sleep 0.02; done; dd if=/dev/zero of=/dev/shm/x bs=1M count=60; code=$?; sleep 1; exit $code"
    settings = ContainerSettings(shm_bytes=64 * 2**20)
    spec = bench.spec("full", bench.script(text, NOTHING), mem_bytes=16 * 2**20, settings=settings)
    await runtime.start(spec)
    (spec.sandbox / "go").touch()
    end = await bench.exit_of(spec.container_id)
    assert (end.exit_code, end.reason) == (137, StatusReason.MEM_LIMIT)


async def test_volumes_are_mounted_and_read_only_is_so(bench: Any, tmp_path: Path) -> None:
    for name in ("ro", "rw"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(f"in {name}\n")
    volumes = (Mount(f"{tmp_path}/ro", "/a", True), Mount(f"{tmp_path}/rw", "/b/c", False))
    printed = await output_of(bench, "cat /a/file /b/c/file; touch /a/no 2>&1; echo made > /b/c/made", volumes=volumes)
    assert "in ro\nin rw\n" in printed and "Read-only file system" in printed
    assert (tmp_path / "rw/made").read_text() == "made\n" and not (tmp_path / "ro/no").exists()


async def test_input_and_output_are_limited_on_the_disk_of_the_sandbox(bench: Any) -> None:
    import docker

    runtime = await bench.open()
    settings = ContainerSettings(io_read_bytes_per_s=2**20, io_write_bytes_per_s=2**21)
    spec = bench.spec("slow", bench.script("until [ -e go ]; do sleep 0.02; done", NOTHING), settings=settings)
    await runtime.start(spec)
    client = docker.from_env()
    host = client.containers.get(str(spec.container_id)).attrs["HostConfig"]
    client.close()
    disk = disk_of(spec.sandbox)
    assert host["BlkioDeviceReadBps"] == [{"Path": disk, "Rate": 2**20}]
    assert host["BlkioDeviceWriteBps"] == [{"Path": disk, "Rate": 2**21}]


def test_a_file_system_without_a_disk_cannot_be_throttled_and_says_so(tmp_path: Path) -> None:
    with pytest.raises(LaunchFailed, match="on no block device"):
        disk_of(tmp_path, tmp_path)


@pytest.mark.parametrize(
    "image", ["busybox;touch /tmp/x", "$(touch /tmp/x)", "`id`", "-v/:/host", "--privileged", "a|b"]
)
async def test_an_image_name_with_shell_in_it_is_a_name_that_is_none(bench: Any, image: str) -> None:
    runtime = await bench.open()
    bench.image = image
    with pytest.raises(LaunchFailed) as failed:
        await runtime.start(bench.spec("shell", bench.script("true", NOTHING)))
    assert failed.value.reason in (StatusReason.LAUNCH_FAILED, StatusReason.IMAGE_NOT_FOUND) and failed.value.message
    assert await runtime.recover() == []

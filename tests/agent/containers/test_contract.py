"""What every container runtime does, word for word the same: the contract of `ContainerRuntime`."""

from __future__ import annotations

import asyncio
import io
import json
import os
import signal
import tarfile
from typing import Any

import pytest

from bursar.agent.containers.logs import LogStream, read_logs
from bursar.agent.containers.runtime import ContainerSpec, ImageMissing, LaunchFailed
from bursar.agent.containers.sessions import SessionRefused
from bursar.agent.containers.simulated import SimulatedProgram, SimulatedRuntime
from bursar.core.lives import Check, CheckStatus, HttpCheck, TcpCheck
from bursar.core.messages.sessions import SessionKind, SessionStart
from bursar.core.tasks import StatusReason
from bursar.core.ulimits import parse_ulimits

#: `bench` comes from conftest.py.
UNTIL_GO = "until [ -e go ]; do sleep 0.02; done"


@pytest.mark.parametrize("code", [0, 7, 255])
async def test_exit_code_of_the_command_is_told_once(bench: Any, code: int) -> None:
    runtime = await bench.open()
    spec = bench.spec("exits", bench.script(f"exit {code}", SimulatedProgram(code)))
    end = await bench.run(runtime, spec)
    assert (end.exit_code, end.reason) == (code, StatusReason.COMMAND_EXITED)
    await runtime.remove(spec.container_id)
    assert len(bench.exits[spec.container_id]) == 1


async def test_death_by_a_signal_is_128_plus_its_number(bench: Any) -> None:
    runtime = await bench.open()
    end = await bench.run(
        runtime, bench.spec("aborts", bench.script("kill -ABRT $$", SimulatedProgram(128 + signal.SIGABRT)))
    )
    assert (end.exit_code, end.reason) == (128 + signal.SIGABRT, StatusReason.COMMAND_EXITED)


async def test_an_image_that_is_missing_is_told_apart_and_cannot_be_pulled_from_nowhere(bench: Any) -> None:
    if bench.kind == "process":
        pytest.skip("processes have no images")
    runtime = await bench.open()
    image, bench.image = bench.image, "localhost:1/no/such-image:1"
    if bench.kind == "simulated":
        bench.engine.missing_images.add(bench.image)
    spec = bench.spec("imageless", bench.script("exit 3", SimulatedProgram(3)))
    with pytest.raises(ImageMissing):
        await runtime.start(spec)
    with pytest.raises(LaunchFailed) as failed:
        await runtime.pull(bench.image)
    assert failed.value.reason is StatusReason.IMAGE_NOT_FOUND and bench.image in failed.value.message
    assert await runtime.recover() == []
    bench.image = image
    spec = bench.spec("imageless", bench.script("exit 3", SimulatedProgram(3)))
    assert (await bench.run(runtime, spec)).exit_code == 3, "nothing of the failed start is in the way"


async def test_a_command_looks_from_inside(bench: Any) -> None:
    runtime = await bench.open()

    def found(spec: ContainerSpec, check: Check) -> CheckStatus:
        return CheckStatus(exit_code=0 if (spec.sandbox / "well").exists() else 4)

    program = bench.script(UNTIL_GO, SimulatedProgram(run_ms=None, until_file="go", check=found))
    spec = bench.spec("watched", program)
    check = Check(command=("sh", "-c", "test -e well || exit 4"))
    assert await runtime.check(spec.container_id, check) == CheckStatus(), "nothing runs"
    await runtime.start(spec)
    assert await runtime.check(spec.container_id, check) == CheckStatus(exit_code=4)
    (spec.sandbox / "well").touch()
    assert await runtime.check(spec.container_id, check) == CheckStatus(exit_code=0)


async def test_a_port_is_looked_at_from_inside(bench: Any, unused_tcp_port: int) -> None:
    runtime = await bench.open()
    port = unused_tcp_port
    serve = f"echo x > page; {'python3 -m http.server' if bench.kind == 'process' else 'exec httpd -f -p'} {port}"

    def found(spec: ContainerSpec, check: Check) -> CheckStatus:
        right = (check.http or check.tcp).port == port  # type: ignore[union-attr]
        if check.http is not None:
            return CheckStatus(http_status=200 if check.http.path == "/page" else 404) if right else CheckStatus()
        return CheckStatus(is_connected=right)

    spec = bench.spec("serves", bench.script(serve, SimulatedProgram(run_ms=None, check=found)))
    await runtime.start(spec)
    async with asyncio.timeout(20):
        while not (await runtime.check(spec.container_id, Check(tcp=TcpCheck(port)))).is_healthy:
            await asyncio.sleep(0.05)
    assert await runtime.check(spec.container_id, Check(http=HttpCheck(port, "/page"))) == CheckStatus(http_status=200)
    assert await runtime.check(spec.container_id, Check(http=HttpCheck(port, "/none"))) == CheckStatus(http_status=404)
    assert await runtime.check(spec.container_id, Check(tcp=TcpCheck(1))) == CheckStatus(is_connected=False)


async def test_sigbus_alone_proves_nothing(bench: Any) -> None:
    runtime = await bench.open()
    program = bench.script("kill -BUS $$", SimulatedProgram(135, reason=StatusReason.SIGBUS))
    end = await bench.run(runtime, bench.spec("bus", program))
    assert (end.exit_code, end.reason) == (135, StatusReason.SIGBUS)


async def test_sigkill_alone_proves_nothing(bench: Any) -> None:
    runtime = await bench.open()
    end = await bench.run(runtime, bench.spec("shot", bench.script("kill -KILL $$", SimulatedProgram(137))))
    assert (end.exit_code, end.reason) == (137, StatusReason.COMMAND_EXITED)
    assert bench.kind == "simulated" or "not sent by this agent" in end.message


async def test_kill_sends_term_and_lets_the_task_clean_up(bench: Any) -> None:
    runtime = await bench.open()
    text = f"trap 'echo cleaned; exit 3' TERM; echo ready; {UNTIL_GO}"
    spec = bench.spec("tidy", bench.script(text, SimulatedProgram(run_ms=None, stdout=b"ready\ncleaned\n", on_term=3)))
    await runtime.start(spec)
    await runtime.prepare_logs(spec.container_id)
    await bench.printed(spec, "ready")
    await runtime.kill(spec.container_id, grace_ms=20_000)
    end = await bench.exit_of(spec.container_id)
    assert end.exit_code == 3
    await runtime.remove(spec.container_id)
    assert bench.output(spec) == "ready\ncleaned\n"


async def test_kill_of_a_task_that_does_not_listen_is_sigkill_after_the_grace(bench: Any) -> None:
    runtime = await bench.open()
    text = f"trap '' TERM; echo ready; {UNTIL_GO}"
    spec = bench.spec("stubborn", bench.script(text, SimulatedProgram(run_ms=None, stdout=b"ready\n", on_term=None)))
    await runtime.start(spec)
    await runtime.prepare_logs(spec.container_id)
    await bench.printed(spec, "ready")
    begin = asyncio.get_running_loop().time()
    await runtime.kill(spec.container_id, grace_ms=300)
    end = await bench.exit_of(spec.container_id)
    assert end.exit_code == 137
    assert asyncio.get_running_loop().time() - begin >= 0.29


async def test_kill_without_grace_and_of_what_is_not_there(bench: Any) -> None:
    runtime = await bench.open()
    spec = bench.spec("endless", bench.script(UNTIL_GO, SimulatedProgram(run_ms=None)))
    await runtime.start(spec)
    await runtime.kill(spec.container_id, grace_ms=0)
    assert (await bench.exit_of(spec.container_id)).exit_code == 137
    await runtime.kill(spec.container_id, grace_ms=0)
    await runtime.kill(type(spec.container_id)("bursar-nobody"), grace_ms=100)


async def test_what_nobody_accounts_for_is_ended_and_what_was_never_there_is_no_more(bench: Any) -> None:
    """B-18: on return nothing runs under the name, whoever began it; also where the runtime does not watch it."""
    first = await bench.open()
    spec = bench.spec("stray", bench.script(UNTIL_GO, SimulatedProgram(run_ms=None, until_file="go")))
    await first.start(spec)
    await first.end_stray(spec.container_id)
    assert (await bench.exit_of(spec.container_id)).exit_code == 128 + signal.SIGKILL
    assert spec.container_id not in getattr(first, "running", set)()
    await first.end_stray(spec.container_id)
    await first.remove(spec.container_id)
    await first.end_stray(spec.container_id)
    await first.end_stray(bench.spec("never", bench.script("true", SimulatedProgram())).container_id)


async def test_a_new_runtime_adopts_what_runs_and_learns_its_exit_code(bench: Any) -> None:
    first = await bench.open()
    text = f"echo before; {UNTIL_GO}; echo after; exit 5"
    spec = bench.spec("adopted", bench.script(text, SimulatedProgram(5, None, "go", stdout=b"before\nafter\n")))
    await first.start(spec)
    await first.close()
    second = await bench.open()
    (found,) = await second.recover()
    assert (found.container_id, found.exit) == (spec.container_id, None)
    assert not bench.exits
    (spec.sandbox / "go").touch()
    end = await bench.exit_of(spec.container_id)
    assert (end.exit_code, end.reason) == (5, StatusReason.COMMAND_EXITED)
    await second.remove(spec.container_id)
    assert bench.output(spec) == "before\nafter\n"
    assert len(bench.exits[spec.container_id]) == 1


async def test_an_adopted_task_can_be_killed(bench: Any) -> None:
    first = await bench.open()
    text = f"trap '' TERM; touch ready; {UNTIL_GO}"
    spec = bench.spec("adopted", bench.script(text, SimulatedProgram(run_ms=None, on_term=None)))
    await first.start(spec)
    while bench.kind != "simulated" and not (spec.sandbox / "ready").exists():
        await asyncio.sleep(0.01)
    await first.close()
    second = await bench.open()
    assert [found.exit for found in await second.recover()] == [None]
    await second.kill(spec.container_id, grace_ms=50)
    assert (await bench.exit_of(spec.container_id)).exit_code == 137


async def test_an_end_that_nobody_watched_is_found_with_its_exit_code(bench: Any) -> None:
    first = await bench.open()
    spec = bench.spec("unwatched", bench.script(f"{UNTIL_GO}; exit 9", SimulatedProgram(9, None, "go")))
    await first.start(spec)
    await first.close()
    (spec.sandbox / "go").touch()
    async with asyncio.timeout(20):
        while True:
            second = await bench.open()
            (found,) = await second.recover()
            if found.exit is not None:
                break
            await second.close()
            await asyncio.sleep(0.05)
    assert (found.exit.exit_code, found.exit.reason) == (9, StatusReason.COMMAND_EXITED)
    assert not bench.exits, "an end that recover() returned is not told again"
    await second.remove(spec.container_id)
    assert await second.recover() == []


async def test_outputs_are_apart_in_the_sandbox(bench: Any) -> None:
    runtime = await bench.open()
    program = bench.script("echo to out; echo to err >&2", SimulatedProgram(stdout=b"to out\n", stderr=b"to err\n"))
    spec = bench.spec("talks", program)
    await bench.run(runtime, spec)
    await runtime.remove(spec.container_id)
    assert (bench.output(spec), bench.output(spec, "stderr")) == ("to out\n", "to err\n")


async def test_logs_can_be_followed_and_come_once(bench: Any) -> None:
    runtime = await bench.open()
    text = f"echo one; {UNTIL_GO}; echo two; echo three >&2"
    spec = bench.spec(
        "followed", bench.script(text, SimulatedProgram(0, None, "go", stdout=b"one\ntwo\n", stderr=b"three\n"))
    )
    await runtime.start(spec)
    await runtime.prepare_logs(spec.container_id)
    await runtime.prepare_logs(spec.container_id)
    await bench.printed(spec, "one")
    (spec.sandbox / "go").touch()
    removed = asyncio.Event()

    async def end() -> None:
        await bench.exit_of(spec.container_id)
        await runtime.remove(spec.container_id)
        removed.set()

    ending = asyncio.create_task(end())
    seen = {LogStream.STDOUT: b"", LogStream.STDERR: b""}
    async with asyncio.timeout(20):
        async for chunk in read_logs(spec.sandbox, ended=removed.is_set, follow=True):
            seen[chunk.stream] += chunk.data
    await ending
    assert seen == {LogStream.STDOUT: b"one\ntwo\n", LogStream.STDERR: b"three\n"}


async def test_remove_is_idempotent_and_ignores_what_it_does_not_know(bench: Any) -> None:
    runtime = await bench.open()
    spec = bench.spec("gone", bench.script("true", SimulatedProgram()))
    await bench.run(runtime, spec)
    await runtime.remove(spec.container_id)
    await runtime.remove(spec.container_id)
    await runtime.remove(type(spec.container_id)("bursar-nobody"))
    assert await runtime.recover() == []


async def test_a_command_that_is_not_there_exits_127(bench: Any) -> None:
    runtime = await bench.open()
    program = bench.command(
        ("no-such-command", "--help"), SimulatedProgram(127, stderr=b"no-such-command: not found\n")
    )
    spec = bench.spec("missing", program)
    end = await bench.run(runtime, spec)
    assert (end.exit_code, end.reason) == (127, StatusReason.COMMAND_EXITED)
    await runtime.remove(spec.container_id)
    assert "no-such-command" in bench.output(spec, "stderr")


async def test_a_command_that_cannot_be_executed_exits_126(bench: Any) -> None:
    runtime = await bench.open()
    program = bench.command(("./notes",), SimulatedProgram(126))
    spec = bench.spec("plain", program)
    (spec.sandbox / "notes").write_text("no program")
    end = await bench.run(runtime, spec)
    assert (end.exit_code, end.reason) == (126, StatusReason.COMMAND_EXITED)


async def test_environment_is_as_given_and_nothing_of_the_agents(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENTS_OWN_SECRET", "secret")
    runtime = await bench.open()
    given = {"PATH": "/bin:/usr/bin", "EMPTY": "", "SPACED": "a  b\tc", "QUOTES": "'\"$HOME`x`\\", "dotted.name": "x=y"}
    printed = "\n".join(f"{name}={value}" for name, value in given.items()).encode()
    program = bench.command(("env",), SimulatedProgram(stdout=printed))
    spec = bench.spec("env", program, given)
    assert (await bench.run(runtime, spec)).exit_code == 0
    await runtime.remove(spec.container_id)
    seen = dict(line.partition("=")[::2] for line in bench.output(spec).splitlines())
    assert given.items() <= seen.items()
    assert seen.keys() - given.keys() <= {"HOSTNAME", "HOME", "PWD", "SHLVL", "OLDPWD", "_"}


async def test_sandbox_is_the_working_directory(bench: Any) -> None:
    runtime = await bench.open()
    text = "echo here > made-by-task"

    def simulated(spec: ContainerSpec) -> SimulatedProgram:
        (spec.sandbox / "made-by-task").write_text("here\n")
        return SimulatedProgram()

    spec = bench.spec("writes", bench.script(text, simulated))
    assert (await bench.run(runtime, spec)).exit_code == 0
    assert (spec.sandbox / "made-by-task").read_text() == "here\n"


async def test_children_left_behind_end_with_the_task(bench: Any) -> None:
    """Their writing stops: the file stays as it is once the task has ended."""
    runtime = await bench.open()
    text = "(while true; do echo x >> heartbeat; sleep 0.02; done) & until [ -s heartbeat ]; do sleep 0.02; done"

    def simulated(spec: ContainerSpec) -> SimulatedProgram:
        (spec.sandbox / "heartbeat").write_text("x\n")
        return SimulatedProgram()

    spec = bench.spec("parent", bench.script(text, simulated))
    assert (await bench.run(runtime, spec)).exit_code == 0
    before = (spec.sandbox / "heartbeat").read_bytes()
    await asyncio.sleep(0.2)  # ten heartbeats
    assert (spec.sandbox / "heartbeat").read_bytes() == before


async def test_many_at_once_each_end_once(bench: Any) -> None:
    runtime = await bench.open()
    specs = [bench.spec(f"many-{n}", bench.script(f"exit {n}", SimulatedProgram(n))) for n in range(8)]
    await asyncio.gather(*(runtime.start(spec) for spec in specs))
    ends = [await bench.exit_of(spec.container_id) for spec in specs]
    assert [end.exit_code for end in ends] == list(range(8))
    await asyncio.gather(*(runtime.remove(spec.container_id) for spec in specs))
    assert await runtime.recover() == []
    assert all(len(told) == 1 for told in bench.exits.values())


async def gather(session: Any) -> tuple[bytes, bytes, int]:
    """Both outputs of a session and its exit code."""
    outputs = {1: b"", 2: b""}
    async with asyncio.timeout(30):
        while (piece := await session.read()) is not None:
            outputs[piece[0]] += piece[1]
        code = await session.exit_code()
    await session.close()
    return outputs[1], outputs[2], code


@pytest.fixture
async def endless(bench: Any) -> Any:
    """A runtime, and a container in it that runs until it is told to go."""
    runtime = await bench.open()
    spec = bench.spec("endless", bench.script(UNTIL_GO, SimulatedProgram(run_ms=None, until_file="go")))
    await runtime.start(spec)
    return runtime, spec


async def test_a_program_runs_next_to_the_task_and_its_exit_code_is_told(endless: Any) -> None:
    runtime, spec = endless
    session = await runtime.open_session(spec.container_id, SessionStart(SessionKind.EXEC, ("echo", "two words")))
    assert await gather(session) == (b"two words\n", b"", 0)
    session = await runtime.open_session(spec.container_id, SessionStart(SessionKind.EXEC, ("false",)))
    assert await gather(session) == (b"", b"", 1)


async def test_a_program_reads_what_it_is_given_to_the_end(endless: Any) -> None:
    runtime, spec = endless
    session = await runtime.open_session(spec.container_id, SessionStart(SessionKind.EXEC, ("cat",)))
    data = bytes(range(256)) * 2000  # more than a pipe holds

    async def give() -> None:
        await session.write(data)
        await session.end_input()

    giving = asyncio.create_task(give())
    assert await gather(session) == (data, b"", 0)
    await giving


async def test_files_go_in_and_come_out_as_tar(bench: Any, endless: Any) -> None:
    runtime, spec = endless
    where = "/mnt/bursar/sandbox" if bench.kind == "docker" else str(spec.sandbox)
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        entry = tarfile.TarInfo("sub/file")
        entry.size = 6
        tar.addfile(entry, io.BytesIO(b"inside"))
    session = await runtime.open_session(spec.container_id, SessionStart(SessionKind.COPY_IN, path=where))
    await session.write(archive.getvalue())
    await session.end_input()
    assert (await gather(session))[2] == 0
    assert (spec.sandbox / "sub/file").read_text() == "inside"
    session = await runtime.open_session(spec.container_id, SessionStart(SessionKind.COPY_OUT, path=f"{where}/sub"))
    data, _, code = await gather(session)
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        found = tar.extractfile("sub/file")
        assert code == 0 and found is not None and found.read() == b"inside"
    session = await runtime.open_session(spec.container_id, SessionStart(SessionKind.COPY_OUT, path=f"{where}/nothing"))
    data, words, code = await gather(session)
    assert (data, code) == (b"", 1) and b"nothing" in words


async def test_what_a_task_uses_is_told_until_nobody_looks(endless: Any) -> None:
    runtime, spec = endless
    session = await runtime.open_session(spec.container_id, SessionStart(SessionKind.STATS))
    async with asyncio.timeout(30):
        piece = await session.read()
    assert piece is not None and json.loads(piece[1])["pids"] >= 1
    await session.close()


async def test_a_session_with_what_does_not_run_is_refused(bench: Any, endless: Any) -> None:
    runtime, spec = endless
    (spec.sandbox / "go").touch()
    await bench.exit_of(spec.container_id)
    for container_id in (spec.container_id, type(spec.container_id)("bursar-nobody")):
        with pytest.raises(SessionRefused, match="does not run"):
            await runtime.open_session(container_id, SessionStart(SessionKind.EXEC, ("true",)))


async def test_a_session_ends_with_its_task(endless: Any) -> None:
    runtime, spec = endless
    simulated = isinstance(runtime, SimulatedRuntime)
    command = ("cat",) if simulated else ("sh", "-c", "echo here; exec sleep 1000")
    session = await runtime.open_session(spec.container_id, SessionStart(SessionKind.EXEC, command))
    stats = await runtime.open_session(spec.container_id, SessionStart(SessionKind.STATS))
    if not simulated:
        assert await session.read() == (1, b"here\n")
    (spec.sandbox / "go").touch()
    if simulated:
        await session.end_input()
    else:
        assert (await gather(session))[2] == 137
    await stats.close()
    await session.close()


async def test_a_task_runs_on_the_cpus_near_its_devices(bench: Any) -> None:
    if bench.kind == "simulated" or len(os.sched_getaffinity(0)) < 2:
        pytest.skip("there are no CPUs to choose from")
    runtime = await bench.open()
    one = min(os.sched_getaffinity(0))
    show = bench.script("grep Cpus_allowed_list /proc/self/status", SimulatedProgram())
    spec = bench.spec("near", show, cpuset=str(one))
    assert (await bench.run(runtime, spec)).exit_code == 0
    await runtime.remove(spec.container_id)
    assert bench.output(spec).split() == ["Cpus_allowed_list:", str(one)]


async def test_it_says_which_containers_run_and_what_they_use(bench: Any) -> None:
    runtime = await bench.open()
    if not hasattr(runtime, "usages"):
        pytest.skip("the simulated runtime measures nothing")
    spec = bench.spec("works", bench.script("while :; do :; done", SimulatedProgram(0)))
    await runtime.start(spec)
    assert await asyncio.to_thread(runtime.running) == {spec.container_id}

    def used() -> Any:
        return runtime.usages([spec.container_id, "nothing"]).get(spec.container_id, {})

    while (await asyncio.to_thread(used)).get("cpu_ns", 0) < 10**8:
        await asyncio.sleep(0.05)
    figures = await asyncio.to_thread(used)
    assert figures["mem_bytes"] > 0 and figures["pids"] >= 1
    await runtime.kill(spec.container_id, 0)
    while await asyncio.to_thread(runtime.running):
        await asyncio.sleep(0.05)
    assert await asyncio.to_thread(used) == {}


async def test_each_process_of_a_task_has_its_limits(bench: Any) -> None:
    runtime = await bench.open()

    def simulated(spec: ContainerSpec) -> SimulatedProgram:
        limits = {one.name: one for one in spec.ulimits}
        files, core = limits["nofile"], limits["core"]
        return SimulatedProgram(stdout=f"{files.soft} {files.hard} {core.soft}\n".encode())

    text = "sh -c 'echo $(ulimit -Sn) $(ulimit -Hn) $(ulimit -Sc)'"
    spec = bench.spec("limited", bench.script(text, simulated), ulimits=parse_ulimits(("nofile=100:200", "core=0")))
    assert (await bench.run(runtime, spec)).exit_code == 0
    if bench.kind == "docker":
        await runtime.remove(spec.container_id)
    assert bench.output(spec) == "100 200 0\n"

"""`bursar run`: one command on the cluster, as if it ran here.

The task's stdout and stderr are ours, its exit code is ours; Bursar's own words go to stderr only.
"""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import PurePosixPath
from typing import Any

import click

from bursar.cli.asked import asked_options
from bursar.cli.options import (
    DURATION_MS,
    capabilities_for,
    credentials,
    master_address,
    master_option,
    of_gpus,
    operator_client,
)
from bursar.cli.problems import BROKEN_PIPE, NOT_RUN, WAIT_PASSED, say
from bursar.cli.streams import OutputClosed, StandardStreams
from bursar.cli.volumes import devices_for
from bursar.core.errors import BursarError, ErrorReason, InvalidText
from bursar.core.surroundings import parse_volume, volumes_named
from bursar.core.text import format_duration
from bursar.frameworks.run import RunOnce, describe_end, exit_code
from bursar.sdk import (
    FrameworkSession,
    LogReader,
    MasterUnreachable,
    Status,
    StatusReason,
    Task,
    TaskState,
)
from bursar.v1.operator_service_pb2 import REFUSAL_REASON_DECLINED

#: A master must be found within this time.
CONNECT_S = 10
#: From when on waiting is explained; it is looked at again after as long, then twice as long, up to a bound: asking costs the master.
EXPLAIN_AFTER_S, EXPLAIN_EVERY_S = 2.0, 30.0
#: How long a killed task may take to be reported, beyond its grace.
KILL_S = 10.0
#: After its end, how long output may stand still before it is given up.
DRAIN_S = 10.0
#: The end of a followed log and the status that tells the same come at about the same time.
MEET_S = 2.0


@click.command(context_settings={"allow_interspersed_args": False})
@click.option(
    "--wait", "wait_ms", type=DURATION_MS, help="Give up with exit code 124 if it is not started by then, such as 30s."
)
@click.option("-v", "--verbose", is_flag=True, help="Say on stderr where the task runs.")
@asked_options
@master_option
def run(
    role: str,
    name: str | None,
    cpus: str,
    mem: str,
    memory: str,
    gpus: int,
    image: str,
    env: dict[str, str],
    capabilities: tuple[str, ...],
    constraints: tuple[str, ...],
    wait_ms: int | None,
    verbose: bool,
    command: tuple[str, ...],
    asked: dict[str, Any],
) -> int:
    """Run one command on the cluster and wait for its end.

    Its stdout and stderr come out here, separately. Interrupt (Ctrl-C) ends the task; twice leaves at once.

    Exit codes: the command's own; 128 + N where signal N ended it; 124 --wait has passed; 125 not started, or lost; 126 and 127
    as in a shell.

    Example: bursar run --gpus 2 -- sh -c 'echo $CUDA_VISIBLE_DEVICES'
    """
    if not command and not image:
        raise click.UsageError("no command was given; write it after --, as in: bursar run --gpus 1 -- nvidia-smi")
    title = name or (PurePosixPath(command[0]).name if command else image)
    mounted = volumes_named(tuple(map(parse_volume, asked.get("volumes", ()))))
    devices = devices_for(mounted, role)
    try:
        task = Task(
            command,
            title,
            image,
            env,
            cpus,
            mem,
            gpus,
            memory=memory,
            devices=devices,
            **asked,
        )
    except InvalidText as error:
        raise click.UsageError(str(error)) from None
    framework = RunOnce(
        task,
        name=title,
        role=role,
        capabilities=capabilities_for(capabilities, gpus or of_gpus(asked["custom"])),
        constraints=constraints,
    )
    code = asyncio.run(_Run(framework, master_address(), wait_ms, verbose).main())
    return code


class _Run:
    """One run: the session, the copy of the output, the clock and the signals, until there is an exit code."""

    def __init__(self, framework: RunOnce, master: str, wait_ms: int | None, verbose: bool) -> None:
        self._framework = framework
        self._session = FrameworkSession(framework, master, connect_timeout=CONNECT_S, credentials=credentials())
        self._client = operator_client(master)
        self._wait_ms = wait_ms
        self._verbose = verbose
        self._streams = StandardStreams()
        self._changed = asyncio.Event()
        self._life: asyncio.Task[None] | None = None
        self._signal: int | None = None
        self._output_closed = False
        self._said: set[str] = set()
        framework.on_change = self._changed.set

    async def main(self) -> int:
        """Run and return the exit code; never raises for what a user can cause."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._on_signal, number)
        self._life = loop.create_task(self._session.run())
        self._life.add_done_callback(lambda _: self._changed.set())
        copy: asyncio.Task[None] | None = None
        try:
            code = await self._until_launched()
            if code is None:
                copy = loop.create_task(self._copy_output())
                code = await self._until_ended(copy)
            return await self._leave(code)
        finally:
            for job in (copy, self._life):
                if job is not None:
                    job.cancel()
            await asyncio.gather(*(job for job in (copy, self._life) if job is not None), return_exceptions=True)
            await self._client.close()

    # --- the parts -------------------------------------------------------------------------------------------------

    async def _until_launched(self) -> int | None:
        """Until the master took the task (None), or an exit code."""
        loop = asyncio.get_running_loop()
        begin = loop.time()
        until = None if self._wait_ms is None else begin + self._wait_ms / 1000
        pause = EXPLAIN_AFTER_S / 2
        look_at = begin + EXPLAIN_AFTER_S
        while True:
            if self._over or self._signal is not None:
                return self._code_without_end()
            if self._framework.end is not None:
                return self._say_end(self._framework.end)
            if self._framework.launched:
                return None
            if until is not None and loop.time() >= until:
                await self._explain()
                if self._framework.launched:
                    continue
                say(f"bursar: not started within {format_duration(self._wait_ms or 0)}, given up")
                return WAIT_PASSED
            if loop.time() >= look_at:
                await self._explain()
                pause = min(2 * pause, EXPLAIN_EVERY_S)
                look_at = loop.time() + pause
                continue
            await self._wait(min(look_at, until or look_at) - loop.time())

    async def _until_ended(self, copy: asyncio.Task[None]) -> int:
        """Until the task has ended and its output was written."""
        framework = self._framework
        if self._verbose:
            say(f"bursar: task {self._session.framework_id}/{framework.task.id} is on {framework.task.hostname}")
        while framework.end is None:
            if self._over:
                return self._code_without_end()
            if self._signal is not None or self._output_closed:
                code = await self._kill()
                if not self._output_closed:
                    await self._drain(copy)
                return code
            if framework.task.status.reason is StatusReason.PULLING_IMAGE:
                self._say_once(framework.task.status.message)
            if framework.task.status.state is TaskState.UNREACHABLE:
                self._say_once(f"{framework.task.hostname or 'its agent'} does not answer; waiting for it")
            await self._wait(None)
        code = exit_code(framework.end)
        await self._drain(copy)
        if self._output_closed and self._signal is None:
            return BROKEN_PIPE
        return 128 + self._signal if self._signal is not None else self._say_end(framework.end, code)

    async def _kill(self) -> int:
        """End the task for a signal, or because nobody reads."""
        framework = self._framework
        self._session.kill(framework.task.id)
        give_up = asyncio.get_running_loop().time() + KILL_S + (framework.task.kill_grace_ms or 3000) / 1000
        while framework.end is None and not self._over:
            left = give_up - asyncio.get_running_loop().time()
            if left <= 0:
                say("bursar: the task's end was not reported; unregistering ends it")
                break
            await self._wait(left)
        return 128 + self._signal if self._signal is not None else BROKEN_PIPE

    async def _leave(self, code: int) -> int:
        """Unregister: when we return, the task and the framework are over for the master too."""
        assert self._life is not None
        if not self._life.done():
            self._session.stop()
            await asyncio.wait([self._life])
        try:
            self._life.result()
        except MasterUnreachable as error:
            say(f"bursar: {error.detail.message}\nbursar: {error.detail.hint}")
        except BursarError as error:
            removed = error.detail.reason is ErrorReason.FRAMEWORK_REMOVED
            if not (removed and self._framework.end is not None):
                say(f"bursar: {error}")
        return code

    async def _copy_output(self) -> None:
        """Copy the task's outputs here until it has ended; what breaks in between is healed."""
        reader = LogReader(
            self._client,
            f"{self._session.framework_id}/{self._framework.task.id}",
            self._streams.write,
            self._streams.say_skipped,
        )
        self._reader = reader
        while not self._framework.started:
            await self._wait(None)
        while True:
            try:
                await reader.follow(patience_s=float("inf"))
            except OutputClosed:
                self._output_closed = True
                self._changed.set()
                return
            except BursarError as error:
                if self._framework.end is not None:
                    if self._framework.end.exit_code is not None:
                        say(f"bursar: output may be missing: {error}")
                    return
                await asyncio.sleep(0.5)
                continue
            if await self._end_within(MEET_S):
                return

    async def _drain(self, copy: asyncio.Task[None]) -> None:
        """Wait for the rest of the output; not for ever where nothing moves, and not where nobody waits for it."""
        while not copy.done():
            before = dict(self._reader.positions)
            await asyncio.wait([copy], timeout=1.0 if self._signal is not None else DRAIN_S)
            if self._streams.is_blocked and self._signal is None:
                continue
            if not copy.done() and self._reader.positions == before:
                if self._signal is None:
                    say("bursar: the end of the output cannot be had; bursar task logs may have it later")
                return
        if not copy.cancelled() and (error := copy.exception()) is not None:
            raise error

    # --- small things ----------------------------------------------------------------------------------------------

    @property
    def _over(self) -> bool:
        """Whether the session ended without our doing."""
        return self._life is not None and self._life.done()

    async def _wait(self, seconds: float | None) -> None:
        """Until something changed. Several may wait: everybody looks for himself, at least twice a second."""
        self._changed.clear()
        try:
            await asyncio.wait_for(self._changed.wait(), 0.5 if seconds is None else max(0.0, min(0.5, seconds)))
        except TimeoutError:
            pass

    async def _end_within(self, seconds: float) -> bool:
        until = asyncio.get_running_loop().time() + seconds
        while self._framework.end is None and asyncio.get_running_loop().time() < until:
            await self._wait(until - asyncio.get_running_loop().time())
        return self._framework.end is not None

    def _on_signal(self, number: int) -> None:
        if self._signal is not None:
            os._exit(128 + number)
        self._signal = number
        if self._framework.placed:
            say("bursar: ending the task; once more leaves at once")
        self._changed.set()

    def _code_without_end(self) -> int:
        return 128 + self._signal if self._signal is not None else NOT_RUN

    def _say_end(self, status: Status, code: int | None = None) -> int:
        words = describe_end(status)
        if words:
            say(f"bursar: {words}")
        return exit_code(status) if code is None else code

    def _say_once(self, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            say(f"bursar: {text}")

    async def _explain(self) -> None:
        """Say why it is not started, and what would help, whenever that changes."""
        if not self._framework.connected:
            self._say_once(
                "waiting for a master" if not self._framework.subscribed else "the master is away; waiting for it"
            )
            return
        try:
            answer = await asyncio.wait_for(self._client.explain_framework(self._session.framework_id), 2)
        except (BursarError, TimeoutError):
            return
        if self._framework.launched:
            return
        if self._framework.misfit:
            self._say_once(f"waiting: {self._framework.misfit}")
        if answer.refusals:
            # Nearest to success last: that one is the most useful, so it goes first.
            others = [
                r
                for r in reversed(answer.refusals)
                if r.reason != REFUSAL_REASON_DECLINED or not self._framework.misfit
            ]
            for refusal in others[:3]:
                self._say_once(f"waiting: {refusal.message}" + (f" ({refusal.hint})" if refusal.hint else ""))
        elif not answer.agents:
            self._say_once("waiting: no agent is registered (start one: bursar-agent --master HOST:PORT)")
        elif not self._framework.misfit:
            self._say_once("waiting for an offer")

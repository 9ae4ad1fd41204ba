"""`bursar task exec` and `attach`: into a task that runs."""

from __future__ import annotations

import asyncio
import contextlib
import signal

import click

from bursar.cli import terminal
from bursar.cli.options import master_address, master_option, operator_client
from bursar.cli.problems import BROKEN_PIPE, NOT_RUN, say, say_error
from bursar.cli.streams import OutputClosed, StandardStreams
from bursar.core.errors import BursarError
from bursar.runtime.program import INTERRUPTED
from bursar.sdk import LogReader, TaskSession
from bursar.v1.sessions_pb2 import SESSION_KIND_EXEC

#: The end of a followed log and the status that tells the same come at about the same time.
_END_S, _LOOK_S = 10.0, 0.1


@click.command("exec", context_settings={"allow_interspersed_args": False})
@click.option("-i", "--interactive", is_flag=True, help="Pass our stdin on to the program.")
@click.option("-t", "--tty", "wants_terminal", is_flag=True, help="Give the program a terminal, ours.")
@click.argument("task")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@master_option
def exec_command(interactive: bool, wants_terminal: bool, task: str, command: tuple[str, ...]) -> int:
    """Run a program in a running task: in its container, or beside a plain process, with its environment.

    The program ends with the task, and when this command ends. Exit codes: the program's own; 128 + N where signal N ended it; 125 it
    could not be run, or the session was lost.

    Example: bursar task exec -it TASK -- sh
    """
    command = command[1:] if command[0] == "--" else command
    if not command:
        raise click.UsageError("no program is named; write it after --, as in: bursar task exec TASK -- ps")
    if wants_terminal and not terminal.is_terminal():
        raise click.UsageError("our stdin is no terminal, so -t cannot give the program one; leave -t out")
    return asyncio.run(_Exec(task, command, interactive or wants_terminal, wants_terminal).run(master_address()))


class _Exec:
    """One program, from its start to its end."""

    def __init__(self, task: str, command: tuple[str, ...], passes_input: bool, wants_terminal: bool) -> None:
        self._task, self._command = task, command
        self._passes_input, self._wants_terminal = passes_input, wants_terminal
        self._streams = StandardStreams()
        self._signal = 0

    async def run(self, address: str) -> int:
        """Run it and return our exit code."""
        loop, current = asyncio.get_running_loop(), asyncio.current_task()
        assert current is not None
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal, number, current)
        try:
            async with operator_client(address) as client:
                size = terminal.size() if self._wants_terminal else None
                session = await client.open_session(self._task, SESSION_KIND_EXEC, command=self._command, terminal=size)
                with terminal.raw_terminal() if self._wants_terminal else contextlib.nullcontext():
                    return await self._serve(session)
        except asyncio.CancelledError:
            return 128 + self._signal
        except OutputClosed:
            return BROKEN_PIPE
        except BursarError as error:
            say_error(error.detail.message, error.detail.hint)
            return NOT_RUN

    def _on_signal(self, number: int, task: asyncio.Task[int]) -> None:
        self._signal = number
        task.cancel()

    async def _serve(self, session: TaskSession) -> int:
        async with session:
            giving = asyncio.create_task(self._give(session))
            try:
                while (piece := await session.read()) is not None:
                    await self._streams.write(*piece)
            finally:
                giving.cancel()
        return session.exit_code or 0

    async def _give(self, session: TaskSession) -> None:
        if self._wants_terminal:
            changed = asyncio.Event()
            asyncio.get_running_loop().add_signal_handler(signal.SIGWINCH, changed.set)
            resizing = asyncio.create_task(_tell_sizes(session, changed))
            # Kept as long as input is given; a terminal's input has no end of its own.
            resizing.add_done_callback(lambda _: None)
        if self._passes_input:
            source = terminal.StandardInput()
            while data := await source.read():
                if not await session.write(data):
                    return
        await session.end_input()


async def _tell_sizes(session: TaskSession, changed: asyncio.Event) -> None:
    while True:
        await changed.wait()
        changed.clear()
        await session.resize(*terminal.size())


@click.command("attach")
@click.argument("task")
@master_option
def attach_command(task: str) -> int:
    """Show what a task prints from now on, until it ends, and end as it did.

    Interrupt (Ctrl-C) leaves, and the task runs on. Exit codes: the task's own; 125 it is lost, or was not run; 130 we left.
    """
    try:
        return asyncio.run(_attach(master_address(), task))
    except KeyboardInterrupt:
        say("bursar: left; the task runs on (bursar task kill ends it)")
        return INTERRUPTED


async def _attach(address: str, task: str) -> int:
    streams = StandardStreams()
    async with operator_client(address) as client:
        view = await client.task(task)
        name = f"{view.framework_id}/{view.task_id}"
        reader = LogReader(client, name, streams.write, streams.say_skipped)
        try:
            await reader.follow(tail_bytes=0)
        except OutputClosed:
            return BROKEN_PIPE
        deadline = asyncio.get_running_loop().time() + _END_S
        while not (view := await client.task(name)).ended_at_ms and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(_LOOK_S)
    if view.HasField("exit_code"):
        return int(view.exit_code) & 255
    if view.message:
        say(f"bursar: {view.message}")
    return NOT_RUN

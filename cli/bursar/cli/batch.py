"""`bursar batch`: many jobs from one command template, or from the lines of a file."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from pathlib import PurePosixPath
from typing import Any, TextIO

import click

from bursar.cli import output as out
from bursar.cli.asked import asked_options
from bursar.cli.options import (
    DURATION_MS,
    capabilities_for,
    credentials,
    master_address,
    master_option,
    of_gpus,
    operator_client,
    output_option,
)
from bursar.cli.problems import REFUSED, exit_code, say, say_error
from bursar.cli.progress import Progress, progress_of
from bursar.core.errors import BursarError, InvalidText
from bursar.core.surroundings import parse_volume, volumes_named
from bursar.core.text import format_duration
from bursar.frameworks.batch import MAX_LOSSES, Batch, Ended, Job, from_lines, from_template
from bursar.frameworks.gang_batch import WAIT_S, GangBatch
from bursar.frameworks.run import describe_end
from bursar.sdk import FrameworkSession, Status

#: How often the bar is drawn, and when waiting for a first offer is explained.
SHOW_EVERY_S, EXPLAIN_AFTER_S = 0.25, 3.0
#: A gang that waits is looked at twice as late each time, up to this.
EXPLAIN_AT_LEAST_EVERY_S = 60.0
#: So many of the jobs that failed are listed; -o json has all.
LISTED = 20


@click.command(context_settings={"allow_interspersed_args": False})
@click.option("--count", type=click.IntRange(1, 100_000), help="How many jobs.")
@click.option(
    "--file",
    "file",
    type=click.File("r", encoding="utf-8"),
    help="A job per line; - is stdin. {line} is replaced in the command; without a command each line is one, for sh -c.",
)
@click.option("--parallel", type=click.IntRange(1), help="At most so many at once.  [as many as the offers allow]")
@click.option(
    "--retries",
    type=click.IntRange(0, 1000),
    default=0,
    show_default=True,
    help="How often a job whose command failed is run again.",
)
@click.option(
    "--backoff",
    "backoff_ms",
    type=DURATION_MS,
    default="1s",
    show_default=True,
    help="Before the first retry of a job; twice as long before each further one, up to 5m.",
)
@click.option(
    "--max-losses",
    type=click.IntRange(0, 1000),
    default=MAX_LOSSES,
    show_default=True,
    help="How often a job may be lost for no fault of its own; such launches do not count as retries.",
)
@click.option(
    "--gang", is_flag=True, help="All jobs start together or not at all; where one fails, the others are ended."
)
@click.option(
    "--wait",
    "wait_ms",
    type=DURATION_MS,
    help=f"With --gang: how long to wait for room for all.  [default: {format_duration(round(WAIT_S * 1000))}]",
)
@click.option("--same", default="", metavar="ATTRIBUTE", help="With --gang: on agents that share it, such as rack.")
@click.option("--nvlink", is_flag=True, help="With --gang: the GPUs of each job are linked by NVLink.")
@asked_options
@output_option
@master_option
def batch(
    count: int | None,
    file: TextIO | None,
    parallel: int | None,
    retries: int,
    backoff_ms: int,
    max_losses: int,
    gang: bool,
    wait_ms: int | None,
    same: str,
    nvlink: bool,
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
    command: tuple[str, ...],
    asked: dict[str, Any],
    output: str,
) -> int:
    """Run many jobs: a command --count times, or for each line of a --file.

    {index} (from 0), {count} and {line} are replaced in the command and in the values of --env. Says on stderr how far it is and what
    failed, and prints a summary at the end. Interrupt ends all tasks; twice leaves at once. Outputs of tasks: bursar task logs.

    With --gang the jobs are one gang. Each finds its number in BURSAR_GANG_RANK, that of all in BURSAR_GANG_SIZE, and the hostnames of all,
    by number and joined by commas, in BURSAR_GANG_HOSTS. Retries and losses are of the gang as a whole.

    Exit codes: 0 all jobs have ended well; 1 some have failed, or were lost too often; 2 usage; 4 no master; 128 + N signal N ended it.

    \b
    Examples: bursar batch --count 8 --gpus 1 -- python train.py --fold {index}
              bursar batch --file rates.txt --retries 2 -- python train.py --lr {line}
              bursar batch --gang --count 8 --gpus 8 --same rack -- python train.py --rank {index}
    """  # noqa: D301
    jobs = _jobs(command, count, file, env, image)
    if not gang:
        for option, given in (("--wait", wait_ms is not None), ("--same", same), ("--nvlink", nvlink)):
            if given:
                raise click.UsageError(f"{option} is about gangs; say --gang, too, or leave it out")
    elif parallel is not None:
        raise click.UsageError("a gang starts all its jobs at once: leave out --parallel, or --gang")
    if volumes_named(tuple(map(parse_volume, asked.get("volumes", ())))):
        raise click.UsageError(
            "a persistent volume is one task's at a time: mount it with `bursar run`, or by a framework"
        )
    title = name or (PurePosixPath(command[0]).name if command else PurePosixPath(image).name or "batch")
    try:
        options: dict[str, Any] = {
            "name": title,
            "role": role,
            "capabilities": capabilities_for(capabilities, gpus or of_gpus(asked["custom"])),
            "constraints": constraints,
            "image": image,
            "cpus": cpus,
            "mem": mem,
            "memory": memory,
            "gpus": gpus,
            "retries": retries,
            "pause_s": backoff_ms / 1000,
            "max_losses": max_losses,
            "asked": asked,
        }
        framework: Batch
        if gang:
            wait_s = WAIT_S if wait_ms is None else wait_ms / 1000
            framework = GangBatch(jobs, wait_s=wait_s, same=same, nvlink=nvlink, **options)
        else:
            framework = Batch(jobs, parallel=parallel, **options)
    except InvalidText as error:
        raise click.UsageError(str(error)) from None
    return asyncio.run(_Run(framework, master_address(), output).main())


def _jobs(
    command: tuple[str, ...], count: int | None, file: TextIO | None, env: dict[str, str], image: str
) -> list[Job]:
    """What is to be done. Raises UsageError."""
    if (count is None) == (file is None):
        raise click.UsageError("how many jobs? give --count N, or --file FILE with a job per line")
    if file is not None:
        try:
            return from_lines(file.read(), command, env)
        except UnicodeDecodeError:
            raise click.UsageError(f"{file.name} is not a text in UTF-8") from None
        except InvalidText as error:
            raise click.UsageError(f"{file.name}: {error}") from None
    assert count is not None
    if not command and not image:
        raise click.UsageError("no command was given; write it after --, as in: bursar batch --count 3 -- echo {index}")
    return from_template(command, count, env)


class _Run:
    """One batch: the session, what is shown of it, and the signals, until there is an exit code."""

    def __init__(self, framework: Batch, master: str, output: str) -> None:
        self._framework, self._output = framework, output
        self._session = FrameworkSession(framework, master, connect_timeout=10, credentials=credentials())
        self._client = operator_client(master)
        self._progress: Progress = progress_of(framework)
        self._signal: int | None = None
        framework.on_end, framework.on_again = self._on_end, self._on_again

    async def main(self) -> int:
        """Until all have ended. Raises what the session raises before anything was launched."""
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, self._on_signal, number)
        begun = time.monotonic()
        failed: BursarError | None = None
        with self._progress:
            aside = [asyncio.create_task(job) for job in (self._keep_showing(), self._explain())]
            try:
                await self._session.run()
            except BursarError as error:
                failed = error
            finally:
                for job in aside:
                    job.cancel()
                await asyncio.gather(*aside, return_exceptions=True)
                await self._client.close()
        if failed is None and isinstance(self._framework, GangBatch) and self._framework.error is not None:
            failed = BursarError(self._framework.error)
        if failed is not None:
            say_error(failed.detail.message, failed.detail.hint)
        if failed is None or self._framework.ended:
            print_summary(self._framework, self._output, time.monotonic() - begun)
        if self._signal is not None:
            return 128 + self._signal
        if failed is not None:
            return exit_code(failed)
        return 0 if self._framework.succeeded else REFUSED

    def _on_signal(self, number: int) -> None:
        if self._signal is not None:
            os._exit(128 + number)
        self._signal = number
        say("bursar: ending all tasks; once more leaves at once")
        self._session.stop()

    def _on_end(self, ended: Ended) -> None:
        if not ended.status.ok:
            self._progress.say(f"job {ended.index}{_on(ended.hostname)}: {_why(ended.status)}")
        self._progress.show()

    def _on_again(self, index: int, status: Status, pause_s: float) -> None:
        when = f"again in {format_duration(round(pause_s * 1000))}" if pause_s else "again"
        self._progress.say(f"job {index}: {_why(status)}; {when}")
        self._progress.show()

    async def _keep_showing(self) -> None:
        while True:
            self._progress.show()
            await asyncio.sleep(SHOW_EVERY_S)

    async def _explain(self) -> None:
        """Say once why nothing runs, where nothing was launched for a while; of a gang whenever that changes."""
        if isinstance(self._framework, GangBatch):
            return await self._explain_gang()
        await asyncio.sleep(EXPLAIN_AFTER_S)
        if self._framework.running or self._framework.ended or self._framework.relaunched:
            return
        with contextlib.suppress(BursarError):
            answer = await self._client.explain_framework(self._session.framework_id)
            for refusal in list(reversed(answer.refusals))[:3]:
                self._progress.say(f"waiting: {refusal.message}" + (f" ({refusal.hint})" if refusal.hint else ""))

    async def _explain_gang(self) -> None:
        pause_s, said = EXPLAIN_AFTER_S, ""
        while True:
            await asyncio.sleep(pause_s)
            if self._framework.running:
                said = ""
                continue
            pause_s = min(2 * pause_s, EXPLAIN_AT_LEAST_EVERY_S)
            with contextlib.suppress(BursarError):
                answer = await self._client.explain_framework(self._session.framework_id)
                for gang in answer.gangs:
                    turn = f"{gang.place} of {gang.places} gangs in line; " if gang.places > 1 else ""
                    text = f"waiting: {turn}{gang.message}" + (f" ({gang.hint})" if gang.hint else "")
                    if gang.place and text != said:
                        self._progress.say(text)
                        said = text


def _on(hostname: str) -> str:
    return f" on {hostname}" if hostname else ""


def _why(status: Status) -> str:
    return describe_end(status) or f"exited with {status.exit_code}"


def print_summary(framework: Batch, output: str, took_s: float) -> None:
    """How a batch went, in the form that was asked for."""
    by_index = sorted(framework.ended, key=lambda ended: ended.index)
    if output == "name":
        out.write("".join(f"{ended.index}\n" for ended in by_index))
    elif output == "json":
        out.write(out.dump_json(_summary(framework, by_index, took_s)))
    else:
        failed = [ended for ended in by_index if not ended.status.ok]
        counts = {
            "JOBS": framework.count,
            "FINISHED": len(by_index) - len(failed),
            "FAILED": len(failed),
            "NOT ENDED": framework.count - len(by_index),
            "RETRIED": framework.retried,
            "RELAUNCHED": framework.relaunched,
        }
        out.write_table([*counts, "TOOK"], [[*map(str, counts.values()), f"{took_s:.1f}s"]])
        if failed:
            out.write("\n")
            titles = ("FAILED JOB", "STATE", "EXIT CODE", "LAUNCHES", "HOSTNAME", "WHY")
            out.write_table(titles, [_row(ended) for ended in failed[:LISTED]])
            if len(failed) > LISTED:
                out.write(f"… and {len(failed) - LISTED} more; -o json has all\n")


def _row(ended: Ended) -> list[str]:
    code = "-" if ended.status.exit_code is None else str(ended.status.exit_code)
    return [
        str(ended.index), ended.status.state.name, code, str(ended.launches), ended.hostname or "-", _why(ended.status)
    ]  # fmt: skip


def _summary(framework: Batch, by_index: list[Ended], took_s: float) -> dict[str, object]:
    tasks = [
        {
            "index": ended.index,
            "state": ended.status.state.name,
            "exit_code": ended.status.exit_code,
            "launches": ended.launches,
            "retried": ended.retried,
            "relaunched": ended.relaunched,
            "hostname": ended.hostname,
            "device_uuids": list(ended.status.device_uuids),
            "message": ended.status.message,
        }
        for ended in by_index
    ]
    well = sum(ended.status.ok for ended in by_index)
    return {
        "count": framework.count,
        "succeeded": framework.succeeded,
        "finished": well,
        "failed": len(by_index) - well,
        "not_ended": framework.count - len(by_index),
        "retried": framework.retried,
        "relaunched": framework.relaunched,
        "took_ms": round(took_s * 1000),
        "tasks": tasks,
    }

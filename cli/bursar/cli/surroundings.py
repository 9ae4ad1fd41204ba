"""What `bursar run` and `bursar batch` say about a task's container: limits, a user, volumes, secrets, files, ports."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any, TypeVar

import click

from bursar.cli.options import TextType
from bursar.core.fetching import parse_fetch
from bursar.core.resources import DISK, MEM
from bursar.core.service_ports import PRESETS, parse_service_port
from bursar.core.surroundings import ContainerSettings, parse_volume
from bursar.core.text import parse_amount
from bursar.core.ulimits import parse_ulimit

F = TypeVar("F", bound=Callable[..., Any])

_BYTES = TextType("bytes", lambda text: parse_amount(MEM, text))
_FETCH = TextType("uri", lambda text: (parse_fetch(text), text)[1])
_DISK = TextType("bytes", lambda text: text and (parse_amount(DISK, text), text)[1])
_VOLUME = TextType("volume", lambda text: (parse_volume(text), text)[1])


_ULIMIT = TextType("ulimit", lambda text: (parse_ulimit(text), text)[1])
_PORT = TextType("port", lambda text: (parse_service_port(text), text)[1])


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What the options said."""

    #: None where nothing but defaults was asked for.
    container: ContainerSettings | None
    volumes: tuple[str, ...]
    secrets: dict[str, str]
    fetch: tuple[str, ...] = ()
    disk: str = ""
    service_ports: tuple[str, ...] = ()
    ulimits: tuple[str, ...] = ()

    def arguments(self) -> dict[str, Any]:
        """As arguments of `Task`."""
        return {
            "container": self.container,
            "volumes": self.volumes,
            "secrets": self.secrets,
            "fetch": self.fetch,
            "disk": self.disk or 0,
            "service_ports": self.service_ports,
            "ulimits": self.ulimits,
        }


def _read_secrets(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    """`NAME` takes the caller's own value, `NAME=@FILE` what a file holds: neither stands in a list of processes."""
    result = {}
    for value in values:
        name, equals, text = value.partition("=")
        if not name or (equals and not text.startswith("@")):
            raise click.BadParameter(
                f"{name!r}: write --secret NAME to take it from your environment, or --secret NAME=@FILE; on a command line"
                " everybody on this machine could read it",
                ctx,
                param,
            )
        if equals:
            try:
                with open(text[1:], encoding="utf-8") as file:
                    result[name] = file.read().removesuffix("\n")
            except (OSError, UnicodeDecodeError) as error:
                raise click.BadParameter(f"{text[1:]!r} cannot be read: {error}", ctx, param) from None
        elif name in os.environ:
            result[name] = os.environ[name]
        else:
            raise click.BadParameter(f"{name} is not in your environment", ctx, param)
    return result


def surroundings_options(command: F) -> F:
    """The options, given to the command as one argument `surroundings`."""

    @wraps(command)
    def gathered(
        *args: Any,
        shm: int,
        pids: int,
        io_read: int,
        io_write: int,
        user: str,
        drop_capabilities: tuple[str, ...],
        volumes: tuple[str, ...],
        secrets: dict[str, str],
        fetch: tuple[str, ...],
        disk: str,
        service_ports: tuple[str, ...],
        ulimits: tuple[str, ...],
        **rest: Any,
    ) -> Any:
        settings = ContainerSettings(shm, pids, io_read, io_write, user, drop_capabilities)
        container = None if settings == ContainerSettings() else settings
        said = Surroundings(container, volumes, secrets, fetch, disk, service_ports, ulimits)
        return command(*args, surroundings=said, **rest)

    options = [
        click.option("--shm", type=_BYTES, default=0, help="Size of /dev/shm, a part of --mem.  [64MiB]"),
        click.option("--disk", type=_DISK, default="", help="For its sandbox; who writes more is ended.  [no bound]"),
        click.option("--pids", type=click.IntRange(0), default=0, help="Processes and threads at once.  [4096]"),
        click.option("--io-read", type=_BYTES, default=0, help="From the disk of the sandbox, per second."),
        click.option("--io-write", type=_BYTES, default=0, help="To the disk of the sandbox, per second."),
        click.option("--user", default="", metavar="UID[:GID]", help="Whom it runs as, in numbers.  [the image's own]"),
        click.option(
            "--drop-capability",
            "drop_capabilities",
            multiple=True,
            metavar="NAME",
            help="Take this one away too, such as NET_BIND_SERVICE, or ALL; repeatable.",
        ),
        click.option(
            "--volume",
            "volumes",
            type=_VOLUME,
            multiple=True,
            metavar="SOURCE:TARGET[:MODE]",
            help="/host/path:/data, name:/data, folder/name or volume/id:/data; ro unless rw or rw-delete is said; repeatable.",
        ),
        click.option(
            "--secret",
            "secrets",
            multiple=True,
            callback=_read_secrets,
            metavar="NAME[=@FILE]",
            help="As --env, from your environment or a file, and shown to nobody; repeatable.",
        ),
        click.option(
            "--fetch",
            "fetch",
            type=_FETCH,
            multiple=True,
            metavar="[PATH=]URI[#sha256=HEX]",
            help="Bring this file into the sandbox first: http, https, or file from the agent's volume roots; repeatable.",
        ),
        click.option(
            "--port",
            "service_ports",
            type=_PORT,
            multiple=True,
            metavar="NAME[:PORT][@HOST_PORT]",
            help=f"Let others reach it: {', '.join(PRESETS)}, or web:8080; it listens on $BURSAR_PORT_WEB; repeatable.",
        ),
        click.option(
            "--ulimit",
            "ulimits",
            type=_ULIMIT,
            multiple=True,
            metavar="NAME=SOFT[:HARD]",
            help="Of each of its processes, as Docker's: nofile=1024:4096, memlock=-1 (no limit), stack=64MiB; repeatable.",
        ),
    ]
    result: Any = gathered
    for option in reversed(options):
        result = option(result)
    return result  # type: ignore[no-any-return]

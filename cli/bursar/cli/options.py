"""Options that commands share, and the types of their values."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

import click

from bursar.core.addresses import DEFAULT_MASTER, parse_addresses
from bursar.core.errors import InvalidText
from bursar.core.predicates import parse_predicates
from bursar.core.resources import CPUS, DISK, GPUS, MEM, MILLI
from bursar.core.role_expressions import parse_role_expression
from bursar.core.roles import DEFAULT_ROLE, role_problem
from bursar.core.text import format_milli, parse_amount, parse_amounts, parse_duration, parse_request
from bursar.runtime.credentials import OPTIONS, Credentials, variable_of

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])

ROOT_SETTINGS: dict[str, Any] = {"help_option_names": ["-h", "--help"], "max_content_width": 120}
_MASTER_KEY = "bursar.master"
_CLIENT_KEY = "bursar.client"
_CLOCK_KEY = "bursar.clock"
_CREDENTIALS_KEY = "bursar.credentials"


if TYPE_CHECKING:
    from bursar.sdk import OperatorClient

    _ParamType = click.ParamType[Any]
else:
    # Generic for type checkers only; older versions of click cannot be subscripted.
    _ParamType = click.ParamType


class TextType(_ParamType):
    """A value that one of the core grammars reads; its refusal is a usage error."""

    def __init__(self, name: str, read: Callable[[str], Any]) -> None:
        self.name = name
        self._read = read

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Read a text; leave defaults alone."""
        if not isinstance(value, str):
            return value
        try:
            return self._read(value)
        except InvalidText as error:
            self.fail(str(error), param, ctx)


_LIKE_AN_EXPRESSION = re.compile(r"[*&|!()]")


def read_role_name(text: str) -> str:
    """What is meant by the name of a role.

    One that reads like a role expression is taken as a name only in double quotes: few mean to call a role so. Raises InvalidText.
    """
    if len(text) > 1 and text[0] == text[-1] == '"':
        return text[1:-1]
    if text != DEFAULT_ROLE and (_LIKE_AN_EXPRESSION.search(text) or text[:1] in ("@", "=")):
        raise InvalidText(
            f"{text!r} reads like a role expression, and one role is wanted here",
            f"""give it as --roles where there is that option; a role of that name is '"{text}"'""",
        )
    return text


def _read_role(text: str) -> str:
    text = read_role_name(text)
    if problem := role_problem(text):
        raise InvalidText(problem, "a role is a path such as eng/backend")
    return text


def _read_reservable_role(text: str) -> str:
    if not text:
        return text
    if text == DEFAULT_ROLE:
        raise InvalidText(
            "resources cannot be reserved to '*'", "name a role: unreserved resources are everybody's already"
        )
    return _read_role(text)


def _read_devices(text: str) -> dict[str, int]:
    """Whole numbers of devices by kind, GPUs have an option of their own."""
    amounts = parse_amounts(text)
    for kind, amount in amounts.items():
        if kind in (CPUS, MEM, DISK, GPUS):
            raise InvalidText(f"devices: {kind} are asked for with --{kind}", "name other kinds here, such as fpgas:1")
        if amount % MILLI or not amount:
            raise InvalidText(f"devices: {kind} are granted whole", "write fpgas:1")
    return {kind: amount // MILLI for kind, amount in amounts.items()}


def of_gpus(devices: Mapping[str, int]) -> int:
    """How many slices and shares of GPUs are asked for."""
    return sum(count for kind, count in devices.items() if kind.startswith(("mig-", "gpu-")))


def _read_constraint(text: str) -> str:
    if not parse_predicates(text, "constraint"):
        raise InvalidText("an empty constraint is true of every offer", "leave it out, or write rack=r1")
    return text


#: Kept as exact texts: they go to `Task`, which reads the same grammar.
CPUS_TEXT = TextType("cpus", lambda text: format_milli(parse_amount(CPUS, text)))
MEM_TEXT = TextType("mem", lambda text: text and (parse_amount(MEM, text), text.strip())[1])
DISK_BYTES = TextType("size", lambda text: parse_amount(DISK, text))
GPU_COUNT = TextType("count", lambda text: parse_amount(GPUS, text) // MILLI)
DURATION_MS = TextType("duration", parse_duration)
ROLE = TextType("role", _read_role)
RESERVABLE_ROLE = TextType("role", _read_reservable_role)
ROLES = TextType("expression", lambda text: str(parse_role_expression(text)) if text else "")
RESOURCES = TextType("resources", parse_request)
CONSTRAINT = TextType("predicate[,…]", _read_constraint)
OTHER_DEVICES = TextType("kind:count[;…]", _read_devices)
ADDRESSES = TextType("host:port[,…]", lambda text: ",".join(parse_addresses(text)))


def _remember_master(ctx: click.Context, param: click.Parameter, value: str | None) -> None:
    if value is not None:
        ctx.meta[_MASTER_KEY] = value


def master_option(command: F) -> F:
    """`--master`, before or after the command's name; the nearest to its end wins."""
    return click.option(
        "--master",
        type=ADDRESSES,
        expose_value=False,
        callback=_remember_master,
        help=f"Where the master is.  [BURSAR_MASTER; {DEFAULT_MASTER}]",
    )(command)


def _remember_credential(ctx: click.Context, param: click.Parameter, value: str | None) -> None:
    if value is not None:
        ctx.meta.setdefault(_CREDENTIALS_KEY, {})[param.name] = value


def credential_options(command: F) -> F:
    """`--tls-ca` and the others, before the command's name."""
    for field, flag, text in reversed(OPTIONS):
        command = click.option(
            f"--{flag}",
            field,
            metavar="NAME" if field == "server_name" else "FILE",
            expose_value=False,
            callback=_remember_credential,
            help=f"{text}  [{variable_of(flag)}]",
        )(command)
    return command


def output_option(command: F) -> F:
    """`-o table|json|name`."""
    return click.option(
        "-o",
        "--output",
        type=click.Choice(["table", "json", "name"]),
        default="table",
        show_default=True,
        help="A table for people, JSON for programs, or one full id per line.",
    )(command)


def lines_option(meaning: str) -> Callable[[F], F]:
    """`-o table|json` of what prints line after line; `meaning`: what a line of JSON is."""
    return click.option(
        "-o",
        "--output",
        type=click.Choice(["table", "json"]),
        default="table",
        show_default=True,
        help=f"JSON: {meaning}.",
    )


def master_address() -> str:
    """What --master or BURSAR_MASTER says. Raises UsageError."""
    given = click.get_current_context().meta.get(_MASTER_KEY)
    if given is not None:
        return str(given)
    text = os.environ.get("BURSAR_MASTER") or DEFAULT_MASTER
    try:
        return ",".join(parse_addresses(text))
    except InvalidText as error:
        raise click.UsageError(f"BURSAR_MASTER: {error}") from None


def credentials() -> Credentials:
    """What --tls-ca and the others, or the environment, say."""
    given: dict[str, str] = click.get_current_context().meta.get(_CREDENTIALS_KEY, {})
    return replace(Credentials.from_environment(), **given)


def operator_client(address: str) -> OperatorClient:
    """A client with the credentials of this command line."""
    from bursar.sdk import OperatorClient

    return OperatorClient(address, credentials=credentials())


def use_client(ctx: click.Context, make: Callable[[str], OperatorClient], wall_ms: int) -> None:
    """Let the commands below a context ask somebody else than the master at an address, at another time."""
    ctx.meta[_CLIENT_KEY] = make
    ctx.meta[_CLOCK_KEY] = wall_ms


def wall_ms() -> int:
    """The time of day, in milliseconds since 1970."""
    given: int | None = click.get_current_context().meta.get(_CLOCK_KEY)
    return int(time.time() * 1000) if given is None else given


def ask(question: Callable[[OperatorClient], Awaitable[T]]) -> T:
    """Ask the master one thing, from a command that is not asynchronous. Raises BursarError."""
    # Here, so that a help text or a usage error does not wait for asyncio and gRPC.
    import asyncio

    address = master_address()
    make: Callable[[str], OperatorClient] = click.get_current_context().meta.get(_CLIENT_KEY, operator_client)

    async def talk() -> T:
        async with make(address) as client:
            return await question(client)

    return asyncio.run(talk())


def _read_labels(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    labels = {}
    for value in values:
        name, equals, text = value.partition("=")
        if not name or not equals:
            raise click.BadParameter(f"{value!r} is not NAME=VALUE", ctx, param)
        labels[name] = text
    return labels


def labels_option(text: str) -> Callable[[F], F]:
    """`--label NAME=VALUE`, given to the command as `labels`."""
    return click.option("--label", "labels", multiple=True, callback=_read_labels, metavar="NAME=VALUE", help=text)


def _read_environment(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    """`K=V`; `K` alone takes the caller's own value, and is left out where there is none (as docker does)."""
    result: dict[str, str] = {}
    for value in values:
        name, equals, text = value.partition("=")
        if not name or "\x00" in value:
            raise click.BadParameter(
                f"{value!r} is not NAME=VALUE (write --env NAME=VALUE, or --env NAME for your own)", ctx, param
            )
        if equals:
            result[name] = text
        elif name in os.environ:
            result[name] = os.environ[name]
    return result


def task_options(command: F) -> F:
    """What `run` and `batch` say about a task."""
    options = [
        click.option(
            "--role", type=ROLE, default=DEFAULT_ROLE, show_default=True, help="Whose share and reservations are used."
        ),
        click.option("--name", default=None, help="For people.  [the program's name]"),
        click.option("--cpus", type=CPUS_TEXT, default="1", show_default=True, help="Up to three decimal places."),
        click.option(
            "--mem",
            type=MEM_TEXT,
            default="",
            help="With KiB, MiB, GiB or TiB; a bare number is MiB.  [128MiB, or what --memory comes to]",
        ),
        click.option(
            "--memory",
            default="",
            metavar="NAME=SIZE[,…]",
            help="Pools of the memory, such as 'profile=jvm,total=8GiB,shm=1GiB'; bursar memory explain shows what they come to.",
        ),
        click.option("--gpus", type=GPU_COUNT, default="0", show_default=True, help="Whole GPUs."),
        click.option("--image", default="", help="The container image; none where agents run plain processes."),
        click.option(
            "--env",
            "env",
            multiple=True,
            callback=_read_environment,
            metavar="NAME[=VALUE]",
            help="Repeatable; NAME alone takes yours.",
        ),
        click.option(
            "--capability",
            "capabilities",
            multiple=True,
            help="What the framework understands; repeatable.  [GPU_RESOURCES where GPUs are asked for]",
        ),
        click.option(
            "--constraint",
            "constraints",
            multiple=True,
            type=CONSTRAINT,
            help="Take offers of which this is true, such as 'gpu.model=H100,rack=r1' (a comma means and); repeatable, for or.",
        ),
        click.argument("command", nargs=-1, type=click.UNPROCESSED),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def capabilities_for(given: tuple[str, ...], gpus: int) -> frozenset[str]:
    """Asking for GPUs implies GPU_RESOURCES, unless capabilities are given."""
    return frozenset(given) if given else frozenset({"GPU_RESOURCES"} if gpus else ())

"""Operators' commands inside a scenario: the command line itself, speaking to a master on a stage instead of over gRPC."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from typing import Any

import click

from bursar.cli.main import COMMANDS, cli
from bursar.cli.options import use_client
from bursar.core.errors import BursarError, ErrorDetail, InvalidText
from bursar.core.flags import closest
from bursar.runtime.codec import decode, encode, operator_types
from bursar.sdk import OperatorClient
from bursar.simulation.scenario import Operated
from bursar.simulation.scenario.script import Ask
from bursar.simulation.scenario.verbs import usages

#: What runs work or clusters of its own, or would simulate inside a simulation.
_NOT_OPERATORS = frozenset({"run", "batch", "dev", "simulate", "version"})


class StageClient(OperatorClient):
    """The client of the operators' commands, with the machine of a stage in place of a channel."""

    def __init__(self, ask: Ask) -> None:
        super().__init__("127.0.0.1:1")
        self._ask = ask

    async def _call(self, method: str, request: Any) -> Any:
        request_type, _ = operator_types(method)
        # By way of the wire form, as any other client: what cannot be said there cannot be tried here.
        answer = self._ask(decode(request_type, request))
        if isinstance(answer, ErrorDetail):
            raise BursarError(answer)
        return encode(answer)


class CommandLine:
    """Carries out the operators' commands of a script (`bursar.simulation.scenario.Operate`)."""

    def check(self, words: Sequence[str]) -> None:
        """Raise InvalidText for what is no command of operators."""
        command: click.Command = cli
        path: list[str] = []
        rest = list(words)
        while isinstance(command, click.Group):
            name = rest.pop(0) if rest else ""
            found = None if not path and name in _NOT_OPERATORS else command.get_command(click.Context(command), name)
            if found is None:
                raise self._unknown(command, path, name)
            command = found
            path.append(name)

    def __call__(self, words: Sequence[str], ask: Ask, wall_ms: int) -> Operated:
        """Carry a command out. Raises InvalidText where the words are none of the command's."""
        output = io.StringIO()
        try:
            with (
                contextlib.redirect_stdout(output),
                contextlib.redirect_stderr(io.StringIO()),
                click.Context(cli) as parent,
            ):
                use_client(parent, lambda address: StageClient(ask), wall_ms)
                cli.main(args=list(words), prog_name="bursar", standalone_mode=False, parent=parent)
        except click.BadParameter as error:
            if isinstance(error, click.MissingParameter):
                raise InvalidText(error.format_message(), f"see `bursar {words[0]} --help`") from None
            # As refused by the command itself, before it asked: a value that can never be.
            return Operated(output.getvalue(), InvalidText(error.message).detail)
        except click.UsageError as error:
            raise InvalidText(error.format_message(), f"see `bursar {words[0]} --help`") from None
        except click.ClickException as error:
            return Operated(output.getvalue(), InvalidText(error.format_message(), getattr(error, "hint", "")).detail)
        except BursarError as error:
            return Operated(output.getvalue(), error.detail)
        return Operated(output.getvalue())

    @staticmethod
    def _unknown(command: click.Group, path: Sequence[str], name: str) -> InvalidText:
        if path:
            known = command.list_commands(click.Context(command))
            what = f"`bursar {' '.join(path)}` has no command {name!r}" if name else f"{path[-1]!r} is not complete"
            own = sorted(
                {usage.split()[1] for usage in usages() if usage.split()[0] == path[0] and len(usage.split()) > 1}
            )
            of_scenarios = f", and in a scenario {', '.join(own)}" if own and len(path) == 1 else ""
            return InvalidText(what, f"it has {', '.join(known)}{of_scenarios}")
        if name in _NOT_OPERATORS:
            return InvalidText(f"`bursar {name}` is not for scenarios", "write `use FRAMEWORK AGENT AMOUNTS as TASK`")
        verbs = {usage.split()[0] for usage in usages()}
        near = closest(name, [*verbs, *(set(COMMANDS) - _NOT_OPERATORS)])
        return InvalidText(
            f"{name!r} is no verb of a scenario and no command of operators",
            f"did you mean {near}?" if near else "docs/scenarios.md has the verbs, `bursar --help` the commands",
        )

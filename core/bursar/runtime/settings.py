"""Typed settings of the daemons: one table of flags, read from four places.

Rising precedence: default, file (`--config FILE.toml`, flag names as keys), environment (`BURSAR_MASTER_…`, `BURSAR_AGENT_…`),
command line. What is set at run time comes on top of these and is the master's own business. Each value knows its source.
"""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import click

from bursar.core.errors import BursarError, InvalidText
from bursar.core.flags import Flag, FlagType, FlagValue, canonical_name, closest, format_flag, parse_flag

__all__ = ["CONFIG", "Flag", "FlagType", "FlagValue", "Settings", "fail", "load"]

#: Exit status of a wrong command line; of a refusal to start.
USAGE_STATUS, REFUSED_STATUS = 2, 1

#: Every daemon has it; `load` adds it.
CONFIG = Flag(
    "config", FlagType.TEXT, "", "Read flags from this TOML file; flag names are its keys.", metavar="FILE.toml"
)


@dataclass(frozen=True, slots=True)
class Setting:
    """One value and where it is from."""

    value: FlagValue
    #: `default`, `file`, `environment` or `command line`.
    source: str


class Settings:
    """All flags of a daemon with their values."""

    def __init__(self, flags: Sequence[Flag], settings: Mapping[str, Setting], warnings: Sequence[str] = ()) -> None:
        self.flags: dict[str, Flag] = {flag.name: flag for flag in flags}
        self._settings = dict(settings)
        #: Said in the log at start, such as an unknown environment variable.
        self.warnings = tuple(warnings)

    def value(self, name: str) -> FlagValue:
        """The value of a flag; KeyError for one that does not exist."""
        return self._settings[name].value

    def source(self, name: str) -> str:
        """`default`, `file`, `environment` or `command line`."""
        return self._settings[name].source

    def text(self, name: str) -> str:
        """The value of a TEXT or CHOICE flag."""
        value = self.value(name)
        assert isinstance(value, str), name
        return value

    def switch(self, name: str) -> bool:
        """The value of a BOOL flag."""
        value = self.value(name)
        assert isinstance(value, bool), name
        return value

    def number(self, name: str) -> int:
        """The value of an INT flag, or of a DURATION in milliseconds."""
        value = self.value(name)
        assert isinstance(value, int) and not isinstance(value, bool), name
        return value

    def items(self, name: str) -> tuple[str, ...]:
        """The value of a LIST flag."""
        value = self.value(name)
        assert isinstance(value, tuple), name
        return value

    def parse(self, name: str, text: str) -> FlagValue:
        """Read a value for a flag. Raises InvalidText, KeyError for a flag that does not exist."""
        return parse_flag(self.flags[name], text)

    def format(self, name: str, value: FlagValue | None = None) -> str:
        """A value (without one: the present value) of a flag as text."""
        return format_flag(self.flags[name], self.value(name) if value is None else value)


def load(
    flags: Sequence[Flag],
    argv: Sequence[str],
    environ: Mapping[str, str],
    program: str,
    *,
    summary: str = "",
    version: str = "",
    command: str = "",
) -> Settings:
    """Read all flags of `program` (`bursar-master`); `argv` is without the program's name. `command` is what the help calls it.

    Raises InvalidText with what, why and what to do; SystemExit(0) after `--help` or `--version`.
    """
    table = {flag.name: flag for flag in (*flags, CONFIG)}
    given = _parse_command_line(table, _normalize(table, argv), command or program, summary, version)
    variables, warnings = _from_environment(table, environ, program)
    path = given.get("config") or variables.get("config", "")
    file = _from_file(table, path) if path else {}

    settings: dict[str, Setting] = {}
    for name, flag in table.items():
        for source, texts, where in (
            ("command line", given, "--"),
            ("environment", variables, ""),
            ("file", file, ""),
        ):
            if name in texts:
                settings[name] = Setting(_parse_from(flag, texts[name], source, where, program, path), source)
                break
        else:
            settings[name] = Setting(flag.default, "default")
    return Settings((*flags, CONFIG), settings, warnings)


def fail(program: str, error: BursarError, status: int = REFUSED_STATUS) -> NoReturn:
    """Say what, why and what to do on stderr, and exit; InvalidText is a wrong use of the program."""
    print(f"{program}: {error.detail.message}", file=sys.stderr)
    if error.detail.hint:
        print(f"  {error.detail.hint}", file=sys.stderr)
    sys.exit(USAGE_STATUS if isinstance(error, InvalidText) else status)


def variable_name(program: str, flag: str) -> str:
    """`BURSAR_MASTER_OFFER_TIMEOUT` for `offer-timeout` of `bursar-master`."""
    return f"{program}-{flag}".replace("-", "_").upper()


def _parse_from(flag: Flag, text: str, source: str, where: str, program: str, path: str) -> FlagValue:
    try:
        return parse_flag(flag, text)
    except InvalidText as error:
        place = {"environment": variable_name(program, flag.name), "file": f"{path}: {flag.name}"}.get(
            source, where + flag.name
        )
        message = error.detail.message.removeprefix(f"{flag.name}: ")
        raise InvalidText(f"{place}: {message}", error.detail.hint) from error


def _unknown(name: str, table: Mapping[str, Flag], where: str) -> InvalidText:
    near = closest(name, list(table))
    return InvalidText(f"{where} is not a flag", f"did you mean {near!r}?" if near else "--help lists all flags")


# --- the four places ------------------------------------------------------------------------------------------------


def _normalize(table: Mapping[str, Flag], argv: Sequence[str]) -> list[str]:
    """`--no-x` as `--x=false`, `_` as `-`; click does the rest."""
    result: list[str] = []
    for argument in argv:
        if argument.startswith("--") and len(argument) > 2:
            name, equals, value = argument[2:].partition("=")
            name = canonical_name(name)
            positive = table.get(name.removeprefix("no-"))
            if name.startswith("no-") and name not in table and positive is not None and positive.is_switch:
                if equals:
                    raise InvalidText(f"--{name} takes no value", f"write --{name} or --{positive.name}=false")
                argument = f"--{positive.name}=false"
            else:
                argument = f"--{name}{equals}{value}"
        result.append(argument)
    return result


def _parse_command_line(
    table: Mapping[str, Flag], argv: list[str], program: str, summary: str, version: str
) -> dict[str, str]:
    parameters: list[click.Parameter] = []
    for flag in table.values():
        default = format_flag(flag, flag.default)
        text = f"{flag.help}  [default: {default}]" if default else flag.help
        names = [f"--{flag.name}", flag.name.replace("-", "_")]
        if flag.is_switch:
            # `--x` alone is true; `--x=false` and `--x false` work too.
            option = click.Option(names, type=str, help=text, metavar=_metavar(flag), is_flag=False, flag_value="true")
        else:
            option = click.Option(names, type=str, help=text, metavar=_metavar(flag))
        parameters.append(option)
    epilog = (
        "Flags are also read from a TOML file (--config) and from variables such as "
        f"{variable_name(program, next(iter(table)))}; the command line wins over the environment, which wins over the file."
    )
    command = click.Command(
        program, params=parameters, help=summary, epilog=epilog, callback=None, add_help_option=True
    )
    if version:
        click.version_option(version, prog_name=program, message="%(prog)s %(version)s")(command)
    try:
        context = command.make_context(program, argv, max_content_width=120)
    except click.exceptions.Exit as stop:
        sys.exit(stop.exit_code)
    except click.NoSuchOption as error:
        raise _unknown(error.option_name.lstrip("-"), table, f"--{error.option_name.lstrip('-')}") from error
    except click.UsageError as error:
        raise InvalidText(error.format_message().rstrip("."), "--help lists all flags") from error
    return {
        canonical_name(name): value for name, value in context.params.items() if value is not None and name != "version"
    }


def _metavar(flag: Flag) -> str:
    if flag.metavar:
        return flag.metavar
    if flag.type is FlagType.BOOL:
        return "{true|false}"
    if flag.type is FlagType.CHOICE:
        return "{" + "|".join(flag.choices) + "}"
    return {FlagType.INT: "N", FlagType.DURATION: "DURATION", FlagType.LIST: "ITEM,…"}.get(flag.type, "TEXT")


def _from_environment(
    table: Mapping[str, Flag], environ: Mapping[str, str], program: str
) -> tuple[dict[str, str], list[str]]:
    prefix = variable_name(program, "")
    texts: dict[str, str] = {}
    warnings: list[str] = []
    for variable in sorted(environ):
        if not variable.startswith(prefix):
            continue
        name = canonical_name(variable.removeprefix(prefix)).lower()
        if name in table:
            texts[name] = environ[variable]
        else:
            near = closest(name, list(table))
            meant = f": did you mean {variable_name(program, near)}?" if near else ""
            warnings.append(f"the variable {variable} names no flag and is ignored{meant}")
    return texts, warnings


def _from_file(table: Mapping[str, Flag], path: str) -> dict[str, str]:
    try:
        content = tomllib.loads(Path(path).read_text("utf-8"))
    except OSError as error:
        raise BursarError(f"--config: cannot read {path}: {error.strerror or error}", "check the path") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidText(
            f"--config: {path} is not TOML: {error}", 'write lines such as offer-timeout = "30s"'
        ) from error
    texts: dict[str, str] = {}
    for key, value in content.items():
        name = canonical_name(key)
        if name not in table or name == "config":
            raise _unknown(name, table, f"{path}: {key}")
        if name in texts:
            raise InvalidText(f"{path}: {name} is there twice", "name each flag once")
        texts[name] = _toml_text(path, key, value)
    return texts


def _toml_text(path: str, key: str, value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (str, int, float)):
        return str(value)
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return ",".join(value)
    raise InvalidText(
        f"{path}: {key} has a value of a kind that no flag has",
        "write a text, a number, true, false or a list of texts",
    )

"""Tables for people, JSON for programs, names for pipes.

JSON is a contract: `ls` prints an array, `show` and `get` an object; keys are those of the protocol, in snake_case; every field is
always there (an absent message or optional value is null); 64-bit numbers are numbers; enum values are their names without the
prefix (`RUNNING`). Off a terminal a table is plain text in columns: no boxes, no colours, nothing cut.
"""

from __future__ import annotations

import base64
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from google.protobuf.message import Message

from bursar.cli import problems
from bursar.core.resources import DISK, ReservedResources, Resources
from bursar.core.text import format_amounts, format_resources
from bursar.runtime.codec import decode, decode_resources


@dataclass(frozen=True)
class Listing:
    """How things of one kind are shown."""

    #: Title → text.
    columns: dict[str, Callable[[Any], str]]
    #: The full id: accepted wherever an id is.
    name: Callable[[Any], str]
    #: What `show` says beyond the columns.
    details: dict[str, Callable[[Any], str]]


def print_list(items: Sequence[Message], listing: Listing, output: str) -> None:
    """All items, in the form that was asked for."""
    if output == "json":
        write(dump_json([to_json(item) for item in items]))
    elif output == "name":
        write("".join(f"{listing.name(item)}\n" for item in items))
    else:
        write_table(list(listing.columns), [[show(item) for show in listing.columns.values()] for item in items])


def print_one(item: Message, listing: Listing, output: str) -> None:
    """One item, in the form that was asked for."""
    if output == "json":
        write(dump_json(to_json(item)))
    elif output == "name":
        write(f"{listing.name(item)}\n")
    else:
        write_pairs([(title, show(item)) for title, show in (listing.columns | listing.details).items()])


# --- JSON -----------------------------------------------------------------------------------------------------------


def dump_json(value: Any) -> str:
    """As text; ASCII only, so that every locale can carry it."""
    return json.dumps(value, indent=2) + "\n"


def to_json(message: Message) -> dict[str, Any]:
    """A message as a dictionary; see the module."""
    result: dict[str, Any] = {}
    for field in message.DESCRIPTOR.fields:
        oneof = field.containing_oneof
        if oneof is not None and len(oneof.fields) > 1:
            if message.HasField(field.name):
                result[field.name] = _value(field, getattr(message, field.name))
        elif field.has_presence and not message.HasField(field.name):
            result[field.name] = None
        else:
            result[field.name] = _value(field, getattr(message, field.name))
    return result


def _value(field: Any, value: Any) -> Any:
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        of = field.message_type.fields_by_name["value"]
        return {str(key): _scalar(of, value[key]) for key in sorted(value)}
    if isinstance(value, str | bytes | bool | int | float | Message):
        return _scalar(field, value)
    return [_scalar(field, item) for item in value]


def _scalar(field: Any, value: Any) -> Any:
    if isinstance(value, Message):
        return to_json(value)
    if field.enum_type is not None:
        return enum_name(field.enum_type, value)
    return base64.b64encode(value).decode() if isinstance(value, bytes) else value


def enum_name(enum: Any, number: int) -> str | int:
    """`TASK_STATE_RUNNING` as `RUNNING`; a value that this version does not know as its number."""
    value = enum.values_by_number.get(number)
    if value is None:
        return number
    prefix = "".join(f"_{c}" if c.isupper() else c.upper() for c in enum.name).lstrip("_") + "_"
    return str(value.name.removeprefix(prefix))


# --- text -----------------------------------------------------------------------------------------------------------


def write(text: str) -> None:
    """To stdout. A reader that went away ends the program as SIGPIPE would, without a word."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(problems.BROKEN_PIPE)


def write_table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Columns; with some style on a terminal."""
    rows = [[printable(cell) for cell in row] for row in rows]
    if sys.stdout.isatty():
        _write_rich_table(titles, rows)
        return
    widths = [max(map(len, column)) for column in zip(titles, *rows, strict=True)]
    lines = [titles, *rows]
    write(
        "".join(
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() + "\n"
            for line in lines
        )
    )


def write_pairs(pairs: Iterable[tuple[str, str]]) -> None:
    """One thing, a line per property; several lines of one property are indented."""
    pairs = list(pairs)
    width = max(len(title) for title, _ in pairs) + 2
    for title, text in pairs:
        lines = text.split("\n") if text else ["-"]
        write(f"{title + ':':<{width}}" + ("\n" + " " * width).join(printable(line) for line in lines) + "\n")


def _write_rich_table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    shorter = _shorten_ids([cell for row in rows for cell in row])
    table = Table(box=None, pad_edge=False, header_style="bold")
    for index, title in enumerate(titles):
        table.add_column(title, overflow="fold", no_wrap=index == 0)
    for row in rows:
        table.add_row(*[Text(shorter(cell), style=_STYLES.get(cell, "")) for cell in row])
    console = Console()
    with console.capture() as capture:
        console.print(table)
    write(capture.get())


#: Ids that Bursar makes; a device's uuid, which other programs print too, has something in front.
_ID = re.compile(r"(?<![-0-9a-f])[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}(?![-0-9a-f])")


def _shorten_ids(cells: Iterable[str]) -> Callable[[str], str]:
    """For narrow terminals: ids as prefixes that are unique among those shown, and accepted wherever an id is."""
    found = {match for cell in cells for match in _ID.findall(cell)}
    length = next(length for length in (8, 13, 18, 36) if len({full[:length] for full in found}) == len(found))
    return lambda cell: _ID.sub(lambda match: match.group()[:length], cell)


_STYLES = {
    "ACTIVE": "green",
    "RUNNING": "green",
    "FINISHED": "green",
    "free": "green",
    "RECOVERING": "yellow",
    "DISCONNECTED": "yellow",
    "UNREACHABLE": "red",
    "FAILED": "red",
    "ERROR": "red",
    "GONE": "red",
    "unhealthy": "red",
}


def printable(text: str) -> str:
    """Without characters that would move the cursor or colour the terminal: names come from others."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


# --- pieces of text -------------------------------------------------------------------------------------------------


def state(message: Message, field: str = "state") -> str:
    """The short name of an enum field."""
    descriptor = message.DESCRIPTOR.fields_by_name[field]
    assert descriptor.enum_type is not None
    return str(enum_name(descriptor.enum_type, getattr(message, field)))


def resources(message: Any) -> str:
    """`cpus:8;mem:16GiB;gpus:4`."""
    return format_resources(decode_resources(message)) or "-"


def amounts(mapping: Any) -> str:
    """Amounts by kind: `cpus:8;gpus:4`."""
    return format_amounts(dict(mapping)) or "-"


def main_resources(message: Any) -> str:
    """The same without disk and ports, which few look at: for lists."""
    found = decode_resources(message)
    scalars = {kind: amount for kind, amount in found.scalars.items() if kind != DISK}
    return format_resources(Resources(scalars, (), found.devices)) or "-"


def reserved(parts: Iterable[Any]) -> str:
    """Resources by reservation, the holder in parentheses."""
    texts = []
    for message in parts:
        part = decode(ReservedResources, message)
        if part.resources:
            texts.append(format_resources(part.resources, part.stack[-1].holder if part.stack else None))
    return ";".join(texts) or "-"


def holders(stack: Iterable[Any]) -> str:
    """A reservation stack, bottom first: `eng>eng/backend`."""
    return ">".join(level.holder for level in stack) or "-"


def named(framework_id: str, name: str) -> str:
    """A framework's id, with its name where that is another."""
    return framework_id if name in ("", framework_id) else f"{framework_id} ({name})"


def loans(views: Iterable[Any]) -> str:
    """Who borrows what of whom, a line each."""
    return "\n".join(_loan(view) for view in views) or "-"


def _loan(view: Any) -> str:
    parts = [
        f"{count} {noun}{'s' * (count > 1)}" for count, noun in ((view.offers, "offer"), (view.tasks, "task")) if count
    ]
    ending = f", {view.ending} ending" if view.ending else ""
    lender = f"kept for {view.holder}" if view.holder else "held for a gang"
    borrower = f"{named(view.framework_id, view.framework_name)} in {view.role}"
    return f"{resources(view.resources)} {lender}, to {borrower} ({', '.join(parts)}{ending})"


def devices(message: Any) -> str:
    """Uuids of devices, one per line."""
    found: Resources = decode_resources(message)
    return "\n".join(sorted(found.devices))


def labels(mapping: Any) -> str:
    """`a=1;b=2`."""
    return ";".join(f"{key}={mapping[key]}" for key in sorted(mapping)) or "-"


def moment(milliseconds: int) -> str:
    """A wall time in UTC."""
    if not milliseconds:
        return "-"
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(milliseconds / 1000))

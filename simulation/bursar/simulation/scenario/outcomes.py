"""What a command can cause: one flat record, as words for people and as data for programs."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from bursar.core.device_names import is_volume
from bursar.core.errors import ErrorDetail
from bursar.core.ids import AgentId, DeviceUuid
from bursar.core.resources import ReservedResources, Stack
from bursar.core.text import format_resources
from bursar.core.volumes import read_volume


class Kind(StrEnum):
    """What happened."""

    #: A framework was offered resources.
    OFFER = "offer"
    #: The master took an offer back, or its time had passed.
    RESCIND = "rescind"
    #: An offer ended with the stream of its framework, without a word.
    VOID = "void"
    #: Why a framework is offered nothing of some agents; said when it changes.
    NO_OFFER = "no_offer"
    #: An order or a call was refused, and nothing was changed.
    REFUSED = "refused"
    #: A task started or ended.
    TASK = "task"
    #: What the master tells those who watch.
    EVENT = "event"
    #: A framework was offered a bundle, the answer to its gang: one line for it and one for each agent.
    BUNDLE = "bundle"
    #: What became of a gang: it waits, is refused, has ended.
    GANG = "gang"
    #: A task runs on what is lent, and will be ended.
    NOTICE = "notice"
    #: A line that a command printed, because it was asked to.
    SHOWN = "shown"


@dataclass(frozen=True, slots=True)
class Part:
    """Resources under one reservation stack."""

    #: Holders, broadest first; empty is unreserved.
    reserved_to: tuple[str, ...]
    #: As in `cpus:8;mem:32GiB;gpus:2`.
    amounts: str
    devices: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Outcome:
    """One thing that a command caused; what does not apply is None or empty."""

    kind: Kind
    #: Virtual time since the start of the script.
    at_ms: int
    #: The words of the transcript.
    text: str
    #: Number of the offer, in the order in which they were made.
    offer: int | None = None
    framework: str | None = None
    role: str | None = None
    agent: str | None = None
    task: str | None = None
    resources: tuple[Part, ...] = ()
    #: Name of the reason, out of the enum of refusals or of errors; of a task its state.
    reason: str | None = None
    message: str | None = None
    #: What to do about it.
    hint: str | None = None

    def as_data(self) -> dict[str, Any]:
        """As JSON: all fields, always."""
        data = asdict(self)
        data["kind"] = self.kind.value
        data["resources"] = [
            {"reserved_to": list(part.reserved_to), "amounts": part.amounts, "devices": list(part.devices)}
            for part in self.resources
        ]
        return data


def refused(at_ms: int, error: ErrorDetail, **who: str) -> Outcome:
    """An order or call that was refused."""
    hint = f" ({error.hint})" if error.hint else ""
    return Outcome(
        Kind.REFUSED,
        at_ms,
        f"refused: {error.message}{hint}",
        reason=error.reason.name,
        message=error.message,
        hint=error.hint or None,
        framework=who.get("framework"),
        agent=who.get("agent"),
        task=who.get("task"),
    )


def parts_of(resources: Iterable[ReservedResources]) -> tuple[Part, ...]:
    """Resources as data."""
    return tuple(
        Part(tuple(level.holder for level in part.stack), format_resources(part.resources), _sorted(part))
        for part in resources
    )


def describe(agent_id: AgentId, resources: Sequence[ReservedResources]) -> str:
    """Resources in words: `cpus:8;gpus:2 [gpu0-1] + for ml: gpus:1 [gpu2]`."""
    return " + ".join(f"{_holder(part.stack)}{_amounts(agent_id, part)}" for part in resources) or "nothing"


def _holder(stack: Stack) -> str:
    if not stack:
        return ""
    labels = ",".join(f"{name}={value}" for name, value in stack[-1].labels)
    return f"for {' > '.join(level.holder for level in stack)}{f' {{{labels}}}' if labels else ''}: "


def _amounts(agent_id: AgentId, part: ReservedResources) -> str:
    text = format_resources(part.resources)
    names = [
        f"volume {read_volume(uuid).volume_id}" if is_volume(DeviceUuid(uuid)) else uuid.removeprefix(f"{agent_id}-")
        for uuid in _sorted(part)
    ]
    return f"{text} [{shorten(names)}]" if names else text


def _sorted(part: ReservedResources) -> tuple[str, ...]:
    return tuple(sorted(part.resources.devices, key=_natural))


def _natural(uuid: DeviceUuid | str) -> list[tuple[int, str]]:
    """Numbers inside names count as numbers."""
    return [(int(piece), "") if piece.isdigit() else (-1, piece) for piece in re.split(r"([0-9]+)", uuid)]


def shorten(names: Sequence[str]) -> str:
    """`gpu0-3,gpu5` for names that count up; names as they are otherwise."""
    runs: list[list[str]] = []
    for name in names:
        if runs and _follows(runs[-1][-1], name):
            runs[-1].append(name)
        else:
            runs.append([name])
    return ",".join(run[0] if len(run) == 1 else f"{run[0]}-{_number(run[-1])}" for run in runs)


def _number(name: str) -> str:
    match = re.search(r"[0-9]+$", name)
    return match[0] if match else ""


def _follows(before: str, after: str) -> bool:
    first, second = _number(before), _number(after)
    if not first or not second:
        return False
    return before.removesuffix(first) == after.removesuffix(second) and int(second) == int(first) + 1

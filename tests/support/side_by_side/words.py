"""What happened, in words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bursar.core.messages.framework import OfferSettings
from bursar.core.resources import Holding, to_holding
from bursar.core.text import format_amount, format_duration, format_request, format_resources
from side_by_side.model import reference


def operation_text(step: Any) -> str:
    if isinstance(step, reference.Launch):
        return f"to launch {step.task_id} ({format_request(step.request)}) on {step.agent_id}"
    if isinstance(step, reference.Reserve):
        onto = f" onto {'>'.join(level.holder for level in step.onto)}" if step.onto else ""
        return f"to reserve {format_request(step.request)} of {step.agent_id} to {step.level.holder}{onto}"
    return f"to unreserve {text({step.stack: step.resources})} of {step.agent_id}"


def text(holding: Holding) -> str:
    """Resources with their reservations and devices, in a line."""
    parts = []
    for stack, part in sorted(holding.items()):
        devices = f" {{{', '.join(uuid.removeprefix(uuid[:2]) for uuid in sorted(part.devices))}}}"
        owner = ">".join(level.holder for level in stack)
        parts.append(f"{owner + ':' if owner else ''}{format_resources(part)}{devices if part.devices else ''}")
    return " + ".join(parts) or "nothing"


def capabilities(gpu: bool, travels: bool, refines: bool) -> tuple[str, ...]:
    return ("GPU_RESOURCES",) * gpu + ("REGION_AWARE",) * travels + ("RESERVATION_REFINEMENT",) * refines


def said_of(
    roles: Sequence[str], caps: Sequence[str], suppressed: Sequence[str], settings: Sequence[OfferSettings]
) -> str:
    parts = [f"{', '.join(roles)}; {' '.join(caps) or 'no capabilities'}"]
    parts += [f"suppressed in {', '.join(suppressed)}"] if suppressed else []
    for one in settings:
        least = "" if one.min_allocatable is None else f", at least {one.min_allocatable or 'anything'}"
        parts.append(f"in {one.role} only {' or '.join(one.constraints) or 'anything'}{least}")
    return "; ".join(parts)


def amounts_text(amounts: dict[str, int]) -> str:
    return ";".join(f"{kind}:{format_amount(kind, amount)}" for kind, amount in amounts.items()) or "any"


def describe(key: Any) -> str:
    framework_id, role, agent_id, resources = key
    return f"{framework_id} in {role}: {text(to_holding(resources))} on {agent_id}"


def for_so_long(refuse_ms: int | None) -> str:
    return "" if refuse_ms is None else f", filter of {format_duration(refuse_ms)}"


def format_time(ms: int) -> str:
    return f"{ms / 1000:9.3f} s"

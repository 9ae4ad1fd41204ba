"""What the doctor says: one finding per thing that was looked at."""

from __future__ import annotations

import enum
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any


class Verdict(enum.Enum):
    """How bad it is."""

    OK = "ok"
    #: The agent runs, with less than it could have.
    WARN = "warn"
    #: The agent does not start, or cannot run tasks.
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    #: A word or two, the same on every machine.
    check: str
    verdict: Verdict
    #: What is there.
    found: str
    #: Why it matters, and what to do; empty where all is well.
    why: str = ""
    todo: str = ""


def ok(check: str, found: str) -> Finding:
    """All is well."""
    return Finding(check, Verdict.OK, found)


def warn(check: str, found: str, why: str, todo: str) -> Finding:
    """Less than could be."""
    return Finding(check, Verdict.WARN, found, why, todo)


def fail(check: str, found: str, why: str, todo: str) -> Finding:
    """It does not work like this."""
    return Finding(check, Verdict.FAIL, found, why, todo)


def count(findings: Iterable[Finding]) -> dict[Verdict, int]:
    """How many there are of each verdict."""
    verdicts = [finding.verdict for finding in findings]
    return {verdict: verdicts.count(verdict) for verdict in Verdict}


def as_text(findings: Sequence[Finding]) -> str:
    """For people: a line each, with why and what to do below where something is to be done; a sum at the end."""
    width = max((len(finding.check) for finding in findings), default=0)
    lines = []
    for finding in findings:
        lines.append(f"{finding.verdict.value:<4}  {finding.check:<{width}}  {finding.found}")
        for label, text in (("why", finding.why), ("do", finding.todo)):
            if text:
                indent = " " * (width + 8)
                lines += textwrap.wrap(
                    text, 118, initial_indent=f"{indent}{label}: ", subsequent_indent=f"{indent}     "[: width + 13]
                )
    there = count(findings)
    lines.append(f"\n{there[Verdict.OK]} ok, {there[Verdict.WARN]} to look at, {there[Verdict.FAIL]} to repair")
    return "\n".join(lines)


def as_plain(findings: Sequence[Finding]) -> dict[str, Any]:
    """For programs."""
    return {
        **{verdict.value: number for verdict, number in count(findings).items()},
        "findings": [
            {
                "check": finding.check,
                "verdict": finding.verdict.value,
                "found": finding.found,
                "why": finding.why,
                "todo": finding.todo,
            }
            for finding in findings
        ],
    }

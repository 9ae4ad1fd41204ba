"""How things are refused: what is wrong, why, and what to do next."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum


class ErrorReason(IntEnum):
    """What kind of refusal it is; mirrors `bursar.v1.ErrorReason`."""

    UNSPECIFIED = 0
    INVALID_ARGUMENT = 1
    NOT_FOUND = 2
    AMBIGUOUS = 3
    INVALID_OFFERS = 4
    TASK_INVALID = 5
    TASK_ID_IN_USE = 6
    INSUFFICIENT_RESOURCES = 7
    RESOURCES_IN_USE = 8
    NEEDS_RESTART = 9
    CLUSTER_MISMATCH = 10
    SUPERSEDED = 11
    INCOMPATIBLE_RESOURCES = 12
    FRAMEWORK_REMOVED = 13
    NOT_SUBSCRIBED = 14
    TOO_SLOW = 15
    SILENT = 16
    UNSUPPORTED = 17
    CALL_REFUSED = 18
    AGENT_UNAVAILABLE = 19
    SHUTTING_DOWN = 20
    INTERNAL = 21
    UNAUTHENTICATED = 22
    PERMISSION_DENIED = 23


@dataclass(frozen=True, slots=True)
class ErrorDetail:
    """A refusal as a value: what a machine answers, and what travels."""

    reason: ErrorReason
    #: What is wrong.
    message: str
    #: What to do next; may be empty.
    hint: str = ""
    #: Path of the offending field; may be empty.
    field: str = ""

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class BursarError(Exception):
    """Something that a user can be told: what, why and what to do next."""

    def __init__(self, detail: ErrorDetail | str, hint: str = "") -> None:
        if isinstance(detail, str):
            detail = ErrorDetail(ErrorReason.INVALID_ARGUMENT, detail, hint)
        super().__init__(str(detail))
        self.detail = detail


class InvalidText(BursarError):
    """A text (resources, attributes, a duration, a role, a flag) does not follow its grammar."""


class MasterUnreachable(BursarError):
    """No master answered: the call may be tried again."""

"""Who uses a device, and how that is said to people (F49-14). Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bursar.agent.containers.runtime import ContainerId

#: So many processes are named, the others counted.
_NAMED = 3


@dataclass(frozen=True, slots=True)
class DeviceUser:
    """One process that uses a device."""

    #: As the machine numbers it.
    pid: int
    #: Of its program; empty where nobody can say.
    name: str = ""
    #: Of the device's memory; None where its driver does not say.
    mem_bytes: int | None = None
    #: The container that it belongs to; empty: none that is known.
    container_id: ContainerId = ContainerId("")


@dataclass(frozen=True, slots=True)
class Busy:
    """Why a device that no task has is given to nobody."""

    #: Empty: its driver does not answer, so that nobody can say.
    users: tuple[DeviceUser, ...]
    #: Wall time since which it should be free.
    since_ms: int
    #: Whose container left it behind; empty: nobody's, it was found like this.
    left_by: str = ""
    #: Until it is asked about again.
    pause_ms: int = 0
    #: It took too long, and its health knows.
    overdue: bool = False

    @property
    def reason(self) -> str:
        """For people."""
        if not self.users:
            return f"its driver does not say who uses it, since {_time_text(self.since_ms)}"
        one = len(self.users) == 1
        names = f"process{'' if one else 'es'} {names_of(self.users)}"
        if self.left_by:
            return f"{names} of task {self.left_by} {'is' if one else 'are'} still there, since {_time_text(self.since_ms)}"
        return f"{names} of no task use{'s' if one else ''} it, since {_time_text(self.since_ms)}"


def names_of(users: Sequence[DeviceUser]) -> str:
    """`4711 (python), 4712 and 3 more`."""
    named = [f"{one.pid} ({one.name})" if one.name else str(one.pid) for one in users[:_NAMED]]
    more = len(users) - len(named)
    return ", ".join(named) + (f" and {more} more" if more else "")


def _time_text(wall_ms: int) -> str:
    minutes, seconds = divmod(wall_ms // 1000 % 86_400, 60)
    return f"{minutes // 60:02}:{minutes % 60:02}:{seconds:02} UTC"

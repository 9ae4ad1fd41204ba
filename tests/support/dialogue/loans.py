"""For dialogues about what is lent: who borrows, and what becomes of it."""

from __future__ import annotations

from typing import Any

from bursar.core.messages.agent import DesiredState
from bursar.core.messages.framework import GPU_RESOURCES, REVOCABLE_RESOURCES, PreemptionNotice
from bursar.core.messages.gangs import Bundle
from bursar.core.messages.offers import Demand
from bursar.core.tasks import TaskState

NOTICE_MS = 30_000
LONG_MS = 3_600_000


def borrower(
    book: Any,
    name: str = "b",
    *,
    role: str = "eng",
    count: int = 99,
    cpus: float = 1,
    gpus: int = 0,
    demand: Demand | None = None,
) -> Any:
    """A framework that gives back."""
    framework = book.framework(name, roles=(role,), connect=False)
    demand = demand or Demand(1, (book.shape(count, role=role, cpus=cpus, gpus=gpus),))
    return framework.connect(capabilities=(GPU_RESOURCES, REVOCABLE_RESOURCES), demand=demand)


def borrow_all(book: Any, framework: Any, prefix: str = "n", *, gpus: bool = False) -> list[str]:
    """Run a task on each CPU, or each GPU, of what a framework is offered; return their ids."""
    names: list[str] = []
    for offer in list(framework.offers.values()):
        parts = [part.resources for part in offer.resources]
        count = sum(len(part.devices) if gpus else part.scalars.get("cpus", 0) // 1000 for part in parts)
        new = [f"{prefix}{len(names) + index}" for index in range(count)]
        specs = [book.spec(name, **({"gpus": 1} if gpus else {"cpus": 1})) for name in new]
        framework.accept(offer, book.launch(*specs), refuse_ms=LONG_MS)
        names += new
    return names


def last_in_use(book: Any, cpus: int = 4) -> Any:
    """Agents a, b and c, of which c is in use by task u of framework user."""
    for name in "abc":
        book.agent(name, cpus=cpus, mem=0)
    user = book.framework("user")
    user.run_on("c", "u", cpus=cpus)
    user.suppress()
    user.decline(*user.offers.values(), refuse_ms=0)
    return user


def end(book: Any, task_id: str, agent: str = "c", framework: str = "user") -> None:
    """A task ends by itself."""
    book.agents[agent].update(task_id, TaskState.FINISHED, framework=framework)
    book.advance(0)


def pass_time(book: Any, ms: int) -> None:
    """Agents end at once what they are told to end."""
    book.advance(ms)
    for agent in book.agents.values():
        for message in agent.heard(DesiredState):
            for kill in message.kill:
                if (kill.framework_id, kill.task_id) in agent.tasks:
                    agent.update(kill.task_id, TaskState.KILLED, framework=kill.framework_id, reason=kill.reason)
    book.advance(0)


def notices(framework: Any) -> dict[str, int]:
    """Task → milliseconds."""
    return {one.task_id: one.kill_in_ms for event in framework.heard(PreemptionNotice) for one in event.preemptions}


def bundles(framework: Any) -> int:
    """How many have come."""
    return sum(isinstance(event, Bundle) for event in framework.inbox)

"""Whether what the master wants launched can be launched here: the master decided, this verifies (design.md §4)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from bursar.agent.books import Books
from bursar.agent.task_groups import incomplete
from bursar.agent.tasks import TaskKey, Verdict, container_of, launch_problem, ports_problem, volumes_problem
from bursar.core.service_ports import ServicePort
from bursar.core.tasks import AssignedTask


def admission_problem(books: Books, task: AssignedTask, fresh: Sequence[AssignedTask]) -> Verdict | None:
    """Why a task cannot be launched, with these others at once; or nothing. What its executor has to say is not asked."""
    problem = launch_problem(
        task,
        runtime=books.info.runtime,
        default_image=books.config.default_image,
        devices=books.devices,
        held=books.held,
        max_ulimits=books.config.max_ulimits,
    )
    if problem is None and task.volume_names:
        problem = volumes_problem(task, books.state.tasks.values())
    if problem is None and task.spec.service_ports:
        problem = ports_problem(task, _ports_in_use(books))
    if problem is None and task.spec.task_group is not None:
        return incomplete(task.spec.task_group, fresh)
    return problem


def _ports_in_use(books: Books) -> Iterable[tuple[TaskKey, Sequence[ServicePort]]]:
    """The service ports of everything that has a container, or will."""
    for key, record in books.state.tasks.items():
        if not record.state.is_terminal or container_of(books.info.agent_id, key) in books.orphans:
            yield key, record.task.spec.service_ports
    yield from _ports_of_networks(books)
    for key, finished in books.state.finished.items() if books.orphans else ():
        if container_of(books.info.agent_id, key) in books.orphans:
            yield key, finished.status.service_ports


def _ports_of_networks(books: Books) -> Iterable[tuple[TaskKey, Sequence[ServicePort]]]:
    """Those of ended tasks whose group lives on: their network was made with them, and has them until it goes."""
    state = books.state
    for record in state.tasks.values() if books.info.runtime == "docker" else ():
        group = record.task.spec.task_group
        for task_id in group.task_ids if group is not None and not record.state.is_terminal else ():
            key = TaskKey(record.key.framework_id, task_id)
            if (finished := state.finished.get(key)) is not None:
                yield key, finished.status.service_ports
            elif (other := state.tasks.get(key)) is not None and other.state.is_terminal:
                yield key, other.task.spec.service_ports

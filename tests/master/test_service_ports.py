"""Dialogues: host ports of tasks are given out by the master, or named by the framework and then nobody else's."""

from __future__ import annotations

from typing import Any

from bursar.core.errors import ErrorReason
from bursar.core.messages import operator as op
from bursar.core.messages.agent import DesiredState
from bursar.core.messages.offers import Demand, Shape
from bursar.core.resources import PortRange
from bursar.core.service_ports import ServicePort, parse_service_port
from bursar.core.task_groups import TaskGroup
from bursar.core.tasks import TaskState
from bursar.master.allocator.carve import carve, fitting_count


def spec(book: Any, task_id: str, *texts: str, **more: Any) -> Any:
    services = tuple(parse_service_port(text) for text in texts)
    named = [one.host_port for one in services if one.host_port]
    request = book.request(1, port_count=len(services) - len(named), ports=str(named[0]) if named else "")
    return book.spec(task_id, resources=request, service_ports=services, **more)


def launched(agent: Any) -> dict[str, list[int]]:
    tasks = [task for state in agent.heard(DesiredState) for task in state.launch]
    return {task.spec.task_id: [one.host_port for one in task.spec.service_ports] for task in tasks}


def test_any_port_of_the_offer_is_given_and_told_to_all(book: Any) -> None:
    agent = book.agent(ports="31000-31009")
    framework = book.framework()
    tasks = (spec(book, "s", "jupyter", "web:80"), spec(book, "t", "ssh"))
    assert framework.accept(framework.offer, book.launch(*tasks)).error is None
    assert launched(agent) == {"s": [31000, 31001], "t": [31002]}
    assert agent.view.allocated.ports == (PortRange(31000, 31002),)
    view = book.ask(op.GetTaskRequest("s")).task
    assert [(one.name, one.address, one.reach) for one in view.services] == [
        ("jupyter", "a.host:31000", "http://a.host:31000"),
        ("web", "a.host:31001", "a.host:31001"),
    ]
    book.restart()
    assert book.ask(op.GetTaskRequest("s")).task.services == view.services


def test_a_named_port_is_left_out_of_the_others(book: Any) -> None:
    agent = book.agent(ports="31000-31009")
    framework = book.framework()
    framework.run(spec(book, "s", "ssh", "web:80@31000", "lab"))
    assert launched(agent) == {"s": [31001, 31000, 31002]}


def test_a_port_of_another_task_is_refused_by_its_name(book: Any) -> None:
    agent = book.agent(ports="31000-31009")
    first, second = book.framework("f"), book.framework("g")
    first.run(spec(book, "notebook", "jupyter@31000"))
    result = second.accept(second.offer, book.launch(spec(book, "t", "web:80@31000")))
    assert result.error is not None and result.error.reason is ErrorReason.TASK_INVALID
    assert result.error.message == (
        "task 't' asks for port 31000 (web) of agent a.host, which task 'notebook' of framework f has"
    )
    assert launched(agent) == {"notebook": [31000]}, "nothing of it happened"


def test_two_tasks_of_one_call_want_one_port(book: Any) -> None:
    book.agent(ports="31000-31009")
    framework = book.framework()
    twice = book.launch(spec(book, "s", "web:80@31003"), spec(book, "t", "other:81@31003"))
    result = framework.accept(framework.offer, twice)
    assert result.error is not None
    assert "(other) of agent a.host, which task 's' of this very call has" in result.error.message
    assert not book.machine.cluster.tasks


def test_a_named_port_must_be_asked_for_and_one_that_is_not_offered_is_said(book: Any) -> None:
    book.agent(ports="31000-31001")
    framework = book.framework()
    wrong = book.spec("t", service_ports=(ServicePort("web", 80, host_port=31000),))
    result = framework.accept(framework.offer, book.launch(wrong))
    assert result.error is not None and "not among the ports" in result.error.message
    book.advance(6_000)
    result = framework.accept(framework.offer, book.launch(spec(book, "t", "web:80@99")))
    assert result.error is not None and "ports not there: [99]" in result.error.message


def test_ports_come_back_with_the_end_of_the_task(book: Any) -> None:
    agent = book.agent(ports="31000-31000")
    framework = book.framework()
    framework.run(spec(book, "s", "web:80"))
    agent.update("s", TaskState.FINISHED)
    book.advance(6_000)
    framework.run(spec(book, "t", "web:80"))
    assert launched(agent) == {"s": [31000], "t": [31000]}


def test_demand_brings_as_many_ports_as_its_tasks_need(book: Any) -> None:
    book.agent(cpus=8, ports="31000-31004")
    shape = Shape("*", book.request(1, port_count=2), 3)
    framework = book.framework(demand=Demand(1, (shape,)))
    (part,) = framework.offer.resources
    assert part.resources == book.resources(2, ports="31000-31003"), "two tasks, as five ports are enough for two"


def test_counted_ports_are_carved_from_several_buckets(book: Any) -> None:
    available = {(): book.resources(4, ports="31000-31001"), book.static("r"): book.resources(4, ports="40000-40000")}
    request = book.request(1, port_count=3)
    part = carve(available, request, {})
    assert part is not None
    assert {stack: resources.ports for stack, resources in part.items()} == {
        (): (PortRange(31000, 31001),),
        book.static("r"): (PortRange(40000, 40000),),
    }
    assert carve(available, book.request(1, port_count=4), {}) is None
    assert fitting_count(available, book.request(1, port_count=2), 9) == 1


def group(book: Any, *members: tuple[str, str]) -> tuple[Any, ...]:
    return tuple(spec(book, name, text, task_group=TaskGroup("g")) for name, text in members)


def test_each_task_of_a_group_has_ports_of_its_own(book: Any) -> None:
    agent = book.agent(ports="31000-31009")
    framework = book.framework()
    assert framework.accept(framework.offer, book.launch(*group(book, ("a", "web:80"), ("b", "web:81")))).error is None
    assert launched(agent) == {"a": [31000], "b": [31001]}


def test_two_of_a_group_that_listen_on_one_port_are_refused_by_name(book: Any) -> None:
    book.agent(ports="31000-31009")
    framework = book.framework()
    result = framework.accept(framework.offer, book.launch(*group(book, ("a", "web:80"), ("b", "api:80"))))
    assert result.error is not None and result.error.field == "operations[0].launch.tasks[1].service_ports"
    assert "task 'b' listens on 80/tcp (api), and so does task 'a' (web)" in result.error.message


def test_the_port_of_one_that_has_ended_is_its_groups_until_that_has(book: Any) -> None:
    """The engine connects it for as long as there is the network of the group."""
    agent = book.agent(ports="31000-31009", runtime="docker")
    framework = book.framework()
    framework.run(*group(book, ("a", "web:80"), ("b", "api:81")))
    for name in ("a", "b"):
        framework.acknowledge(agent.update(name, TaskState.RUNNING))
    framework.acknowledge(agent.update("a", TaskState.FINISHED))
    launched(agent)
    framework.revive()
    result = framework.accept(framework.offer, book.launch(spec(book, "named", "web:80@31000")))
    assert result.error is not None and "which task 'a' had: it has ended" in result.error.message
    framework.revive()
    framework.run(spec(book, "any", "web:80"))
    assert launched(agent) == {"any": [31002]}
    framework.acknowledge(agent.update("b", TaskState.FINISHED))
    framework.revive()
    framework.run(spec(book, "later", "web:80"))
    assert launched(agent) == {"later": [31000]}

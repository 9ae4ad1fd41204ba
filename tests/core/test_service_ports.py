"""Service ports: texts, what can be right, and how host ports are handed out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bursar.core.errors import InvalidText
from bursar.core.ids import TaskId
from bursar.core.resources import PortRange, ResourceRequest, Resources, count_ports, first_ports, normalize_ports
from bursar.core.service_ports import (
    MAX_SERVICE_PORTS,
    PRESETS,
    PortProtocol,
    ServicePort,
    parse_service_port,
    ports_of,
    service_ports_problem,
    unasked_port,
    with_host_ports,
)
from bursar.core.tasks import TaskSpec, spec_problem
from bursar.core.text import format_request, format_shortfall, parse_request

PORTS = st.lists(st.tuples(st.integers(1, 300), st.integers(0, 5)), max_size=8).map(
    lambda pairs: normalize_ports(PortRange(first, first + more) for first, more in pairs)
)


def numbers(ports: tuple[PortRange, ...]) -> set[int]:
    return {port for span in ports for port in range(span.first, span.last + 1)}


@pytest.mark.parametrize(
    ("text", "port"),
    [
        ("jupyter", ServicePort("jupyter", 8080)),
        ("ssh@31000", ServicePort("ssh", 2200, host_port=31000)),
        ("ssh:22", ServicePort("ssh", 22)),
        ("web:80", ServicePort("web", 80)),
        ("dns:53/udp@5353", ServicePort("dns", 53, PortProtocol.UDP, 5353)),
        ("web:80/tcp", ServicePort("web", 80)),
    ],
)
def test_what_people_write(text: str, port: ServicePort) -> None:
    assert parse_service_port(text) == port


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("web", "is no preset"),
        ("web:", "cannot be read"),
        ("web:0", "from 1 to 65535"),
        ("web:70000", "from 1 to 65535"),
        ("Web:80", "is not a name"),
        ("a_b:80", "is not a name"),
        (":80", "is not a name"),
        ("web:80/sctp", "neither tcp nor udp"),
        ("web:80@0", "no port of a machine"),
        ("web:80@99999", "from 1 to 65535"),
        ("web:8 0", "cannot be read"),
        ("web:٨٠", "cannot be read"),
        ("a;rm -rf /:80", "cannot be read"),
    ],
)
def test_what_cannot_be_right_is_said(text: str, words: str) -> None:
    with pytest.raises(InvalidText, match=words):
        parse_service_port(text)


def test_every_preset_is_what_the_page_says() -> None:
    page = (Path(__file__).parents[2] / "docs/agent.md").read_text()
    for name, preset in PRESETS.items():
        assert f"| `{name}` | {preset.container_port} | `{preset.reach.format(host='HOST', port='PORT')}` |" in page
        assert parse_service_port(name).container_port == preset.container_port


def test_how_people_get_there() -> None:
    assert ServicePort("jupyter", 8080, host_port=31000).reach("n1") == "http://n1:31000"
    assert ServicePort("ssh", 2200, host_port=31001).reach("n1") == "ssh -p 31001 n1"
    assert ServicePort("web", 80, host_port=31002).reach("n1") == "n1:31002"
    assert ServicePort("lab", 8090, host_port=31000).reach("fd00::1") == "http://[fd00::1]:31000"
    assert ServicePort("ssh", 2200, host_port=31000).reach("fd00::1") == "ssh -p 31000 fd00::1"


def test_where_a_task_listens() -> None:
    port = ServicePort("my-web", 80, host_port=31000)
    assert port.variable == "BURSAR_PORT_MY_WEB"
    assert (port.listens_on(True), port.listens_on(False)) == (80, 31000)


def spec(*services: ServicePort, request: ResourceRequest | None = None) -> TaskSpec:
    request = request or ResourceRequest({"cpus": 1000}, port_count=9)
    return TaskSpec(TaskId("t"), command=("true",), resources=request, service_ports=services)


WEB, SSH = ServicePort("web", 80), ServicePort("ssh", 22)


@pytest.mark.parametrize(
    ("services", "words"),
    [
        ((WEB, WEB), "is there twice"),
        ((WEB, ServicePort("other", 80)), "leads to 80/tcp already"),
        ((ServicePort("../x", 80),), "is not a name"),
        ((ServicePort("x", 0),), "from 1 to 65535"),
        (tuple(ServicePort(f"p{n}", 80 + n) for n in range(MAX_SERVICE_PORTS + 1)), "are more than"),
        (tuple(ServicePort(f"p{n}", 80 + n) for n in range(10)), "asks for 9 of them"),
    ],
)
def test_a_task_with_wrong_ports_is_refused_by_field(services: tuple[ServicePort, ...], words: str) -> None:
    problem = spec_problem(spec(*services))
    assert problem is not None and problem[0].startswith("service_ports") and words in problem[1]


def test_two_may_not_name_one_host_port() -> None:
    twice = (replace(WEB, host_port=7), replace(SSH, host_port=7))
    problem = service_ports_problem(twice, (PortRange(7, 7),), 0)
    assert problem is not None and "has the host port 7 already" in problem[1]


def test_a_port_that_is_named_is_asked_for() -> None:
    named = replace(WEB, host_port=7)
    problem = unasked_port((SSH, named), (PortRange(8, 9),))
    assert problem == ("service_ports[1]", "'web': the host port 7 is not among the ports that the task asks for")
    assert unasked_port((SSH, named), (PortRange(7, 9),)) is None


def test_udp_and_tcp_of_one_number_are_two_ports() -> None:
    assert spec_problem(spec(WEB, ServicePort("dns", 80, PortProtocol.UDP))) is None


def test_ports_alone_are_something_to_ask_for() -> None:
    assert spec_problem(spec(WEB, request=ResourceRequest(port_count=1))) is None


def test_open_ones_get_the_lowest_that_nobody_named() -> None:
    services = (WEB, replace(SSH, host_port=31000), ServicePort("lab", 8090))
    named, others = ports_of(services)
    assert (named, others) == ((PortRange(31000, 31000),), 2)
    given_out = with_host_ports(services, named, (PortRange(31000, 31002),))
    assert [one.host_port for one in given_out] == [31001, 31000, 31002]


@given(PORTS, PORTS, st.integers(0, 12))
def test_picked_ports_are_there_named_ones_among_them_and_as_many_as_asked(
    named: tuple[PortRange, ...], available: tuple[PortRange, ...], count: int
) -> None:
    request = ResourceRequest(ports=named, port_count=count)
    picked = request.pick_ports(available)
    enough = numbers(named) <= numbers(available) and len(numbers(available) - numbers(named)) >= count
    assert (picked is not None) == enough == request.fits_in(Resources(ports=available))
    if picked is not None:
        assert numbers(named) <= numbers(picked) <= numbers(available)
        assert len(numbers(picked)) == len(numbers(named)) + count
        assert Resources(ports=available) - Resources(ports=picked) is not None
        others = numbers(picked) - numbers(named)
        assert not others or max(others) < min(numbers(available) - numbers(picked), default=1 << 20)
    assert (format_shortfall(request, Resources(ports=available)) == "") == enough


@given(PORTS, st.integers(-1, 60))
def test_the_first_ports(ports: tuple[PortRange, ...], count: int) -> None:
    assert numbers(first_ports(ports, count)) == set(sorted(numbers(ports))[: max(0, count)])
    assert count_ports(ports) == len(numbers(ports))


def test_a_number_of_ports_is_written_and_read() -> None:
    for text in ("cpus:1;ports:2", "cpus:1;ports:[31000];ports:2"):
        assert format_request(parse_request(text)) == text
    with pytest.raises(InvalidText, match="twice"):
        parse_request("ports:[1];ports:[2]")

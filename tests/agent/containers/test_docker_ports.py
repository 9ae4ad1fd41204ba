"""Service ports as Docker connects them."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from typing import Any

import docker
import pytest
from tests.e2e.test_service_ports import answer, free_ports

from bursar.agent.containers.docker_engine import published_ports
from bursar.agent.containers.runtime import LaunchFailed, NetworkId
from bursar.agent.containers.simulated import SimulatedProgram
from bursar.core.service_ports import PortProtocol, ServicePort
from bursar.core.tasks import StatusReason

NOTHING = SimulatedProgram()


@pytest.fixture
async def bench(make_bench: Any) -> AsyncIterator[Any]:
    async with make_bench("docker") as made:
        yield made


async def test_the_engine_connects_host_ports_of_both_protocols(bench: Any) -> None:
    first = free_ports(2)
    ports = (ServicePort("web", 80, host_port=first), ServicePort("dns", 53, PortProtocol.UDP, first + 1))
    runtime = await bench.open()
    spec = bench.spec("served", bench.script("until [ -e go ]; do sleep 0.02; done", NOTHING), service_ports=ports)
    await runtime.start(spec)
    with contextlib.closing(docker.from_env()) as client:
        published = client.containers.get(str(spec.container_id)).attrs["NetworkSettings"]["Ports"]
    assert {(inside, one["HostPort"]) for inside, found in published.items() for one in found} == {
        ("80/tcp", str(first)),
        ("53/udp", str(first + 1)),
    }


async def test_a_port_that_is_taken_is_said_by_name_and_leaves_nothing(bench: Any) -> None:
    first = free_ports(1)
    runtime = await bench.open()
    spec = bench.spec("taken", bench.script("true", NOTHING), service_ports=(ServicePort("web", 80, host_port=first),))
    with contextlib.closing(socket.create_server(("", first))), pytest.raises(LaunchFailed, match="'web'") as failed:
        await runtime.start(spec)
    assert failed.value.reason is StatusReason.PORT_IN_USE
    assert await runtime.recover() == []
    assert (await bench.run(runtime, spec)).exit_code == 0, "free again, it starts"


def test_on_the_hosts_network_nothing_is_mapped_and_without_one_nothing_can_be(bench: Any) -> None:
    spec = bench.spec("t", bench.script("true", NOTHING), service_ports=(ServicePort("web", 80, host_port=31000),))
    assert published_ports(spec.service_ports, "host") == {}
    assert published_ports(spec.service_ports, "bridge") == {"80/tcp": 31000}
    with pytest.raises(LaunchFailed, match="nobody could reach 'web'"):
        published_ports(spec.service_ports, "none")


async def test_the_network_of_a_group_has_the_ports_of_all_its_tasks(bench: Any) -> None:
    first = free_ports(2)
    network = NetworkId(f"{bench.agent_id}-net")
    a, b = (ServicePort("web", 80, host_port=first),), (ServicePort("api", 81, host_port=first + 1),)
    runtime = await bench.open()
    endless = bench.script("until [ -e go ]; do sleep 0.02; done", NOTHING)
    told = {"network_id": network, "network_ports": (*a, *b)}
    one = bench.spec("a", endless, service_ports=a, **told)
    with (
        contextlib.closing(socket.create_server(("", first + 1))),
        pytest.raises(LaunchFailed, match="'api'") as failed,
    ):
        await runtime.start(one)
    assert failed.value.reason is StatusReason.PORT_IN_USE
    serve = bench.script("echo hello > page; exec httpd -f -p 81 -h .", NOTHING)
    two = bench.spec("b", serve, service_ports=b, **told)
    for spec in (one, two):
        await runtime.start(spec)
    with contextlib.closing(docker.from_env()) as client:
        published = client.containers.get(str(network)).attrs["NetworkSettings"]["Ports"]
    assert {inside: found[0]["HostPort"] for inside, found in published.items()} == {
        "80/tcp": str(first),
        "81/tcp": str(first + 1),
    }
    assert await asyncio.to_thread(answer, f"http://127.0.0.1:{first + 1}/page") == "hello\n"
    for spec in (one, two):
        await runtime.kill(spec.container_id, 0)
        await bench.exit_of(spec.container_id)
    await runtime.release_network(network)

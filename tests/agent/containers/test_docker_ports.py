"""Service ports as Docker connects them."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import AsyncIterator
from typing import Any

import docker
import pytest
from tests.e2e.test_service_ports import free_ports

from bursar.agent.containers.docker_engine import _published
from bursar.agent.containers.runtime import LaunchFailed
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
    assert _published(spec, "host") == {}
    assert _published(spec, "bridge") == {"80/tcp": 31000}
    with pytest.raises(LaunchFailed, match="nobody could reach 'web'"):
        _published(spec, "none")

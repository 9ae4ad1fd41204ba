"""The masters: whether they can be reached and serve."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import grpc
import grpc.aio

from bursar.agent.doctor.findings import Finding, fail, ok, warn
from bursar.core.errors import BursarError
from bursar.runtime.client import connect
from bursar.runtime.credentials import NOBODY, Credentials
from bursar.runtime.handshake import why_not
from bursar.runtime.rpc import split_address

_TIMEOUT_S = 3.0


def look(
    addresses: Sequence[str], timeout_s: float = _TIMEOUT_S, *, credentials: Credentials = NOBODY
) -> list[Finding]:
    """Ask each; one that serves is enough."""
    problems = {address: asyncio.run(_problem(address, credentials, timeout_s)) for address in addresses}
    well = [address for address, problem in problems.items() if not problem]
    findings = [ok("master", f"{address} serves") for address in well]
    for address, problem in problems.items():
        if problem:
            say = warn if well else fail
            findings.append(
                say(
                    "master",
                    f"{address}: {problem}",
                    "an agent without a master offers nothing; it goes on trying, and its tasks run on",
                    "start bursar-master there, open the port, or name the right one with --master",
                )
            )
    return findings


async def _problem(address: str, credentials: Credentials, timeout_s: float) -> str:
    """What is wrong, or nothing."""
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    split_address(address)
    try:
        opened = connect(address, credentials)
    except BursarError as error:
        return str(error)
    async with opened as channel:
        try:
            stub: Any = health_pb2_grpc.HealthStub(channel)
            answer = await stub.Check(
                health_pb2.HealthCheckRequest(service="bursar.v1.AgentService"), timeout=timeout_s
            )
        except grpc.aio.AioRpcError as error:
            if reason := await why_not(address, credentials):
                return str(reason)
            if error.code() in (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.UNIMPLEMENTED):
                return "what listens there is no Bursar master"
            if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                return f"no answer within {timeout_s:g} s"
            words = str(error.details() or error.code().name).splitlines()[0]
            return words.rpartition("last error: ")[2].rpartition(f"{address}: ")[2][:200]
    return "" if answer.status == health_pb2.HealthCheckResponse.SERVING else "it answers, but does not serve"

"""Who is who by certificate or token, and what is whose: kinds are kept apart, and nobody takes over what is another's."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from certificates import Authority, Pair

from bursar.runtime.client import connect, to_bursar_error
from bursar.sdk import BursarError, Credentials, ErrorReason, Framework, OperatorClient, Task, run
from bursar.v1 import agent_service_pb2, agent_service_pb2_grpc, framework_service_pb2, framework_service_pb2_grpc


class Waiting(Framework):
    """Wants nothing, and stops as soon as it is in, or when it is told."""

    def __init__(self, framework_id: str = "", stop: bool = True) -> None:
        self.framework_id, self._stop = framework_id, stop

    def wants(self) -> Any:
        return []

    def on_subscribed(self, again: bool) -> None:
        if self._stop:
            self.stop()


def secret(where: Path, name: str) -> tuple[str, str]:
    """A token of somebody: its file, and what the master's file has of it."""
    token = f"{name}-s3cret-token"
    path = where / f"{name}.token"
    path.touch(0o600)
    path.write_text(token + "\n")
    return str(path), "sha256:" + hashlib.sha256(token.encode()).hexdigest()


@pytest.fixture(scope="module")
def ca(module_cluster: Any) -> Authority:
    return Authority(module_cluster.where)


@pytest.fixture(scope="module")
def shown(module_cluster: Any, ca: Authority) -> dict[str, Credentials]:
    """What each shows: operator ann, framework sweep, agent node by certificates; others by tokens and a certificate without a name."""
    pairs: dict[str, Pair] = {
        "ann": ca.client("ann", "bursar://operator/ann"),
        "sweep": ca.client("sweep", "bursar://framework/sweep"),
        "eve": ca.client("eve", "bursar://framework/eve"),
        "node": ca.client("node", "bursar://agent/node"),
        "nobody": ca.client("nobody"),
        "two": ca.client("two", "bursar://agent/a", "bursar://operator/b"),
        "strange": ca.client("strange", "bursar://king/arthur"),
    }
    return {name: Credentials(ca.ca, pair.cert, pair.key) for name, pair in pairs.items()}


@pytest.fixture(scope="module")
def guarded(module_cluster: Any, ca: Authority, shown: dict[str, Credentials]) -> Any:
    """A master with certificates and tokens, and the agent `node`."""
    server = ca.server()
    where = module_cluster.where
    lines = [
        f"tom operator,framework {secret(where, 'tom')[1]}",
        f"eve framework {secret(where, 'eve')[1]}",
    ]
    tokens = where / "tokens"
    tokens.touch(0o600)
    tokens.write_text("# who may come in\n" + "\n".join(lines) + "\n")
    module_cluster.credentials = shown["ann"]
    module_cluster.start_master(
        "--tls-cert", server.cert, "--tls-key", server.key, "--tls-ca", ca.ca, "--tokens", str(tokens)
    )
    node = shown["node"]
    module_cluster.start_agent(
        "node", "--tls-ca", node.ca, "--tls-cert", node.cert, "--tls-key", node.key, devices="none"
    )
    module_cluster.until_active("node")
    return module_cluster


def with_token(credentials: Credentials, path: str) -> Credentials:
    return Credentials(credentials.ca, credentials.cert, credentials.key, token_file=path)


async def ask(address: str, credentials: Credentials) -> Any:
    async with OperatorClient(address, credentials=credentials) as client:
        return await client.agents()


async def speak_as_agent(address: str, credentials: Credentials) -> ErrorReason:
    """Open an agent's stream; why it ends."""
    async with connect(address, credentials) as channel:
        call: Any = agent_service_pb2_grpc.AgentServiceStub(channel).Connect(iter(()))  # type: ignore[no-untyped-call]
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            async for _ in call:
                pass
    return to_bursar_error(raised.value, address).detail.reason


async def speak_as_framework(address: str, credentials: Credentials) -> ErrorReason:
    async with connect(address, credentials) as channel:
        stub: Any = framework_service_pb2_grpc.FrameworkServiceStub(channel)  # type: ignore[no-untyped-call]
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            # Nothing is said: gRPC may tell of a word that came too late, and not of the refusal.
            async for _ in stub.Connect(iter(())):
                pass
    return to_bursar_error(raised.value, address).detail.reason


async def test_each_kind_has_a_service_of_its_own(guarded: Any, shown: dict[str, Credentials]) -> None:
    address = guarded.address
    assert len(await ask(address, shown["ann"])) == 1
    for name in ("sweep", "node"):
        with pytest.raises(
            BursarError, match=f"{name} may speak as .*, and ListAgents is for the kind operator"
        ) as raised:
            await ask(address, shown[name])
        assert raised.value.detail.reason is ErrorReason.PERMISSION_DENIED
    for name in ("ann", "sweep"):
        assert await speak_as_agent(address, shown[name]) is ErrorReason.PERMISSION_DENIED, name
    for name in ("ann", "node"):
        assert await speak_as_framework(address, shown[name]) is ErrorReason.PERMISSION_DENIED, name


async def test_a_certificate_must_say_who_it_is(guarded: Any, shown: dict[str, Credentials]) -> None:
    for name, words in (
        ("nobody", "CN=nobody.* does not say who this is"),
        ("two", "several principals: a, b"),
        ("strange", "bursar://king/arthur"),
    ):
        with pytest.raises(BursarError, match=words) as raised:
            await ask(guarded.address, shown[name])
        assert raised.value.detail.reason is ErrorReason.UNAUTHENTICATED and raised.value.detail.hint


async def test_tokens(guarded: Any, shown: dict[str, Credentials], tmp_path: Path) -> None:
    """They say who it is where a certificate does not; together they must agree."""
    where = guarded.where
    tom, eve = str(where / "tom.token"), str(where / "eve.token")
    assert len(await ask(guarded.address, with_token(shown["nobody"], tom))) == 1
    with pytest.raises(BursarError, match="eve may speak as framework"):
        await ask(guarded.address, with_token(shown["nobody"], eve))
    with pytest.raises(BursarError, match="the certificate is ann's, and the token tom's"):
        await ask(guarded.address, with_token(shown["ann"], tom))
    stray = tmp_path / "stray"
    stray.touch(0o600)
    stray.write_text("guessed")
    with pytest.raises(BursarError, match="the token is nobody's") as raised:
        await ask(guarded.address, with_token(shown["nobody"], str(stray)))
    assert raised.value.detail.reason is ErrorReason.UNAUTHENTICATED


async def test_tokens_are_given_and_taken_while_the_master_runs(guarded: Any, shown: dict[str, Credentials]) -> None:
    path, hashed = secret(guarded.where, "new")
    tokens = guarded.where / "tokens"
    before = tokens.read_text()
    mine = with_token(shown["nobody"], path)
    with pytest.raises(BursarError, match="nobody's"):
        await ask(guarded.address, mine)
    tokens.write_text(before + f"new operator {hashed}\n")
    assert len(await ask(guarded.address, mine)) == 1
    tokens.write_text(before + "new king sha256:0\n")
    assert len(await ask(guarded.address, mine)) == 1, "a broken file leaves what was"
    assert "is no kind" in guarded.log("master")
    tokens.write_text(before)
    with pytest.raises(BursarError, match="nobody's"):
        await ask(guarded.address, mine)


def test_a_framework_is_who_it_shows(guarded: Any, shown: dict[str, Credentials]) -> None:
    """Its principal is the certificate's; with another's it does not take over its id, nor look at its tasks."""

    class Running(Waiting):
        def __init__(self) -> None:
            super().__init__("sweep-1")
            self.task = Task(["sh", "-c", "echo hello; sleep 600"], id="t")
            self.seen = ""
            self.foreign: list[BaseException] = []
            self.logs = b""

        def wants(self) -> Any:
            return [(self.task, 1)] if not self.running else []

        def on_subscribed(self, again: bool) -> None:
            views = guarded.ask(lambda client: client.frameworks())
            self.seen = next(view.info.principal for view in views if view.info.framework_id == "sweep-1")

        def on_offer(self, offer: Any) -> Any:
            if not self.running:
                yield self.task

        def on_status(self, task: Any, status: Any) -> None:
            if status.state.name != "RUNNING":
                return
            import threading

            threading.Thread(target=self.others_try).start()

        def others_try(self) -> None:
            try:
                import asyncio

                async def read(name: str) -> bytes:
                    async with OperatorClient(guarded.address, credentials=shown[name]) as client:
                        chunks = [chunk.data async for chunk in client.read_task_log("sweep-1/t")]
                        return b"".join(chunks)

                for attempt in (
                    lambda: run(Waiting("sweep-1"), guarded.address, credentials=shown["eve"]),
                    lambda: asyncio.run(read("eve")),
                ):
                    try:
                        attempt()
                    except BursarError as error:
                        self.foreign.append(error)
                guarded.until(lambda: asyncio.run(read("sweep")) == b"hello\n", "its own log")
                self.logs = asyncio.run(read("sweep"))
            finally:
                self.stop()

    framework = Running()
    run(framework, guarded.address, connect_timeout=60, credentials=shown["sweep"])
    assert framework.seen == "sweep"
    taken, read = framework.foreign
    assert "belongs to another principal" in str(taken) and "eve has no task" in str(read)
    assert framework.logs == b"hello\n"


def test_a_framework_that_says_another_principal_is_refused(guarded: Any, shown: dict[str, Credentials]) -> None:
    import asyncio

    from bursar.core.ids import FrameworkId
    from bursar.core.messages.framework import FrameworkInfo, Subscribe
    from bursar.runtime.codec import wrap

    info = FrameworkInfo(FrameworkId("liar"), "1", "liar", ("*",), principal="ann")

    async def subscribe() -> str:
        async with connect(guarded.address, shown["sweep"]) as channel:
            stub: Any = framework_service_pb2_grpc.FrameworkServiceStub(channel)  # type: ignore[no-untyped-call]
            request = framework_service_pb2.FrameworkServiceConnectRequest(
                calls=[wrap("FrameworkCall", Subscribe(info))]
            )
            try:
                async for _ in stub.Connect(iter([request])):
                    pass
            except grpc.aio.AioRpcError as error:
                return str(to_bursar_error(error, guarded.address))
            return ""

    said = asyncio.run(subscribe())
    assert "'ann'" in said and "'sweep'" in said, said


async def test_an_agents_id_stays_its_principals(guarded: Any, ca: Authority, shown: dict[str, Credentials]) -> None:
    """Whoever has another agent's credentials cannot pose as `node`, also after a restart of the master."""
    from bursar.core.ids import AgentId
    from bursar.core.messages.agent import AgentInfo, Register, TaskReports
    from bursar.runtime.codec import wrap

    (node,) = await ask(guarded.address, shown["ann"])
    other = ca.client("other", "bursar://agent/other")
    credentials = Credentials(ca.ca, other.cert, other.key)
    info = AgentInfo(AgentId(node.agent_id), 10**9, "boot", hostname="node")
    messages = [wrap("AgentMessage", Register(info)), wrap("AgentMessage", TaskReports((), True))]
    async with connect(guarded.address, credentials) as channel:
        stub: Any = agent_service_pb2_grpc.AgentServiceStub(channel)  # type: ignore[no-untyped-call]
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            async for _ in stub.Connect(iter([agent_service_pb2.AgentServiceConnectRequest(messages=messages)])):
                pass
    detail = to_bursar_error(raised.value, guarded.address).detail
    assert detail.reason is ErrorReason.PERMISSION_DENIED and "other" in detail.message, detail
    assert guarded.state("node") == 1


async def test_health_answers_everybody_and_orders_are_audited_by_name(
    guarded: Any, shown: dict[str, Credentials]
) -> None:
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    async with connect(guarded.address, shown["nobody"]) as channel:
        answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=20)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), timeout=60).read()
        assert raised.value.code() is grpc.StatusCode.UNAUTHENTICATED, "a stream stays"
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await channel.unary_unary("/a/b/c")(b"", timeout=60)
        assert raised.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert "Traceback" not in guarded.log("master")
    async with OperatorClient(guarded.address, credentials=shown["ann"]) as client:
        await client.set_flag("offer-timeout", "40s")
        await client.unset_flag("offer-timeout")
    import sqlite3

    with sqlite3.connect(guarded.where / "master" / "registry.sqlite") as registry:
        rows = registry.execute("select principal, action from audit").fetchall()
    assert {principal for principal, _ in rows} == {"ann"} and len(rows) >= 2

"""A client and what listens, with real certificates: who gets in, what the others are told, and renewed files."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from certificates import Authority, PrivateKey
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from grpc_health.v1 import health_pb2, health_pb2_grpc

from bursar.core.errors import BursarError, ErrorDetail, ErrorReason, InvalidText
from bursar.runtime.client import Channels, MasterUnreachable, connect, explained, to_bursar_error
from bursar.runtime.credentials import NOBODY, Credentials, read_token
from bursar.runtime.handshake import why_not
from bursar.runtime.rpc import SERVER_OPTIONS, is_loopback, require_protection, serve
from bursar.runtime.server_tls import ServerTls

#: Longer than a connection is waited for, and far shorter than an answer.
SLOW_S = 2.5


@pytest.fixture
def ca(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@contextlib.asynccontextmanager
async def listening(tls: ServerTls | None) -> AsyncIterator[str]:
    server = grpc.aio.server(options=SERVER_OPTIONS)
    port = await serve(server, "127.0.0.1:0", (), None if tls is None else tls.credentials())
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(0)


async def until(condition: Callable[[], bool], why: str) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.01)
    assert condition(), why


async def ask(channel: Any) -> bool:
    answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=20)
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


async def refused(address: str, credentials: Credentials) -> ErrorDetail:
    """What a client says after it was not served."""
    async with connect(address, credentials) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await ask(channel)
    error = to_bursar_error(raised.value, address)
    assert isinstance(error, MasterUnreachable), "gRPC does not know why"
    return (await explained(error, address, credentials)).detail


async def test_both_ends_know_each_other(ca: Authority) -> None:
    server, client = ca.server(), ca.client("ann", "bursar://operator/ann")
    async with listening(ServerTls.of(server.cert, server.key, ca.ca)) as address:
        credentials = Credentials(ca.ca, client.cert, client.key)
        async with connect(address, credentials) as channel:
            assert await ask(channel)
        assert await why_not(address, credentials) is None
        localhost = address.replace("127.0.0.1", "localhost")
        async with connect(localhost, credentials) as channel:
            assert await ask(channel), "every name of the certificate will do"


@pytest.mark.parametrize("kind", ["P-384", "RSA"])
async def test_the_kinds_of_keys_that_are_accepted_do_serve(ca: Authority, kind: str) -> None:
    def key() -> PrivateKey:
        return rsa.generate_private_key(65537, 2048) if kind == "RSA" else ec.generate_private_key(ec.SECP384R1())

    server, client = ca.server(key=key()), ca.client("ann", "bursar://operator/ann", key=key())
    async with (
        listening(ServerTls.of(server.cert, server.key, ca.ca)) as address,
        connect(address, Credentials(ca.ca, client.cert, client.key)) as channel,
    ):
        assert await ask(channel)


async def test_who_is_not_let_in_hears_why(ca: Authority, tmp_path: Path) -> None:
    other = Authority(tmp_path, "other-ca")
    server, client = ca.server(), ca.client("ann", "bursar://operator/ann")
    foreign = other.client("eve", "bursar://operator/ann")
    cases = {
        "none": (Credentials(ca.ca), ["wants to see a certificate", "--tls-cert"]),
        "of another CA": (Credentials(ca.ca, foreign.cert, foreign.key), ["does not accept", foreign.cert]),
        "who trusts another CA": (Credentials(other.ca, client.cert, client.key), ["not trusted", other.ca]),
        "plain": (NOBODY, ["speaks TLS", "--tls-ca"]),
        "another name": (
            Credentials(ca.ca, client.cert, client.key, server_name="master.example.org"),
            ["not for master.example.org", "--tls-server-name"],
        ),
    }
    async with listening(ServerTls.of(server.cert, server.key, ca.ca)) as address:
        for case, (credentials, words) in cases.items():
            detail = await refused(address, credentials)
            assert detail.reason is ErrorReason.UNAUTHENTICATED, (case, detail)
            assert all(word in str(detail) for word in words), (case, detail)


async def test_a_name_may_be_said(ca: Authority) -> None:
    server = ca.server(hosts=("master.example.org",))
    async with listening(ServerTls.of(server.cert, server.key, "")) as address:
        assert "not for 127.0.0.1" in str(await refused(address, Credentials(ca.ca)))
        async with connect(address, Credentials(ca.ca, server_name="master.example.org")) as channel:
            assert await ask(channel)


async def test_a_client_of_tls_and_a_master_without(ca: Authority) -> None:
    async with listening(None) as address:
        detail = await refused(address, Credentials(ca.ca))
        assert detail.reason is ErrorReason.UNAUTHENTICATED and "does not speak TLS" in detail.message, detail
        assert await why_not(address, NOBODY) is None


async def test_nobody_is_no_question_of_credentials(ca: Authority) -> None:
    with socket.socket() as taken:
        # Nobody listens, and nobody else gets the port.
        taken.bind(("127.0.0.1", 0))
        for credentials in (NOBODY, Credentials(ca.ca)):
            assert await why_not(f"127.0.0.1:{taken.getsockname()[1]}", credentials) is None


async def test_one_that_is_slow_to_answer_is_heard_out(ca: Authority) -> None:
    """On a machine that has other work, an answer takes its time."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        await asyncio.sleep(SLOW_S)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        detail = await why_not(f"127.0.0.1:{server.sockets[0].getsockname()[1]}", Credentials(ca.ca))
    assert detail is not None and "does not speak TLS" in detail.message


async def test_a_server_whose_certificate_has_expired(ca: Authority) -> None:
    old = ca.server("old", days=-2)
    with pytest.raises(BursarError, match="expired"):
        ServerTls.of(old.cert, old.key, "")


async def test_renewed_files_are_taken_over_by_new_connections(ca: Authority, tmp_path: Path) -> None:
    """Those of what listens, its CA of clients, and those of a client that keeps its channel."""
    server, client = ca.server(), ca.client("ann", "bursar://operator/ann")
    tls = ServerTls.of(server.cert, server.key, ca.ca)
    async with listening(tls) as address:
        channels = Channels(Credentials(ca.ca, client.cert, client.key))
        assert await ask(channels.to(address)) and channels.to(address) is channels.to(address)
        # A broken pair: the one before serves on.
        good = Path(server.cert).read_bytes()
        Path(server.cert).write_bytes(Path(client.cert).read_bytes())
        assert await ask(connect(address, channels.credentials))
        Path(server.cert).write_bytes(good)
        # All is signed by another CA from now on.
        new = Authority(tmp_path, "new-ca")
        renewed, mine = new.server(), new.client("ann", "bursar://operator/ann")
        for fresh, path in (
            (renewed.key, server.key), (renewed.cert, server.cert), (new.ca, ca.ca),
            (mine.key, client.key), (mine.cert, client.cert),
        ):  # fmt: skip
            Path(path).write_bytes(Path(fresh).read_bytes())
        assert await ask(channels.to(address))
        async with connect(address, Credentials(new.ca, mine.cert, mine.key)) as channel:
            assert await ask(channel)
        await channels.close()


async def test_files_that_go_away_while_it_is_asked_why(ca: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the middle of a renewal nothing is named, and nothing raised."""
    client = ca.client("ann", "bursar://operator/ann")
    check = Credentials.check

    def check_and_remove(self: Credentials) -> None:
        check(self)
        Path(client.key).unlink()

    monkeypatch.setattr(Credentials, "check", check_and_remove)
    async with listening(None) as address:
        assert await why_not(address, Credentials(ca.ca, client.cert, client.key)) is None


async def test_files_that_are_renewed_while_the_server_starts(ca: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was read before does not pass for what is there now."""
    pair, renewed = ca.server(), ca.server("renewed")
    read, reads = ServerTls._read, []

    def read_and_renew(self: ServerTls) -> Any:
        reads.append(Path(pair.cert).read_bytes())
        was = read(self)
        if len(reads) == 1:
            Path(pair.key).write_bytes(Path(renewed.key).read_bytes())
            Path(pair.cert).write_bytes(Path(renewed.cert).read_bytes())
        return was

    monkeypatch.setattr(ServerTls, "_read", read_and_renew)
    tls = ServerTls.of(pair.cert, pair.key, "")
    assert tls is not None and reads[1:] == [Path(renewed.cert).read_bytes()]
    async with listening(tls) as address, connect(address, Credentials(ca.ca)) as channel:
        assert await ask(channel)
    assert len(reads) == 2, "and it is not read once more"


async def test_a_former_channel_is_closed_after_its_calls(ca: Authority) -> None:
    """Renewals of years do not leave a connection each."""
    server, client = ca.server(), ca.client("ann", "bursar://operator/ann")
    async with listening(ServerTls.of(server.cert, server.key, ca.ca)) as address:
        channels = Channels(Credentials(ca.ca, client.cert, client.key))
        first = channels.to(address)
        stream = health_pb2_grpc.HealthStub(first).Watch(health_pb2.HealthCheckRequest())
        assert (await stream.read()).status == health_pb2.HealthCheckResponse.SERVING
        for _ in range(3):
            renewed = ca.client("ann", "bursar://operator/ann")
            assert renewed == client and await ask(channels.to(address)) and channels.to(address) is not first
        await until(lambda: channels._former == {first}, "those without calls are closed")
        assert not stream.done(), "and those with calls stay"
        stream.cancel()
        await until(lambda: not channels._former, "until they have ended")
        assert first.get_state() is grpc.ChannelConnectivity.SHUTDOWN
        await channels.close()
        # A client that ends does not wait for its calls.
        stream = health_pb2_grpc.HealthStub(channels.to(address)).Watch(health_pb2.HealthCheckRequest())
        await stream.read()
        ca.client("ann", "bursar://operator/ann")
        assert await ask(channels.to(address)) and len(channels._former) == 1
        await channels.close()
        await until(stream.done, "the call is over")


# --- the files, before anybody connects -----------------------------------------------------------------------------


def test_files_go_together(ca: Authority) -> None:
    client = ca.client("ann", "bursar://operator/ann")
    for credentials, words in (
        (Credentials(ca.ca, client.cert), "--tls-cert without --tls-key"),
        (Credentials(ca.ca, key=client.key), "--tls-key without --tls-cert"),
        (Credentials("", client.cert, client.key), "without --tls-ca"),
        (Credentials(server_name="x"), "without --tls-ca"),
    ):
        with pytest.raises(InvalidText, match=words):
            credentials.check()
    with pytest.raises(InvalidText, match="--tls-key"):
        ServerTls.of(client.cert, "", "")
    with pytest.raises(InvalidText, match="--tls-cert and --tls-key"):
        ServerTls.of("", "", ca.ca)
    assert ServerTls.of("", "", "") is None


def test_the_environment(ca: Authority) -> None:
    environ = {
        "BURSAR_TLS_CA": "a", "BURSAR_TLS_CERT": "b", "BURSAR_TLS_KEY": "c", "BURSAR_TLS_SERVER_NAME": "d",
        "BURSAR_TOKEN_FILE": "e",
    }  # fmt: skip
    assert Credentials.from_environment(environ) == Credentials("a", "b", "c", "d", "e")
    assert Credentials.from_environment({}) == NOBODY


def test_a_token_is_one_word_in_a_file_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("s3cret\n")
    path.chmod(0o600)
    assert read_token(str(path)) == "s3cret"
    for content in ("", "two words", "\u00e4", "x" * 5000):
        path.write_text(content)
        with pytest.raises(BursarError, match="holds no token"):
            read_token(str(path))
    path.write_text("s3cret")
    path.chmod(0o644)
    with pytest.raises(BursarError, match="chmod 600"):
        read_token(str(path))


async def test_a_token_is_not_sent_in_the_clear(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("s3cret\n")
    path.chmod(0o600)
    with pytest.raises(BursarError, match="in the clear"):
        connect("192.0.2.1:5050", Credentials(token_file=str(path)))


@pytest.mark.parametrize(
    ("address", "tls", "authenticates", "insecure", "fine"),
    [
        ("127.0.0.1:1", False, False, False, True),
        ("0.0.0.0:1", False, False, False, False),
        ("0.0.0.0:1", True, False, False, False),
        ("0.0.0.0:1", False, True, False, False),
        ("0.0.0.0:1", True, True, False, True),
        ("0.0.0.0:1", False, False, True, True),
    ],
)
def test_off_loopback_both_are_needed(address: str, tls: bool, authenticates: bool, insecure: bool, fine: bool) -> None:
    assert is_loopback(address) == address.startswith("127.")
    if fine:
        require_protection(address, tls, authenticates, insecure, "bursar-master")
        return
    with pytest.raises(BursarError, match="--insecure") as raised:
        require_protection(address, tls, authenticates, insecure, "bursar-master")
    assert ("without TLS" in str(raised.value)) is not tls
    assert ("authentication" in raised.value.detail.message) is not authenticates

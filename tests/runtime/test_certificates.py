"""Certificates and keys are judged before anybody relies on them: what is wrong is said with the names of the files."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
from certificates import Authority, Pair, PrivateKey
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from bursar.core.errors import BursarError
from bursar.runtime import certificates
from bursar.runtime.certificates import Use, read_certificates, read_pair, read_secret, stamp


@pytest.fixture
def ca(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


def test_a_pair_tells_until_when_it_holds(ca: Authority) -> None:
    server, client = ca.server(days=30), ca.client("gpu-1", "bursar://agent/gpu-1", days=10)
    chain, key, until = read_pair(server.cert, server.key, Use.SERVER)
    assert chain == Path(server.cert).read_bytes() and key == Path(server.key).read_bytes()
    assert 29 < (until - time.time()) / 86400 < 31
    assert 9 < (read_pair(client.cert, client.key, Use.CLIENT)[2] - time.time()) / 86400 < 11
    read_pair(server.cert, server.key, Use.CLIENT)


def test_what_is_wrong_with_a_pair_is_said_with_its_files(ca: Authority, tmp_path: Path) -> None:
    good, other = ca.server("good"), ca.server("other")
    old = ca.client("old", "bursar://agent/old", days=-2)
    caller = ca.client("caller", "bursar://agent/caller")
    text = tmp_path / "text"
    text.write_text("hello")
    text.chmod(0o600)
    broken = tmp_path / "broken.pem"
    broken.write_text("-----BEGIN CERTIFICATE-----\nnothing\n-----END CERTIFICATE-----\n")
    encrypted = tmp_path / "encrypted.key"
    key = serialization.load_pem_private_key(Path(good.key).read_bytes(), None)
    encrypted.touch(0o600)
    encrypted.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"secret"),
        )
    )
    cases: list[tuple[Pair, Use, list[str]]] = [
        (Pair(good.cert, other.key), Use.SERVER, [good.cert, other.key, "does not belong"]),
        (old, Use.CLIENT, [old.cert, "expired", "renew"]),
        (caller, Use.SERVER, [caller.cert, "server", "purpose"]),
        (Pair("/no/such", good.key), Use.SERVER, ["/no/such", "No such file"]),
        (Pair(good.cert, "/no/such"), Use.SERVER, ["/no/such", "No such file"]),
        (Pair(str(text), good.key), Use.SERVER, [str(text), "PEM"]),
        (Pair(good.cert, str(text)), Use.SERVER, [str(text), "PEM"]),
        (Pair(str(broken), good.key), Use.SERVER, [str(broken), "broken"]),
        (Pair(good.cert, str(encrypted)), Use.SERVER, [str(encrypted), "encrypted"]),
    ]
    for pair, use, words in cases:
        with pytest.raises(BursarError) as raised:
            read_pair(pair.cert, pair.key, use)
        assert all(word in str(raised.value) for word in words), (words, str(raised.value))
        assert raised.value.detail.hint


def test_an_authority_is_certificates(ca: Authority, tmp_path: Path) -> None:
    assert read_certificates(ca.ca, "the CA") == Path(ca.ca).read_bytes()
    for content in ("", "not PEM"):
        (tmp_path / "x").write_text(content)
        with pytest.raises(BursarError, match="no certificate"):
            read_certificates(str(tmp_path / "x"), "the CA")


@pytest.mark.parametrize(
    ("mode", "fine"), [(0o600, True), (0o400, True), (0o640, True), (0o644, False), (0o620, False)]
)
def test_secrets_are_nobody_elses_to_read(tmp_path: Path, mode: int, fine: bool) -> None:
    path = tmp_path / "key"
    path.write_text("secret")
    path.chmod(mode)
    if fine:
        assert read_secret(str(path), "the key") == b"secret"
        return
    with pytest.raises(BursarError, match="chmod 600"):
        read_secret(str(path), "the key")


def test_a_stamp_changes_with_the_file(tmp_path: Path) -> None:
    path = tmp_path / "cert"
    before = stamp(str(path))
    path.write_text("a")
    first = stamp(str(path))
    (tmp_path / "new").write_text("b")
    (tmp_path / "new").rename(path)
    assert len({before, first, stamp(str(path))}) == 3


def test_text_around_certificates_is_not_read(ca: Authority, tmp_path: Path) -> None:
    """Bundles have comments in other letters; so has what `openssl x509 -text` writes of a name."""
    bundle = tmp_path / "bundle.pem"
    other = Authority(tmp_path, "other-ca")
    bundle.write_bytes(b"".join("# Türk Kök – №1\n".encode() + Path(each).read_bytes() for each in (ca.ca, other.ca)))
    assert read_certificates(str(bundle), "the CA") == bundle.read_bytes()
    pair = ca.server()
    text = "Certificate:\n    Data:\n        Issuer: CN = Müller GmbH\n"
    Path(pair.cert).write_bytes(text.encode() + Path(pair.cert).read_bytes())
    assert read_pair(pair.cert, pair.key, Use.SERVER)[2] > time.time()


@pytest.mark.parametrize("what", ["gone", "text"])
def test_files_that_are_replaced_while_they_are_read(
    ca: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """Whoever is in the middle of a renewal costs one try, said as everything else is."""
    pair = ca.server()
    read = certificates.read_secret

    def read_and_replace(path: str, said: str) -> bytes:
        data = read(path, said)
        if what == "gone":
            Path(pair.cert).unlink()
        else:
            Path(pair.cert).write_text("half of")
        return data

    monkeypatch.setattr(certificates, "read_secret", read_and_replace)
    with pytest.raises(BursarError, match="cannot be used"):
        read_pair(pair.cert, pair.key, Use.SERVER)


def test_a_name_that_no_file_can_have() -> None:
    for read in (read_secret, read_certificates):
        with pytest.raises(BursarError, match="cannot be read"):
            read("a\0b", "it")


KEYS: dict[str, tuple[Callable[[], PrivateKey], bool]] = {
    "P-256": (lambda: ec.generate_private_key(ec.SECP256R1()), True),
    "P-384": (lambda: ec.generate_private_key(ec.SECP384R1()), True),
    "RSA": (lambda: rsa.generate_private_key(65537, 2048), True),
    "P-521": (lambda: ec.generate_private_key(ec.SECP521R1()), False),
    "P-224": (lambda: ec.generate_private_key(ec.SECP224R1()), False),
    "Ed25519": (ed25519.Ed25519PrivateKey.generate, False),
}


@pytest.mark.parametrize("kind", KEYS)
def test_keys_that_grpc_does_not_sign_with_are_refused(ca: Authority, kind: str) -> None:
    """What OpenSSL finds in order would only fail later, without a word of why."""
    make, fine = KEYS[kind]
    for use, pair in (
        (Use.SERVER, ca.server("server", key=make())),
        (Use.CLIENT, ca.client("client", "bursar://agent/a", key=make())),
    ):
        if fine:
            assert read_pair(pair.cert, pair.key, use)[2] > time.time()
            continue
        with pytest.raises(BursarError, match="P-256 and P-384") as raised:
            read_pair(pair.cert, pair.key, use)
        assert pair.cert in str(raised.value)


def test_a_server_has_an_alternative_name(ca: Authority) -> None:
    """gRPC would count the common name where there is no other, and the standard library never does."""
    nameless = ca.server("127.0.0.1", hosts=())
    with pytest.raises(BursarError, match="names no server") as raised:
        read_pair(nameless.cert, nameless.key, Use.SERVER)
    assert nameless.cert in str(raised.value)
    assert read_pair(nameless.cert, nameless.key, Use.CLIENT)[2] > time.time(), "a client needs none"

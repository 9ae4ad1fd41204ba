"""A certificate authority for tests: real keys and certificates, made in memory and written where a test wants them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

PublicKey = ec.EllipticCurvePublicKey | rsa.RSAPublicKey | ed25519.Ed25519PublicKey
PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey


@dataclass(frozen=True)
class Pair:
    """Where a certificate and its key are."""

    cert: str
    key: str


class Authority:
    """Signs certificates; `ca` is the file that others trust it by."""

    def __init__(self, where: Path, name: str = "test-ca") -> None:
        self.where = where / name
        self.where.mkdir(parents=True)
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        key_ids = x509.SubjectKeyIdentifier.from_public_key(self._key.public_key())
        cert = (
            _builder(self._name, self._name, self._key.public_key(), *_times(365))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(key_ids, critical=False)
            .sign(self._key, hashes.SHA256())
        )
        self._key_ids = key_ids
        self.ca = self._write("ca.pem", cert.public_bytes(serialization.Encoding.PEM))

    def server(
        self,
        name: str = "server",
        *,
        hosts: tuple[str, ...] = ("127.0.0.1", "localhost"),
        days: int = 30,
        key: PrivateKey | None = None,
    ) -> Pair:
        """A certificate for what listens; with negative `days` it has expired."""
        names: list[x509.GeneralName] = []
        for host in hosts:
            names.append(x509.IPAddress(ip_address(host)) if host[0].isdigit() else x509.DNSName(host))
        return self._issue(name, names, (ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH), days, key)

    def client(self, name: str, *uris: str, days: int = 30, key: PrivateKey | None = None) -> Pair:
        """A certificate for who calls, with URIs such as `bursar://agent/gpu-1`; of a key on P-256 or of the one given."""
        names = [x509.UniformResourceIdentifier(uri) for uri in uris]
        return self._issue(name, list(names), (ExtendedKeyUsageOID.CLIENT_AUTH,), days, key)

    def _issue(
        self,
        name: str,
        names: list[x509.GeneralName],
        usage: tuple[x509.ObjectIdentifier, ...],
        days: int,
        key: PrivateKey | None = None,
    ) -> Pair:
        key = key or ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        builder = _builder(subject, self._name, key.public_key(), *_times(days))
        builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        builder = builder.add_extension(x509.ExtendedKeyUsage(usage), critical=False)
        issuer = x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(self._key_ids)
        builder = builder.add_extension(issuer, critical=False)
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        cert = builder.sign(self._key, hashes.SHA256())
        pem = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        # The key first: a daemon that looks between the two sees a pair that does not fit, and keeps the one it has.
        key_path = self._write(f"{name}.key", pem)
        return Pair(self._write(f"{name}.pem", cert.public_bytes(serialization.Encoding.PEM)), key_path)

    def _write(self, name: str, data: bytes) -> str:
        path = self.where / name
        path.touch(mode=0o600)
        path.write_bytes(data)
        return str(path)


def _times(days: int) -> tuple[datetime, datetime]:
    now = datetime.now(UTC)
    return (now - timedelta(days=1), now + timedelta(days=days)) if days > 0 else (
        now + timedelta(days=days - 1),
        now + timedelta(days=days),
    )  # fmt: skip


def _builder(
    subject: x509.Name, issuer: x509.Name, key: PublicKey, begins: datetime, ends: datetime
) -> x509.CertificateBuilder:
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key)
    return builder.serial_number(x509.random_serial_number()).not_valid_before(begins).not_valid_after(ends)

"""Certificates and keys in files: read and judged before anybody relies on them.

A pair is judged by letting it talk to itself in memory, as server or as client: what OpenSSL would say to a peer is then said here, with
the names of the files – that it has expired, that the key is another one's, that it may not be used so.
"""

from __future__ import annotations

import os
import ssl
import stat
from enum import Enum
from pathlib import Path
from typing import Any

from bursar.core.errors import BursarError

_CERTIFICATE, _KEY = b"-----BEGIN CERTIFICATE-----", b"PRIVATE KEY-----"
_END = "-----END CERTIFICATE-----"
#: Exchanges that a handshake in memory takes, and some to spare.
_ROUNDS = 6
#: Of DER: tags, and the contents of object identifiers.
_VERSION, _OBJECT_IDENTIFIER = 0xA0, 0x06
_RSA, _EC = bytes.fromhex("2a864886f70d010101"), bytes.fromhex("2a8648ce3d0201")
_CURVES = frozenset({bytes.fromhex("2a8648ce3d030107"), bytes.fromhex("2b81040022")})


class Use(Enum):
    """Which end of a connection shows a certificate."""

    SERVER = "server"
    CLIENT = "client"


def read_secret(path: str, what: str) -> bytes:
    """A file that only its owner (and a group) may read, such as a key or a token. Raises BursarError."""
    try:
        with open(path, "rb") as file:
            # Of this very file: another may have taken its name by now.
            mode, data = stat.S_IMODE(os.fstat(file.fileno()).st_mode), file.read()
    except (OSError, ValueError) as error:
        raise _unreadable(path, what, error) from error
    if mode & 0o027:
        raise BursarError(f"{what} {path} may be read or written by others (mode {mode:04o})", f"chmod 600 {path}")
    return data


def read_certificates(path: str, what: str) -> bytes:
    """One or more certificates in PEM. Raises BursarError."""
    data = _read(path, what)
    if _CERTIFICATE not in data:
        raise BursarError(f"{what} {path} has no certificate in PEM", "it begins with -----BEGIN CERTIFICATE-----")
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=_ascii(data))
    except ssl.SSLError as error:
        raise BursarError(f"{what} {path} has a broken certificate: {_words(error)}", "copy it again") from error
    return data


def read_pair(cert: str, key: str, use: Use) -> tuple[bytes, bytes, int]:
    """A certificate (with its chain), its key, and until when it holds, in seconds since 1970. Raises BursarError."""
    chain = read_certificates(cert, "the certificate")
    secret = read_secret(key, "the key")
    if _KEY not in secret:
        raise BursarError(f"the key {key} is not in PEM", "it begins with -----BEGIN PRIVATE KEY-----")
    try:
        return chain, secret, _judge(cert, key, chain, use)
    except (OSError, ValueError) as error:
        # Files that are replaced this very moment, for one.
        raise BursarError(f"{cert} and {key} cannot be used: {_words(error)}", "look whether both are there") from error


def stamp(*paths: str) -> tuple[tuple[int, int, int], ...]:
    """Something that is another whenever one of the files was written or replaced; files that are not there count as empty."""
    stamps = []
    for path in paths:
        try:
            about = os.stat(path)
        except OSError:
            stamps.append((0, 0, 0))
        else:
            stamps.append((about.st_mtime_ns, about.st_size, about.st_ino))
    return tuple(stamps)


def _read(path: str, what: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except (OSError, ValueError) as error:
        raise _unreadable(path, what, error) from error


def _unreadable(path: str, what: str, error: Exception) -> BursarError:
    reason = getattr(error, "strerror", None) or error
    return BursarError(f"{what} {path} cannot be read: {reason}", "check the path, and who may read it")


def _ascii(data: bytes) -> str:
    """Without what is written around the certificates in other letters."""
    return data.decode("ascii", "ignore")


def _judge(cert: str, key: str, chain: bytes, use: Use) -> int:
    """Let a pair talk to itself; until when it holds. Raises BursarError, OSError (ssl.SSLError, too), ValueError."""
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    _load(server, cert, key)
    text = _ascii(chain)
    leaf = text[text.index(_CERTIFICATE.decode()) : text.index(_END) + len(_END)]
    _check_key(cert, ssl.PEM_cert_to_DER_cert(leaf))
    if use is Use.CLIENT:
        _load(client, cert, key)
        client.verify_mode, server.verify_mode = ssl.CERT_NONE, ssl.CERT_REQUIRED
    judging = client if use is Use.SERVER else server
    # It vouches for itself: who signed it is the other end's question.
    judging.load_verify_locations(cadata=_ascii(chain))
    judging.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = client.wrap_bio(down, up), server.wrap_bio(up, down, server_side=True)
    try:
        for _ in range(_ROUNDS):
            for end in ends:
                try:
                    end.do_handshake()
                except ssl.SSLWantReadError:
                    pass
    except ssl.SSLCertVerificationError as error:
        raise BursarError(
            f"the certificate {cert} cannot be used by a {use.value}: {error.verify_message}",
            "renew it (`openssl x509 -noout -dates -purpose -in FILE` shows more)",
        ) from error
    except ssl.SSLError as error:
        raise BursarError(f"the certificate {cert} cannot be used: {_words(error)}", "have it issued anew") from error
    shown: dict[str, Any] = dict(ends[0 if use is Use.SERVER else 1].getpeercert() or {})
    if use is Use.SERVER and not any(kind in ("DNS", "IP Address") for kind, _ in shown.get("subjectAltName", ())):
        raise BursarError(
            f"the certificate {cert} names no server: it has no DNS name or address among its alternative names",
            "have it issued with subjectAltName=DNS:NAME or IP:ADDRESS; the common name does not count",
        )
    return int(ssl.cert_time_to_seconds(str(shown["notAfter"]))) if "notAfter" in shown else 0


def _check_key(cert: str, der: bytes) -> None:
    """Refuse keys that gRPC's BoringSSL does not sign with, whatever OpenSSL says; connections would just fail."""
    kind, *curve = _key_algorithm(der)
    if kind == _RSA or (kind == _EC and curve and curve[0] in _CURVES):
        return
    raise BursarError(
        f"the key of the certificate {cert} is of a kind that cannot be used: gRPC knows RSA, and the curves P-256 and P-384",
        "have it issued with such a key: openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 …",
    )


def _key_algorithm(der: bytes) -> list[bytes]:
    """The object identifiers of the kind of a certificate's key and of its curve: RFC 5280, 4.1. Raises ValueError where it is cut off."""
    (_, certificate), *_ = _elements(der)
    (_, body), *_ = _elements(certificate)
    # The version, which is optional, has a tag of its own; then serial number, signature, issuer, validity, subject.
    fields = [content for tag, content in _elements(body) if tag != _VERSION]
    (_, algorithm), *_ = _elements(fields[5])
    return [content for tag, content in _elements(algorithm) if tag == _OBJECT_IDENTIFIER]


def _elements(der: bytes) -> list[tuple[int, bytes]]:
    """Tags and contents of what stands one after another (X.690). Raises ValueError where it is cut off."""
    found = []
    while der:
        tag, first, *_ = der[:2].ljust(3, b"\xff")
        size = first & 0x7F if first & 0x80 else 0
        length = int.from_bytes(der[2 : 2 + size], "big") if size else first
        begin = 2 + size
        if len(der) < begin + length:
            raise ValueError("it is cut off")
        found.append((tag, der[begin : begin + length]))
        der = der[begin + length :]
    return found


def _load(context: ssl.SSLContext, cert: str, key: str) -> None:
    asked = False

    def password() -> str:
        nonlocal asked
        asked = True
        return ""

    try:
        context.load_cert_chain(cert, key, password)
    except ssl.SSLError as error:
        if asked:
            raise BursarError(
                f"the key {key} is encrypted", f"decrypt it once: openssl pkey -in {key} -out FILE, and chmod 600 FILE"
            ) from error
        if error.reason == "KEY_VALUES_MISMATCH":
            raise BursarError(
                f"the key {key} does not belong to the certificate {cert}", "name the two that were made together"
            ) from error
        raise BursarError(f"{cert} and {key} cannot be used: {_words(error)}", "have them issued anew") from error


def _words(error: Exception) -> str:
    """What OpenSSL says, without its brackets and places; of other errors, what they say."""
    if isinstance(error, ssl.SSLError):
        return (error.reason or str(error)).lower().replace("_", " ")
    return str(getattr(error, "strerror", None) or error)

"""Why no conversation with a master came about: gRPC says only that the socket was closed.

Asked after a failure, and only then: one connection is made with the same files by the standard library, whose words name what is wrong.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import time

from bursar.core.errors import BursarError, ErrorDetail, ErrorReason
from bursar.runtime.credentials import Credentials
from bursar.runtime.rpc import split_address

_CONNECT_TIMEOUT_S = 2.0
#: Each for the greeting and the first word after it: whoever gives up early on a slow machine finds no reason, or another one.
_TIMEOUT_S = 10.0
_AGAIN_S = 0.3


async def why_not(address: str, credentials: Credentials) -> ErrorDetail | None:
    """What stands between this client and the master at an address; None where that is not a question of credentials."""
    try:
        found = await asyncio.to_thread(_why_not, address, credentials)
        if found == _not_accepted(address, credentials):
            # So does a master hang up that is just ending: one that is there a moment later means it.
            await asyncio.sleep(_AGAIN_S)
            found = await asyncio.to_thread(_why_not, address, credentials)
        return found
    except BursarError as error:
        return _refusal(error.detail.message, error.detail.hint)


def _why_not(address: str, credentials: Credentials) -> ErrorDetail | None:
    """Blocks for twenty seconds at most. Raises BursarError where the files are not in order."""
    credentials.check()
    host, port = split_address(address)
    try:
        context = _context(credentials)
        with socket.create_connection((host, port), _CONNECT_TIMEOUT_S) as connection:
            connection.settimeout(_TIMEOUT_S)
            return _greet(connection, context, address, credentials)
    except (OSError, ValueError):
        # Nobody is there, or nothing that could be named; or the files are replaced this very moment.
        return None


def _context(credentials: Credentials) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.set_alpn_protocols(["h2"])
    if credentials.ca:
        context.load_verify_locations(credentials.ca)
    else:
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    if credentials.cert:
        context.load_cert_chain(credentials.cert, credentials.key)
    return context


def _greet(
    connection: socket.socket, context: ssl.SSLContext, address: str, credentials: Credentials
) -> ErrorDetail | None:
    name = credentials.server_name or split_address(address)[0]
    try:
        with context.wrap_socket(connection, server_hostname=name) as secured:
            if not credentials.ca:
                return _refusal(
                    f"the master at {address} speaks TLS, and this client does not",
                    "name the CA of its certificate with --tls-ca (docs/security.md)",
                )
            # A master that lets a client in speaks first; one that does not hangs up when it has seen the certificate.
            if _speaks(secured):
                return None
    except ssl.SSLCertVerificationError as error:
        return _not_trusted(address, name, credentials, error)
    except (ConnectionError, ssl.SSLEOFError, ssl.SSLZeroReturnError):
        if not credentials.ca:
            return None
    except ssl.SSLError as error:
        if not credentials.ca:
            return None
        if error.reason in (
            "WRONG_VERSION_NUMBER",
            "HTTP_REQUEST",
            "RECORD_LAYER_FAILURE",
            "UNEXPECTED_EOF_WHILE_READING",
        ):
            return _refusal(
                f"what listens at {address} does not speak TLS, and this client does",
                "leave --tls-ca out, or give the master --tls-cert and --tls-key",
            )
        if "ALERT" not in (error.reason or ""):
            return _refusal(f"no TLS with {address}: {(error.reason or str(error)).lower()}", "see docs/security.md")
    except TimeoutError:
        return None
    return _not_accepted(address, credentials)


def _speaks(secured: ssl.SSLSocket) -> bool:
    secured.settimeout(_TIMEOUT_S)
    return bool(secured.recv(1))


def _not_trusted(address: str, name: str, credentials: Credentials, error: ssl.SSLCertVerificationError) -> ErrorDetail:
    words = error.verify_message.rstrip(".")
    if "expired" in words:
        hint = "renew the master's certificate"
    elif "ismatch" in words:
        words = f"it is not for {name}"
        hint = "name the master as its certificate does, or say with --tls-server-name which name that is"
    elif "not yet valid" in words:
        hint = f"it is {time.strftime('%Y-%m-%d %H:%M', time.gmtime())} UTC here: set the clocks right"
    else:
        hint = f"--tls-ca must name the CA that signed it; {credentials.ca} is another one"
    return _refusal(f"the certificate of the master at {address} is not trusted: {words}", hint)


def _not_accepted(address: str, credentials: Credentials) -> ErrorDetail:
    if credentials.cert:
        return _refusal(
            f"the master at {address} does not accept the certificate {credentials.cert}",
            "it must be signed by a CA of the master's --tls-ca, and not have expired by the master's clock",
        )
    return _refusal(
        f"the master at {address} wants to see a certificate, and this client shows none",
        "add --tls-cert and --tls-key (docs/security.md)",
    )


def _refusal(message: str, hint: str) -> ErrorDetail:
    return ErrorDetail(ErrorReason.UNAUTHENTICATED, message, hint)

"""What a client shows to a master, and how it makes sure that it speaks to the right one.

Nothing at all on loopback; elsewhere TLS, and a certificate or a token. Everything is named by files, which are read anew for every
connection: whoever renews a certificate replaces the files, and the next connection has it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from bursar.core.errors import BursarError, InvalidText

if TYPE_CHECKING:
    import grpc.aio

#: (field, flag, what it is for people); the variable of `bursar` and the SDK is `BURSAR_` and the flag.
OPTIONS = (
    ("ca", "tls-ca", "Speak TLS with the master: certificates (PEM) of the CA that signed its certificate."),
    ("cert", "tls-cert", "The certificate (PEM) to show to the master; it says who this is."),
    ("key", "tls-key", "The key of that certificate (PEM)."),
    ("server_name", "tls-server-name", "The name that the master's certificate must have, where it is not --master's."),
    ("token_file", "token-file", "A file with the token to show to the master, where there is no certificate."),
)
_MAX_TOKEN_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Credentials:
    """Paths; all empty: the master is on this machine, or everybody is trusted."""

    ca: str = ""
    cert: str = ""
    key: str = ""
    server_name: str = ""
    token_file: str = ""

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] = os.environ) -> Credentials:
        """What BURSAR_TLS_CA, BURSAR_TLS_CERT, BURSAR_TLS_KEY, BURSAR_TLS_SERVER_NAME and BURSAR_TOKEN_FILE say."""
        return cls(**{field: environ.get(variable_of(flag), "") for field, flag, _ in OPTIONS})

    @property
    def files(self) -> tuple[str, ...]:
        """All that are named."""
        return tuple(filter(None, (self.ca, self.cert, self.key, self.token_file)))

    def stamp(self) -> object:
        """Another whenever the files were renewed."""
        from bursar.runtime.certificates import stamp

        return stamp(self.ca, self.cert, self.key)

    def check(self) -> None:
        """Say what is wrong with them, before anybody connects. Raises InvalidText where they do not go together, BursarError."""
        if bool(self.cert) != bool(self.key):
            given, missing = ("tls-cert", "tls-key") if self.cert else ("tls-key", "tls-cert")
            raise InvalidText(f"--{given} without --{missing}", "a certificate and its key are given together")
        if (self.cert or self.server_name) and not self.ca:
            raise InvalidText(
                f"--{'tls-cert' if self.cert else 'tls-server-name'} without --tls-ca",
                "name the CA that the master's certificate is signed by; /etc/ssl/certs/ca-certificates.crt are the public ones",
            )
        if self.ca:
            self._channel_credentials()
        if self.token_file:
            read_token(self.token_file)

    def channel(self, address: str, target: str, options: tuple[tuple[str, Any], ...]) -> Any:
        """A channel to `target`, which is at `address`. Raises BursarError where the files are not in order."""
        import grpc.aio

        from bursar.runtime.rpc import is_loopback

        if not self.files:
            return grpc.aio.insecure_channel(target, options=options)
        self.check()
        if self.ca:
            if self.server_name:
                options = (*options, ("grpc.ssl_target_name_override", self.server_name))
            channel = grpc.aio.secure_channel(target, self._channel_credentials(), options=options)
        elif is_loopback(address):
            channel = grpc.aio.insecure_channel(target, options=options)
        else:
            raise BursarError(
                f"the token {self.token_file} is not sent to {address} in the clear", "speak TLS: add --tls-ca"
            )
        return _Bearing(channel, self.token_file) if self.token_file else channel

    def _channel_credentials(self) -> grpc.ChannelCredentials:
        import grpc

        from bursar.runtime.certificates import Use, read_certificates, read_pair

        roots = read_certificates(self.ca, "the CA")
        chain, key, _ = read_pair(self.cert, self.key, Use.CLIENT) if self.cert else (None, None, 0)
        return grpc.ssl_channel_credentials(roots, key, chain)


NOBODY = Credentials()


def variable_of(flag: str) -> str:
    """`BURSAR_TLS_CA` for `tls-ca`."""
    return "BURSAR_" + flag.replace("-", "_").upper()


def read_token(path: str) -> str:
    """The token in a file that nobody else may read. Raises BursarError."""
    from bursar.runtime.certificates import read_secret

    text = read_secret(path, "the token file").decode("ascii", "replace").strip()
    if not text or len(text) > _MAX_TOKEN_BYTES or not text.isascii() or not text.isprintable() or " " in text:
        raise BursarError(f"the token file {path} holds no token", "it has one line of letters, digits and signs")
    return text


class _Bearing:
    """A channel whose calls carry the token; it is read anew for each, and the last one serves while the file cannot be read."""

    def __init__(self, channel: grpc.aio.Channel, token_file: str) -> None:
        self._channel = channel
        self._token_file = token_file
        self._token = read_token(token_file)

    async def __aenter__(self) -> Self:
        await self._channel.__aenter__()
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self._channel.close()

    def __getattr__(self, name: str) -> Any:
        """States, closing: as of the channel."""
        return getattr(self._channel, name)

    def unary_unary(self, *args: Any, **kwargs: Any) -> Any:
        return self._bear(self._channel.unary_unary(*args, **kwargs))

    def unary_stream(self, *args: Any, **kwargs: Any) -> Any:
        return self._bear(self._channel.unary_stream(*args, **kwargs))

    def stream_unary(self, *args: Any, **kwargs: Any) -> Any:
        return self._bear(self._channel.stream_unary(*args, **kwargs))

    def stream_stream(self, *args: Any, **kwargs: Any) -> Any:
        return self._bear(self._channel.stream_stream(*args, **kwargs))

    def _bear(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def begin(*args: Any, **kwargs: Any) -> Any:
            try:
                self._token = read_token(self._token_file)
            except BursarError:
                pass
            return call(*args, metadata=(("authorization", f"Bearer {self._token}"),), **kwargs)

        return begin

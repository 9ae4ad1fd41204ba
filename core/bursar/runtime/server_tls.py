"""TLS of what listens: the certificate, its key, and who may sign those of clients; renewed files are taken over by new connections."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import grpc

from bursar.core.errors import BursarError, InvalidText
from bursar.runtime.certificates import Use, read_certificates, read_pair, stamp
from bursar.runtime.telemetry import logger

_DAY_S = 86_400
#: A certificate that ends sooner is warned of.
_SOON_S = 7 * _DAY_S
#: Of files that change while they are read, at the start.
_READS = 5


@dataclass(slots=True)
class ServerTls:
    """Paths; `ca` is empty where clients need no certificate."""

    cert: str
    key: str
    ca: str = ""
    _stamp: tuple[tuple[int, int, int], ...] = ()
    _known_bad: tuple[tuple[int, int, int], ...] = ()
    _first: grpc.ServerCertificateConfiguration | None = field(default=None)

    @classmethod
    def of(cls, cert: str, key: str, ca: str) -> ServerTls | None:
        """From what flags say; None where they say nothing. Raises InvalidText, BursarError."""
        if not (cert or key or ca):
            return None
        if not cert or not key:
            missing = [f"--{name}" for name, value in (("tls-cert", cert), ("tls-key", key)) if not value]
            raise InvalidText(f"TLS without {' and '.join(missing)}", "a certificate and its key are given together")
        tls = cls(cert, key, ca)
        tls._stamp = stamp(cert, key, ca)
        for _ in range(_READS):
            tls._first, before = tls._read(), tls._stamp
            tls._stamp = stamp(cert, key, ca)
            if tls._stamp == before:
                return tls
        # They go on changing: what was read last serves, and is read again before the first connection.
        tls._stamp = ()
        return tls

    def credentials(self) -> grpc.ServerCredentials:
        """For `add_secure_port`."""
        assert self._first is not None
        # None says that nothing has changed; its type does not know.
        return grpc.dynamic_ssl_server_credentials(self._first, self._fetch, bool(self.ca))  # type: ignore[arg-type]

    def _read(self) -> grpc.ServerCertificateConfiguration:
        chain, key, until = read_pair(self.cert, self.key, Use.SERVER)
        roots = read_certificates(self.ca, "the CA of clients") if self.ca else None
        day = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(until))
        log = logger()
        if until - time.time() < _SOON_S:
            log.warning("the certificate expires soon: renew it", cert=self.cert, until=day)
        else:
            log.info("certificate", cert=self.cert, until=day, clients_need_one=bool(self.ca))
        return grpc.ssl_server_certificate_configuration([(key, chain)], root_certificates=roots)

    def _fetch(self) -> grpc.ServerCertificateConfiguration | None:
        """What has changed since the last connection; called by gRPC, from a thread of its own, before each handshake."""
        now = stamp(self.cert, self.key, self.ca)
        if now in (self._stamp, self._known_bad):
            return None
        try:
            fresh = self._read()
        except BursarError as error:
            self._known_bad = now
            logger().warning("the new certificate is not taken; the one before serves on", reason=str(error))
            return None
        if stamp(self.cert, self.key, self.ca) != now:
            # Written this very moment: the next connection looks again.
            return None
        self._stamp = now
        return fresh

"""Who may speak by a token: a file of principals, what each may be, and what their token hashes to.

    # principal  kinds                sha256 of the token
    ann          operator,framework   sha256:2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b

Only hashes are kept, so that who reads the file cannot speak for anybody; who may write it decides who may come in.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path

from bursar.core.errors import BursarError, InvalidText
from bursar.runtime.certificates import stamp
from bursar.runtime.telemetry import logger

AGENT, FRAMEWORK, OPERATOR = "agent", "framework", "operator"
KINDS = (AGENT, FRAMEWORK, OPERATOR)
#: A principal, as in certificates and token files.
PRINCIPAL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@+-]{0,127}")
_HASH = re.compile(r"sha256:([0-9a-f]{64})")
_LINE = "write PRINCIPAL KIND[,KIND] sha256:HEX, with the kinds agent, framework and operator"


@dataclass(frozen=True, slots=True)
class Peer:
    """Who speaks."""

    principal: str
    kinds: frozenset[str]


class TokenFile:
    """What the file says; one that was changed is read again, one that is broken leaves what was."""

    def __init__(self, path: str) -> None:
        """Raises BursarError, InvalidText where it cannot be read."""
        self.path = path
        self._seen: object = stamp(path)
        self._peers = _read(path)

    def find(self, token: str) -> Peer | None:
        """Whose token it is; every one is compared, so that the time tells nothing."""
        self._look()
        digest = hashlib.sha256(token.encode()).digest()
        found = None
        for known, peer in self._peers.items():
            if hmac.compare_digest(known, digest):
                found = peer
        return found

    def _look(self) -> None:
        now = stamp(self.path)
        if now == self._seen:
            return
        self._seen = now
        try:
            self._peers = _read(self.path)
        except BursarError as error:
            logger().warning("the changed tokens are not taken; those before count on", reason=str(error))
        else:
            logger().info("tokens", path=self.path, count=len(self._peers))


def _read(path: str) -> dict[bytes, Peer]:
    try:
        text = Path(path).read_text("utf-8")
        mode = stat.S_IMODE(os.stat(path).st_mode)
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise BursarError(
            f"the tokens {path} cannot be read: {reason}", "check the path, and who may read it"
        ) from error
    if mode & 0o022:
        raise BursarError(f"the tokens {path} may be written by others (mode {mode:04o})", f"chmod go-w {path}")
    peers: dict[bytes, Peer] = {}
    for number, line in enumerate(text.splitlines(), 1):
        words = line.partition("#")[0].split()
        if words:
            digest, peer = _entry(f"{path}, line {number}", words)
            if digest in peers:
                raise InvalidText(f"{path}, line {number}: this token is there twice", "give each principal its own")
            peers[digest] = peer
    return peers


def _entry(where: str, words: list[str]) -> tuple[bytes, Peer]:
    if len(words) != 3:
        raise InvalidText(f"{where}: {len(words)} words", _LINE)
    principal, kinds, hashed = words
    if not PRINCIPAL.fullmatch(principal):
        raise InvalidText(f"{where}: {principal!r} is no name for a principal", "letters, digits and . _ @ + - are")
    for kind in kinds.split(","):
        if kind not in KINDS:
            raise InvalidText(f"{where}: {kind!r} is no kind", _LINE)
    found = _HASH.fullmatch(hashed)
    if found is None:
        raise InvalidText(f"{where}: {hashed[:80]!r} is no hash of a token", "printf %s TOKEN | sha256sum makes one")
    return bytes.fromhex(found[1]), Peer(principal, frozenset(kinds.split(",")))

"""Where a master is: `HOST:PORT`, or several."""

from __future__ import annotations

from bursar.core.errors import InvalidText

DEFAULT_MASTER = "127.0.0.1:5050"


def parse_addresses(text: str) -> tuple[str, ...]:
    """Read `HOST:PORT[,HOST:PORT…]`. Raises InvalidText."""
    addresses = tuple(part.strip() for part in text.split(",") if part.strip())
    if not addresses:
        raise InvalidText("master: no address", f"write HOST:PORT, such as {DEFAULT_MASTER}")
    for address in addresses:
        host, colon, port = address.rpartition(":")
        valid = bool(colon and host) and port.isascii() and port.isdigit() and 0 < int(port) < 65536
        if not valid or any(c.isspace() or c in "/," for c in host) or (":" in host and not host.startswith("[")):
            raise InvalidText(f"master: {address!r} is not an address", f"write HOST:PORT, such as {DEFAULT_MASTER}")
    return addresses

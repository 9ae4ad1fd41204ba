"""Ports for masters of tests, which several processes run at the same time."""

from __future__ import annotations

import random
import socket

#: Below those that the kernel hands out: nobody is given the port of a master that was killed and is about to come back.
_PORTS = range(20_000, 30_000)


def free_port() -> int:
    """A port of 127.0.0.1 that nobody has at the moment."""
    for port in random.sample(_PORTS, 1000):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise AssertionError("no port is free")

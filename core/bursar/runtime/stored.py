"""Core values as they are stored: JSON, in the master's registry and in the agent's checkpoint alike."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import msgspec


def to_json(value: Any) -> bytes:
    """A core value as JSON; sets are sorted, so that equal values have equal texts."""
    return _ENCODER.encode(value)


def from_json(kind: Any, text: str | bytes) -> Any:
    """The value of that type again. Raises msgspec.DecodeError for what is not one."""
    return _decoder(kind).decode(text)


def _plain(value: Any) -> Any:
    """What msgspec does not know by itself: read-only mappings."""
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} has no stored form")


_ENCODER = msgspec.json.Encoder(enc_hook=_plain, order="deterministic")


@functools.cache
def _decoder(kind: Any) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(kind)

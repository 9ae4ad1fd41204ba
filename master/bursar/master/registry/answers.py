"""Answers to operators as they are remembered: JSON by the name of the response type."""

from __future__ import annotations

from typing import cast, get_args

from bursar.core.messages.operator import OperatorResponse
from bursar.master.machine import AnswerCodec
from bursar.master.registry.store import write_json
from bursar.runtime.stored import from_json

_TYPES = {kind.__name__: kind for kind in get_args(OperatorResponse)}


def _read(response_type: str, text: str) -> OperatorResponse:
    return cast(OperatorResponse, from_json(_TYPES[response_type], text))


ANSWERS: AnswerCodec = (write_json, _read)

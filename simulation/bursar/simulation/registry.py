"""The registry of the simulation: what was committed, and nothing else, in the one meaning that `Durable` gives to records."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any, Protocol

from bursar.core.messages import operator
from bursar.core.messages.operator import OperatorResponse
from bursar.master.records import Durable
from bursar.runtime import codec


class Twin(Protocol):
    """Another registry that is given the same records and must come to mean the same (the SQL one, in a test)."""

    def commit_now(self, batch: Sequence[object]) -> None:
        """Make records durable."""

    def load(self) -> Durable:
        """What they mean."""


class SimulatedRegistry:
    """Survives masters."""

    def __init__(self, cluster_id: str, twin: Twin | None = None) -> None:
        self.durable = Durable(cluster_id=cluster_id)
        self.records: list[Any] = []
        self._twin = twin

    def commit(self, records: Sequence[Any]) -> None:
        """One transaction."""
        self.records.extend(records)
        self.durable.apply_all(records)
        if self._twin is not None:
            self._twin.commit_now(records)

    def begin_term(self) -> Durable:
        """A master starts: the term grows, and it gets what was committed, folded anew."""
        self.durable.term += 1
        loaded = Durable(self.durable.cluster_id, self.durable.term)
        loaded.apply_all(self.records)
        assert loaded == self.durable, "the same records mean two things"
        if self._twin is not None:
            other = self._twin.load()
            other.cluster_id, other.term = loaded.cluster_id, loaded.term
            for field in fields(Durable):
                mine, theirs = getattr(loaded, field.name), getattr(other, field.name)
                if field.compare:
                    assert mine == theirs, (
                        f"{field.name}: the records mean {mine!r}, their copy was loaded as {theirs!r}"
                    )
            return other
        return loaded


def _write_answer(answer: OperatorResponse) -> str:
    message: bytes = codec.encode(answer).SerializeToString(deterministic=True)
    return message.hex()


def _read_answer(response_type: str, text: str) -> OperatorResponse:
    kind: type = getattr(operator, response_type)
    answer: OperatorResponse = codec.decode(kind, codec.message_class(response_type).FromString(bytes.fromhex(text)))
    return answer


#: How a master of the simulation remembers its answers.
ANSWERS = (_write_answer, _read_answer)

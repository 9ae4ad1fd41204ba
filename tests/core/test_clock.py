"""Deadlines against a plain dictionary."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from bursar.core.clock import Deadlines

keys = st.sampled_from("abcdef")


class DeadlinesMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.deadlines: Deadlines[str] = Deadlines()
        self.model: dict[str, int] = {}

    @rule(key=keys, at=st.integers(0, 50))
    def set(self, key: str, at: int) -> None:
        self.deadlines.set(key, at)
        self.model[key] = at

    @rule(key=keys, many=st.integers(1, 100))
    def move_often(self, key: str, many: int) -> None:
        for at in range(many):
            self.set(key, at)

    @rule(key=keys)
    def cancel(self, key: str) -> None:
        self.deadlines.cancel(key)
        self.model.pop(key, None)

    @rule(now=st.integers(0, 60))
    def pop_due(self, now: int) -> None:
        due = self.deadlines.pop_due(now)
        assert set(due) == {key for key, at in self.model.items() if at <= now} and len(due) == len(set(due))
        assert [self.model[key] for key in due] == sorted(self.model[key] for key in due), "earliest first"
        for key in due:
            del self.model[key]

    @rule(by=st.integers(0, 10))
    def shift(self, by: int) -> None:
        self.deadlines.shift(by)
        self.model = {key: at + by for key, at in self.model.items()}

    @invariant()
    def agrees(self) -> None:
        assert self.deadlines.next_ms() == min(self.model.values(), default=None)
        assert len(self.deadlines) == len(self.model)
        assert all((key in self.deadlines) == (key in self.model) for key in "abcdef")


TestDeadlines = DeadlinesMachine.TestCase
TestDeadlines.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)

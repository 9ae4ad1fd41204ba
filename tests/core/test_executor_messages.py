"""Messages between a framework and an executor: how large, and how many."""

from __future__ import annotations

from bursar.core.messages.executor import (
    MAX_MESSAGE_BYTES,
    MAX_MESSAGE_BYTES_PER_S,
    MAX_MESSAGES_PER_S,
    ExecutorMessage,
    MessagePace,
    message_problem,
)


def test_what_comes_too_fast_does_not_pass_until_the_second_is_over() -> None:
    pace, small = MessagePace(), ExecutorMessage(data=b"x")
    passed = [pace.admits(small, 5_000 + index) for index in range(MAX_MESSAGES_PER_S + 10)]
    assert passed.count(True) == MAX_MESSAGES_PER_S and not passed[-1]
    assert pace.admits(small, 6_001)


def test_many_bytes_are_as_much_as_many_messages() -> None:
    pace, large = MessagePace(), ExecutorMessage(data=bytes(MAX_MESSAGE_BYTES))
    passed = [pace.admits(large, 5_000) for _ in range(100)]
    assert passed.count(True) == MAX_MESSAGE_BYTES_PER_S // MAX_MESSAGE_BYTES
    assert not MessagePace().admits(ExecutorMessage(data=bytes(MAX_MESSAGE_BYTES + 1)), 5_000)


def test_too_large_a_message_is_said_before_it_is_sent() -> None:
    assert message_problem(bytes(MAX_MESSAGE_BYTES)) is None
    problem = message_problem(bytes(MAX_MESSAGE_BYTES + 1))
    assert problem is not None and "65537 bytes is too large" in problem[0] and problem[1]

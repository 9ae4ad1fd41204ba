"""What the agent's client tells operators about masters that it does not reach."""

from __future__ import annotations

from typing import Any

from bursar.agent.master_client import MAX_SAID, MasterClient


class Lines:
    """A logger that keeps what it is told."""

    def __init__(self) -> None:
        self.reasons: list[str] = []

    def info(self, event: str, **values: Any) -> None:
        pass

    def warning(self, event: str, **values: Any) -> None:
        self.reasons.append(values["reason"])


def test_a_problem_is_said_once_also_where_another_comes_in_between() -> None:
    log = Lines()
    client = MasterClient(("127.0.0.1:1",), lambda event: None, log)
    for problem in ("not accepted", "no answer", "not accepted", "no answer"):
        client._complain("127.0.0.1:1", problem)
    assert log.reasons == ["not accepted", "no answer"]
    for number in range(2 * MAX_SAID):
        client._complain("127.0.0.1:1", str(number))
    assert len(log.reasons) == 2 + 2 * MAX_SAID and len(client._said) <= MAX_SAID

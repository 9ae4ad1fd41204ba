"""How an agent gets back in: a master must outrank all that the agent has seen."""

from __future__ import annotations

from typing import Any

from bursar.core.ids import Generation
from bursar.core.messages.agent import DesiredState
from bursar.master.records import Durable, TermRaised


def test_a_master_of_a_restored_registry_outranks_the_term_that_an_agent_has_seen(book: Any) -> None:
    agent = book.agent("a", gpus=1)
    agent.disconnect()
    agent.generation = Generation(7, 3)
    agent.connect()
    assert agent.heard(DesiredState)[-1].generation == Generation(8, 1)
    book.restart()
    agent.connect()
    assert agent.heard(DesiredState)[-1].generation.term > 8


def test_an_agent_that_the_master_forgot_is_told_a_higher_sequence_of_the_same_term(book: Any) -> None:
    agent = book.agent("a", gpus=1)
    term = agent.heard(DesiredState)[-1].generation.term
    agent.disconnect()
    agent.generation = Generation(term, 50)
    agent.connect()
    assert agent.heard(DesiredState)[-1].generation == Generation(term, 51)


def test_raising_the_term_is_a_record() -> None:
    durable = Durable(term=3)
    durable.apply(TermRaised(9))
    assert durable.term == 9

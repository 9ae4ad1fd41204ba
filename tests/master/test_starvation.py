"""M-07: a framework that starves because of a rule is noticed, named, told once, and told again when it is over."""

from __future__ import annotations

from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from bursar.core.messages import operator as op
from bursar.core.messages.operator import RefusalReason
from bursar.core.messages.rules import Rule, RuleAction
from bursar.master.allocator.rules import GPU_FILTER
from bursar.master.metrics import MasterMetrics
from bursar.master.starvation import STARVATION_CYCLES

CYCLES_MS = STARVATION_CYCLES * 1000


def events(book: Any) -> list[tuple[str, str]]:
    kinds = ("starved_by_filter", "starvation_ended")
    return [(event.kind, event.framework_id) for event in book.published if event.kind in kinds]


def explained(book: Any, framework: str = "legacy") -> str:
    (refusal,) = book.ask(op.ExplainFrameworkRequest(framework)).refusals
    assert refusal.reason is RefusalReason.HIDDEN_BY_RULE
    return str(refusal.message)


@pytest.fixture
def all_gpus(book: Any) -> Any:
    """The very cluster of the complaint: all machines have GPUs, and a framework that was written before them."""
    for name in ("a", "b", "c"):
        book.agent(name, gpus=2)
    book.framework("legacy", gpu=False)
    return book


@pytest.mark.parametrize("demand", [False, True])
def test_all_machines_have_gpus_and_a_legacy_framework_starves(all_gpus: Any, demand: bool) -> None:
    book = all_gpus
    if demand:
        book.frameworks["legacy"].want(book.shape(2, cpus=1))
    book.advance(CYCLES_MS - 1000)
    assert not events(book) and "starved" not in explained(book)
    book.advance(2000)
    assert events(book) == [("starved_by_filter", "legacy")]
    (event,) = (event for event in book.published if event.kind == "starved_by_filter")
    assert event.message.startswith(f"STARVED_BY_FILTER{{{GPU_FILTER}}}: framework legacy")
    assert "hides 3 of 3 agents" in event.message
    assert "starved by this rule" in explained(book)
    book.advance(5 * CYCLES_MS)
    assert len(events(book)) == 1, "told once"
    book.set_flag(GPU_FILTER, "false")
    assert book.frameworks["legacy"].offers
    assert events(book) == [("starved_by_filter", "legacy"), ("starvation_ended", "legacy")]
    legacy = book.frameworks["legacy"]
    if not demand:
        book.set_flag(GPU_FILTER, "true")
        book.advance(CYCLES_MS + 1000)
        assert [kind for kind, _ in events(book)] == ["starved_by_filter", "starvation_ended", "starved_by_filter"]
        legacy.disconnect()
        book.advance(1000)
        assert events(book)[-1] == ("starvation_ended", "legacy")


def test_who_wants_nothing_does_not_starve(all_gpus: Any) -> None:
    book = all_gpus
    book.frameworks["legacy"].suppress()
    book.framework("idle", gpu=False).want(book.shape(0, cpus=1))
    book.advance(3 * CYCLES_MS)
    assert not events(book)
    book.frameworks["legacy"].revive()
    book.advance(CYCLES_MS + 1000)
    assert events(book) == [("starved_by_filter", "legacy")]


def test_a_busy_cluster_is_not_a_rule(book: Any) -> None:
    """Most agents may be seen and are full: that is no rule's fault."""
    book.agent("gpu", gpus=1)
    user = book.framework("user")
    for name in ("p", "q"):
        book.agent(name)
        offer = next(offer for offer in user.offers.values() if offer.agent_id == name)
        user.run(book.spec(f"t-{name}", cpus=8, mem=16), offer=offer)
    book.framework("legacy", gpu=False)
    book.advance(3 * CYCLES_MS)
    assert not events(book)


def test_an_operators_rule_is_named(book: Any) -> None:
    book.agent("a", attributes={"rack": "r1"})
    book.agent("b")
    user = book.framework("user")
    offer = next(offer for offer in user.offers.values() if offer.agent_id == "b")
    user.run(book.spec("t", cpus=8, mem=16), offer=offer)
    framework = book.framework("f", roles=["ml"])
    book.ask(op.AddRuleRequest(Rule("r1-is-closed", RuleAction.HIDE_AGENT, framework="role=ml", agent="rack=r1")))
    assert not framework.offers
    book.advance(CYCLES_MS + 1000)
    (event,) = (event for event in book.published if event.kind == "starved_by_filter")
    assert "STARVED_BY_FILTER{r1-is-closed}" in event.message and "1 of 2 agents" in event.message


def test_who_wants_gpus_that_are_stripped_starves_too(new_book: Any) -> None:
    book = new_book(filter_gpu_resources="strip")
    book.agent("a", gpus=2)
    legacy = book.framework("legacy", gpu=False)
    legacy.want(book.shape(1, gpus=1))
    book.advance(45_000)
    assert events(book) == [("starved_by_filter", "legacy")]


def test_metrics_tell_who_starves_and_who_lacks_the_capability(all_gpus: Any) -> None:
    """M-20: how many frameworks a deprecation still concerns."""

    class Driver:
        events_total = stalls_total = 0

    book = all_gpus
    book.framework("capable")
    book.advance(CYCLES_MS + 1000)
    registry = CollectorRegistry()
    metrics = MasterMetrics(registry)
    metrics.take(book.machine, Driver())  # type: ignore[arg-type]
    value = registry.get_sample_value
    assert value("bursar_master_frameworks_without_gpu_resources") == 1
    assert value("bursar_master_frameworks_starved_by_rule", {"rule": GPU_FILTER}) == 1
    decisions = value("bursar_master_rule_decisions_total", {"rule": GPU_FILTER, "mode": "enforce"})
    assert decisions is not None and decisions > 0

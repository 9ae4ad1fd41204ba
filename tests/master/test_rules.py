"""Visibility rules as operators use them: added, ordered, tried, counted, expired, and felt at once by offers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from bursar.core.clock import Instant
from bursar.core.device_names import device_name
from bursar.core.devices import Device
from bursar.core.errors import ErrorDetail, ErrorReason
from bursar.core.ids import DeviceUuid
from bursar.core.messages import operator as op
from bursar.core.messages.framework import GPU_RESOURCES, Rescind
from bursar.core.messages.operator import RefusalReason
from bursar.core.messages.rules import Rule, RuleAction, RuleMode
from bursar.core.resources import ReservedResources, holding_total, to_holding
from bursar.core.tasks import TaskState
from bursar.master.allocator.rules import GPU_FILTER, MAX_RULES
from bursar.master.records import Audited, RulesRecorded

HOUR_MS = 3_600_000
GIB = 2**30


def add(book: Any, name: str = "r", action: str = "HIDE_AGENT", mode: str = "ENFORCE", **more: Any) -> Any:
    options = {key: more.pop(key) for key in ("before", "replace", "force", "request_id") if key in more}
    return book.ask(op.AddRuleRequest(Rule(name, RuleAction[action], RuleMode[mode], **more), **options))


def remove(book: Any, name: str) -> Any:
    return book.ask(op.RemoveRuleRequest(name))


def listed(book: Any) -> list[str]:
    return [view.rule.name for view in book.ask(op.ListRulesRequest()).rules]


def refusals(book: Any, framework: Any) -> dict[RefusalReason, str]:
    answer = book.ask(op.ExplainFrameworkRequest(framework.info.framework_id))
    return {refusal.reason: f"{refusal.message} ({refusal.hint})" for refusal in answer.refusals}


# --- offers ---


def test_a_rule_rescinds_exactly_what_it_forbids_before_it_answers(book: Any) -> None:
    for rack in ("r1", "r2"):
        book.agent(rack, gpus=1, attributes={"rack": rack})
    vision = book.framework("vision", roles=["ml/vision"])
    other = book.framework("other", roles=["eng"])
    vision.decline(*vision.offers.values(), refuse_ms=0)
    book.advance(1000)
    with book.batch():
        answer = add(book, framework="role=ml/**", agent="rack=r1", reason="r1 is being rewired")
        gone = [rescind for rescind in vision.heard(Rescind) + other.heard(Rescind)]
    assert answer.rescinded_offers == sum(len(rescind.offer_ids) for rescind in gone)
    assert vision.agents | other.agents == {"r1", "r2"} and "r1" not in vision.agents
    assert book.full_cycle_offers() == 0
    explained = refusals(book, vision)[RefusalReason.HIDDEN_BY_RULE]
    assert "hidden by the rule r: r1 is being rewired" in explained and "bursar rule rm r" in explained
    other.disconnect()
    assert remove(book, "r").rule.rule.name == "r"
    assert vision.agents == {"r1", "r2"}, "seen again at once"


def test_rules_decide_role_by_role(book: Any) -> None:
    book.agent("a", gpus=1)
    both = book.framework(roles=["ml", "eng"])
    add(book, framework="role=ml")
    assert {offer.role for offer in both.offers.values()} == {"eng"}


def test_a_rule_that_allows_comes_first(book: Any) -> None:
    book.agent("a", gpus=1)
    legacy = book.framework("legacy", gpu=False)
    assert not legacy.offers
    add(book, "exception", "ALLOW", framework="name=legacy")
    assert legacy.agents == {"a"}
    answer = remove(book, "exception")
    assert answer.rescinded_offers == 1 and not legacy.offers


def test_the_order_is_the_operators(book: Any) -> None:
    for name in ("one", "two"):
        add(book, name, agent=f"rack={name}")
    add(book, "zero", before="one", agent="rack=zero")
    add(book, "three", before=GPU_FILTER, agent="rack=three")
    assert listed(book) == ["zero", "one", "two", "three", GPU_FILTER]
    add(book, "two", replace=True, agent="rack=other")
    assert listed(book) == ["zero", "one", "two", "three", GPU_FILTER]
    add(book, "two", replace=True, before="zero", agent="rack=other")
    assert listed(book) == ["two", "zero", "one", "three", GPU_FILTER]
    book.set_flag(GPU_FILTER, "false")
    assert listed(book) == ["two", "zero", "one", "three"]
    page = book.ask(op.ListRulesRequest(book.page(3)))
    assert len(page.rules) == 3
    rest = book.ask(op.ListRulesRequest(book.page(3, page.next_page_token)))
    assert [view.rule.name for view in rest.rules] == ["three"] and not rest.next_page_token


def test_an_agent_that_gets_gpus_vanishes_for_those_who_may_not_see_them(book: Any) -> None:
    """M-05."""
    peer = book.agent("a", gpus=0)
    legacy = book.framework(gpu=False)
    assert legacy.agents == {"a"}
    devices = tuple(book.devices("a", 1))
    parts = (ReservedResources((), book.resources(8, 16, [devices[0].uuid])),)
    peer.disconnect()
    peer.info = replace(peer.info, devices=devices, resources=parts, incarnation=2)
    peer.connect()
    assert not legacy.offers and book.full_cycle_offers() == 0


def test_rules_outlive_the_master_and_are_audited(book: Any) -> None:
    add(book, framework="lacks=X", agent="rack=r1", reason="why", request_id="once")
    again = add(book, framework="lacks=X", agent="rack=r1", reason="why", request_id="once")
    assert not isinstance(again, ErrorDetail), "a repeat gets the first answer"
    assert [record.action for record in book.records if isinstance(record, Audited)] == ["AddRule"]
    book.restart()
    (kept, built_in) = book.ask(op.ListRulesRequest()).rules
    assert kept.rule.reason == "why" and built_in.built_in
    book.agent("a", attributes={"rack": "r1"})
    assert not book.framework().offers


def test_a_rule_expires_by_itself(book: Any) -> None:
    book.agent("a", attributes={"rack": "r1"})
    book.agent("b")
    framework = book.framework()
    add(book, agent="rack=r1", expires_at_ms=book.now.wall_ms + HOUR_MS)
    assert framework.agents == {"b"}
    framework.decline(*framework.offers.values(), refuse_ms=0)
    book.advance(HOUR_MS - 60_000)
    assert "a" not in framework.agents
    book.advance(60_000)
    assert "a" in framework.agents and listed(book) == [GPU_FILTER]
    assert isinstance([r for r in book.records if isinstance(r, RulesRecorded)][-1], RulesRecorded)
    assert any(event.kind == "rule_expired" for event in book.published)


def test_a_rule_that_allowed_and_expires_takes_its_offers_with_it(book: Any) -> None:
    book.agent("a", gpus=1)
    legacy = book.framework(gpu=False)
    add(book, "for-now", "ALLOW", framework="lacks=GPU_RESOURCES", expires_at_ms=book.now.wall_ms + 20_000)
    assert legacy.agents == {"a"}
    book.advance(20_000)
    assert not legacy.offers


def test_a_rule_that_expired_while_no_master_ran_is_gone(book: Any) -> None:
    add(book, agent="rack=r1", expires_at_ms=book.now.wall_ms + HOUR_MS)
    book.leap(HOUR_MS // 2)
    book.restart()
    book.agent("a", attributes={"rack": "r1"})
    framework = book.framework()
    assert not framework.offers, "half of its time is left"
    book.now = Instant(book.now.monotonic_ms, book.now.wall_ms + HOUR_MS)
    book.restart()
    book.timers()
    assert listed(book) == [GPU_FILTER]


# --- strip ---


def test_an_all_gpu_cluster_serves_both_kinds_of_frameworks(new_book: Any) -> None:
    """M-06: work without GPUs makes progress, and every idle GPU stays launchable."""
    book = new_book(filter_gpu_resources="strip", gpu_headroom="cpus:2;mem:2GiB")
    for name in ("a", "b"):
        book.agent(name, cpus=16, mem=64, gpus=4)
    legacy = book.framework("legacy", gpu=False)
    assert legacy.agents == {"a", "b"}
    offered = legacy.offered()
    assert not offered.devices and offered.scalars == {"cpus": 16_000, "mem": (64 - 8) * 2 * GIB}
    for index, offer in enumerate(list(legacy.offers.values())):
        legacy.run(book.spec(f"c{index}", cpus=8, mem=8), offer=offer)
    book.advance(6000)
    assert not any("cpus" in part.resources.scalars for o in legacy.offers.values() for part in o.resources)
    assert "its GPUs, and what is kept for them" in refusals(book, legacy)[RefusalReason.STRIPPED_BY_RULE]
    capable = book.framework("capable")
    shape = book.shape(8, cpus=2, mem=2, gpus=1)
    capable.want(shape)
    book.advance(40_000)
    given = holding_total(to_holding([part for offer in capable.offers.values() for part in offer.resources]))
    assert len(given.devices) == 8 and given.scalars["cpus"] >= 16_000, "every GPU can be launched on"


def test_a_finished_gpu_task_finds_its_card_usable(new_book: Any) -> None:
    book = new_book(filter_gpu_resources="strip", gpu_headroom="cpus:2")
    book.agent("a", cpus=8, gpus=2)
    capable = book.framework("capable")
    capable.run(book.spec("t", cpus=1, gpus=2))
    book.advance(1000)
    capable.suppress()
    capable.decline(*capable.offers.values())
    legacy = book.framework("legacy", gpu=False)
    # 7 left, of which the task's two GPUs lack 3.
    assert legacy.offered().scalars["cpus"] == 4000
    legacy.run(book.spec("c", cpus=4))
    book.agents["a"].update("t", TaskState.FINISHED, framework="capable")
    books = book.machine.cluster.ledger.books["a"]
    assert holding_total(books.free).scalars["cpus"] == 4000, "two CPUs for each of the two GPUs, again"
    book.advance(60_000)
    assert "cpus" not in legacy.offered().scalars


@pytest.mark.parametrize(("value", "rescinded"), [("false", 0), ("strip", 1), ("true", 2)])
def test_the_toggle_rescinds_what_each_mode_forbids(new_book: Any, value: str, rescinded: int) -> None:
    book = new_book(filter_gpu_resources="false", gpu_headroom="0%")
    book.agent("gpu", gpus=1)
    book.agent("plain")
    with_gpus = book.framework("legacy", gpu=False)
    assert with_gpus.agents == {"gpu", "plain"}
    # A second one, which has taken only the CPUs of an agent with GPUs.
    book.agent("gpu2", parts=None, gpus=1)
    user = with_gpus
    offer = next(offer for offer in user.offers.values() if offer.agent_id == "gpu2")
    user.run(book.spec("t", cpus=1, gpus=1), offer=offer)
    book.advance(6000)
    (rest,) = (offer for offer in user.offers.values() if offer.agent_id == "gpu2")
    assert not holding_total(to_holding(rest.resources)).devices
    with book.batch():
        answer = book.set_flag(GPU_FILTER, value)
    assert answer.rescinded_offers == rescinded
    assert user.agents >= {"plain"}
    assert book.full_cycle_offers() == 0


def test_a_toggle_to_strip_takes_back_slices_of_gpus(new_book: Any) -> None:
    book = new_book(filter_gpu_resources="false", gpu_headroom="0%")
    name = device_name("mig-1g.10gb", "M1", parent="GPU-1", weight_milli=142)
    book.agent("a", devices=[Device(name, "mig-1g.10gb", parent_uuid=DeviceUuid("GPU-1"))])
    legacy = book.framework(gpu=False)
    assert legacy.offered().devices == {name}
    with book.batch():
        answer = book.set_flag(GPU_FILTER, "strip")
    assert answer.rescinded_offers == 1
    assert not legacy.offered().devices


def test_a_toggle_to_strip_takes_back_what_gpus_need(new_book: Any) -> None:
    book = new_book(filter_gpu_resources="strip", gpu_headroom="0%")
    book.agent("a", cpus=8, mem=16, gpus=2)
    legacy = book.framework(gpu=False)
    assert legacy.offered().scalars["cpus"] == 8000
    with book.batch():
        answer = book.set_flag("gpu-headroom", "cpus:3")
    assert answer.rescinded_offers == 1
    assert legacy.offered().scalars["cpus"] == 2000
    assert book.set_flag("gpu-headroom", "cpus:2").rescinded_offers == 0


def test_by_default_half_of_a_machine_is_for_its_gpus(new_book: Any) -> None:
    book = new_book(filter_gpu_resources="strip")
    book.agent("a", cpus=8, mem=16, gpus=3)
    offered = book.framework(gpu=False).offered()
    # Half, divided by three and rounded down, three times.
    assert offered.scalars["cpus"] == 8000 - 3 * (4000 // 3)
    assert offered.scalars["mem"] == 16 * GIB - 3 * (8 * GIB // 3)


def test_who_wants_gpus_that_are_stripped_is_told_so(new_book: Any) -> None:
    book = new_book(filter_gpu_resources="strip")
    book.agent("a", cpus=8, gpus=1)
    legacy = book.framework(gpu=False)
    legacy.want(book.shape(1, cpus=1, gpus=1))
    book.advance(40_000)
    assert not legacy.offers
    assert RefusalReason.STRIPPED_BY_RULE in refusals(book, legacy)


def test_a_rule_may_strip_any_kind(book: Any) -> None:
    book.agent("a", cpus=8, mem=16)
    framework = book.framework()
    add(book, "no-mem", "STRIP", resources=("mem",))
    assert framework.offered().scalars == {"cpus": 8000}
    assert book.full_cycle_offers() == 0


def test_headroom_is_kept_from_work_without_gpus_and_goes_with_gpus(new_book: Any) -> None:
    book = new_book(filter_gpu_resources="false")
    book.agent("a", cpus=8, mem=16, gpus=2)
    add(book, "room", "HEADROOM", headroom="cpus:3")
    small = book.framework("small")
    small.want(book.shape(8, cpus=1))
    book.advance(31_000)
    assert small.offered().scalars["cpus"] == 2000
    small.disconnect()
    large = book.framework("large")
    large.want(book.shape(2, cpus=4, gpus=1))
    assert large.offered().scalars["cpus"] == 8000


# --- test, audit ---


def test_every_pair_is_explained(book: Any) -> None:
    """M-09."""
    book.agent("gpu", gpus=1)
    book.agent("plain")
    book.framework("legacy", gpu=False, roles=["x", "y"])
    book.framework("capable")
    add(book, "allow-y", "ALLOW", framework="role=y")
    verdicts = book.ask(op.TryRulesRequest()).verdicts
    said = {(v.framework_id, v.role, v.agent_id): (v.action, v.rule) for v in verdicts}
    assert said == {
        ("capable", "*", "gpu"): (RuleAction.ALLOW, ""),
        ("capable", "*", "plain"): (RuleAction.ALLOW, ""),
        ("legacy", "x", "gpu"): (RuleAction.HIDE_AGENT, GPU_FILTER),
        ("legacy", "x", "plain"): (RuleAction.ALLOW, ""),
        ("legacy", "y", "gpu"): (RuleAction.ALLOW, "allow-y"),
        ("legacy", "y", "plain"): (RuleAction.ALLOW, "allow-y"),
    }
    assert all(verdict.reason for verdict in verdicts)
    (one,) = book.ask(op.TryRulesRequest("capable", "plain.host")).verdicts
    assert one.hostname == "plain.host"
    paged, token = [], ""
    while True:
        page = book.ask(op.TryRulesRequest(page=book.page(2, token)))
        paged += page.verdicts
        token = page.next_page_token
        if not token:
            break
    assert tuple(paged) == verdicts
    assert book.ask(op.TryRulesRequest("nobody")).reason is ErrorReason.NOT_FOUND


def test_an_audited_rule_changes_nothing_and_says_what_it_would_have_done(book: Any) -> None:
    book.agent("a", attributes={"rack": "r1"})
    book.agent("b", attributes={"rack": "r1"})
    book.agent("c")
    first = book.framework("first", roles=["ml"])
    before = dict(first.offers)
    assert add(book, "trial", mode="AUDIT", framework="role=ml", agent="rack=r1").rescinded_offers == 0
    assert first.offers == before
    (audit,) = book.ask(op.AuditRulesRequest()).audits
    assert (audit.frameworks, audit.agents, audit.pairs, audit.offers) == (1, 2, 2, 2)
    first.decline(*first.offers.values(), refuse_ms=0)
    book.advance(2000)
    (audit,) = book.ask(op.AuditRulesRequest()).audits
    assert audit.decisions > 0
    seen = audit.decisions
    book.ask(op.ExplainFrameworkRequest("first"))
    assert book.ask(op.AuditRulesRequest()).audits[0].decisions == seen, "explaining is not deciding"
    (verdict,) = book.ask(op.TryRulesRequest("first", "a")).verdicts
    assert verdict.action is RuleAction.ALLOW and verdict.audited == ("trial",)
    answer = add(book, "trial", framework="role=ml", agent="rack=r1", replace=True)
    assert answer.rescinded_offers == 2 and first.agents == {"c"}
    assert not book.ask(op.AuditRulesRequest()).audits


# --- refusals ---


def test_a_rule_that_would_hide_everything_from_everyone_is_asked_for_twice(book: Any) -> None:
    refused = add(book)
    assert refused.reason is ErrorReason.INVALID_ARGUMENT and "every agent from every framework" in refused.message
    assert "--force" in refused.hint
    assert not isinstance(add(book, agent="gpus>0"), ErrorDetail), "nobody is there yet"
    remove(book, "r")
    book.agent("a", gpus=1)
    book.framework()
    refused = add(book, agent="gpus>0")
    assert "none of the 1 frameworks would see any of the 1 agents" in refused.message
    assert not book.registry.rules
    assert not isinstance(add(book, agent="gpus>0", mode="AUDIT"), ErrorDetail)
    assert not isinstance(add(book, agent="gpus>0", replace=True, force=True), ErrorDetail)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "there"}, "there is a rule there already"),
        ({"name": "new", "before": "nowhere"}, "no rule 'nowhere'"),
        ({"name": "there", "replace": True, "before": "there"}, "before itself"),
        ({"name": "new", "agent": "gpu.modell=H100"}, "gpu.modell"),
        ({"name": "new", "framework": "colour=red"}, "no selector 'colour'"),
        ({"name": "new", "expires_at_ms": 5}, "expired already"),
        ({"name": GPU_FILTER}, "built-in"),
        ({"name": "NEW"}, "not a name"),
    ],
)
def test_a_refused_rule_changes_nothing(book: Any, options: dict[str, Any], message: str) -> None:
    add(book, "there", agent="rack=r1")
    before = book.registry.rules
    refused = add(book, **({"agent": "rack=r2"} | options))
    assert isinstance(refused, ErrorDetail) and message in str(refused) and refused.hint
    assert book.registry.rules == before and listed(book) == ["there", GPU_FILTER]


def test_what_is_not_there_cannot_be_removed(book: Any) -> None:
    add(book, "there", agent="rack=r1")
    refused = remove(book, "ther")
    assert refused.reason is ErrorReason.NOT_FOUND and "did you mean there?" in refused.hint
    refused = remove(book, GPU_FILTER)
    assert refused.reason is ErrorReason.INVALID_ARGUMENT and "flag set" in refused.hint


def test_rules_are_bounded(book: Any) -> None:
    for index in range(MAX_RULES):
        add(book, f"r{index}", agent="rack=r1")
    assert str(MAX_RULES) in add(book, "one-more", agent="rack=r1").message
    assert not isinstance(add(book, "r0", agent="rack=r2", replace=True), ErrorDetail)


# --- the deprecation of the capability (M-20) ---


@pytest.mark.parametrize("value", ["true", "false", "strip", "unset"])
def test_whatever_the_flag_says_the_capability_is_never_an_error(new_book: Any, value: str) -> None:
    """Every mode: a framework with it and one without both subscribe, run what they may, and end."""
    book = new_book(gpu_headroom="cpus:1")
    if value == "unset":
        book.set_flag(GPU_FILTER, "false")
        assert book.unset_flag(GPU_FILTER).flag.value == "true"
    else:
        book.set_flag(GPU_FILTER, value)
    book.agent("gpu", cpus=8, mem=32, gpus=2)
    legacy = book.framework("legacy", gpu=False)
    assert bool(legacy.offers) == (value in ("false", "strip"))
    if legacy.offers:
        assert bool(legacy.offered().devices) == (value == "false")
        legacy.run(book.spec("l", cpus=1))
    legacy.suppress()
    legacy.decline(*legacy.offers.values())
    capable = book.framework("capable")
    assert len(capable.offered().devices) == 2, "no mode takes anything from those who have it"
    capable.run(book.spec("c", cpus=1, gpus=1))
    assert capable.update(capabilities=()).error is None
    seen = {
        offer.agent_id: bool(holding_total(to_holding(offer.resources)).devices) for offer in capable.offers.values()
    }
    assert value == "false" or not any(seen.values()), "given up, and nothing of it is shown any more"
    assert capable.update(capabilities=(GPU_RESOURCES,)).error is None
    assert book.full_cycle_offers() == 0

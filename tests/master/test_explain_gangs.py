"""Why does a gang wait? Each reason is provoked, told with its facts and with what would change it, and changes nothing."""

from __future__ import annotations

from typing import Any

from bursar.core.messages import operator as op
from bursar.core.messages.operator import GangStanding, ObstacleKind, RefusalReason
from bursar.core.tasks import TaskState


def noted(book: Any) -> Any:
    """What later decisions about gangs are made from."""
    cluster = book.machine.cluster
    gangs = [
        (key, gang.hindrance, gang.hindered_by, gang.turns, gang.rests_until_ms, gang.bundle_id, gang.chosen)
        for key, gang in cluster.gangs.by_key.items()
    ]
    holder = cluster.gangs.holder and cluster.gangs.holder.key
    return gangs, holder, list(cluster.ledger.gang_holds), list(cluster.dirty), cluster.all_dirty, dict(cluster.offers)


def standings(book: Any, framework: str = "f") -> list[GangStanding]:
    """Asked, which must change nothing: an answer is followed by the very same one, and the state is as it was."""
    before = noted(book)
    found = book.ask(op.ExplainFrameworkRequest(framework)).gangs
    assert found == book.ask(op.ExplainFrameworkRequest(framework)).gangs
    assert noted(book) == before
    assert book.full_cycle_offers() == 0
    return list(found)


def the_gang(book: Any, framework: str = "f") -> GangStanding:
    (found,) = standings(book, framework)
    return found


def kinds(gang: GangStanding) -> list[ObstacleKind]:
    return [obstacle.kind for obstacle in gang.obstacles]


def test_a_gang_that_waits_for_what_is_in_use_is_told_what_it_lacks_and_who_holds_it(book: Any) -> None:
    for name in "abc":
        book.agent(name)
    user = book.framework("user")
    for name in "ab":
        user.run_on(name, name, cpus=7)
    framework = book.asleep()
    framework.ask_for_gang((3, book.request(cpus=4)))
    offered = the_gang(book).obstacles[-1]
    assert (offered.kind, offered.framework_id, offered.amount) == (ObstacleKind.OFFER, "user", 8000)
    user.suppress()
    user.decline(*user.offers.values())
    framework.inbox.clear()
    framework.ask_for_gang((3, book.request(cpus=4)))
    gang = the_gang(book)
    assert (gang.gang_id, gang.framework_id, gang.role, gang.tasks) == ("g", "f", "*", 3)
    assert (gang.with_room, gang.place, gang.places, gang.holds) == (2, 1, 1, True)
    assert gang.reason is RefusalReason.NOT_FREE and gang.until_ms > 0
    assert (
        gang.message == "2 of its 3 tasks have room now; of what is free, its tasks need cpus:12, and there are cpus:10"
    )
    assert "bursar task kill" in gang.hint
    shape, holds, holder = gang.obstacles
    assert (shape.kind, shape.amount, shape.of) == (ObstacleKind.SHAPE, 12_000, 10_000)
    assert holds.kind is ObstacleKind.STATE and "withheld for it now: cpus:9 on 2 agents" in holds.message, (
        holds.message
    )
    assert (holder.kind, holder.framework_id, holder.amount) == (ObstacleKind.TASK, "user", 14_000)
    # What it says would change it does.
    book.agents["a"].update("a", TaskState.FINISHED, framework="user")
    assert framework.gang_states()[-1] == "BUNDLE"


def test_a_bundle_on_offer_is_told(book: Any) -> None:
    for name in "ab":
        book.agent(name)
    framework = book.asleep()
    framework.ask_for_gang((2, book.request(cpus=8)))
    gang = the_gang(book)
    assert (gang.place, gang.reason, gang.with_room) == (0, RefusalReason.UNSPECIFIED, 2)
    assert gang.message == "its bundle is on offer: 2 agents" and "accept or decline" in gang.hint


def test_a_limit_in_the_way_is_named_with_how_to_raise_it(book: Any) -> None:
    book.agent("a")
    book.set_quotas(book.quota("ml", limit="cpus:8"))
    user = book.framework("user", roles=["ml"])
    user.run_on("a", "x", cpus=6)
    user.suppress()
    framework = book.asleep(roles=["ml"])
    framework.ask_for_gang((4, book.request(cpus=1)), role="ml")
    gang = the_gang(book)
    assert gang.reason is RefusalReason.QUOTA_LIMIT and gang.message.startswith("of cpus, a limit")
    assert "bursar quota set --role ml" in gang.hint
    book.set_quotas(book.quota("ml", limit="cpus:10"))
    assert framework.gang_states()[-1:] != ["BUNDLE"], "two are free on a"
    assert the_gang(book).reason is RefusalReason.NOT_FREE


def test_guarantees_of_others_in_the_way_are_told(book: Any) -> None:
    for name in "ab":
        book.agent(name)
    book.set_quotas(book.quota("eng", guarantee="cpus:10"))
    framework = book.asleep(roles=["ml"])
    framework.ask_for_gang((7, book.request(cpus=1)), role="ml")
    gang = the_gang(book)
    assert gang.reason is RefusalReason.HEADROOM and "kept free for the guarantees" in gang.message
    assert gang.with_room == 7, "there is room, but not for it"


def test_agents_that_are_away_are_told(book: Any) -> None:
    book.agent("a")
    book.agent("b")
    book.agents["b"].disconnect()
    framework = book.asleep()
    framework.ask_for_gang((2, book.request(cpus=8)))
    gang = the_gang(book)
    assert (gang.reason, gang.with_room) == (RefusalReason.AGENT_INACTIVE, 1) and "bursar agent ls" in gang.hint


def test_a_gang_behind_another_one_is_told_what_is_withheld_for_that(book: Any) -> None:
    book.agent("a")
    user = book.framework("user")
    user.run_on("a", "x", cpus=4)
    user.suppress()
    first, second = book.asleep("first"), book.asleep("second")
    first.ask_for_gang((1, book.request(cpus=8)))
    second.ask_for_gang((2, book.request(cpus=2)))
    gang = the_gang(book, "second")
    assert (gang.reason, gang.place, gang.places, gang.holds) == (RefusalReason.OTHERS_FIRST, 2, 2, False)
    assert gang.message == "0 of its 2 tasks have room now: what it lacks is withheld for another gang"
    (before,) = gang.obstacles
    assert (before.kind, before.name, before.framework_id) == (ObstacleKind.GANG, "g", "first")
    assert "has withheld for it cpus:4" in before.message


def test_a_gang_that_rests_is_told_for_how_long(new_book: Any) -> None:
    book = new_book(gang_hold_timeout="10s", agent_ping_timeout="1000d")
    book.agent("a")
    user = book.framework("user")
    user.run_on("a", "x", cpus=4)
    user.suppress()
    framework = book.asleep()
    framework.ask_for_gang((1, book.request(cpus=8)))
    book.advance(12_000)
    gang = the_gang(book)
    assert not gang.holds
    (rests,) = [obstacle for obstacle in gang.obstacles if obstacle.kind is ObstacleKind.STATE]
    assert (rests.name, rests.message) == ("rests", "it held for as long as it may (1×), and rests for another 8s")


def test_topology_and_cliques_are_named(book: Any) -> None:
    for name, rack in (("a", "r1"), ("b", "r2")):
        book.agent(name, devices=book.linked(name, [[0, 1], [2, 3]]), attributes={"rack": rack})
    user = book.framework("user")
    user.run_on("a", "x", cpus=1, devices=["a-gpu0", "a-gpu2"])
    user.run_on("b", "y", cpus=1, devices=["b-gpu0", "b-gpu2"])
    user.suppress()
    framework = book.asleep()
    framework.ask_for_gang((1, book.request(cpus=1, gpus=2)), same="rack", clique=True)
    gang = the_gang(book)
    assert gang.reason is RefusalReason.NOT_FREE
    assert "of what is free, on rack r" in gang.message, gang.message
    assert "needs 2 GPUs linked by NVLink, and no agent has more than 1" in gang.message


def test_a_cluster_that_became_too_small_since_is_told(book: Any) -> None:
    book.agent("a")
    book.agent("b")
    user = book.framework("user")
    user.run_on("a", "x", cpus=1)
    user.suppress()
    framework = book.asleep()
    framework.ask_for_gang((2, book.request(cpus=8)))
    book.reserve("b", "eng", book.request(cpus=4))
    gang = the_gang(book)
    assert gang.reason is RefusalReason.EXCEEDS_AGENT and "could never start" in gang.message
    assert "ask for less, or add agents" in gang.hint


def test_the_role_tells_the_gangs_in_it_and_below_it_and_one_agent_tells_none(book: Any) -> None:
    book.agent("a")
    user = book.framework("user")
    user.run_on("a", "x", cpus=8)
    user.suppress()
    one, two = book.asleep("one", roles=["ml/a"]), book.asleep("two", roles=["eng"])
    one.ask_for_gang((1, book.request(cpus=8)), role="ml/a")
    two.ask_for_gang((1, book.request(cpus=8)), role="eng")
    assert [gang.framework_id for gang in book.ask(op.ExplainRoleRequest("ml")).gangs] == ["one"]
    assert book.ask(op.ExplainFrameworkRequest("one", "a")).gangs == ()


def test_what_is_withheld_for_a_gang_stands_in_the_way_of_others(book: Any) -> None:
    book.agent("a")
    user = book.framework("user")
    user.run_on("a", "x", cpus=4)
    framework = book.asleep()
    framework.ask_for_gang((1, book.request(cpus=8)))
    small = book.framework("small", demand=op.Demand(1, (book.shape(cpus=2),)))
    (refusal,) = book.ask(op.ExplainFrameworkRequest("small")).refusals
    (gang,) = [obstacle for obstacle in refusal.obstacles if obstacle.kind is ObstacleKind.GANG]
    assert refusal.reason is RefusalReason.NOT_FREE and not small.offers
    assert gang.message.endswith("of a.host is withheld for gang g of f") and gang.message.startswith("cpus:4")

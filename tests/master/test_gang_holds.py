"""Dialogues: what is withheld for the gang whose turn it is, and how quota bounds gangs."""

from __future__ import annotations

from typing import Any

from bursar.core.messages import operator as op
from bursar.core.resources import holding_total, to_holding
from bursar.core.tasks import TaskState

MINUTE_MS = 60_000


# --- waiting and holding ---


def test_a_gang_that_waited_long_enough_hears_why(book: Any) -> None:
    for name in "abc":
        book.agent(name)
    user = book.framework("user")
    user.run_on("b", "x", cpus=8)
    user.suppress()
    framework = book.asleep()
    framework.ask_for_gang((3, book.request(cpus=8)), ttl_ms=5000)
    book.advance(5000)
    assert framework.gang_states()[-1] == "EXPIRED" or framework.gang_error()


def test_its_reason_counts_the_tasks_that_had_room(book: Any) -> None:
    for name in "abc":
        book.agent(name)
    user = book.framework("user")
    for name in "abc":
        user.run_on(name, name, cpus=8)
    user.suppress()
    framework = book.asleep()
    framework.ask_for_gang((3, book.request(cpus=8)), ttl_ms=5000)
    book.agents["a"].update("a", TaskState.FINISHED, framework="user")
    book.advance(5000)
    assert "no bundle within 5s: 1 of its 3 tasks had room" in framework.gang_error().message
    assert not book.machine.cluster.ledger.gang_holds
    book.quiet()


def full_cluster(book: Any, names: str = "abcd") -> Any:
    """Agents of 8 CPUs, each full with eight tasks of one CPU: `<agent><n>`."""
    user = book.framework("user", roles=["small"])
    for name in names:
        book.agent(name)
        offer = next(offer for offer in user.offers.values() if offer.agent_id == name)
        user.run(*[book.spec(f"{name}{n}", cpus=1) for n in range(8)], offer=offer, refuse_ms=0)
    return user


def test_a_stream_of_small_tasks_does_not_starve_a_gang(book: Any) -> None:
    """One CPU at a time becomes free, and small tasks wait for each: what the gang needs is kept for it."""
    user = full_cluster(book)
    framework = book.asleep()
    shape = book.request(cpus=8)
    framework.ask_for_gang((2, shape))
    names = [f"{name}{n}" for n in range(8) for name in "abcd"]
    for index, task_id in enumerate(names):
        if framework.gang_states()[-1:] == ["BUNDLE"]:
            break
        agent = book.agents[task_id[0]]
        agent.update(task_id, TaskState.FINISHED, framework="user")
        # The small tasks take at once whatever they are offered, but memory alone is no use.
        for offer in list(user.offers.values()):
            cpus = holding_total(to_holding(offer.resources)).scalars.get("cpus", 0)
            if cpus:
                user.run(*[book.spec(f"more{index}{n}", cpus=1) for n in range(cpus // 1000)], offer=offer, refuse_ms=0)
            else:
                user.decline(offer)
        book.quiet()
    assert len(framework.offers) == 2
    more = [key for key in book.machine.cluster.tasks if key.task_id.startswith("more")]
    assert len(more) > 10, "elsewhere they go on"


def test_what_is_held_is_shown_and_bounded_by_what_is_needed(book: Any) -> None:
    user = full_cluster(book, "ab")
    user.suppress()
    framework = book.asleep()
    framework.ask_for_gang((1, book.request(cpus=6)), gang_id="big")
    for n in range(5):
        book.agents["a"].update(f"a{n}", TaskState.FINISHED, framework="user")
        book.agents["b"].update(f"b{n}", TaskState.FINISHED, framework="user")
    views = {name: book.agents[name].view for name in "ab"}
    held = {name: view.withheld.scalars.get("cpus", 0) for name, view in views.items()}
    assert sorted(held.values()) == [0, 5000]
    (reason,) = [text for view in views.values() for text in view.withheld_reasons]
    assert reason == "gang hold for f/big: cpus:5"
    user.revive()
    assert {
        offer.agent_id
        for offer in user.offers.values()
        if holding_total(to_holding(offer.resources)).scalars.get("cpus")
    } == {name for name in "ab" if not held[name]}
    (name,) = [name for name in "ab" if held[name]]
    book.agents[name].update(f"{name}5", TaskState.FINISHED, framework="user")
    assert framework.gang_states("big")[-1] == "BUNDLE"
    assert not book.agents[name].view.withheld


def test_two_gangs_that_each_need_most_of_the_cluster_come_one_after_the_other(book: Any) -> None:
    user = full_cluster(book)
    user.suppress()
    one, two = book.asleep("one", roles=["one"]), book.asleep("two", roles=["two"])
    shape = book.request(cpus=8)
    one.ask_for_gang((3, shape))
    two.ask_for_gang((3, shape))
    for n in range(8):
        for name in "abcd":
            book.agents[name].update(f"{name}{n}", TaskState.FINISHED, framework="user")
    assert (one.gang_states()[-1], two.gang_states()[-1]) == ("BUNDLE", "WAITING")
    bundle = [event for event in one.offers.values()]
    assert len(bundle) == 3 and len(book.machine.cluster.ledger.gang_holds) == 1, "the second one holds what is left"
    specs = [book.spec(f"t{offer.agent_id}", cpus=8, agent_id=offer.agent_id) for offer in bundle]
    result = one.accept([bundle[0]], book.launch(*specs))
    assert result.error is None
    for offer in bundle:
        book.agents[offer.agent_id].update(f"t{offer.agent_id}", TaskState.RUNNING, framework="one")
        book.agents[offer.agent_id].update(f"t{offer.agent_id}", TaskState.FINISHED, framework="one")
    assert two.gang_states() == ["BUNDLE"]
    book.quiet()


def test_the_role_that_has_less_comes_first_whatever_its_age(book: Any) -> None:
    for name in "ab":
        book.agent(name)
    rich = book.framework("rich", roles=["rich"])
    rich.run_on("a", "x", cpus=8)
    rich.run_on("b", "y", cpus=8)
    rich.suppress()
    poor = book.asleep("poor", roles=["poor"])
    with book.batch():
        rich.ask_for_gang((1, book.request(cpus=8)))
        poor.ask_for_gang((1, book.request(cpus=8)))
    book.agents["b"].update("y", TaskState.FINISHED, framework="rich")
    assert (rich.gang_states()[-1], poor.gang_states()[-1]) == ("WAITING", "BUNDLE")


def test_of_those_that_have_the_same_the_older_comes_first(book: Any) -> None:
    user = full_cluster(book, "a")
    user.suppress()
    late, early = book.asleep("1-late"), book.asleep("2-early")
    with book.batch():
        early.ask_for_gang((1, book.request(cpus=8)))
        late.ask_for_gang((1, book.request(cpus=8)))
    for n in range(8):
        book.agents["a"].update(f"a{n}", TaskState.FINISHED, framework="user")
    assert (early.gang_states()[-1], late.gang_states()[-1]) == ("BUNDLE", "WAITING")


def test_a_hold_ends_in_time_and_the_next_gang_has_its_turn(new_book: Any) -> None:
    book = new_book(gang_hold_timeout="10s", agent_ping_timeout="1000d")
    user = full_cluster(book, "ab")
    user.suppress()
    one, two = book.asleep("one"), book.asleep("two")
    one.ask_for_gang((2, book.request(cpus=8)))
    two.ask_for_gang((2, book.request(cpus=8)))
    for n in range(4):
        book.agents["a"].update(f"a{n}", TaskState.FINISHED, framework="user")
    gangs = book.machine.cluster.gangs
    assert gangs.holder.key == ("one", "g")
    book.advance(10_000)
    assert gangs.holder.key == ("two", "g")
    assert book.agents["a"].view.withheld.scalars["cpus"] == 4000
    book.advance(10_000)
    assert gangs.holder.key == ("one", "g"), "it has rested, and held as often"
    book.quiet()


def test_a_gang_alone_rests_too_and_what_it_held_is_offered(new_book: Any) -> None:
    book = new_book(gang_hold_timeout="10s", agent_ping_timeout="1000d")
    user = full_cluster(book, "a")
    framework = book.asleep()
    framework.ask_for_gang((1, book.request(cpus=8)))
    book.agents["a"].update("a0", TaskState.FINISHED, framework="user")

    def cpus() -> int:
        return sum(holding_total(to_holding(offer.resources)).scalars.get("cpus", 0) for offer in user.offers.values())

    assert cpus() == 0
    book.advance(10_000)
    assert cpus() == 1000
    book.advance(10_000)
    assert book.machine.cluster.gangs.holder is not None


def test_a_hold_gives_way_to_reservations_and_to_changes_of_the_agent(book: Any) -> None:
    user = full_cluster(book, "ab")
    user.suppress()
    framework = book.asleep()
    framework.ask_for_gang((2, book.request(cpus=8)))
    for n in range(4):
        book.agents["a"].update(f"a{n}", TaskState.FINISHED, framework="user")
    assert book.agents["a"].view.withheld.scalars["cpus"] == 4000
    answer = book.reserve("a", "eng", book.request(cpus=2))
    assert isinstance(answer, op.ReserveResourcesResponse)
    # The gang could not fit any more: it holds nothing.
    assert not book.machine.cluster.ledger.gang_holds
    book.unreserve("a", "eng", book.request(cpus=2))
    assert book.agents["a"].view.withheld.scalars["cpus"] == 4000
    book.agents["a"].disconnect()
    assert not book.machine.cluster.ledger.gang_holds
    book.agents["a"].connect()
    assert book.agents["a"].view.withheld.scalars["cpus"] == 4000


def test_a_hold_of_linked_gpus_fills_a_clique(book: Any) -> None:
    book.agent("a", devices=book.linked("a", [[0, 1, 2, 3], [4, 5, 6, 7]]))
    user = book.framework("user", roles=["small"])
    user.run(*[book.spec(f"x{n}", cpus=0.5, devices=[f"a-gpu{n}"]) for n in range(8)], offer=user.offer)
    user.suppress()
    framework = book.asleep()
    framework.ask_for_gang((1, book.request(cpus=1, gpus=4)), clique=True)
    for n in (0, 4, 5, 6):
        book.agents["a"].update(f"x{n}", TaskState.FINISHED, framework="user")
    assert framework.gang_states() == ["WAITING"]
    assert {f"a-gpu{n}" for n in (4, 5, 6)} <= book.agents["a"].view.withheld.devices
    devices = book.ask(op.ListDevicesRequest(book.page())).devices
    assert {view.use for view in devices if view.device.uuid == "a-gpu4"} == {"withheld"}
    book.agents["a"].update("x7", TaskState.FINISHED, framework="user")
    assert set(framework.bundle.members[0].device_uuids) == {f"a-gpu{n}" for n in (4, 5, 6, 7)}


# --- quota ---


def test_a_gang_beyond_its_roles_limit_is_refused(book: Any) -> None:
    book.agent()
    book.ask(op.SetQuotasRequest("", (op.Quota("ml", {}, {"cpus": 3000}),)))
    framework = book.asleep(roles=["ml/train"])
    framework.ask_for_gang((4, book.request(cpus=1)))
    assert "needs cpus:4, and the limit of ml is cpus:3" in framework.gang_error().message


def test_a_gang_waits_for_its_limit_and_holds_nothing_meanwhile(book: Any) -> None:
    book.agent("a")
    book.agent("b")
    book.ask(op.SetQuotasRequest("", (op.Quota("ml", {}, {"cpus": 8000}),)))
    user = book.framework("user", roles=["ml"])
    offer = next(iter(user.offers.values()))
    user.run(book.spec("x", cpus=6), offer=offer)
    user.suppress()
    framework = book.asleep(roles=["ml"])
    framework.ask_for_gang((4, book.request(cpus=1)))
    assert framework.gang_states() == ["WAITING"]
    assert not book.machine.cluster.ledger.gang_holds
    book.quiet()
    book.agents[offer.agent_id].update("x", TaskState.FINISHED, framework="user")
    assert framework.gang_states() == ["BUNDLE"]


def test_what_is_kept_for_guarantees_is_not_for_gangs(book: Any) -> None:
    book.agent("a")
    book.agent("b")
    book.ask(op.SetQuotasRequest("", (op.Quota("eng", {"cpus": 10_000}, {}),)))
    framework = book.asleep(roles=["ml"])
    framework.ask_for_gang((7, book.request(cpus=1)))
    assert framework.gang_states() == ["WAITING"]
    assert "kept free" in next(iter(book.machine.cluster.gangs.by_key.values())).hindrance
    framework.ask_for_gang((6, book.request(cpus=1)))
    assert framework.gang_states() == ["WAITING", "BUNDLE"]


def test_a_fulfilled_guarantee_lets_a_gang_go(book: Any) -> None:
    for name in "abc":
        book.agent(name)
    book.ask(op.SetQuotasRequest("", (op.Quota("eng", {"cpus": 8000}, {}),)))
    framework = book.asleep(roles=["ml"])
    framework.ask_for_gang((17, book.request(cpus=1)))
    assert framework.gang_states() == ["WAITING"]
    book.reserve("c", "eng", book.request(cpus=8))
    framework.ask_for_gang((16, book.request(cpus=1)))
    assert framework.gang_states()[-1] == "BUNDLE"
    book.quiet()

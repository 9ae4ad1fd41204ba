"""Dialogues: a gang of whoever it is kept for calls back what is lent, all or nothing."""

from __future__ import annotations

from typing import Any

from dialogue.loans import NOTICE_MS, borrow_all, borrower, bundles, end, notices, pass_time

from bursar.core.errors import ErrorDetail
from bursar.core.messages import operator as op
from bursar.core.messages.offers import Demand


def lent_agents(book: Any, names: str = "abc", *, gpus: int = 2, **more: Any) -> None:
    """Agents of which all that counts is kept for ml, and lent."""
    for name in names:
        book.agent(name, cpus=4, mem=0, gpus=gpus, **more)
        answer = book.ask(op.ReserveResourcesRequest("", name, "ml", book.request(cpus=4, gpus=gpus), lend=True))
        assert not isinstance(answer, ErrorDetail), answer


def test_a_gang_of_the_holder_calls_loans_back_all_or_nothing(book: Any) -> None:
    lent_agents(book)
    capable = borrower(book, gpus=1)
    assert len(borrow_all(book, capable, gpus=True)) == 6
    gang = book.asleep("o", roles=["ml/train"])
    shape = book.request(cpus=1, gpus=2)
    gang.ask_for_gang((4, shape), role="ml/train")
    assert gang.gang_states() == ["REFUSED"]
    assert not notices(capable), "what would not be enough is left alone"
    gang.ask_for_gang((2, shape), role="ml/train", gang_id="h")
    assert len(notices(capable)) == 4, "as many as stand in the way"
    pass_time(book, NOTICE_MS)
    assert bundles(gang) == 1
    bundle = gang.bundle
    assert {part.stack[-1].holder for offer in bundle.offers for part in offer.resources if part.stack} == {"ml"}
    assert gang.take(bundle, {0: shape}).error is None


def test_a_gang_that_lacks_more_than_loans_calls_nothing_back(book: Any) -> None:
    lent_agents(book)
    capable = borrower(book, gpus=1)
    borrow_all(book, capable, gpus=True)
    owner = book.framework("p", roles=("ml",), demand=Demand(1, (book.shape(1, role="ml", cpus=1, gpus=2),)))
    assert len(notices(capable)) == 2
    pass_time(book, NOTICE_MS)
    owner.run(book.spec("mine", cpus=1, gpus=2), offer=owner.offer, refuse_ms=0)
    gang = book.asleep("o", roles=["ml/train"])
    gang.ask_for_gang((3, book.request(cpus=1, gpus=2)), role="ml/train")
    book.advance(10_000)
    assert bundles(gang) == 0 and not notices(capable)
    (agent_id,) = {task.agent_id for task in book.machine.cluster.tasks.values() if task.key.task_id == "mine"}
    end(book, "mine", agent_id, "p")
    assert len(notices(capable)) == 4
    pass_time(book, NOTICE_MS)
    assert bundles(gang) == 1


def test_within_its_topology(book: Any) -> None:
    for name, rack in (("a", "r1"), ("b", "r1"), ("c", "r2"), ("d", "r2")):
        lent_agents(book, name, attributes={"rack": rack})
    capable = borrower(book, gpus=1)
    assert len(borrow_all(book, capable, gpus=True)) == 8
    blocked = book.framework("p", roles=("ml",), demand=Demand(1, (book.shape(1, role="ml", cpus=1, gpus=1),)))
    pass_time(book, NOTICE_MS)
    agent_id = blocked.offer.agent_id
    blocked.run(book.spec("mine", cpus=1, gpus=1), offer=blocked.offer, refuse_ms=0)
    notices(capable)
    gang = book.asleep("o", roles=["ml"])
    gang.ask_for_gang((2, book.request(cpus=1, gpus=2)), role="ml", same="rack")
    assert len(notices(capable)) == 4
    pass_time(book, NOTICE_MS)
    there = {offer.agent_id for offer in gang.bundle.offers}
    assert there == ({"c", "d"} if agent_id in "ab" else {"a", "b"})


def test_linked_gpus_come_back_together(book: Any) -> None:
    book.agent("a", cpus=8, devices=book.linked("a", [[0, 1], [2, 3]]))
    book.ask(op.ReserveResourcesRequest("", "a", "ml", book.request(cpus=8, gpus=4), lend=True))
    capable = borrower(book, gpus=1)
    for index in range(4):
        (offer,) = capable.offers.values()
        capable.accept(offer, book.launch(book.spec(f"n{index}", devices=[f"a-gpu{index}"])), refuse_ms=0)
        book.advance(2_000)
    end(book, "n0", "a", "b")
    end(book, "n3", "a", "b")
    gang = book.asleep("o", roles=["ml"])
    shape = book.request(cpus=1, gpus=2)
    gang.ask_for_gang((1, shape), role="ml", clique=True)
    assert len(notices(capable)) == 1
    pass_time(book, NOTICE_MS)
    assert bundles(gang) == 1
    assert gang.take(gang.bundle, {0: shape}).error is None


def test_it_need_not_wait_for_its_turn(book: Any) -> None:
    lent_agents(book, "abc")
    capable = borrower(book, gpus=1)
    borrow_all(book, capable, gpus=True)
    user = book.framework("user", roles=("ops",))
    book.agent("d", mem=0, cpus=4)
    user.run(book.spec("u", cpus=1), offer=user.offer, refuse_ms=0)
    user.suppress()
    first = book.asleep("one", roles=["web"])
    first.ask_for_gang((1, book.request(cpus=4)), role="web")
    assert book.machine.cluster.gangs.holder is not None
    gang = book.asleep("o", roles=["ml/train"])
    gang.ask_for_gang((3, book.request(cpus=1, gpus=2)), role="ml/train")
    assert len(notices(capable)) == 6
    assert book.machine.cluster.gangs.holder.key == ("one", "g"), "the other one goes on holding"
    pass_time(book, NOTICE_MS)
    assert bundles(gang) == 1 and bundles(first) == 0


def test_whoever_called_first_has_it_and_the_next_one_the_rest(book: Any) -> None:
    lent_agents(book, "abc")
    capable = borrower(book, gpus=1)
    borrow_all(book, capable, gpus=True)
    gang = book.asleep("o", roles=["ml/train"])
    gang.ask_for_gang((2, book.request(cpus=1, gpus=2)), role="ml/train")
    single = book.framework("p", roles=("ml",), demand=Demand(1, (book.shape(2, role="ml", cpus=1, gpus=1),)))
    assert len(notices(capable)) == 6
    pass_time(book, NOTICE_MS)
    assert bundles(gang) == 1 and len(single.offered().devices) == 2


def test_claims_that_were_made_before_are_left_alone(book: Any) -> None:
    lent_agents(book, "ab")
    capable = borrower(book, gpus=1)
    borrow_all(book, capable, gpus=True)
    single = book.framework("p", roles=("ml",), demand=Demand(1, (book.shape(1, role="ml", cpus=1, gpus=2),)))
    assert len(notices(capable)) == 2
    gang = book.asleep("o", roles=["ml/train"])
    gang.ask_for_gang((2, book.request(cpus=1, gpus=2)), role="ml/train")
    book.advance(5_000)
    assert not notices(capable)
    pass_time(book, NOTICE_MS)
    assert len(single.offered().devices) == 2 and bundles(gang) == 0

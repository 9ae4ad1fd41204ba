"""What operators are shown of roles: which there are, and what each holds, keeps, consumes and may still have (ROL-1, ROL-5)."""

from __future__ import annotations

from typing import Any

from bursar.core.messages import operator as op
from bursar.core.messages.offers import Demand
from bursar.core.messages.operator import Quota
from bursar.core.tasks import TaskState
from bursar.core.text import parse_amounts


def roles(book: Any) -> dict[str, Any]:
    return {view.role: view for view in book.ask(op.ListRolesRequest()).roles}


def test_roles_appear_and_vanish_with_use(book: Any) -> None:
    agent = book.agent(gpus=2)
    assert list(roles(book)) == ["*"]
    framework = book.framework("f", roles=["eng/web"], failover_ms=0)
    assert list(roles(book)) == ["*", "eng", "eng/web"]
    framework.run(book.spec("t", cpus=1))
    framework.disconnect()
    assert "eng/web" in roles(book), "its task is still ending"
    agent.update("t", TaskState.KILLED)
    assert list(roles(book)) == ["*"]


def test_a_reservation_a_quota_or_a_weight_is_enough(book: Any) -> None:
    book.agent(gpus=2)
    book.reserve("a", "kept/here", book.request(gpus=1))
    book.set_quotas(book.quota("limited", limit="gpus:1"))
    book.set_weights({"heavy": 2000, "nested/deep": 3000, "self/.": 500})
    found = roles(book)
    assert sorted(found) == ["*", "heavy", "kept", "kept/here", "limited", "nested", "nested/deep", "self"]
    assert found["heavy"].weight_milli == 2000 and found["self"].own_weight_milli == 500
    assert found["kept"].reserved == found["kept/here"].reserved == book.resources(devices=["a-gpu0"])
    book.unreserve("a", "kept/here", book.request(gpus=1))
    book.set_quotas(Quota("limited"))
    book.set_weights({"heavy": 1000, "nested/deep": 1000, "self/.": 1000})
    assert list(roles(book)) == ["*"]


def test_what_is_used_and_left_is_shown_level_by_level(book: Any) -> None:
    book.agent(cpus=8, gpus=8)
    book.reserve("a", "eng/web", book.request(gpus=1))
    book.set_quotas(
        book.quota("eng", limit="gpus:5"), book.quota("eng/web", "gpus:2", "gpus:4"), book.quota("eng/db", "cpus:2")
    )
    demand = Demand(1, (book.shape(2, role="eng/db", cpus=1, gpus=1),))
    db = book.framework("f", roles=["eng/db"], demand=demand)
    db.run(book.spec("t", cpus=1, gpus=1))
    found = roles(book)
    eng, web, below = found["eng"], found["eng/web"], found["eng/db"]
    offered = len(db.offered().devices)
    assert eng.consumed["gpus"] == 1000 * (1 + 1 + offered) and eng.limit_left == {"gpus": 5000 - eng.consumed["gpus"]}
    assert (web.guarantees, web.limits) == (parse_amounts("gpus:2"), parse_amounts("gpus:4"))
    assert web.consumed == {"gpus": 1000} and web.unmet == {"gpus": 1000}
    # Its own limit leaves three, that of eng less.
    assert web.limit_left == {"gpus": min(3000, eng.limit_left["gpus"])}
    assert below.limit_left == eng.limit_left and below.limits == {}
    assert len(below.allocated.devices) == 1 and eng.allocated == below.allocated
    assert below.framework_ids == ("f",) and eng.framework_ids == ()
    assert found["*"].limit_left == {} == found["*"].consumed


def test_a_passed_limit_is_shown_as_less_than_nothing_left(book: Any) -> None:
    book.agent(gpus=4)
    framework = book.framework("f", roles=["ml"])
    framework.run(book.spec("t", cpus=1, gpus=3))
    book.set_quotas(book.quota("ml", limit="gpus:1"), force=True)
    assert roles(book)["ml"].limit_left == {"gpus": -2000}


def test_pages_of_roles(book: Any) -> None:
    book.set_weights({f"r{number}": 2000 for number in range(5)})
    first = book.ask(op.ListRolesRequest(book.page(4)))
    second = book.ask(op.ListRolesRequest(book.page(4, first.next_page_token)))
    assert [view.role for view in (*first.roles, *second.roles)] == ["*", "r0", "r1", "r2", "r3", "r4"]
    assert second.next_page_token == ""

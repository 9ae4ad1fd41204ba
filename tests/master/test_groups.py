"""Reservations to role expressions, and role groups that change who they are for (M-13, design.md §5)."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bursar.core.errors import ErrorDetail, ErrorReason
from bursar.core.messages import operator as op
from bursar.core.messages.framework import Rescind
from bursar.core.messages.rules import Rule, RuleAction, RuleMode
from bursar.core.resources import ReservedResources
from bursar.core.role_expressions import parse_role_expression
from bursar.master.allocator.holders import Holders

DESIGN = "(ml/** | eng/backend/image-processing) & !ml/interns"


def keep(book: Any, agent: str, roles: str, **amounts: Any) -> Any:
    """Reserve to a role expression."""
    return book.ask(op.ReserveResourcesRequest("", agent, "", book.request(**amounts), roles=roles))


def set_group(book: Any, name: str, *members: str, request_id: str = "") -> Any:
    return book.ask(op.SetRoleGroupRequest(request_id, name, members))


def remove_group(book: Any, name: str, *, force: bool = False) -> Any:
    return book.ask(op.RemoveRoleGroupRequest("", name, force))


def groups(book: Any) -> dict[str, tuple[str, ...]]:
    return {group.name: group.members for group in book.ask(op.ListRoleGroupsRequest()).groups}


# --- whom an expression is for ---


@pytest.mark.parametrize(
    ("role", "devices"),
    [
        ("ml", 0),
        ("ml/train", 2),
        ("ml/train/deep", 2),
        ("ml/interns", 0),
        ("ml/interns/one", 0),
        ("eng/backend/image-processing", 2),
        ("eng/backend", 0),
        ("*", 0),
    ],
)
def test_only_roles_that_the_expression_covers_are_offered_it(book: Any, role: str, devices: int) -> None:
    book.agent(cpus=8, gpus=2)
    answer = keep(book, "a", DESIGN, gpus=2)
    assert answer.reservation.stack == book.dynamic(DESIGN, "operator")
    framework = book.framework(roles=(role,))
    assert len(framework.offered().devices) == devices
    assert framework.offered().scalars["cpus"] == 8000, "what is not reserved is everybody's"


def test_a_static_reservation_may_be_to_an_expression(book: Any) -> None:
    book.agent(
        parts=[
            ReservedResources((), book.resources(4, 4)),
            ReservedResources(book.static("ml/** & !ml/interns"), book.resources(1, 1, ["a-gpu0"])),
        ],
        devices=book.devices("a", 1),
    )
    assert book.framework("f", roles=("ml/interns",)).offered().devices == frozenset()
    assert book.framework("g", roles=("ml/train",)).offered().devices == {"a-gpu0"}


def test_what_is_kept_for_several_roles_is_shared_fairly_between_them(book: Any) -> None:
    for name in "abcd":
        book.agent(name, cpus=2, gpus=1)
        keep(book, name, "red | blue", cpus=1, gpus=1)
    with book.batch():
        frameworks = [book.framework(role, roles=(role,)) for role in ("green", "red", "blue")]
    assert [len(framework.offered().devices) for framework in frameworks] == [0, 2, 2]


def test_it_is_charged_to_nobody_while_idle_and_to_whoever_uses_it_then(book: Any) -> None:
    book.agent(cpus=8, gpus=4)
    keep(book, "a", "red | blue", gpus=4)
    roles = {view.role: view for view in book.ask(op.ListRolesRequest()).roles}
    assert "red | blue" not in roles and all(not view.reserved for view in roles.values())
    red = book.framework("red", roles=("red",))
    red.run(book.spec("t", gpus=3))
    roles = {view.role: view for view in book.ask(op.ListRolesRequest()).roles}
    assert roles["red"].share_millionths == 750_000 and not roles["red"].reserved


def test_a_reservation_is_shown_with_the_roles_known_now(book: Any) -> None:
    book.agent(cpus=8, gpus=4)
    keep(book, "a", "ml/** & !ml/interns", gpus=1)
    for role in ("ml/train", "ml/interns", "ml"):
        book.framework(role.replace("/", "-"), roles=(role,))
    (view,) = book.ask(op.ListReservationsRequest()).reservations
    assert view.stack[0].holder == "ml/** & !ml/interns" and view.covered_roles == ("ml/train",)


def test_an_expression_is_given_back_by_whoever_writes_it_as_it_is_meant(book: Any) -> None:
    book.agent(cpus=8, gpus=4)
    keep(book, "a", "red|blue", gpus=4)
    wanted = book.request(gpus=3)
    refused = book.ask(op.UnreserveResourcesRequest("", "a", "red", wanted))
    assert refused.reason is ErrorReason.NOT_FOUND
    answer = book.ask(op.UnreserveResourcesRequest("", "a", "", wanted, roles="( red | blue )"))
    assert len(answer.reservation.resources.devices) == 3
    (view,) = book.ask(op.ListReservationsRequest()).reservations
    assert len(view.resources.devices) == 1


def test_a_role_with_odd_characters_is_still_a_plain_role(book: Any) -> None:
    book.agent(cpus=8, gpus=1)
    answer = book.reserve("a", "a@b", book.request(gpus=1))
    assert answer.reservation.stack[0].holder == '"a@b"'
    assert len(book.framework(roles=("a@b/c",)).offered().devices) == 1
    assert "a@b" in {view.role for view in book.ask(op.ListRolesRequest()).roles if view.reserved}


REFUSED = {
    "does not parse": ("ml &", ErrorReason.INVALID_ARGUMENT, "a role is expected at the end"),
    "is blank": ("  ", ErrorReason.INVALID_ARGUMENT, "names no role"),
    "is everybody": ("*", ErrorReason.INVALID_ARGUMENT, "everybody"),
    "covers no role": ("ml & !ml", ErrorReason.INVALID_ARGUMENT, "covers no role"),
    "covers only what a group removes": ("@few & !red", ErrorReason.INVALID_ARGUMENT, "covers no role"),
    "names an unknown group": ("ml | @nobody", ErrorReason.NOT_FOUND, "no role group @nobody"),
    "is too long": ("a" * 5000, ErrorReason.INVALID_ARGUMENT, "too many"),
    "has too many roles": (" | ".join(f"r{n}" for n in range(300)), ErrorReason.INVALID_ARGUMENT, "too many"),
    "costs too much": ("@g0 | @g1 | @g2 | @g3 | @g4 | @g5", ErrorReason.INVALID_ARGUMENT, "would cost too much"),
    "is nested too deeply": ("(" * 100 + "a" + ")" * 100, ErrorReason.INVALID_ARGUMENT, "too many"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_an_expression_is_refused_that(book: Any, what: str) -> None:
    roles, reason, words = REFUSED[what]
    book.agent(cpus=8, gpus=1)
    set_group(book, "few", "red")
    for index in range(6):
        assert not isinstance(set_group(book, f"g{index}", *(f"r{index}x{n}" for n in range(999))), ErrorDetail)
    framework = book.framework()
    before = dict(framework.offers)
    refused = keep(book, "a", roles, gpus=1)
    assert refused.reason is reason and words in refused.message and refused.hint and refused.field == "roles"
    assert framework.offers == before and not book.registry.agents["a"].reservations


def test_either_a_role_or_an_expression_is_named(book: Any) -> None:
    book.agent(gpus=1)
    both = book.ask(op.ReserveResourcesRequest("", "a", "ml", book.request(gpus=1), roles="ml | eng"))
    assert both.reason is ErrorReason.INVALID_ARGUMENT
    neither = book.ask(op.UnreserveResourcesRequest("", "a", "", book.request(gpus=1)))
    assert neither.reason is ErrorReason.INVALID_ARGUMENT


# --- groups ---


def test_a_new_member_is_offered_what_the_group_has(book: Any) -> None:
    book.agent(cpus=8, gpus=2)
    set_group(book, "gpu-users", "red")
    keep(book, "a", "@gpu-users", gpus=2)
    blue = book.framework(roles=("blue",))
    assert not blue.offered().devices
    answer = set_group(book, "gpu-users", "red", "blue")
    assert answer.group.members == ("red", "blue") and answer.group.reservations == 1
    blue.decline(*blue.offers.values())
    assert blue.offered().devices == {"a-gpu0", "a-gpu1"}, "the CPUs that it declined come back with more"


def test_a_member_that_declined_less_is_offered_more_without_anything_else_happening(book: Any) -> None:
    book.agent(cpus=8, gpus=2)
    set_group(book, "gpu-users", "red")
    keep(book, "a", "@gpu-users", gpus=2)
    blue = book.framework(roles=("blue",))
    blue.decline(*blue.offers.values(), refuse_ms=3_600_000)
    assert not blue.offers
    set_group(book, "gpu-users", "blue")
    assert blue.offered().devices == {"a-gpu0", "a-gpu1"}
    assert not book.full_cycle_offers()


def test_a_former_member_loses_its_offers_before_the_answer_but_not_its_tasks(book: Any) -> None:
    book.agent(cpus=8, gpus=2)
    book.agent("b", cpus=8)
    set_group(book, "gpu-users", "red | blue")
    keep(book, "a", "@gpu-users", gpus=2)
    blue = book.framework(roles=("blue",))
    (offer,) = (offer for offer in blue.offers.values() if offer.agent_id == "a")
    blue.run(book.spec("t", cpus=1, gpus=1), offer=offer, refuse_ms=0)
    book.advance(2000)
    assert blue.offered().devices
    blue.heard(Rescind)
    with book.batch():
        answer = set_group(book, "gpu-users", "red")
        (rescind,) = blue.heard(Rescind)
    assert answer.rescinded_offers == len(rescind.offer_ids) == 1 and "@gpu-users" in rescind.reason
    assert not blue.offered().devices and blue.agents == {"a", "b"}, "what is not reserved is offered again"
    assert blue.view.tasks == 1 and not blue.states()
    late = blue.accept([rescind.offer_ids[0]])
    assert late.error is not None and late.error.reason is ErrorReason.INVALID_OFFERS


def test_groups_of_groups(book: Any) -> None:
    book.agent(cpus=8, gpus=2)
    set_group(book, "inner", "red")
    set_group(book, "outer", "@inner | green")
    keep(book, "a", "@outer & !@inner", cpus=1, gpus=1)
    keep(book, "a", "@outer", cpus=1, gpus=1)
    assert len(book.framework("f", roles=("red",)).offered().devices) == 1
    set_group(book, "inner", "blue")
    book.frameworks["f"].disconnect()
    assert len(book.framework("g", roles=("blue",)).offered().devices) == 1
    book.frameworks["g"].disconnect()
    assert len(book.framework("h", roles=("green",)).offered().devices) == 2
    counts = {group.name: group.reservations for group in book.ask(op.ListRoleGroupsRequest()).groups}
    assert counts == {"inner": 2, "outer": 2}


BAD_GROUPS = {
    "without members": ("g", (), "no members", ErrorReason.INVALID_ARGUMENT),
    "of a broken expression": ("g", ("red", "a |"), "a role is expected", ErrorReason.INVALID_ARGUMENT),
    "of everybody": ("g", ("*",), "", ErrorReason.INVALID_ARGUMENT),
    "with a bad name": ("a/b", ("red",), "not a name", ErrorReason.INVALID_ARGUMENT),
    "of itself": ("g", ("@g | red",), "circle", ErrorReason.INVALID_ARGUMENT),
    "of those that name it": ("base", ("@above",), "circle", ErrorReason.INVALID_ARGUMENT),
    "of unknown ones": ("g", ("@nobody",), "no role group @nobody", ErrorReason.NOT_FOUND),
    "of nobody": ("g", ("red & !red",), "no role", ErrorReason.INVALID_ARGUMENT),
    "of too many": ("g", tuple(f"r{n}" for n in range(1001)), "too many", ErrorReason.INVALID_ARGUMENT),
}


@pytest.mark.parametrize("what", BAD_GROUPS)
def test_no_group_is_made(book: Any, what: str) -> None:
    name, members, words, reason = BAD_GROUPS[what]
    set_group(book, "base", "red")
    set_group(book, "above", "@base")
    before, records = groups(book), len(book.records)
    refused = set_group(book, name, *members)
    assert refused.reason is reason and words in refused.message and refused.hint
    assert groups(book) == before and len(book.records) == records


def test_groups_cannot_grow_beyond_what_can_be_evaluated(book: Any) -> None:
    for index in range(5):
        set_group(book, f"g{index}", *(f"r{index}x{n}" for n in range(900)))
    assert not isinstance(set_group(book, "all", *(f"@g{index}" for index in range(5))), ErrorDetail)
    refused = set_group(book, "g0", *(f"@g1 & s{n}" for n in range(600)), "x")
    assert refused.reason is ErrorReason.INVALID_ARGUMENT and "would cost too much" in refused.message


def test_a_group_that_is_named_stays_unless_forced(book: Any) -> None:
    book.agent(cpus=8, gpus=2)
    set_group(book, "gpu-users", "red")
    set_group(book, "all", "@gpu-users")
    keep(book, "a", "@gpu-users | green", cpus=1, gpus=2)
    refused = remove_group(book, "gpu-users")
    assert refused.reason is ErrorReason.RESOURCES_IN_USE
    assert "1 reservation" in refused.message and "@all" in refused.message and "--force" in refused.hint
    red = book.framework("red", roles=("red",))
    assert red.offered().devices
    answer = remove_group(book, "@gpu-users", force=True)
    assert answer.rescinded_offers == 1 and answer.group.members == ("red",)
    assert not red.offered().devices and groups(book) == {"all": ("@gpu-users",)}
    assert len(book.framework("green", roles=("green",)).offered().devices) == 2, "the rest of the expression holds"
    assert remove_group(book, "gpu-users").reason is ErrorReason.NOT_FOUND
    gone = book.ask(op.UnreserveResourcesRequest("", "a", "", book.request(gpus=2), roles="@gpu-users | green"))
    assert len(gone.reservation.resources.devices) == 2, "it can be given back all the same"
    assert not isinstance(remove_group(book, "all"), ErrorDetail)


def test_rules_that_name_a_group_count(book: Any) -> None:
    set_group(book, "interns", "red")
    set_group(book, "all", "@interns")
    for name, roles in (("direct", "@interns"), ("through", "sales | @all"), ("other", "green")):
        rule = Rule(name, RuleAction.HIDE_AGENT, framework=f"role={roles}", agent="gpus>=1")
        assert not isinstance(book.ask(op.AddRuleRequest(rule)), ErrorDetail)
    refused = remove_group(book, "interns")
    assert "the group @all" in refused.message and "the rules direct, through" in refused.message
    assert "bursar rule ls" in refused.hint
    assert set(groups(book)) == {"interns", "all"}
    for name in ("direct", "through"):
        book.ask(op.RemoveRuleRequest(name))
    assert not isinstance(remove_group(book, "all"), ErrorDetail)
    assert not isinstance(remove_group(book, "interns"), ErrorDetail)


def test_groups_outlive_the_master(book: Any) -> None:
    agent = book.agent(cpus=8, gpus=2)
    set_group(book, "gpu-users", "red/**", "=blue")
    keep(book, "a", "@gpu-users", gpus=2)
    book.restart()
    assert groups(book) == {"gpu-users": ("red/**", "=blue")}
    agent.connect()
    assert len(book.framework(roles=("blue",)).offered().devices) == 2


def test_a_repeated_request_gets_the_first_answer(book: Any) -> None:
    first = set_group(book, "g", "red", request_id="one")
    set_group(book, "g", "blue", request_id="two")
    assert set_group(book, "g", "red", request_id="one") == first
    assert groups(book) == {"g": ("blue",)}


names = st.sampled_from(["a", "b", "c"])
texts = st.sampled_from(["x", "x/**", "=x", "@a", "@b | y", "!@c", "(x | @a) & !x/z", "y & @b"])


@settings(max_examples=60)
@given(
    st.lists(
        st.tuples(names, st.none() | texts) | st.tuples(texts, st.sampled_from(["x", "x/z", "y", "*"])), max_size=30
    )
)
def test_answers_are_never_those_of_former_groups(steps: list[tuple[str, str | None]]) -> None:
    holders = Holders()
    known: dict[str, Any] = {}
    for first, second in steps:
        if first in ("a", "b", "c"):
            members = None if second is None else parse_role_expression(second)
            holders.set_group(first, members)
            known = {**known, first: members}
        else:
            assert second is not None
            now = {name: members for name, members in known.items() if members is not None}
            assert holders.covers(first, second) == parse_role_expression(first).covers(second, now)
            holders.check(now)


def test_a_rule_may_speak_of_a_group(book: Any) -> None:
    book.agent("a", cpus=8)
    set_group(book, "guests", "red")
    rule = Rule("no-guests", RuleAction.HIDE_AGENT, RuleMode.ENFORCE, framework="role=@guests")
    assert not isinstance(book.ask(op.AddRuleRequest(rule)), ErrorDetail)
    assert not book.framework("red", roles=("red",)).offers
    blue = book.framework("blue", roles=("blue",))
    assert blue.offers
    assert set_group(book, "guests", "blue").rescinded_offers == 1
    assert not blue.offers and book.frameworks["red"].offers
    book.restart()
    for peer in (book.agents["a"], book.frameworks["red"], book.frameworks["blue"]):
        peer.connect()
    assert not blue.offers and book.frameworks["red"].offers

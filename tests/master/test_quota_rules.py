"""The arithmetic of quota against the formulas read out from scratch, over random trees of roles."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from bursar.core.messages.operator import RefusalReason
from bursar.master.allocator import quota

KIND = "gpus"


@dataclass(eq=False)
class Role:
    path: str
    parent: Role | None = None
    children: dict[str, Role] = field(default_factory=dict)
    guarantee: dict[str, int] = field(default_factory=dict)
    limit: dict[str, int] = field(default_factory=dict)
    #: What the role itself consumes, without those below it.
    mine: int = 0
    unmet: dict[str, int] = field(default_factory=dict)
    unmet_below: dict[str, int] = field(default_factory=dict)

    def consumed(self, kind: str) -> int:
        return self.mine + sum(child.consumed(kind) for child in self.children.values()) if kind == KIND else 0

    def add(self, name: str, mine: int = 0, guarantee: int | None = None, limit: int | None = None) -> Role:
        path = f"{self.path}/{name}" if self.path else name
        child = self.children[name] = Role(path, self, mine=mine)
        if guarantee is not None:
            child.guarantee[KIND] = guarantee
        if limit is not None:
            child.limit[KIND] = limit
        quota.settle(child, KIND)
        return child

    def take(self, amount: int) -> None:
        self.mine += amount
        quota.settle(self, KIND)


def root_of(role: Role) -> Role:
    return role if role.parent is None else root_of(role.parent)


def all_below(role: Role) -> list[Role]:
    return [found for child in role.children.values() for found in (child, *all_below(child))]


def path_up(role: Role) -> list[Role]:
    """The role and those above it, the root left out."""
    return [] if role.parent is None else [role, *path_up(role.parent)]


# --- the formulas, as they are written ---


def read_unmet(role: Role) -> int:
    hoped = max(
        0,
        role.guarantee.get(KIND, 0) - role.consumed(KIND),
        sum(read_unmet(child) for child in role.children.values()),
    )
    lefts = [above.limit[KIND] - above.consumed(KIND) for above in path_up(role) if KIND in above.limit]
    return max(0, min([hoped, *lefts]))


def read_headroom(root: Role) -> int:
    return sum(read_unmet(child) for child in root.children.values())


def read_own(role: Role) -> int:
    """Taken by the role itself, unit by unit, for as long as every unit lowers some level's unmet guarantees."""
    found = 0
    for above in path_up(role):
        hoped_below = sum(child.unmet.get(KIND, 0) for child in above.children.values())
        left = max(0, above.guarantee.get(KIND, 0) - above.consumed(KIND))
        if hoped_below < left:
            found += left - hoped_below
    lefts = [max(0, above.limit[KIND] - above.consumed(KIND)) for above in path_up(role) if KIND in above.limit]
    return min([found, *lefts])


def shortfalls(root: Role, free: int) -> dict[str, int]:
    """What cannot be kept of the guarantees: of the cluster's, and of those below each limit."""
    found = {"": max(0, read_headroom(root) - free)}
    for role in all_below(root):
        if KIND in role.limit:
            hoped = sum(child.unmet.get(KIND, 0) for child in role.children.values())
            found[role.path] = max(0, hoped - max(0, role.limit[KIND] - role.consumed(KIND)))
    return found


def passed(root: Role) -> dict[str, int]:
    """By how much each limit is passed."""
    return {role.path: max(0, role.consumed(KIND) - role.limit[KIND]) for role in all_below(root) if KIND in role.limit}


amounts = st.integers(0, 12)


@st.composite
def trees(draw: st.DrawFn) -> Role:
    root = Role("")

    def grow(parent: Role, depth: int) -> None:
        for name in "abc"[: draw(st.integers(1 if depth == 0 else 0, 3))]:
            limit = draw(st.none() | amounts)
            # A guarantee is never above the limit; consumption may be (forced, or an agent came back).
            guarantee = draw(st.none() | st.integers(0, 12 if limit is None else limit))
            child = parent.add(name, draw(st.integers(0, 4)), guarantee, limit)
            if depth < 2:
                grow(child, depth + 1)

    grow(root, 0)
    return root


@given(trees())
def test_the_counters_mean_what_the_formula_says(root: Role) -> None:
    quota.check(root)
    assert quota.headroom(root, KIND) == read_headroom(root)
    for role in all_below(root):
        assert quota.unmet(role, KIND) == read_unmet(role), role.path
        assert quota.own(role, KIND) == read_own(role), role.path


@given(trees(), st.data(), st.lists(st.integers(-4, 6), max_size=5))
def test_the_counters_follow_what_is_taken_and_given_back(root: Role, data: st.DataObject, changes: list[int]) -> None:
    for change in changes:
        role = data.draw(st.sampled_from(all_below(root)))
        role.take(max(change, -role.mine))
        quota.check(root)
        assert quota.headroom(root, KIND) == read_headroom(root)


@given(trees(), st.data(), st.integers(0, 30))
def test_what_is_given_within_the_bound_hurts_nobody(root: Role, data: st.DataObject, free: int) -> None:
    role = data.draw(st.sampled_from(all_below(root)))
    most = quota.bound(role, KIND, free)
    given_amount = data.draw(st.integers(0, min(most, free)))
    short_before, passed_before = shortfalls(root, free), passed(root)
    role.take(given_amount)
    short_after, passed_after = shortfalls(root, free - given_amount), passed(root)
    for path, missing in short_after.items():
        assert missing <= short_before[path], (role.path, given_amount, path)
    if given_amount:
        for path, excess in passed_after.items():
            above = role.path == path or role.path.startswith(f"{path}/")
            assert excess == (0 if above else passed_before[path]), (role.path, given_amount, path)


@given(trees(), st.data(), st.integers(0, 30))
def test_one_more_than_the_bound_would_hurt_somebody(root: Role, data: st.DataObject, free: int) -> None:
    role = data.draw(st.sampled_from(all_below(root)))
    most = quota.bound(role, KIND, free)
    if most >= free:
        return
    short_before, passed_before = shortfalls(root, free), passed(root)
    role.take(most + 1)
    short_after, passed_after = shortfalls(root, free - most - 1), passed(root)
    worse_kept = any(short_after[path] > short_before[path] for path in short_after)
    worse_passed = any(passed_after[path] > passed_before[path] for path in passed_after)
    assert worse_kept or worse_passed, (role.path, most)


@given(trees(), st.data(), st.integers(0, 30))
def test_the_reason_is_what_binds(root: Role, data: st.DataObject, free: int) -> None:
    role = data.draw(st.sampled_from(all_below(root)))
    amount, reason = quota.allowance(role, KIND, free)
    left = quota.least_limit_left(role, KIND)
    assert (reason is RefusalReason.QUOTA_LIMIT) == (left is not None and amount == max(0, left))
    by_limits = quota.allowance(role, KIND, None).amount
    assert by_limits >= amount


def test_free_resources_are_kept_for_a_guarantee_nobody_uses_yet() -> None:
    root = Role("")
    served, other = root.add("served", guarantee=4), root.add("other")
    assert quota.headroom(root, KIND) == 4
    assert quota.bound(other, KIND, 6) == 2
    assert quota.bound(served, KIND, 6) == 6
    served.take(3)
    assert quota.bound(other, KIND, 3) == 2
    assert quota.bound(other, KIND, 1) == 0 and quota.bound(served, KIND, 1) == 1


def test_a_guarantee_above_those_of_the_children_is_for_any_of_them() -> None:
    """mesos.md asks the same of a parent; the children's hopes are part of it, not more than it."""
    root = Role("")
    eng = root.add("eng", guarantee=6)
    web, db = eng.add("web", guarantee=4), eng.add("db")
    assert quota.headroom(root, KIND) == 6
    # db may use the two that eng has beyond web's four, and no more of them.
    assert quota.own(db, KIND) == 2 and quota.bound(db, KIND, 6) == 2
    assert quota.own(web, KIND) == 6
    assert quota.own(eng, KIND) == 2, "a framework in eng itself is a sibling of its children"


def test_a_limit_holds_down_the_tree_and_hope_ends_where_it_does() -> None:
    root = Role("")
    eng = root.add("eng", limit=5)
    web, db = eng.add("web", guarantee=4), eng.add("db", mine=3)
    # Of web's guarantee only two can still be had below eng's limit: no more is kept free in the cluster.
    assert quota.headroom(root, KIND) == 2 == quota.unmet(web, KIND)
    assert quota.least_limit_left(web, KIND) == 2
    assert quota.bound(web, KIND, 100) == 2
    assert quota.bound(db, KIND, 100) == 0, "what eng's limit leaves is web's"


def test_a_sibling_does_not_use_up_the_limit_that_a_guarantee_needs() -> None:
    root = Role("")
    eng = root.add("eng", limit=10)
    eng.add("web", guarantee=8)
    db = eng.add("db")
    assert quota.allowance(db, KIND, 100) == (2, RefusalReason.HEADROOM)
    db.take(2)
    assert quota.bound(db, KIND, 98) == 0


def test_a_passed_limit_allows_nothing() -> None:
    root = Role("")
    ml = root.add("ml", mine=5, limit=3)
    assert quota.least_limit_left(ml, KIND) == -2
    assert quota.allowance(ml, KIND, 10) == (0, RefusalReason.QUOTA_LIMIT)
    ml.take(-2)
    assert quota.bound(ml, KIND, 12) == 0
    ml.take(-1)
    assert quota.bound(ml, KIND, 13) == 1

"""The order of shares against a reference written from mesos.md §3.2, in fractions and from scratch after every step."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from bursar.core.ids import FrameworkId
from bursar.master.allocator.line import Line, Place
from bursar.master.allocator.shares import SCALE, Client, Node, Shares

ROLES = ["*", "a", "a/b", "a/c", "a/b/d", "e"]
FRAMEWORKS = [FrameworkId(name) for name in "fgh"]
roles = st.sampled_from(ROLES)
frameworks = st.sampled_from(FRAMEWORKS)
amounts = st.dictionaries(st.sampled_from(["cpus", "mem", "gpus"]), st.integers(1, 50), min_size=1)


class SharesMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.shares = Shares()
        self.total: Counter[str] = Counter()
        self.held: dict[Client, Counter[str]] = {}
        #: How often each node was given something; forgotten with the node.
        self.counts: Counter[str] = Counter()
        self.active: set[Client] = set()
        self.weights: dict[str, int] = {}
        self.excluded: frozenset[str] = frozenset()

    # --- the reference ---

    def clients(self) -> set[Client]:
        return self.active | {client for client, held in self.held.items() if +held}

    def paths(self, client: Client) -> list[str]:
        """From the top: `a`, `a/b`, the virtual leaf `a/b/.`, and the framework in it."""
        parts = client[0].split("/")
        path = ["/".join(parts[: count + 1]) for count in range(len(parts))]
        return [*path, f"{client[0]}/.", f"{client[0]}/. {client[1]}"]

    def forget_unused(self) -> None:
        known = {path for client in self.clients() for path in self.paths(client)}
        for path in list(self.counts):
            if path not in known:
                del self.counts[path]

    def share(self, path: str) -> int:
        """In whole SCALE-ths: what is less apart than that is a tie."""
        held: Counter[str] = Counter()
        for client, mine in self.held.items():
            if path in self.paths(client):
                held.update(mine)
        weight = self.weights.get(path, 1000)
        found = [
            Fraction(amount * SCALE, self.total[kind] * weight)
            for kind, amount in held.items()
            if kind not in self.excluded and self.total[kind] > 0
        ]
        return int(max(found, default=Fraction(0)))

    def expected(self) -> list[Client]:
        keys = {
            path: (self.share(path), self.counts[path], path)
            for client in self.clients()
            for path in self.paths(client)
        }
        return sorted(self.active, key=lambda client: [keys[path] for path in self.paths(client)])

    # --- steps ---

    @rule(alike=st.lists(amounts | st.just({}), min_size=1, max_size=3), turns=st.lists(st.integers(0, 2), max_size=12))
    def serve_a_line(self, alike: list[dict[str, int]], turns: list[int]) -> None:
        """Whoever comes first is given something, again and again."""
        places: dict[Node, Place] = {}
        line = Line(self.shares, lambda node: places.setdefault(node, Place(node)))
        for turn in turns:
            place = line.first()
            if place is None:
                assert not self.active
                break
            client = place.node.client
            assert client == self.expected()[0]
            given = alike[turn % len(alike)]
            line.serve(place, given)
            if given:
                self.held.setdefault(client, Counter()).update(given)
                self.counts.update(self.paths(client))
        line.close()

    @rule(role=roles, framework=frameworks, given_amounts=amounts)
    def charge(self, role: str, framework: FrameworkId, given_amounts: dict[str, int]) -> None:
        self.shares.charge(Client(role, framework), given_amounts)
        self.held.setdefault(Client(role, framework), Counter()).update(given_amounts)
        self.counts.update(self.paths((role, framework)))

    @rule(data=st.data())
    def discharge(self, data: st.DataObject) -> None:
        clients = sorted(client for client, held in self.held.items() if +held)
        if clients:
            client = data.draw(st.sampled_from(clients))
            part = {kind: data.draw(st.integers(1, n)) for kind, n in sorted((+self.held[client]).items())}
            self.shares.discharge(client, part)
            self.held[client].subtract(part)
            self.forget_unused()

    @rule(role=roles, framework=frameworks, active=st.booleans())
    def activate(self, role: str, framework: FrameworkId, active: bool) -> None:
        self.shares.set_active(role, framework, active)
        (self.active.add if active else self.active.discard)(Client(role, framework))
        self.forget_unused()

    @rule(more=amounts)
    def grow(self, more: dict[str, int]) -> None:
        self.shares.add_total(more)
        self.total.update(more)

    @rule(data=st.data())
    def shrink(self, data: st.DataObject) -> None:
        less = {kind: data.draw(st.integers(0, n)) for kind, n in sorted(self.total.items())}
        less = {kind: n for kind, n in less.items() if n}
        self.shares.subtract_total(less)
        self.total.subtract(less)

    @rule(role=roles, weight=st.sampled_from([1, 500, 1000, 3000]))
    def weigh(self, role: str, weight: int) -> None:
        self.shares.set_weight(role, weight)
        self.weights[role] = weight

    @rule(names=st.sets(st.sampled_from(["cpus", "mem", "gpus"])))
    def exclude(self, names: set[str]) -> None:
        self.excluded = frozenset(names)
        self.shares.set_excluded(self.excluded)

    @invariant()
    def agrees(self) -> None:
        assert [node.client for node in self.shares.order()] == self.expected()
        self.shares.check()
        for role in ROLES:
            held: Counter[str] = Counter()
            for (owner, _), mine in self.held.items():
                if owner == role or owner.startswith(role + "/"):
                    held.update(mine)
            assert dict(self.shares.held(role)) == dict(+held)
            assert self.shares.weight_milli(role) == self.weights.get(role, 1000)
        assert set(self.shares.roles()) == {path for client in self.clients() for path in self.paths(client)[:-2]}


TestShares = SharesMachine.TestCase
TestShares.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)


def filled(**held: int) -> Shares:
    shares = Shares()
    shares.add_total({"cpus": 100})
    for path, amount in held.items():
        role = path.replace("_", "/")
        shares.set_active(role, FRAMEWORKS[0], True)
        if amount:
            shares.charge(Client(role, FRAMEWORKS[0]), {"cpus": amount})
    return shares


def order(shares: Shares) -> list[str]:
    return [node.client.role for node in shares.order() if node.client]


def test_a_hundred_children_do_not_get_a_hundred_shares() -> None:
    assert order(filled(a_x=10, a_y=10, b=15)) == ["b", "a/x", "a/y"]


def test_a_role_with_children_is_one_of_them() -> None:
    """The virtual leaf: the role's own frameworks compete with its children, with weight 1 whatever the role's own."""
    shares = filled(a=20, a_x=10)
    shares.set_weight("a", 5000)
    assert order(shares) == ["a/x", "a"]


def test_a_weight_counts_among_siblings() -> None:
    shares = filled(a=30, b=20)
    assert order(shares) == ["b", "a"]
    shares.set_weight("a", 2000)
    assert order(shares) == ["a", "b"]


def test_ties_go_to_who_was_given_less_often_then_by_path() -> None:
    shares = filled(a=0, b=0)
    assert order(shares) == ["a", "b"]
    shares.charge(Client("a", FRAMEWORKS[0]), {"cpus": 1})
    shares.discharge(Client("a", FRAMEWORKS[0]), {"cpus": 1})
    assert order(shares) == ["b", "a"]


def test_the_dominant_kind_decides_unless_it_is_excluded() -> None:
    shares = filled(a=10, b=20)
    shares.add_total({"gpus": 4000})
    shares.charge(Client("a", FRAMEWORKS[0]), {"gpus": 2000})
    assert order(shares) == ["b", "a"]
    shares.set_excluded(frozenset({"gpus"}))
    assert order(shares) == ["a", "b"]


def served(shares: Shares, line: Line[Place], times: int) -> list[str]:
    """The roles that come first, each given the same."""
    found = []
    for _ in range(times):
        place = line.first()
        assert place is not None and place.node.client is not None
        found.append(place.node.client.role)
        line.serve(place, TWO_CPUS)
    line.close()
    shares.check()
    return found


TWO_CPUS = {"cpus": 2}


def test_a_line_counts_weights_and_starts_from_what_is_held() -> None:
    shares = filled(a=0, b=0, c_x=4)
    shares.set_weight("a", 2000)
    places: dict[Node, Place] = {}
    line = Line(shares, lambda node: places.setdefault(node, Place(node)))
    # By what is held over the weight, then by how often: a 0, b 0; then a 1, b 2, c 4; then b was given less often than a.
    assert served(shares, line, 4) == ["a", "b", "a", "b"]
    assert (shares.held("a"), shares.held("b")) == ({"cpus": 4}, {"cpus": 4})
    # It was closed: others may charge, and it goes on from there.
    shares.charge(Client("b", FRAMEWORKS[0]), {"cpus": 10})
    assert served(shares, line, 3) == ["a", "a", "c/x"]
    assert (shares.held("a"), shares.held("b"), shares.held("c/x")) == ({"cpus": 8}, {"cpus": 14}, {"cpus": 6})
    # Somebody else was charged who had been served in the stretch before.
    shares.charge(Client("a", FRAMEWORKS[0]), {"cpus": 20})
    assert served(shares, line, 2) == ["c/x", "c/x"]
    shares.discharge(Client("a", FRAMEWORKS[0]), {"cpus": 28})
    assert served(shares, line, 11) == ["a"] * 10 + ["c/x"]
    assert shares.held("a") == {"cpus": 20}

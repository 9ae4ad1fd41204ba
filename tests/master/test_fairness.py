"""Fairness, measured over long runs: identical agents, unbounded demand in every role, no filters; tasks end and others start.

What hierarchical DRF promises, among the siblings below every role (its own frameworks take part as `role/.`):

* nobody would be worse off than a sibling, by weight, if that one gave back a single agent;
* hence nobody has more than its weighted share of what all siblings have and one agent, and two siblings are within one agent of
  their weighted shares;
* with equal weights everybody is within one agent of its share.

A small share among many larger ones may be more than an agent short only in so far as each of those has less than one too many:
whole agents cannot be divided.
"""

from __future__ import annotations

from collections import Counter
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bursar.core.tasks import TaskState

ROLES = ["*", "a", "a/b", "a/b/d", "a/c", "a/c/e/f", "g", "g/h"]


class Run:
    """A full cluster: every agent is one task's."""

    def __init__(self, book: Any, clients: set[tuple[str, str]], weights: dict[str, int], agents: int) -> None:
        self.book = book
        self.clients = clients
        self.weights = weights
        self.names = 0
        if weights:
            book.set_weights(weights)
        for name in sorted({framework for _, framework in clients}):
            book.framework(name, roles=sorted(role for role, framework in clients if framework == name))
        with book.batch():
            for index in range(agents):
                book.agent(f"m{index}", cpus=4, mem=8)
        self.accept_everything()

    def accept_everything(self) -> None:
        for framework in self.book.frameworks.values():
            for offer in list(framework.offers.values()):
                self.names += 1
                framework.run(self.book.spec(f"t{self.names}", cpus=4, mem=8), offer=offer)

    def held(self) -> Counter[str]:
        """Agents by node of the tree: `a`, `a/b`, `a/.`, and `a/. f` for a framework."""
        found: Counter[str] = Counter()
        for agent in self.book.agents.values():
            for report in agent.tasks.values():
                if not report.state.is_terminal:
                    found.update(line(report.task.role, report.framework_id))
        return found

    def end(self, agents: list[int]) -> None:
        """Tasks of these agents end, all in one breath; others take their places."""
        with self.book.batch():
            for index in agents:
                agent = self.book.agents[f"m{index}"]
                ((framework, task_id),) = [key for key, report in agent.tasks.items() if not report.state.is_terminal]
                status = agent.update(task_id, TaskState.FINISHED, framework=framework)
                self.book.frameworks[framework].acknowledge(status)
        self.accept_everything()

    def judge(self) -> None:
        held = self.held()
        assert held.total() and sum(held[node] for node in self.nodes("")) == len(self.book.agents), "not full"
        above = {""} | {node for client in self.clients for node in line(*client)[:-1]}
        for parent in sorted(above):
            siblings = self.nodes(parent)
            together = sum(held[node] for node in siblings)
            weight = {node: self.weights.get(node, 1000) for node in siblings}
            for one in siblings:
                for other in siblings:
                    assert one == other or Fraction(held[other] - 1, weight[other]) <= Fraction(
                        held[one], weight[one]
                    ), (
                        f"{one} has {held[one]} and {other} has {held[other]}",
                        weight,
                    )
                share = Fraction(together * weight[one], sum(weight.values()))
                assert held[one] < share + 1, (one, held[one], share, weight)
                if len(siblings) == 2 or len(set(weight.values())) == 1:
                    assert abs(held[one] - share) < 1, (one, held[one], share, weight)

    def nodes(self, parent: str) -> list[str]:
        """The children of a node that are in use."""
        lines = [["", *line(*client)] for client in self.clients]
        return sorted({nodes[nodes.index(parent) + 1] for nodes in lines if parent in nodes[:-1]})


def line(role: str, framework: str) -> list[str]:
    """From the top of the tree to a framework."""
    parts = [*role.split("/"), "."]
    nodes = ["/".join(parts[:count]) for count in range(1, len(parts) + 1)]
    return [*nodes, f"{nodes[-1]} {framework}"]


@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    data=st.data(),
    clients=st.sets(st.tuples(st.sampled_from(ROLES), st.sampled_from("xyz")), min_size=1, max_size=8),
    weights=st.dictionaries(st.sampled_from([*ROLES, "a/.", "g/."]), st.integers(1, 9000), max_size=5),
    agents=st.integers(1, 24),
)
def test_nobody_has_an_agent_too_many(
    new_book: Any, data: st.DataObject, clients: set[tuple[str, str]], weights: dict[str, int], agents: int
) -> None:
    run = Run(new_book(), clients, weights, agents)
    run.judge()
    for _ in range(10):
        run.end(sorted(data.draw(st.sets(st.integers(0, agents - 1)))))
        run.judge()


@pytest.mark.parametrize(("weights", "expected"), [({}, (7, 7, 7)), ({"a": 2000, "b": 500}, (12, 3, 6))])
def test_roles_get_what_their_weights_say(book: Any, weights: dict[str, int], expected: tuple[int, int, int]) -> None:
    run = Run(book, {("a", "x"), ("b", "y"), ("c", "z")}, weights, 21)
    for start in range(21):
        run.end(sorted({start, (start * 5 + 3) % 21}))
        run.judge()
    held = run.held()
    assert (held["a"], held["b"], held["c"]) == expected

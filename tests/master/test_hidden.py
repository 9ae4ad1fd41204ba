"""Roles that are hidden from as a whole are passed over; all that are hidden from are counted once, as if each had been asked."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from bursar.core.ids import FrameworkId
from bursar.core.messages.rules import Rule, RuleAction
from bursar.master.allocator.hidden import Hidden
from bursar.master.allocator.rules import compile_rule
from bursar.master.allocator.shares import Client, Node, Shares
from bursar.master.allocator.visibility import Cell

ROLES = ["a", "a/b", "a/b/c", "d", "e/f"]


@given(st.lists(st.tuples(st.sampled_from(ROLES), st.integers(0, 3), st.sampled_from([None, 0, 1])), max_size=12))
def test_passing_over_is_asking_each(said: list[tuple[str, int, int | None]]) -> None:
    shares, hidden = Shares(), Hidden()
    rule = compile_rule(Rule("r", RuleAction.HIDE_AGENT, framework="", agent="cpus>=1"))
    cells = [Cell(rule, 0), Cell(rule, 0)]
    by_client: dict[Client, int | None] = {}
    for role, number, cell in said:
        client = Client(role, FrameworkId(f"f{number}"))
        shares.set_active(role, client.framework_id, True)
        by_client.setdefault(client, cell)
    shares.order()
    for client, cell in by_client.items():
        node = shares.client_node(client)
        assert node is not None
        if cell is not None:
            hidden.add(node, cells[cell])
            hidden.add(node, cells[cell])
    passed: set[Node] = set()
    shown = [node.client for node in hidden.others(shares.root.order, passed)]
    again = [node.client for node in hidden.others(shares.root.order, passed)]
    assert shown == again
    inside = {node.client for node in hidden.clients_in(passed)}
    assert [node.client for node in shares.order() if node.client not in inside] == shown
    assert all(by_client[client] is not None for client in inside if client is not None)
    for number, cell_of in enumerate(cells):
        assert cell_of.decisions == sum(by_client[client] == number for client in inside if client is not None)

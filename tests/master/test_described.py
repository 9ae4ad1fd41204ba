"""What a stream has seen of agents is remembered as a set of their numbers would be, in a bit each."""

from __future__ import annotations

import sys

from hypothesis import given
from hypothesis import strategies as st

from bursar.master.described import Described

NUMBERS = st.integers(0, 40)


@given(st.lists(st.tuples(st.booleans(), NUMBERS)))
def test_it_is_a_set_of_numbers(steps: list[tuple[bool, int]]) -> None:
    described, model = Described(), set[int]()
    for sees, number in steps:
        if sees:
            assert described.note(number) == (number not in model)
            model.add(number)
        else:
            described.forget(number)
            model.discard(number)


def test_ten_thousand_agents_are_little() -> None:
    described = Described()
    assert all(described.note(number) for number in range(10_000))
    assert sys.getsizeof(described._bits) < 2_000

"""A master of one's own, and peers that speak with it (tests/support/dialogue)."""

from __future__ import annotations

import pytest
from dialogue import Playbook


@pytest.fixture
def book() -> Playbook:
    """A master with default flags."""
    return Playbook()


@pytest.fixture
def new_book() -> type[Playbook]:
    """Makes masters with other flags."""
    return Playbook

"""What is on loan, and who claims it back: the values that lending works with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from bursar.core.ids import OfferId
from bursar.core.resources import Holding
from bursar.master.allocator.shares import Client
from bursar.master.ledger import TaskKey


class Loan(NamedTuple):
    """What a revocable offer or task holds of an agent."""

    holder: OfferId | TaskKey
    holding: Holding


class Claim(NamedTuple):
    """Who wants back what was lent: what must come back for it, and what it will have then."""

    client: Client
    loans: tuple[Loan, ...]
    holding: Holding
    #: index of the shape of the demand → how often it will be fulfilled, and the version of the demand.
    promised: Mapping[int, int]
    demand_version: int

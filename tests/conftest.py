"""What all tests share: how a missing engine is treated."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest


@pytest.fixture(scope="session")
def require() -> Callable[[bool, str], None]:
    """`require(present, why)`: skip where an engine is missing, and print why; with CI=true that is a failure."""

    def check(present: bool, why: str) -> None:
        if present:
            return
        if os.environ.get("CI") == "true":
            pytest.fail(f"needed in CI, but missing: {why}", pytrace=False)
        pytest.skip(why)

    return check

"""What all tests share: how a missing engine is treated."""

from __future__ import annotations

import os
import signal
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


@pytest.fixture(scope="session", autouse=True)
def hear_signals() -> None:
    """Tests that were started in the background of a script ignore SIGINT; what they start must not."""
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler if number is signal.SIGINT else signal.SIG_DFL)

"""What all tests share: how a missing engine is treated."""

from __future__ import annotations

import os

import pytest


def require(present: bool, why: str) -> None:
    """Skip a test whose engine is missing, and print why; with CI=true a missing engine is a failure."""
    if present:
        return
    if os.environ.get("CI") == "true":
        pytest.fail(f"needed in CI, but missing: {why}", pytrace=False)
    pytest.skip(why)

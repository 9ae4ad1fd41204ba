"""The names that the package gives; the modules behind them are imported when they are first wanted."""

from __future__ import annotations

import subprocess
import sys

import pytest

from bursar import sdk


def test_every_name_can_be_had_and_is_listed() -> None:
    assert sorted(sdk.__all__) == sorted(sdk._PLACE_OF)
    assert all(getattr(sdk, name).__module__ for name in sdk.__all__ if name != "GPU_RESOURCES")
    assert set(sdk.__all__) <= set(dir(sdk))


def test_a_name_that_is_not_there() -> None:
    with pytest.raises(AttributeError, match="Framwork"):
        sdk.Framwork  # noqa: B018
    with pytest.raises(ImportError, match="Framwork"):
        from bursar.sdk import Framwork  # noqa: F401


def test_a_tool_that_only_asks_does_not_wait_for_what_a_framework_needs() -> None:
    code = "import sys; from bursar.sdk import OperatorClient; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert "bursar.sdk.operator" in modules
    assert {"bursar.sdk.machine", "bursar.core.tasks", "bursar.core.messages.operator"}.isdisjoint(modules)

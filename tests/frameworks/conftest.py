"""A simulated master for tests of the clients."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

_NAME = "bursar_tests_simulated_master"
if _NAME not in sys.modules:
    _spec = importlib.util.spec_from_file_location(_NAME, Path(__file__).parents[1] / "sdk" / "simulated_master.py")
    assert _spec is not None and _spec.loader is not None
    _module = importlib.util.module_from_spec(_spec)
    sys.modules[_NAME] = _module
    _spec.loader.exec_module(_module)


@pytest.fixture
async def master() -> AsyncIterator[Any]:
    """A simulated master, started; closed with all its processes at the end."""
    simulated = sys.modules[_NAME].SimulatedMaster()
    await simulated.start()
    yield simulated
    await simulated.close()

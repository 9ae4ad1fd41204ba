"""The reference, which lies beside the tests of the master."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

_NAME = "bursar_tests_reference"
if _NAME not in sys.modules:
    _folder = Path(__file__).parents[2] / "master" / "reference"
    _spec = importlib.util.spec_from_file_location(
        _NAME, _folder / "__init__.py", submodule_search_locations=[str(_folder)]
    )
    assert _spec is not None and _spec.loader is not None
    sys.modules[_NAME] = importlib.util.module_from_spec(_spec)
    _spec.loader.exec_module(sys.modules[_NAME])
reference = sys.modules[_NAME]

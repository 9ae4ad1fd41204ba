"""What all tests share: how a missing engine is treated, and how the work is dealt out to several processes."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.register_assert_rewrite("dialogue")

#: Tests of these modules share nothing, and each takes seconds, so they are dealt out one by one.
#: Of all others, which may share what is made for a module, a module stays together.
DEALT_SINGLY = frozenset(
    [
        "tests/cli/test_cluster.py",
        "tests/cli/test_commands.py",
        "tests/cli/test_run.py",
        "tests/e2e/test_bad_clients.py",
        "tests/e2e/test_dev.py",
        "tests/e2e/test_gangs.py",
        "tests/e2e/test_restarts.py",
        "tests/e2e/test_sessions.py",
    ]
)

#: Minutes of the whole run.
TAKE_LONG = (
    "tests/test_setup.py",
    "tests/e2e/",
    "tests/cli/",
    "tests/agent/containers/",
    "tests/simulation/",
    "tests/master/test_reference.py",
)


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


def pytest_sessionstart() -> None:
    """Tests that were started in the background of a script ignore SIGINT; neither they nor what they start must."""
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler if number is signal.SIGINT else signal.SIG_DFL)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """For the whole run one process more than there are processors, up to four: half of the time a test waits for what it started.

    None for a part of it, which is over sooner without, and for what is measured.
    """
    option = config.option
    tests = Path(__file__).parent
    whole = any(tests.is_relative_to(Path(argument).resolve()) for argument in config.args)
    if (
        not whole
        or option.keyword
        or option.markexpr != "not benchmark"
        or option.collectonly
        or option.capture == "no"
    ):
        return 0
    processors = len(os.sched_getaffinity(0))
    return min(processors + 1, 4) if processors > 1 else 0


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes long comes first: small modules are left for the end, where they keep all processes busy."""
    items.sort(key=lambda item: not item.nodeid.startswith(TAKE_LONG))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Deal out modules, and those of `DEALT_SINGLY` test by test."""
    from xdist.scheduler import LoadScopeScheduling

    class Dealer(LoadScopeScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            module = nodeid.partition("::")[0]
            return nodeid if module in DEALT_SINGLY else module

    return Dealer(config, log)

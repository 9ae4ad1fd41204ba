"""The program `bursar`: imports next to nothing, so that an interrupt finds it ready."""

from __future__ import annotations

from typing import NoReturn

from bursar.runtime.program import run


def main() -> NoReturn:
    """Run `bursar.cli.main`."""
    run("bursar.cli.main")

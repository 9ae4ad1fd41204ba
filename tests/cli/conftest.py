"""A simulated master for tests of the clients."""

from __future__ import annotations

import asyncio
import importlib.util
import os
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


class Finished:
    """What a command left."""

    def __init__(self, code: int, stdout: bytes, stderr: bytes) -> None:
        self.code, self.stdout, self.stderr = code, stdout.decode(), stderr.decode()

    def __repr__(self) -> str:
        return f"<exit {self.code}, stdout {self.stdout!r}, stderr {self.stderr!r}>"


class Command:
    """Starts `bursar` as a user would: a process of its own, without a terminal."""

    def __init__(self, address: str) -> None:
        self.address = address

    async def start(self, *arguments: str, **environment: str) -> asyncio.subprocess.Process:
        variables = {"PATH": os.environ["PATH"], "BURSAR_MASTER": self.address} | environment
        return await asyncio.create_subprocess_exec(
            sys.executable, "-m", "bursar.cli.main", *arguments, stdin=-3, stdout=-1, stderr=-1, env=variables
        )

    async def __call__(self, *arguments: str, **environment: str) -> Finished:
        return await self.finish(await self.start(*arguments, **environment))

    async def finish(self, process: asyncio.subprocess.Process) -> Finished:
        try:
            stdout, stderr = await asyncio.wait_for(process.communicate(), 40)
        except BaseException:
            process.kill()
            await process.wait()
            raise
        assert process.returncode is not None
        finished = Finished(process.returncode, stdout, stderr)
        assert "Traceback" not in finished.stderr, finished
        return finished


@pytest.fixture
def bursar(master: Any) -> Command:
    return Command(master.address)

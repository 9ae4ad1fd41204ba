"""Which volumes `bursar run` asks for."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from bursar.cli import volumes
from bursar.cli.problems import Failure
from bursar.core.volumes import read_volume, volume_device
from bursar.v1.operator_service_pb2 import VOLUME_STATE_FREE


def view(role: str, volume_id: str, size: int, agent: str = "a") -> Any:
    uuid = volume_device(role, volume_id, size)
    return SimpleNamespace(uuid=uuid, agent_id=agent, state=VOLUME_STATE_FREE, **read_volume(uuid)._asdict())


def test_of_one_id_the_deepest_roles_volume_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    there = [view("ml", "db", 9), view("ml/x", "db", 5), view("ml", "log", 1), view("ml/y", "db", 1)]
    monkeypatch.setattr(volumes, "ask", lambda question: there)
    deeper, log = volume_device("ml/x", "db", 5), volume_device("ml", "log", 1)
    assert volumes.devices_for(["db", "log"], "ml/x") == tuple(sorted([deeper, log]))
    assert volumes.devices_for(["db"], "ml") == (volume_device("ml", "db", 9),)
    with pytest.raises(Failure, match="no agent keeps db for 'eng'"):
        volumes.devices_for(["db"], "eng")

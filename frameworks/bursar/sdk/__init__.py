"""What a framework author imports.

A *framework* states what it wants (`wants`), answers offers with tasks (`on_offer`) and hears what becomes of them (`on_status`):

    from bursar.sdk import Framework, Offer, Status, Task, run

    class Sweep(Framework):
        role, capabilities = "ml/sweep", {"GPU_RESOURCES"}

        def start(self):
            self.todo = [Task(["train", f"--lr={lr}"], gpus=1, cpus=4, mem="16GiB") for lr in (1e-2, 1e-3, 1e-4)]

        def wants(self):
            return [(task, 1) for task in self.todo]

        def on_offer(self, offer):
            while self.todo and offer.fits(self.todo[-1]):
                yield self.todo.pop()

        def on_status(self, task, status):
            if status.retryable:
                self.todo.append(task)
            if not self.todo and not self.running:
                self.stop()

    run(Sweep(), master="127.0.0.1:5050")

Behind it are a pure machine (`machine.py`, with `events.py` and `effects.py`) and a thin shell (`session.py`). Programs with an
event loop of their own use `FrameworkSession`; operators' tools use `OperatorClient`. Logs go to the logger `bursar.sdk`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bursar.core.devices import Device
    from bursar.core.errors import BursarError, ErrorDetail, ErrorReason, InvalidText, MasterUnreachable
    from bursar.core.lives import Check, CheckStatus, HealthCheck, HttpCheck, RestartMode, RestartPolicy, TcpCheck
    from bursar.core.messages.framework import GPU_RESOURCES
    from bursar.core.resources import ResourceRequest
    from bursar.core.surroundings import ContainerSettings
    from bursar.core.tasks import StatusReason, TaskState
    from bursar.runtime.credentials import Credentials
    from bursar.sdk.amounts import Amount
    from bursar.sdk.framework import Framework, Want
    from bursar.sdk.granted import granted_devices
    from bursar.sdk.log_reader import LogReader
    from bursar.sdk.offers import Bundle, Offer, Place
    from bursar.sdk.operator import OperatorClient
    from bursar.sdk.session import FrameworkSession, run
    from bursar.sdk.task_session import TaskSession
    from bursar.sdk.tasks import Status, Task, TaskGroup

#: Module → what it gives. A module is imported when one of its names is first wanted: a tool that only asks the master does not
#: wait for all that a framework needs.
_PLACES = {
    "bursar.core.devices": ("Device",),
    "bursar.core.errors": ("BursarError", "ErrorDetail", "ErrorReason", "InvalidText", "MasterUnreachable"),
    "bursar.core.lives": (
        "Check",
        "CheckStatus",
        "HealthCheck",
        "HttpCheck",
        "RestartMode",
        "RestartPolicy",
        "TcpCheck",
    ),
    "bursar.core.messages.framework": ("GPU_RESOURCES",),
    "bursar.core.resources": ("ResourceRequest",),
    "bursar.core.surroundings": ("ContainerSettings",),
    "bursar.core.tasks": ("StatusReason", "TaskState"),
    "bursar.runtime.credentials": ("Credentials",),
    "bursar.sdk.amounts": ("Amount",),
    "bursar.sdk.framework": ("Framework", "Want"),
    "bursar.sdk.granted": ("granted_devices",),
    "bursar.sdk.log_reader": ("LogReader",),
    "bursar.sdk.offers": ("Bundle", "Offer", "Place"),
    "bursar.sdk.operator": ("OperatorClient",),
    "bursar.sdk.session": ("FrameworkSession", "run"),
    "bursar.sdk.task_session": ("TaskSession",),
    "bursar.sdk.tasks": ("Status", "Task", "TaskGroup"),
}
_PLACE_OF = {name: module for module, names in _PLACES.items() for name in names}

__all__ = [
    "GPU_RESOURCES",
    "Amount",
    "Bundle",
    "BursarError",
    "Check",
    "CheckStatus",
    "ContainerSettings",
    "Credentials",
    "Device",
    "ErrorDetail",
    "ErrorReason",
    "Framework",
    "FrameworkSession",
    "HealthCheck",
    "HttpCheck",
    "InvalidText",
    "LogReader",
    "MasterUnreachable",
    "Offer",
    "OperatorClient",
    "Place",
    "ResourceRequest",
    "RestartMode",
    "RestartPolicy",
    "Status",
    "StatusReason",
    "Task",
    "TaskGroup",
    "TaskSession",
    "TaskState",
    "TcpCheck",
    "Want",
    "granted_devices",
    "run",
]


def __getattr__(name: str) -> Any:
    module = _PLACE_OF.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(module), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

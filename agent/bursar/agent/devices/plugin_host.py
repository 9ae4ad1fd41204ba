"""The process in which a plugin runs: it answers one JSON line for each JSON line, until its input ends.

    python -m bursar.agent.devices.plugin_host NAME_OR_FILE

A plugin prints to standard output as it likes: that goes to standard error; the answers have a descriptor of their own.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import importlib.util
import json
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any

GROUP = "bursar.device_drivers"


def load(name: str) -> Callable[[Mapping[str, str]], Any]:
    """The factory of a plugin: the entry point of this name, or `driver` of a Python file. Raises LookupError."""
    if name.endswith(".py"):
        spec = importlib.util.spec_from_file_location("bursar_device_plugin", name)
        if spec is None or spec.loader is None or not os.path.isfile(name):
            raise LookupError(f"there is no file {name}")
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
        factory = getattr(module, "driver", None)
        if not callable(factory):
            raise LookupError(f"{name} has no function `driver`")
        return factory  # type: ignore[no-any-return]
    for entry in importlib.metadata.entry_points(group=GROUP):
        if entry.name == name:
            return entry.load()  # type: ignore[no-any-return]
    raise LookupError(f"no package here has an entry point {name!r} in the group {GROUP}")


def answer(driver: Any, call: Mapping[str, Any]) -> dict[str, Any]:
    """Carry out one call."""
    match call.get("call"):
        case "discover":
            return {"devices": [_plain(device) for device in driver.discover()]}
        case "decorate":
            decorate = getattr(driver, "decorate", None)
            if decorate is None:
                return {"decoration": None}
            return {"decoration": _plain(decorate(call["granted"], call["runtime"]) or {})}
        case other:
            return {"error": f"unknown call {other!r}"}


def _plain(value: Any) -> dict[str, Any]:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    return dict(value)


def main() -> None:
    """Serve one plugin."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    calls = iter(sys.stdin.readline, "")
    name = sys.argv[1]
    params = json.loads(next(calls))
    try:
        driver = load(name)(params)
        said: dict[str, Any] = {"ready": True}
    except Exception as error:  # noqa: BLE001 - a stranger's code
        driver, said = None, {"error": f"{type(error).__name__}: {error}"}
    print(json.dumps(said), file=answers, flush=True)
    if driver is None:
        return
    for line in calls:
        try:
            said = answer(driver, json.loads(line))
        except Exception as error:  # noqa: BLE001
            said = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(said), file=answers, flush=True)


if __name__ == "__main__":
    main()

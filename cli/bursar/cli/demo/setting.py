"""What the demo runs on: containers where an engine and a small image are there, real GPUs where NVML finds some."""

from __future__ import annotations

import io
import shutil
import subprocess
import tarfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

#: Small images that may be there already; all have a shell.
KNOWN_IMAGES = ("busybox", "alpine", "debian:stable-slim", "debian:bookworm-slim", "ubuntu")
PULL_S = 20.0


@dataclass
class Setting:
    """What was chosen, and why."""

    runtime: str
    why_runtime: str
    #: For tasks in containers.
    image: str = ""
    #: Of the agent that may have real GPUs.
    devices: str = "simulated:4"
    why_devices: str = ""
    real_gpus: int = 0
    _undo: list[Callable[[], None]] = field(default_factory=list)

    def undo(self) -> None:
        """Remove what choosing left in the engine."""
        for step in self._undo:
            step()
        self._undo.clear()


def choose(name: str, runtime: str | None = None, check: Callable[[], None] = lambda: None) -> Setting:
    """Look at this machine; `name` marks what is made for this demo alone, `runtime` decides instead of looking.

    `check` is called again and again where this takes long; what it raises ends the wait.
    """
    setting = Setting("process", "asked for") if runtime == "process" else _choose_runtime(name, check)
    gpus = count_real_gpus()
    setting.real_gpus = gpus
    if gpus:
        setting.devices, setting.why_devices = "nvml", f"NVML finds {gpus} GPU{'s' if gpus > 1 else ''}"
    else:
        setting.why_devices = "NVML finds no GPU on this machine"
    return setting


def count_real_gpus() -> int:
    """How many GPUs NVML finds."""
    try:
        import pynvml

        nvml: Any = pynvml
        nvml.nvmlInit()
        try:
            return int(nvml.nvmlDeviceGetCount())
        finally:
            nvml.nvmlShutdown()
    except Exception:  # noqa: BLE001 - no library, no driver, no device: all mean none
        return 0


def _choose_runtime(name: str, check: Callable[[], None]) -> Setting:
    try:
        import docker
        import docker.errors

        client = docker.from_env(timeout=10)
        client.ping()
    except Exception as error:  # noqa: BLE001 - whatever keeps us from the engine, there is none for us
        return Setting("process", f"no Docker engine can be used ({_first_line(error)})")
    try:
        for image in KNOWN_IMAGES:
            try:
                client.images.get(image)
            except docker.errors.ImageNotFound:
                continue
            return Setting("docker", f"a Docker engine answers and has the image {image}", image)
        return _import_busybox(client, name) or _pull(client, name, check) or _no_image()
    except Exception as error:  # noqa: BLE001 - an engine that fails while we look is no engine to build on
        return Setting("process", f"the Docker engine does not work ({_first_line(error)})")


def _no_image() -> Setting:
    return Setting("process", "a Docker engine answers, but no small image is there and none can be had within 20 s")


def _import_busybox(client: Any, name: str) -> Setting | None:
    """Make an image of a static busybox of this machine, if there is one."""
    path = shutil.which("busybox")
    if path is None or not _is_static(path):
        return None
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        binary = Path(path).resolve()
        entry = tarfile.TarInfo("bin/busybox")
        entry.mode, entry.size = 0o755, binary.stat().st_size
        with binary.open("rb") as source:
            tar.addfile(entry, source)
        applets = subprocess.run([path, "--list"], capture_output=True, text=True, check=True).stdout.split()
        for applet in applets:
            if applet != "busybox":
                link = tarfile.TarInfo(f"bin/{applet}")
                link.type, link.linkname = tarfile.SYMTYPE, "busybox"
                tar.addfile(link)
        for directory in ("tmp", "proc", "sys", "dev", "etc", "root"):
            folder = tarfile.TarInfo(directory)
            folder.type, folder.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(folder)
    image = f"{name}:latest"
    client.api.import_image_from_data(archive.getvalue(), repository=name, tag="latest")
    setting = Setting("docker", "a Docker engine answers; its image is made of this machine's busybox", image)
    setting._undo.append(lambda: client.images.remove(image, force=True))
    return setting


def _pull(client: Any, name: str, check: Callable[[], None]) -> Setting | None:
    """Pull an image and give it the demo's name: by that one it is removed, be it late, or by another demo."""
    done = threading.Event()
    pulled: list[str] = []

    def pull() -> None:
        try:
            image = client.images.pull("busybox", tag="latest")
            image.tag(name, "latest")
            client.images.remove("busybox:latest")
            pulled.append(f"{name}:latest")
        except Exception:  # noqa: BLE001 - no registry: then there is no image
            pulled.clear()
        done.set()

    threading.Thread(target=pull, daemon=True).start()
    deadline = time.monotonic() + PULL_S
    while not done.wait(0.1) and time.monotonic() < deadline:
        check()
    if not pulled:
        return None
    setting = Setting("docker", "a Docker engine answers; busybox was pulled", pulled[0])
    setting._undo.append(lambda: client.images.remove(pulled[0], force=True))
    return setting


def _is_static(path: str) -> bool:
    """Whether an ELF program needs no loader (it has no PT_INTERP)."""
    data = Path(path).resolve().read_bytes()
    if data[:4] != b"\x7fELF" or data[4] != 2:
        return False
    order: Literal["little", "big"] = "little" if data[5] == 1 else "big"
    offset = int.from_bytes(data[32:40], order)
    size = int.from_bytes(data[54:56], order)
    count = int.from_bytes(data[56:58], order)
    kinds = [int.from_bytes(data[offset + i * size : offset + i * size + 4], order) for i in range(count)]
    return 3 not in kinds


def _first_line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return (text[0] if text else type(error).__name__)[:120]

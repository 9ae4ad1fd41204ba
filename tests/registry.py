"""A registry of images on this machine (Debian's docker-registry), as nothing can be pulled from outside."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import socket
import subprocess
import tarfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import docker
import docker.errors

_CONFIG = """version: 0.1
log: {{level: info, accesslog: {{disabled: false}}}}
storage: {{filesystem: {{rootdirectory: {where}}}}}
http: {{addr: {address}}}
"""


class Registry:
    """One that runs; images that were pushed from here, or pulled, are removed from the engine at the end."""

    def __init__(self, address: str, log: Path) -> None:
        self.address = address
        self._log = log
        self._client = docker.from_env()
        self._names: list[str] = []

    def push(self, name: str, size_bytes: int = 2 << 20) -> str:
        """Have an image of one layer of noise in the registry, and not in the engine. Returns its whole name."""
        buffer, noise = io.BytesIO(), os.urandom(size_bytes)
        with tarfile.open(fileobj=buffer, mode="w") as tar:
            entry = tarfile.TarInfo("noise")
            entry.size = len(noise)
            tar.addfile(entry, io.BytesIO(noise))
        repository, _, tag = name.rpartition(":")
        whole = f"{self.address}/{repository}"
        self._client.api.import_image_from_data(buffer.getvalue(), repository=whole, tag=tag)
        for line in self._client.images.push(whole, tag=tag, stream=True, decode=True):
            assert "error" not in line, line
        self._client.images.remove(f"{whole}:{tag}")
        self._names.append(f"{whole}:{tag}")
        return f"{whole}:{tag}"

    def pulls(self) -> int:
        """How often a manifest was fetched."""
        return self._log.read_text().count('"GET /v2/team/train/manifests/')

    def close(self) -> None:
        """Remove what was pulled."""
        for name in self._names:
            with contextlib.suppress(docker.errors.APIError):
                self._client.images.remove(name, force=True)
        self._client.close()


@contextlib.contextmanager
def a_registry(require: Callable[[bool, str], None], where: Path) -> Iterator[Registry]:
    """A fresh registry; skips, or fails in CI, where there is none to start."""
    program = shutil.which("docker-registry")
    require(program is not None, "no registry of images (docker-registry)")
    assert program is not None
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    config, log = where / "registry.yml", where / "registry.log"
    config.write_text(_CONFIG.format(where=where / "registry", address=address))
    with log.open("wb") as file:
        process = subprocess.Popen([program, "serve", str(config)], stdout=file, stderr=file)
    made = Registry(address, log)
    try:
        until = time.monotonic() + 20
        while True:
            with contextlib.suppress(OSError), urllib.request.urlopen(f"http://{address}/v2/", timeout=2):
                break
            assert time.monotonic() < until and process.poll() is None, log.read_text()
            time.sleep(0.05)
        yield made
    finally:
        made.close()
        process.terminate()
        process.wait()

"""Compiles proto/bursar into the package `bursar.v1` during every build.

A wheel takes the code from a temporary folder, so that a build leaves the tree as it was. An editable installation
needs it on disk: proto/gen, which is ignored by git. Nothing generated is kept in version control.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class ProtoBuildHook(BuildHookInterface):  # type: ignore[type-arg]
    """Runs protoc with its Python, gRPC and typing plugins."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Generate `bursar.v1`; an sdist carries the sources instead."""
        self.temporary: Path | None = None
        if self.target_name != "wheel":
            return
        if version == "editable":
            generated = Path(self.root, "proto", "gen")
            staging = Path(self.root, "proto", "gen.tmp")
            shutil.rmtree(staging, ignore_errors=True)
            staging.mkdir(parents=True)
            self.generate(staging)
            shutil.rmtree(generated, ignore_errors=True)
            staging.rename(generated)
        else:
            self.temporary = Path(tempfile.mkdtemp(prefix="bursar-proto-"))
            self.generate(self.temporary)
            build_data["force_include"][str(self.temporary / "bursar" / "v1")] = "bursar/v1"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Remove what only the wheel needed."""
        if self.temporary is not None:
            shutil.rmtree(self.temporary, ignore_errors=True)

    def generate(self, target: Path) -> None:
        """Write the package `bursar.v1` under `target`."""
        sources = sorted(
            str(path.relative_to(self.root)) for path in Path(self.root, "proto", "bursar").rglob("*.proto")
        )
        command = [
            sys.executable,
            "-m",
            "grpc_tools.protoc",
            "-Iproto",
            f"--python_out={target}",
            f"--grpc_python_out={target}",
        ]
        for plugin, option in (("protoc-gen-mypy", "mypy_out"), ("protoc-gen-mypy_grpc", "mypy_grpc_out")):
            executable = shutil.which(plugin, path=str(Path(sys.executable).parent)) or shutil.which(plugin)
            if executable is None:
                raise RuntimeError(f"{plugin} is missing: build in isolation, or install mypy-protobuf")
            command += [f"--plugin={plugin}={executable}", f"--{option}=quiet:{target}"]
        subprocess.run([*command, *sources], cwd=self.root, check=True)
        package = target / "bursar" / "v1"
        (package / "__init__.py").write_text('"""Generated from proto/bursar/v1; see there."""\n')
        (package / "py.typed").touch()

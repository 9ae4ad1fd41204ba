"""Compiles proto/ into proto/gen/ during every build, editable installs included.

Nothing generated is kept in version control.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class ProtoBuildHook(BuildHookInterface):  # type: ignore[type-arg]
    """Runs protoc with its Python, gRPC and typing plugins."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Generate `bursar.v1`; an sdist carries the sources instead."""
        if self.target_name == "sdist":
            return
        root = Path(self.root)
        generated = root / "proto" / "gen"
        staging = root / "proto" / "gen.tmp"
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
        sources = sorted(str(path.relative_to(root)) for path in (root / "proto" / "bursar").rglob("*.proto"))
        command = [sys.executable, "-m", "grpc_tools.protoc", "-Iproto", f"--python_out={staging}", f"--grpc_python_out={staging}"]
        for plugin, option in (("protoc-gen-mypy", "mypy_out"), ("protoc-gen-mypy_grpc", "mypy_grpc_out")):
            executable = shutil.which(plugin, path=str(Path(sys.executable).parent)) or shutil.which(plugin)
            if executable:
                command += [f"--plugin={plugin}={executable}", f"--{option}=quiet:{staging}"]
        subprocess.run([*command, *sources], cwd=root, check=True)
        (staging / "bursar" / "v1" / "__init__.py").write_text('"""Generated from proto/bursar/v1; see there."""\n')
        (staging / "bursar" / "v1" / "py.typed").touch()
        shutil.rmtree(generated, ignore_errors=True)
        staging.rename(generated)

"""Device drivers under test, NVML's with the stand-in library compiled for the occasion."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
GIB = 2**30

#: Two pairs of linked GPUs on two nodes.
LAYOUT = f"""\
device GPU-aaaaaaaa-0000-1111-2222-000000000000 NVIDIA_H100_80GB_HBM3 {80 * GIB} 00000000:19:00.0 0 0 0
device GPU-bbbbbbbb-0000-1111-2222-000000000000 NVIDIA_H100_80GB_HBM3 {80 * GIB} 00000000:3B:00.0 1 0 0
device GPU-cccccccc-0000-1111-2222-000000000000 NVIDIA_H100_80GB_HBM3 {80 * GIB} 00000000:9A:00.0 2 1 0
device GPU-dddddddd-0000-1111-2222-000000000000 NVIDIA_H100_80GB_HBM3 {80 * GIB} 00000000:BB:00.0 3 -1 0
link 0 1 12
link 2 3 4
"""


#: One card in three instances, and a whole one.
CUT_LAYOUT = f"""\
device GPU-aaaaaaaa-0000-1111-2222-000000000000 NVIDIA_H100_80GB_HBM3 {80 * GIB} 00000000:19:00.0 0 1 0
device GPU-bbbbbbbb-0000-1111-2222-000000000000 NVIDIA_H100_80GB_HBM3 {80 * GIB} 00000000:3B:00.0 1 0 0
mig 0 7
instance 0 0 MIG-11111111-0000-1111-2222-000000000000 NVIDIA_H100_80GB_HBM3_MIG_3g.40gb 2 0 3 40448
instance 0 1 MIG-22222222-0000-1111-2222-000000000000 NVIDIA_H100_80GB_HBM3_MIG_1g.10gb 9 0 1 9984
instance 0 2 MIG-33333333-0000-1111-2222-000000000000 NVIDIA_H100_80GB_HBM3_MIG_1g.10gb+me 7 0 1 9984
"""

#: Two pairs of AMD's cards; the last two do not know their uuid.
AMD: dict[str, Any] = {
    "gpus": [
        {
            "bdf": f"0000:{bus}:00.0",
            "uuid": uuid,
            "name": "AMD Instinct MI300X",
            "vram": 192 * GIB,
            "numa": number // 2,
        }
        for number, (bus, uuid) in enumerate(
            [
                ("05", "75ff74a1-0000-1000-802d-000000000001"),
                ("26", "75FF74A1-0000-1000-802D-000000000002"),
                ("85", "N/A"),
                ("A6", "N/A"),
            ]
        )
    ],
    "links": [[0, 1, 1], [2, 3, 1], [0, 2, 2]],
}


def amd_tree(root: Path) -> Path:
    """`/sys` and `/dev` as AMD's kernel driver makes them."""
    for number, gpu in enumerate(AMD["gpus"]):
        path = root / "sys/bus/pci/devices" / gpu["bdf"].lower()
        (path / "drm" / f"renderD{128 + number}").mkdir(parents=True, exist_ok=True)
        if number < 3:
            (path / "unique_id").write_text(f"{number:016x}\n")
    return root


def tpu_tree(root: Path, chips: int = 4, vfio: bool = True) -> Path:
    """`/sys` and `/dev` of a TPU VM, beside a network card of Google's."""
    (root / "dev/vfio").mkdir(parents=True, exist_ok=True)
    (root / "dev/vfio/vfio").touch()
    for number in range(chips + 1):
        path = root / f"sys/bus/pci/devices/0000:00:{4 + number:02x}.0"
        path.mkdir(parents=True, exist_ok=True)
        (path / "vendor").write_text("0x1ae0\n")
        (path / "device").write_text("0x0042\n" if number == chips else "0x0063\n" if vfio else "0x005e\n")
        (path / "numa_node").write_text(f"{number // 2}\n")
        if number < chips and vfio:
            (path / "iommu_group").symlink_to(f"../../../kernel/iommu_groups/{number}")
            (root / f"dev/vfio/{number}").touch()
        elif number < chips:
            (path / "accel" / f"accel{number}").mkdir(parents=True)
            (root / f"dev/accel{number}").touch()
    return root


@pytest.fixture(scope="session")
def nvml_standin(require: Callable[[bool, str], None], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory with a libnvidia-ml.so.1 that simulates GPUs."""
    compiler = next(filter(None, map(shutil.which, (os.environ.get("CC") or "cc", "gcc", "clang"))), None)
    require(compiler is not None, "no C compiler for the stand-in of libnvidia-ml (cc, gcc or clang)")
    directory = tmp_path_factory.mktemp("nvml")
    source = HERE.parent / "nvml_standin" / "nvml_standin.c"
    library = directory / "libnvidia-ml.so.1"
    flags = ["-std=gnu11", "-Wall", "-Werror", "-shared", "-fPIC", "-Wl,-soname,libnvidia-ml.so.1"]
    subprocess.run([str(compiler), *flags, "-o", str(library), str(source)], check=True)
    return directory


Observe = Callable[..., dict[str, Any]]


@pytest.fixture
def observe(request: pytest.FixtureRequest, tmp_path: Path) -> Observe:
    """`observe(devices, *layouts, standin=True, agent_id=…)`: what a driver says in a process of its own."""

    def run(devices: str, *layouts: str, standin: bool = True, agent_id: str = "agent-1") -> dict[str, Any]:
        environment = dict(os.environ)
        paths = []
        is_cut = devices == "nvml:cut"
        devices = devices.removesuffix(":cut")
        if devices == "script":
            (tmp_path / "find.sh").write_text("#!/bin/sh\necho 3, 5\n")
            (tmp_path / "find.sh").chmod(0o755)
            devices = f"script:{tmp_path / 'find.sh'}"
        if standin and devices == "nvml":
            environment["LD_LIBRARY_PATH"] = str(request.getfixturevalue("nvml_standin"))
            current = tmp_path / "layout"
            current.write_text(CUT_LAYOUT if is_cut else LAYOUT)
            environment["NVML_STANDIN"] = str(current)
            for number, layout in enumerate(layouts):
                paths.append(tmp_path / f"layout-{number}")
                paths[-1].write_text(layout)
        if devices == "rocm":
            environment |= {"PYTHONPATH": str(HERE.parent / "amdsmi_standin"), "AMDSMI_STANDIN": str(tmp_path / "amd")}
            (tmp_path / "amd").write_text(json.dumps(AMD))
            for number, text in enumerate(layouts):
                paths.append(tmp_path / f"amd-{number}")
                paths[-1].write_text(text)
            devices = f"rocm:{amd_tree(tmp_path / 'root')}"
        elif devices == "tpu":
            devices = f"tpu:{tpu_tree(tmp_path / 'root')}"
        command = [sys.executable, str(HERE / "observe.py"), devices, agent_id, *map(str, paths)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        said: dict[str, Any] = json.loads(done.stdout)
        return said

    return run


@pytest.fixture
def layout() -> str:
    """The stand-in's layout unless told otherwise."""
    return LAYOUT

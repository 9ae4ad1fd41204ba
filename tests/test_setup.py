"""What a stranger's first command rests on: scripts/setup.sh, and the wheel that `pip install` builds.

The set-up is tried on a tiny tree with a build backend of its own, so that it takes seconds and needs no network:
the script, Python's venv and pip are real.
"""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

#: It waits for package indexes and slow disks, not for Bursar.
pytestmark = pytest.mark.timeout(400)

ROOT = Path(__file__).resolve().parent.parent
BASE_PYTHON = Path(sys.base_prefix) / "bin" / f"python3.{sys.version_info.minor}"

PYPROJECT = """
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]
"""

#: A build backend in a dozen lines: an editable wheel that says which extra was asked for.
BACKEND = """
import pathlib, zipfile

def build_editable(folder, config_settings=None, metadata_directory=None):
    with open("builds", "a") as log:
        log.write("built\\n")
    name = "bursar-0-py3-none-any.whl"
    info = "bursar-0.dist-info/"
    with zipfile.ZipFile(pathlib.Path(folder, name), "w") as wheel:
        wheel.writestr("here.py", "place = %r" % str(pathlib.Path.cwd()))
        extras = "Provides-Extra: all\\nProvides-Extra: dev\\n"
        wheel.writestr(info + "METADATA", "Metadata-Version: 2.1\\nName: bursar\\nVersion: 0\\n" + extras)
        wheel.writestr(info + "WHEEL", "Wheel-Version: 1.0\\nGenerator: t\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
        wheel.writestr(info + "RECORD", "")
    return name
"""


class Tree:
    """A small tree with the real scripts."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.path = f"{root}-bin"
        Path(self.path).mkdir()
        for name in ("python3.13", "python3.12", "python3.11", "python3"):
            self.put_program(name, "exit 127")  # a shim that leads nowhere, as pyenv's do
        self.put_program("python3", f'exec "{BASE_PYTHON}" "$@"')
        self.environment = {"PIP_NO_INDEX": "1", "HOME": self.path}

    @classmethod
    def new(cls, root: Path) -> Tree:
        """A tree in which nothing is set up."""
        shutil.copytree(ROOT / "scripts", root / "scripts")
        shutil.copy(ROOT / "Makefile", root)
        (root / "proto" / "bursar" / "v1").mkdir(parents=True)
        (root / "proto" / "bursar" / "v1" / "a.proto").write_text("")
        (root / "pyproject.toml").write_text(PYPROJECT)
        (root / "backend.py").write_text(BACKEND)
        (root / "hatch_build.py").write_text("")
        return cls(root)

    def put_program(self, name: str, text: str) -> None:
        """Make a program come first on the path."""
        program = Path(self.path, name)
        program.write_text(f"#!/bin/sh\n{text}\n")
        program.chmod(0o755)

    def hasten(self, made: Path) -> None:
        """Let venv take pip from a finished tree rather than from ensurepip, which is half of the time."""
        site = next((made / ".venv" / "lib").glob("python3.*")) / "site-packages"
        self.put_program(
            "python3",
            f"""case "$*" in
*--without-pip*) ;;
*" venv .venv") "{BASE_PYTHON}" -I -m venv --without-pip .venv && cp -R "{site}"/pip* .venv/lib/python3*/site-packages/
    exit ;;
esac
exec "{BASE_PYTHON}" "$@" """,
        )

    def command(self, *arguments: str, **variables: str) -> subprocess.Popen[str]:
        """Start a command in the tree: no terminal, the C locale, nothing of the environment of these tests."""
        environment = {"PATH": f"{self.path}:/usr/bin:/bin", "LC_ALL": "C", **self.environment, **variables}
        return subprocess.Popen(
            arguments,
            cwd=self.root,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def setup(self, extra: str = "dev", **variables: str) -> tuple[int, str]:
        """Run the set-up; its exit status and all it said."""
        process = self.command("sh", "scripts/setup.sh", extra, **variables)
        output, _ = process.communicate(timeout=240)
        return process.returncode, output

    @property
    def builds(self) -> int:
        """How often the package has been built."""
        log = self.root / "builds"
        return len(log.read_text().splitlines()) if log.exists() else 0

    def place(self) -> str:
        """Where the installed package was installed from."""
        command = [str(self.root / ".venv/bin/python"), "-I", "-c", "import here; print(here.place)"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tree whose set-up is done; copied by those who disturb it."""
    tree = Tree.new(tmp_path_factory.mktemp("made") / "a tree")
    assert tree.setup()[0] == 0
    return tree.root


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree.new(tmp_path / "a tree with spaces")


def move(made: Path, target: Path) -> Tree:
    """A copy of the finished tree that believes itself at home: its stamp names the new place."""
    shutil.copytree(made, target, symlinks=True)
    stamp = target / ".venv" / "setup-stamp"
    stamp.write_text(stamp.read_text().replace(str(made.resolve()), str(target.resolve())))
    (target / ".venv" / "mark").touch()
    tree = Tree(target)
    tree.hasten(made)
    return tree


def test_it_is_made_once_then_kept_then_brought_up_to_date(tree: Tree) -> None:
    status, output = tree.setup("all")
    assert (status, tree.builds) == (0, 1), output
    assert tree.place() == str(tree.root)
    (tree.root / ".venv" / "mark").touch()

    assert tree.setup("all") == (0, ""), "a finished set-up has nothing to say"
    assert tree.builds == 1

    assert tree.setup("dev")[0] == 0
    assert tree.setup("all") == (0, ""), "what tests need includes what runs"
    assert tree.builds == 2

    (tree.root / "proto" / "bursar" / "v1" / "b.proto").write_text("")
    assert tree.setup("all")[0] == 0
    assert tree.setup("dev") == (0, ""), "bringing the runtime up to date must not lose the tools of tests"
    (tree.root / "proto" / "bursar" / "v1" / "b.proto").unlink()
    assert tree.setup("dev")[0] == 0
    assert tree.builds == 4
    assert (tree.root / ".venv" / "mark").exists(), "made again though it was sound"
    assert not (tree.root / ".venv" / "tmp").exists()


def test_it_is_made_again_after_an_interruption(made: Path, tmp_path: Path) -> None:
    tree = move(made, tmp_path / "a tree")
    assert tree.setup() == (0, "")
    (tree.root / ".venv" / "setup-stamp").unlink()
    assert tree.setup()[0] == 0
    assert not (tree.root / ".venv" / "mark").exists(), "half a set-up was kept"


def test_it_is_made_again_when_its_python_has_vanished(made: Path, tmp_path: Path) -> None:
    tree = move(made, tmp_path / "a tree")
    for link in (tree.root / ".venv" / "bin").glob("python*"):
        link.unlink()
        link.symlink_to("/nowhere/python3")
    assert tree.setup()[0] == 0
    assert tree.place() == str(tree.root)


def test_it_is_made_again_when_the_tree_was_moved(made: Path, tmp_path: Path) -> None:
    """The old place would be imported: silently another tree's code, or none."""
    shutil.copytree(made, tmp_path / "elsewhere", symlinks=True)
    tree = Tree(tmp_path / "elsewhere")
    tree.hasten(made)
    assert tree.setup()[0] == 0
    assert tree.place() == str(tree.root)


def test_killed_in_the_middle_it_is_made_by_the_next(made: Path, tree: Tree) -> None:
    tree.hasten(made)
    process = tree.command("sh", "scripts/setup.sh", "dev")
    deadline = time.monotonic() + 60
    while not (tree.root / ".venv" / "bin").exists():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tree.root / ".venv" / "setup-stamp").exists()
    status, output = tree.setup()
    assert (status, tree.builds) == (0, 1), output


def test_two_at_once_make_it_once(made: Path, tree: Tree) -> None:
    """`make -j demo test` in a fresh clone."""
    tree.hasten(made)
    processes = [tree.command("sh", "scripts/setup.sh", extra) for extra in ("dev", "dev", "dev")]
    outputs = [process.communicate(timeout=240)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], outputs
    assert tree.builds == 1
    assert tree.place() == str(tree.root)


def test_stray_variables_do_no_harm(made: Path, tree: Tree) -> None:
    tree.hasten(made)
    stray = {
        "PYTHONPATH": "/nonsense",
        "PYTHONHOME": "/nonsense",
        "PYTHONWARNINGS": "error",
        "PYTHONOPTIMIZE": "2",
        "PIP_USER": "1",
        "PIP_TARGET": f"{tree.path}/target",
        "PIP_PREFIX": f"{tree.path}/prefix",
        "PIP_REQUIRE_VIRTUALENV": "1",
        "VIRTUAL_ENV": "/nonsense",
        "CDPATH": str(tree.root),
        "BURSAR_MASTER": "production:5050",
    }
    status, output = tree.setup(**stray)
    assert status == 0, output
    assert tree.place() == str(tree.root)
    assert not Path(tree.path, "target").exists()
    seen = f"import os; print(sorted(name for name in os.environ if name in {sorted(stray)}))"
    process = tree.command("sh", "scripts/run.sh", "-c", seen, **stray)
    assert process.communicate(timeout=30)[0] == "['PIP_USER']\n"


def test_make_gives_the_exit_status_of_a_command_on(
    made: Path, tmp_path: Path, require: Callable[[bool, str], None]
) -> None:
    require(shutil.which("make", path="/usr/bin:/bin") is not None, "make is not installed")
    tree = move(made, tmp_path / "a tree")
    package = next((tree.root / ".venv" / "lib").glob("python3.*")) / "site-packages" / "bursar" / "cli"
    package.mkdir(parents=True)
    (package / "demo.py").write_text("import sys; print('played'); sys.exit(int(sys.argv[1]))")
    for status in (0, 3):
        process = tree.command("make", "demo", f"ARGS={status}")
        output, _ = process.communicate(timeout=120)
        assert "played" in output
        assert (process.returncode != 0) == (status != 0), output


# --- Without ensurepip ---


@pytest.fixture
def pip_wheel(require: Callable[[bool, str], None]) -> Path:
    folders = [Path(sys.base_prefix, "lib", f"python3.{sys.version_info.minor}", "ensurepip", "_bundled")]
    folders.append(Path("/usr/share/python-wheels"))
    found = sorted(wheel for folder in folders for wheel in folder.glob("pip-*.whl"))
    require(bool(found), "no pip wheel on this machine: neither ensurepip's nor the system's")
    return found[0]


def without_ensurepip(tree: Tree) -> None:
    """Make the tree's Python the one of a Debian without python3-venv."""
    tree.put_program(
        "python3",
        f"""case "$*" in
*--without-pip*) ;;
*" venv "*) echo "The virtual environment was not created successfully because ensurepip is not available."; exit 1 ;;
esac
exec "{BASE_PYTHON}" "$@" """,
    )


class Index(http.server.ThreadingHTTPServer):
    """A package index on loopback that has one pip wheel, and older and stranger ones that must not be taken."""

    def __init__(self, wheel: Path, *, modern: bool, sha256: str | None = None) -> None:
        self.wheel = wheel
        self.modern = modern
        self.sha256 = sha256 or hashlib.sha256(wheel.read_bytes()).hexdigest()
        self.asked: list[str] = []
        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def url(self) -> str:
        """As one would configure it."""
        return f"http://127.0.0.1:{self.server_address[1]}/simple"

    def page(self) -> tuple[str, bytes]:
        """The page of pip: PEP 691 or PEP 503."""
        name = self.wheel.name
        others = ["pip-0.2.tar.gz", "pip-999.0-py3-none-any.whl", "pip-998.0-py3-none-any.whl"]
        if self.modern:
            files = [{"filename": name, "url": f"../../files/{name}", "hashes": {"sha256": self.sha256}}]
            files += [
                {"filename": other, "url": "../../files/none", "hashes": {}, "yanked": True} for other in others[:2]
            ]
            files += [{"filename": others[2], "url": "../../files/none", "hashes": {}, "requires-python": ">=4"}]
            return "application/vnd.pypi.simple.v1+json", json.dumps({"files": files}).encode()
        links = f'<a href="../../files/{name}#sha256={self.sha256}">{name}</a>'
        links += f'<a href="../../files/{others[0]}">{others[0]}</a>'
        links += f'<a href="../../files/{others[1]}" data-yanked="">{others[1]}</a>'
        links += f'<a href="../../files/{others[2]}" data-requires-python="&gt;=4">{others[2]}</a>'
        return "text/html", f"<!DOCTYPE html><html><body>{links}</body></html>".encode()


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves an `Index`."""

    server: Index

    def do_GET(self) -> None:
        """Answer the page or the wheel."""
        self.server.asked.append(self.path)
        if self.path == "/simple/pip/":
            kind, body = self.server.page()
        elif self.path == f"/files/{self.server.wheel.name}":
            kind, body = "application/octet-stream", self.server.wheel.read_bytes()
        else:
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def serve() -> Iterator[Callable[[Index], Index]]:
    running: list[Index] = []

    def start(index: Index) -> Index:
        running.append(index)
        threading.Thread(target=index.serve_forever, daemon=True).start()
        return index

    yield start
    for index in running:
        index.shutdown()
        index.server_close()


def test_without_ensurepip_pip_comes_from_the_configured_index(
    tree: Tree, pip_wheel: Path, serve: Callable[[Index], Index]
) -> None:
    index = serve(Index(pip_wheel, modern=True))
    without_ensurepip(tree)
    tree.environment = {"HOME": tree.path, "PIP_INDEX_URL": index.url}
    status, output = tree.setup()
    assert status == 0, output
    assert f"/files/{pip_wheel.name}" in index.asked
    assert tree.place() == str(tree.root)


def test_the_index_may_stand_in_a_file_and_answer_in_html(
    tree: Tree, pip_wheel: Path, serve: Callable[[Index], Index]
) -> None:
    index = serve(Index(pip_wheel, modern=False))
    configured = Path(tree.path, ".config", "pip", "pip.conf")
    configured.parent.mkdir(parents=True)
    configured.write_text(f"[global]\nindex-url = http://user:secret@{index.url.removeprefix('http://')}\n")
    tree.environment = {"HOME": tree.path}
    process = tree.command(str(BASE_PYTHON), "-I", "scripts/fetch_pip.py", ".")
    output, _ = process.communicate(timeout=120)
    assert output == f"{pip_wheel.name}\n"
    assert (tree.root / pip_wheel.name).read_bytes() == pip_wheel.read_bytes()


def test_a_wheel_with_another_hash_is_refused_and_the_package_to_install_is_named(
    tree: Tree, pip_wheel: Path, serve: Callable[[Index], Index]
) -> None:
    index = serve(Index(pip_wheel, modern=True, sha256="0" * 64))
    without_ensurepip(tree)
    for name in ("uv", "virtualenv"):
        tree.put_program(name, "exit 1")
    tree.environment = {"HOME": tree.path, "PIP_CONFIG_FILE": os.devnull, "PIP_INDEX_URL": index.url}
    status, output = tree.setup()
    assert status == 1
    assert len(output.splitlines()) == 2, output
    assert "install the package python3-venv" in output and "hash" in output
    assert not (tree.root / ".venv").exists()


def test_virtualenv_is_the_last_resort(made: Path, tree: Tree) -> None:
    tree.hasten(made)
    shutil.move(Path(tree.path, "python3"), Path(tree.path, "hastened"))
    without_ensurepip(tree)
    tree.put_program("uv", "exit 1")
    tree.put_program("virtualenv", 'for last; do :; done; exec hastened -m venv "$last"')
    status, output = tree.setup(PIP_CONFIG_FILE=os.devnull)
    assert status == 0, output
    assert tree.place() == str(tree.root)


def test_no_fitting_python_is_said_in_one_line(tree: Tree) -> None:
    for name in ("python3.11", "python3"):
        tree.put_program(name, "exit 1")
    status, output = tree.setup()
    assert status == 1
    assert len(output.splitlines()) == 1 and "3.11" in output


# --- The wheel ---


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory, require: Callable[[bool, str], None]) -> tuple[Path, Path]:
    """The sdist of a copy of the tree without .git, and the wheel that is built from that sdist."""
    copy = tmp_path_factory.mktemp("copy") / "bursar"
    unwanted = shutil.ignore_patterns(".git", ".venv", "gen", "gen.tmp", "__pycache__", ".*_cache", ".hypothesis")
    shutil.copytree(ROOT, copy, ignore=unwanted)
    out = tmp_path_factory.mktemp("built")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", str(out)]
    subprocess.run(command, cwd=copy, check=True, capture_output=True)
    assert not (copy / "proto" / "gen").exists(), "a build must leave the tree as it was"
    sdist = next(out.glob("bursar-*.tar.gz"))
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "--only-binary",
        "grpcio-tools",
        "-w",
        str(out),
        str(sdist),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        reachable = "No matching distribution" not in done.stderr
        require(reachable, "the package index that has the build's requirements cannot be reached")
        pytest.fail(done.stderr)
    return sdist, next(out.glob("bursar-*.whl"))


def test_the_wheel_holds_every_package_and_no_test(built: tuple[Path, Path]) -> None:
    names = zipfile.ZipFile(built[1]).namelist()
    assert len(names) == len(set(names))
    assert all(name.startswith("bursar/") or ".dist-info/" in name for name in names)
    packages = {name.split("/")[1] for name in names if name.startswith("bursar/")}
    expected = {"core", "runtime", "master", "agent", "sdk", "frameworks", "cli", "simulation", "v1"}
    assert packages == expected
    assert {f"bursar/{package}/py.typed" for package in expected} <= set(names)
    assert "bursar/__init__.py" not in names
    for proto in (ROOT / "proto/bursar/v1").glob("*.proto"):
        assert f"bursar/v1/{proto.stem}_pb2.py" in names and f"bursar/v1/{proto.stem}_pb2.pyi" in names
    tracked = {
        path.relative_to(component).as_posix()
        for component in (ROOT / name for name in ("core", "master", "agent", "frameworks", "cli", "simulation"))
        for path in component.rglob("*")
        if path.is_file() and path.suffix in {".py", ".mako"}
    }
    assert tracked <= set(names), f"not in the wheel: {sorted(tracked - set(names))}"


def test_the_wheel_says_what_it_needs_and_brings_the_programs(built: tuple[Path, Path]) -> None:
    wheel = zipfile.ZipFile(built[1])
    metadata = wheel.read(next(name for name in wheel.namelist() if name.endswith("METADATA"))).decode()
    for extra in ("all", "agent", "cli", "dev", "master", "sdk"):
        assert f"Provides-Extra: {extra}\n" in metadata
    scripts = wheel.read(next(name for name in wheel.namelist() if name.endswith("entry_points.txt"))).decode()
    for program in ("bursar", "bursar-master", "bursar-agent"):
        assert f"{program} = " in scripts
    assert any(name.endswith("licenses/LICENSE") for name in wheel.namelist())


def test_generated_code_runs_with_the_oldest_libraries_that_are_allowed(built: tuple[Path, Path]) -> None:
    """Generated modules refuse libraries older than their generator; the floors in pyproject must not promise less."""
    wheel = zipfile.ZipFile(built[1])
    metadata = wheel.read(next(name for name in wheel.namelist() if name.endswith("METADATA"))).decode()
    grpc = next(
        line
        for line in wheel.read("bursar/v1/agent_service_pb2_grpc.py").decode().splitlines()
        if "GENERATED_VERSION =" in line
    )
    protobuf = next(
        line
        for line in wheel.read("bursar/v1/tasks_pb2.py").decode().splitlines()
        if "Protobuf Python Version:" in line
    )
    for name, version in (("grpcio", grpc.split("'")[1]), ("protobuf", protobuf.split()[-1])):
        needed = next(line for line in metadata.splitlines() if line.startswith(f"Requires-Dist: {name}"))
        floor = needed.split(">=")[1]
        assert version_of(floor) >= version_of(version), f"{needed} but the code was generated for {version}"


def version_of(text: str) -> list[int]:
    return [int(part) for part in text.split(",")[0].strip().split(".")]


def test_the_sdist_holds_what_a_build_and_its_tests_need(built: tuple[Path, Path]) -> None:
    with tarfile.open(built[0]) as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}
    assert {"pyproject.toml", "hatch_build.py", "LICENSE", "Makefile", "tests/conftest.py"} <= names
    assert {path.relative_to(ROOT).as_posix() for path in (ROOT / "proto/bursar/v1").glob("*.proto")} <= names
    assert not [name for name in names if name.startswith((".venv", "proto/gen", ".git/"))]

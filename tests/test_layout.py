"""The shape of the repository: what would break the namespace, put generated code under review, or blur the contract."""

from __future__ import annotations

import importlib
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FileDescriptor

ROOT = Path(__file__).resolve().parent.parent
#: Directory → the packages of the namespace that it holds.
COMPONENTS = {
    "core": {"core", "runtime"},
    "master": {"master"},
    "agent": {"agent"},
    "frameworks": {"sdk", "frameworks"},
    "cli": {"cli"},
    "simulation": {"simulation"},
}
PACKAGES = sorted(f"{component}/bursar/{package}" for component, found in COMPONENTS.items() for package in found)
PROTOS = sorted((ROOT / "proto" / "bursar" / "v1").glob("*.proto"))
#: Names that say nothing about what is inside (docs/vocabulary.md).
EMPTY_NAMES = {"base", "common", "handlers", "helpers", "manager", "misc", "types", "util", "utils"}


def modules() -> Iterator[Path]:
    for component in COMPONENTS:
        yield from sorted((ROOT / component).rglob("*.py"))


def test_bursar_is_a_namespace_without_an_init_module() -> None:
    strays = [
        str(path.relative_to(ROOT)) for component in COMPONENTS for path in (ROOT / component).glob("bursar/*.py*")
    ]
    assert not strays, f"a module directly in bursar/ hides every other component: {strays}"


def test_each_component_holds_its_packages_and_nothing_else() -> None:
    found = {
        component: {path.name for path in (ROOT / component / "bursar").iterdir() if path.is_dir()} - {"__pycache__"}
        for component in COMPONENTS
    }
    assert found == COMPONENTS


@pytest.mark.parametrize("package", PACKAGES)
def test_each_package_is_marked_as_typed(package: str) -> None:
    assert (ROOT / package / "py.typed").is_file(), (
        "without it, type checkers ignore the annotations of an installed package"
    )


def test_every_directory_with_modules_is_a_package() -> None:
    lacking = {
        str(path.parent.relative_to(ROOT))
        for path in modules()
        if not (path.parent / "__init__.py").is_file()
        and "versions" not in path.parts
        and "migrations" not in path.parts
    }
    assert not lacking, f"no __init__.py with the package's story in {sorted(lacking)}"


def test_modules_are_named_for_what_they_hold() -> None:
    empty = [str(path.relative_to(ROOT)) for path in modules() if path.stem in EMPTY_NAMES]
    assert not empty


def test_proto_is_never_a_package() -> None:
    """`import proto` must keep finding proto-plus, where that is installed."""
    assert not list((ROOT / "proto").glob("*.py"))


def test_nothing_generated_is_tracked(require: Callable[[bool, str], None]) -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("not a clone: a copy of the tree has no tracked files")
    require(shutil.which("git") is not None, "git is not installed")
    listing = subprocess.run(
        ["git", "-c", f"safe.directory={ROOT}", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    generated = re.compile(r"(_pb2(_grpc)?\.pyi?|\.pyc|\.egg-info/.*|\.so)$|^(dist|build|\.venv|proto/gen)/")
    assert not [name for name in listing.stdout.splitlines() if generated.search(name)]


def test_tests_mirror_the_source() -> None:
    """Every directory of tests is named after a package, or after what spans them."""
    packages = set().union(*COMPONENTS.values())
    spanning = {"benchmarks", "e2e", "scenarios", "support"}
    found = {path.name for path in (ROOT / "tests").iterdir() if path.is_dir() and any(path.rglob("test_*.py"))}
    assert found <= packages | spanning, f"no such package: {sorted(found - packages - spanning)}"


# --- The contract: what `buf lint` (STANDARD) would hold, and its comments. ---


def files() -> list[FileDescriptor]:
    return [importlib.import_module(f"bursar.v1.{path.stem}_pb2").DESCRIPTOR for path in PROTOS]


def nested(messages: list[Descriptor]) -> Iterator[Descriptor]:
    for message in messages:
        yield message
        yield from nested([inner for inner in message.nested_types if not inner.GetOptions().map_entry])


def all_messages() -> list[Descriptor]:
    return [message for file in files() for message in nested(list(file.message_types_by_name.values()))]


def all_enums() -> list[EnumDescriptor]:
    return [enum for file in files() for enum in file.enum_types_by_name.values()] + [
        enum for message in all_messages() for enum in message.enum_types
    ]


def words(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).upper()


def test_files_are_of_the_package_that_their_directory_says() -> None:
    assert PROTOS
    assert {file.package for file in files()} == {"bursar.v1"}
    assert all(re.fullmatch(r"[a-z][a-z0-9_]*", path.stem) for path in PROTOS)


def test_names_of_messages_and_fields() -> None:
    for message in all_messages():
        assert re.fullmatch(r"([A-Z][a-z0-9]*)+", message.name), message.full_name
        for field in message.fields:
            assert re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", field.name), field.full_name


def test_values_of_enums_carry_its_name_and_start_with_unspecified() -> None:
    for enum in all_enums():
        prefix = words(enum.name) + "_"
        assert all(value.name.startswith(prefix) for value in enum.values), enum.full_name
        assert enum.values_by_number[0].name == prefix + "UNSPECIFIED", enum.full_name


def test_every_call_has_a_request_and_a_response_of_its_own() -> None:
    seen: set[str] = set()
    for file in files():
        for service in file.services_by_name.values():
            assert service.name.endswith("Service")
            for method in service.methods:
                prefixes = ("", service.name)
                assert method.input_type.name in [f"{prefix}{method.name}Request" for prefix in prefixes]
                assert method.output_type.name in [f"{prefix}{method.name}Response" for prefix in prefixes]
                for name in (method.input_type.name, method.output_type.name):
                    assert name not in seen, f"{name} serves two calls; they could not change apart"
                    seen.add(name)


def test_quantities_carry_their_unit() -> None:
    """A field named for a duration or an amount says of what; `timeout` alone would be seconds to one and ms to another."""
    bare = re.compile(r"(^|_)(timeout|grace|interval|age|deadline|memory|disk|size)$")
    numeric = {"TYPE_UINT64", "TYPE_INT64", "TYPE_UINT32", "TYPE_INT32", "TYPE_DOUBLE", "TYPE_FLOAT"}
    for message in all_messages():
        for field in message.fields:
            kind = next(name for name in dir(field) if name.startswith("TYPE_") and getattr(field, name) == field.type)
            assert not (kind in numeric and bare.search(field.name) and field.name != "page_size"), field.full_name
            assert kind not in {"TYPE_DOUBLE", "TYPE_FLOAT"}, f"{field.full_name}: integers only"


SERVICES = ("AgentService", "FrameworkService", "OperatorService")


def declarations(path: Path) -> Iterator[tuple[str, str, bool]]:
    """(kind, name, has a comment right above) of each declaration in a file."""
    commented = False
    for line in path.read_text(encoding="utf-8").splitlines():
        text = line.strip()
        if text.startswith("//"):
            commented = True
            continue
        if match := re.match(r"(message|enum|service|rpc)\s+(\w+)", text):
            yield match[1], match[2], commented
        commented = False


#: What the contract still owes a word. Take a name out when its comment is written; never add one.
OWED: set[str] = set()


def test_the_contract_is_its_own_documentation() -> None:
    """Each message, enum and service has a comment; a request or a response is explained by its call."""
    lacking = set()
    for path in PROTOS:
        found = list(declarations(path))
        explained = {name + end for kind, name, _ in found if kind == "rpc" for end in ("Request", "Response")}
        explained |= {f"{service}{name}" for service in SERVICES for name in explained}
        lacking |= {f"{path.name}:{name}" for _, name, commented in found if not commented and name not in explained}
        assert path.read_text(encoding="utf-8").startswith("//"), f"{path.name} does not say what it is about"
    assert lacking - OWED == set()
    assert OWED - lacking == set(), "commented by now"

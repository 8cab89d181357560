"""The shape of the package: imports point down, modules and functions stay small."""

from __future__ import annotations

import ast
import graphlib
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "swapfs"
MODULE_LINES_MAX = 400
FUNCTION_LINES_MAX = 70

# Lowest first. A room may import from lower layers and from itself; rooms of one layer stand
# beside each other and know nothing of each other.
LAYERS = (
    ("", "errors", "units"),
    ("core",),
    ("host", "region", "session"),
    ("config", "tiers", "wire"),
    ("fs", "vlayer"),
    ("testing", "server"),
    ("monitor",),
    ("command",),
    ("__main__",),
)
RANK = {name: rank for rank, layer in enumerate(LAYERS) for name in layer}
SOURCES = sorted(PACKAGE.rglob("*.py"))


def layer_of(module: str) -> str:
    """Return the part of a dotted name that LAYERS knows: ``tiers`` of swapfs.tiers.file."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


def module_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts).removesuffix(".__init__")


def imports_of(tree: ast.AST) -> Iterator[str]:
    """Yield the swapfs modules that *tree* imports, wherever in it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            assert node.level == 0, "imports are absolute"
            names = [node.module]
            if node.module == "swapfs":
                names = [
                    f"swapfs.{alias.name}" if f"{alias.name}" in RANK else "swapfs"
                    for alias in node.names
                ]
        else:
            continue
        yield from (name for name in names if name.split(".")[0] == "swapfs")


@pytest.mark.parametrize("path", SOURCES, ids=module_of)
def test_imports_point_down(path: Path) -> None:
    importer = layer_of(module_of(path))
    assert importer in RANK, f"{importer} has no place in LAYERS: decide on one"
    for imported in imports_of(ast.parse(path.read_text())):
        below = layer_of(imported)
        assert below == importer or RANK.get(below, 99) < RANK[importer], (
            f"{importer} imports {below}, which is not below it"
        )


def test_layers_name_only_what_exists() -> None:
    there = {layer_of(module_of(path)) for path in SOURCES}
    assert set(RANK) == there


def test_no_import_cycles() -> None:
    modules = {module_of(path) for path in SOURCES}
    graph = {
        module_of(path): {
            name for name in imports_of(ast.parse(path.read_text())) if name in modules
        }
        for path in SOURCES
    }
    for module in graph:
        graph[module] -= {module, "swapfs"}
    graphlib.TopologicalSorter(graph).prepare()


def test_pyfuse3_is_imported_in_one_place() -> None:
    """The session loop must be loaded before it (see session.py)."""
    importers = [
        module_of(path)
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Import) and any(alias.name == "pyfuse3" for alias in node.names)
    ]
    assert importers == ["swapfs.session"]


@pytest.mark.parametrize("path", SOURCES, ids=module_of)
def test_modules_are_small(path: Path) -> None:
    lines = path.read_text().splitlines()
    assert len(lines) <= MODULE_LINES_MAX


@pytest.mark.parametrize("path", SOURCES, ids=module_of)
def test_functions_are_small(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            assert length <= FUNCTION_LINES_MAX, f"{node.name} has {length} lines"

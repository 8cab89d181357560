"""The shape of swapfs: imports point down."""

from __future__ import annotations

import graphlib
from pathlib import Path

import pytest

from tests.structure.sources import imports_of, module_of, python_files

# Lowest first. A room may import from lower layers and from itself; rooms of one layer stand
# beside each other and know nothing of each other.
LAYERS = (
    ("", "errors", "units"),
    ("core",),
    ("host", "region", "session"),
    ("config", "policy", "tiers", "wire"),
    ("fs", "vlayer"),
    ("testing", "server", "lab"),
    ("monitor",),
    ("command",),
    ("__main__",),
)
RANK = {name: rank for rank, layer in enumerate(LAYERS) for name in layer}
SOURCES = python_files("swapfs")


def layer_of(module: str) -> str:
    """Return the part of a dotted name that LAYERS knows: ``tiers`` of swapfs.tiers.file."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


def swapfs_imports(path: Path) -> set[str]:
    return {name for name in imports_of(path) if name.split(".")[0] == "swapfs"}


@pytest.mark.parametrize("path", SOURCES, ids=module_of)
def test_imports_point_down(path: Path) -> None:
    importer = layer_of(module_of(path))
    assert importer in RANK, f"{importer} has no place in LAYERS: decide on one"
    for imported in swapfs_imports(path):
        below = layer_of(imported)
        assert below == importer or RANK.get(below, 99) < RANK[importer], (
            f"{importer} imports {below}, which is not below it"
        )


def test_layers_name_only_what_exists() -> None:
    there = {layer_of(module_of(path)) for path in SOURCES}
    assert set(RANK) == there


def test_no_import_cycles() -> None:
    modules = {module_of(path) for path in SOURCES}
    graph = {module_of(path): swapfs_imports(path) & modules for path in SOURCES}
    for module in graph:
        graph[module] -= {module, "swapfs"}
    graphlib.TopologicalSorter(graph).prepare()


def test_pyfuse3_is_imported_in_one_place() -> None:
    """The session loop must be loaded before it (see session.py)."""
    importers = [
        module_of(path) for path in SOURCES if "pyfuse3" in imports_of(path, types_too=False)
    ]
    assert importers == ["swapfs.session"]

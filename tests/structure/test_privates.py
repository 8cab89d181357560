"""Tests speak to behaviour: a refactor that keeps it breaks none of them.

So no test touches a private name of what it tests, by a dot, an import or a monkeypatch. What a
test must reach to make something happen is part of the interface, and named so.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.structure.sources import name_of, python_files, tree_of

FILES = python_files("tests")
OF_PYTHON = {"_exit", "_replace", "_asdict", "_fields"}
MODULES = {"_core", "_session"}
PATCHES = {"setattr", "setitem", "delattr"}


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def own_names(tree: ast.AST) -> set[str]:
    """Return what the file defines itself, also as an attribute: its own business."""
    own: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            own.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            own.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            own |= {node.attr} if ast.unparse(node.value) == "self" else set()
    return own


def touched(tree: ast.AST) -> Iterator[str]:
    """Yield each private name of others that *tree* touches, and the line."""
    known = OF_PYTHON | MODULES | own_names(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) not in ("self", "cls"):
            names = [node.attr] if node.attr not in known else []
        elif isinstance(node, ast.ImportFrom):
            names = [alias.name for alias in node.names if alias.name not in MODULES]
        else:
            names = list(patched(node))
        for name in names:
            if is_private(name.rpartition(".")[2]):
                yield f"line {getattr(node, 'lineno', 0)}: {name}"


def patched(node: ast.AST) -> Iterator[str]:
    """Yield the strings of a call of monkeypatch, one of which is what it replaces."""
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
        return
    if node.func.attr in PATCHES:
        for argument in node.args:
            if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                yield argument.value


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_no_private_name_of_others_is_touched(path: Path) -> None:
    assert list(touched(tree_of(path))) == []


def test_the_look_finds_what_it_looks_for() -> None:
    tree = ast.parse(
        """
from swapfs.session import _session
from swapfs.vlayer.fetch import _Flight, Fetcher

class Mine(Fetcher):
    def __init__(self):
        self._mine = 1

def test(monkeypatch):
    assert Mine()._mine == 1
    assert Mine()._theirs.deep
    monkeypatch.setattr("swapfs.host.loop._find", None)
    os._exit(_session.run())
"""
    )
    assert sorted(touched(tree)) == [
        "line 11: _theirs",
        "line 12: swapfs.host.loop._find",
        "line 3: _Flight",
    ]

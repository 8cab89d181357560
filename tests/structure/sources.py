"""The source files of this checkout and what each of them imports or includes."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
OURS = ("swapfs", "deploy", "tests")
"""The importable trees."""

_QUOTED = re.compile(r'^\s*#\s*include\s+"([^"]+)"', re.MULTILINE)
_SYSTEM = re.compile(r"^\s*#\s*include\s+<([^>]+)>", re.MULTILINE)


def python_files(*trees: str) -> list[Path]:
    return sorted(path for tree in trees for path in (ROOT / tree).rglob("*.py"))


def c_files(*trees: str) -> list[Path]:
    return sorted(path for tree in trees for path in (ROOT / tree).rglob("*.[ch]"))


def name_of(path: Path) -> str:
    """Return the path below the checkout, which is what a reader looks for."""
    return str(path.relative_to(ROOT))


def module_of(path: Path) -> str:
    """Return the dotted name of a Python file: ``swapfs.tiers.file``, ``swapfs.tiers``."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


@functools.cache
def tree_of(path: Path) -> ast.Module:
    text = path.read_text()
    try:
        return ast.parse(text)
    except SystemError:  # CPython before 3.12 (gh-106905), when something else parses in between
        return ast.parse(text)


@functools.cache
def modules() -> frozenset[str]:
    return frozenset(module_of(path) for path in python_files(*OURS))


def is_ours(module: str) -> bool:
    return module.split(".")[0] in OURS


def imports_of(path: Path, *, types_too: bool = True) -> Iterator[str]:
    """Yield the modules that *path* imports, wherever in it: ``from swapfs import units`` is
    ``swapfs.units``. With *types_too* false, those that only type checkers see are left out."""
    for node in _nodes(tree_of(path), types_too=types_too):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name_of(path)}: imports are absolute"
            assert node.module is not None
            inside = {f"{node.module}.{alias.name}" for alias in node.names}
            yield from sorted(inside & modules()) or [node.module]


def _nodes(tree: ast.AST, *, types_too: bool) -> Iterator[ast.AST]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING" and not types_too:
            continue
        yield node
        yield from _nodes(node, types_too=types_too)


def quoted_includes(path: Path) -> list[str]:
    """Return what *path* includes in quotes: our own headers."""
    return _QUOTED.findall(path.read_text())


def system_includes(path: Path) -> list[str]:
    return _SYSTEM.findall(path.read_text())

"""A file, a class or a function is no longer than what one can see whole."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.structure.sources import c_files, name_of, python_files, tree_of

PYTHON_LINES_MAX = 350
C_LINES_MAX = 450
CLASS_LINES_MAX = 250
FUNCTION_LINES_MAX = 70

_C_FUNCTION = re.compile(r"^\{\n.*?^\}", re.MULTILINE | re.DOTALL)


def is_test(path: Path) -> bool:
    """Whether it is a list of cases, which one reads one at a time: it may be of any length."""
    return path.name.startswith("test_")


PYTHON = python_files("swapfs", "deploy", "tests")
C = c_files("swapfs", "tests")
FILES = [path for path in [*PYTHON, *C] if not is_test(path)]


def lines(node: ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    return (node.end_lineno or node.lineno) - node.lineno + 1


def sizes(path: Path) -> Iterator[tuple[str, int, int]]:
    """Yield what has a limit in *path*: its name, its lines, and the most that it may have."""
    if path.suffix == ".py":
        yield name_of(path), len(path.read_text().splitlines()), PYTHON_LINES_MAX
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.ClassDef):
                yield f"{name_of(path)}: {node.name}", lines(node), CLASS_LINES_MAX
            elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield f"{name_of(path)}: {node.name}", lines(node), FUNCTION_LINES_MAX
    else:
        text = path.read_text()
        yield name_of(path), len(text.splitlines()), C_LINES_MAX
        for body in _C_FUNCTION.finditer(text):
            line = text.count("\n", 0, body.start())
            yield f"{name_of(path)}: line {line}", body[0].count("\n") + 1, FUNCTION_LINES_MAX


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_nothing_is_too_long_to_be_seen_whole(path: Path) -> None:
    for name, length, most in sizes(path):
        assert length <= most, f"{name} has {length} lines"


@pytest.mark.parametrize("path", [path for path in PYTHON if is_test(path)], ids=name_of)
def test_test_functions_are_small(path: Path) -> None:
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert lines(node) <= FUNCTION_LINES_MAX, f"{node.name} has {lines(node)} lines"

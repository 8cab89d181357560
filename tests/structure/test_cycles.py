"""Nothing that a server may run turns an exception into a cycle by how it is written.

gc is off there. `tests/unit/test_no_cycles.py` makes failures and counts what stays; this looks
for what is known to leave a cycle, so that a new use is seen where nobody makes it fail.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.structure.sources import ROOT, name_of, python_files, tree_of

# These do not run in a server: a command ends, and tests have gc.
ELSEWHERE = ("command", "testing")
FILES = [
    path
    for path in python_files("swapfs")
    if path.relative_to(ROOT / "swapfs").parts[0] not in ELSEWHERE
]

# What turns one exception into another inside of trio (0.35), and what to use.
OF_TRIO = {
    "trio.fail_after": "trio.move_on_after, and raise after it (Python 3.13)",
    "trio.fail_at": "trio.move_on_at, and raise after it (Python 3.13)",
    "trio.SocketStream": "trio.socket (Python 3.13)",
    "trio.to_thread.run_sync": "swapfs.server.threads.in_thread (any Python)",
}
THE_CURE_ITSELF = "swapfs/server/threads.py"


def catching_generators(tree: ast.AST) -> Iterator[str]:
    """Yield the context managers that are generators and catch what the block raises.

    On Python 3.13 the exception stays in the generator's frame, which its traceback reaches.
    """
    for node in ast.walk(tree):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if not any("contextmanager" in ast.unparse(one) for one in node.decorator_list):
            continue
        for block in ast.walk(node):
            if isinstance(block, ast.Try) and block.handlers:
                inside = [one for step in block.body for one in ast.walk(step)]
                if any(isinstance(one, ast.Yield) for one in inside):
                    yield node.name


def uses(tree: ast.AST) -> set[str]:
    """Return which of OF_TRIO *tree* names."""
    names = {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    return names & set(OF_TRIO)


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_no_context_manager_is_a_generator_that_catches(path: Path) -> None:
    found = list(catching_generators(tree_of(path)))
    assert found == [], "make it a class, or catch where it is used"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_what_leaves_cycles_is_not_used(path: Path) -> None:
    if name_of(path) != THE_CURE_ITSELF:
        cures = {name: OF_TRIO[name] for name in uses(tree_of(path))}
        assert cures == {}


def test_the_look_finds_what_it_looks_for() -> None:
    tree = ast.parse(
        """
@contextlib.contextmanager
def translating():
    try:
        with thing() as inner:
            yield inner
    except OSError:
        raise ValueError from None

@contextlib.contextmanager
def only_cleaning():
    try:
        found = look()
    except OSError:
        return
    try:
        yield found
    finally:
        close(found)

async def serve(peer):
    with trio.fail_after(1):
        await trio.to_thread.run_sync(serve)
"""
    )
    assert list(catching_generators(tree)) == ["translating"]
    assert uses(tree) == {"trio.fail_after", "trio.to_thread.run_sync"}

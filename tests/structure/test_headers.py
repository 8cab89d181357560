"""What C includes: whose headers, which libraries, and that a changed header means a new build."""

from __future__ import annotations

import graphlib
import tomllib
from pathlib import Path
from typing import Any

import pytest

from tests.structure.sources import ROOT, c_files, name_of, quoted_includes, system_includes

FILES = c_files("swapfs")

# Room of a C file -> rooms whose headers it may include beside those of its own.
HEADERS_OF = {"core": (), "session": ("core",)}

# A library's header -> the one room that may include it.
LIBRARIES = {"lz4": "core", "zstd": "core", "fuse3": "session", "linux/fuse.h": "session"}


def room_of(path: Path) -> str:
    return path.relative_to(ROOT / "swapfs").parts[0]


def extensions() -> list[dict[str, Any]]:
    with (ROOT / "pyproject.toml").open("rb") as file:
        found: list[dict[str, Any]] = tomllib.load(file)["tool"]["setuptools"]["ext-modules"]
    return found


def header(includer: Path, name: str) -> Path:
    """Return the header of ours that ``#include "name"`` in *includer* means."""
    rooms = (room_of(includer), *HEADERS_OF[room_of(includer)])
    found = [path for room in rooms for path in (ROOT / "swapfs" / room).rglob(Path(name).name)]
    assert len(found) == 1, f'{name_of(includer)}: "{name}" is none of the headers of {rooms}'
    return found[0]


def reached(path: Path) -> set[Path]:
    """Return every header of ours that *path* includes, directly or not."""
    found: set[Path] = set()
    left = [path]
    while left:
        here = left.pop()
        new = {header(here, name) for name in quoted_includes(here)} - found
        found |= new
        left += new
    return found


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_headers_come_from_rooms_below(path: Path) -> None:
    assert room_of(path) in HEADERS_OF, "decide whose headers this room may include"
    for name in quoted_includes(path):
        assert header(path, name).suffix == ".h"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_a_library_is_used_in_one_room(path: Path) -> None:
    for name in system_includes(path):
        for library, room in LIBRARIES.items():
            assert not name.startswith(library) or room == room_of(path), f"<{name}>"


def test_no_header_includes_itself_in_the_end() -> None:
    graph = {path: {header(path, name) for name in quoted_includes(path)} for path in FILES}
    graphlib.TopologicalSorter(graph).prepare()


def test_every_c_file_belongs_to_one_extension() -> None:
    sources = sorted(source for extension in extensions() for source in extension["sources"])
    assert sources == [name_of(path) for path in FILES if path.suffix == ".c"]


@pytest.mark.parametrize("extension", extensions(), ids=lambda extension: extension["name"])
def test_a_changed_header_builds_its_extension_again(extension: dict[str, Any]) -> None:
    wanted = {path for source in extension["sources"] for path in reached(ROOT / source)}
    assert sorted(extension.get("depends", [])) == sorted(map(name_of, wanted))

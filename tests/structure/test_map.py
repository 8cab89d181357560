"""The code map of ARCHITECTURE.md is the tree."""

from __future__ import annotations

import re

from tests.structure.sources import ROOT

PACKAGE = ROOT / "swapfs"
_ROW = re.compile(r"^\| ((?:`[^`]+` ?)+)\|(.*)\|$", re.MULTILINE)


def mapped() -> set[str]:
    """Return the files that the map names: `room/` in the first column, its files in the last."""
    text = (ROOT / "ARCHITECTURE.md").read_text()
    section = text.partition("\n## Code map\n")[2].partition("\n## ")[0]
    found: set[str] = set()
    for room, rest in _ROW.findall(section):
        names = re.findall(r"`([^`]+)`", room)
        if not names[0].endswith("/"):
            found |= set(names)
            continue
        files = re.findall(r"[\w/.]+", rest.rpartition("|")[2])
        found |= {f"{names[0]}{name}" for name in files}
    return found


def test_the_code_map_names_every_file_and_no_other() -> None:
    there = {
        str(path.relative_to(PACKAGE).with_suffix("" if path.suffix == ".py" else path.suffix))
        for path in PACKAGE.rglob("*")
        if path.suffix in (".py", ".c", ".h") and path.name not in ("__init__.py", "__main__.py")
    }
    assert {name.removesuffix(".py") for name in mapped()} == there

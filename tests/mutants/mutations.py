"""The mistakes of ``mutations.toml``, which says what makes a good one."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Mutation:
    """A mistake: *edits* are (old text, new text) pairs for *file*; one of *tests* must fail."""

    name: str
    file: str
    edits: tuple[tuple[str, str], ...]
    tests: tuple[str, ...]


def read_mutations() -> list[Mutation]:
    """Return every mistake of the list."""
    text = Path(__file__).with_name("mutations.toml").read_text()
    return [
        Mutation(
            entry["name"],
            entry["file"],
            tuple((edit["old"], edit["new"]) for edit in entry.get("edits", [entry])),
            tuple(entry["tests"]),
        )
        for entry in tomllib.loads(text)["mutation"]
    ]

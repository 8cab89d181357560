"""The results of a full run as those of the release, in docs/bench.

    python -m tests.bench.release bench-results/full.json

They are the page, every figure as JSON, and the two pictures that tell most, in place of those
of the release before.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from tests.bench import names, report
from tests.bench.record import NotResultsError, load

PLACE: Final = Path(__file__).parents[2] / "docs" / "bench"
PICTURES: Final = {
    names.BLOCK: ("block: latency", "block-latency.png"),
    names.SWAP: ("swap: throughput", "swap-throughput.png"),
}
"""By part: title and file, in the directory beside the results."""


def keep(run: Path, place: Path) -> list[Path]:
    """Put the results *run* and their pictures into *place*; return the files.

    :raises NotResultsError: *run* is no results
    :raises OSError: a picture is not there, or *place* cannot be written
    """
    results = load(run)
    page = report.page(results, {part: [picture] for part, picture in PICTURES.items()})
    place.mkdir(parents=True, exist_ok=True)
    drawn = run.with_suffix("")
    pictures = [shutil.copyfile(drawn / name, place / name) for _, name in PICTURES.values()]
    (place / "release.md").write_text(page)
    shutil.copyfile(run, place / "release.json")
    return [place / "release.md", place / "release.json", *pictures]


def main(words: Sequence[str] | None = None) -> int:
    """Put the results where they belong; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.release", description=__doc__)
    parser.add_argument("run", type=Path, help="FULL.json; its pictures are in FULL beside it")
    parser.add_argument("--place", type=Path, default=PLACE)
    options = parser.parse_args(words)
    try:
        print(*keep(options.run, options.place), sep="\n")
    except (NotResultsError, OSError) as error:
        print(f"release: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

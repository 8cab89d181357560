"""Two runs side by side: what became worse, what better, what cannot be told.

    python -m tests.bench.compare OLD.json NEW.json

A change counts if the medians differ by more than 10 % and every round of one run lies above every
round of the other. Only swapfs can regress. Where a part measures something that swapfs does not
touch (`YARDSTICKS`), its ratio to that, round by round, is compared instead of the value, so that
a machine that is slower today is not taken for a slower swapfs; how the others moved is shown.
Exit code 0: no regression; 1: at least one; 2: the files cannot be compared.
"""

from __future__ import annotations

import argparse
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.bench import names, tables
from tests.bench.ratios import Spread, ratio, spread
from tests.bench.record import Figure, NotResultsError, Results, load
from tests.bench.report import is_swapfs

THRESHOLD: Final = 0.10
"""The least change of a median, as a fraction of the old one, that is worth a line."""
YARDSTICKS: Final = {
    names.BLOCK: names.FLOOR,
    names.SWAP: names.ZRAM,
    names.MEMORY: names.ZRAM_LZ4,
    names.DEMOTION: "dd",
}
"""By part: the subject that tells how fast the machine (or how compressible the corpus) was."""
_HOST_KEYS: Final = ("cpu", "cpus", "memory_mib", "kernel", "governor")
_MADE_KEYS: Final = ("kind", "rounds")


@dataclass(frozen=True)
class Change:
    """One figure in both runs."""

    figure: Figure
    old: Spread
    new: Spread
    yardstick: str
    """What both are ratios to; empty if they are values."""

    @property
    def size(self) -> float:
        """Return new / old - 1: 0.2 is 20 % more. 0 to something is infinitely more."""
        if self.old.median == 0:
            return 0.0 if self.new.median == 0 else float("inf")
        return self.new.median / self.old.median - 1

    @property
    def worse(self) -> bool:
        """Return whether the change is in the bad direction."""
        return self.size > 0 if self.figure.better == "lower" else self.size < 0

    @property
    def counts(self) -> bool:
        """Return whether the change is more than the threshold and more than noise."""
        apart = self.old.high < self.new.low or self.new.high < self.old.low
        return apart and abs(self.size) > THRESHOLD

    @property
    def regression(self) -> bool:
        """Return whether swapfs became worse."""
        return self.counts and self.worse and is_swapfs(self.figure.subject)

    @property
    def word(self) -> str:
        """Return what the change is called."""
        if not is_swapfs(self.figure.subject):
            return "not swapfs"
        return "WORSE" if self.worse else "better"


def changes(old: Results, new: Results) -> list[Change]:
    """Return every figure that both runs have and that can be better or worse, largest first."""
    found = []
    for figure in new.figures:
        before = old.find(figure.part, figure.test, figure.subject, figure.metric)
        if before is None or figure.better == "none":
            continue
        if (before.unit, before.better) != (figure.unit, figure.better):
            continue
        found.append(_change(old, new, before, figure))
    return sorted(found, key=lambda change: abs(change.size), reverse=True)


def _change(old: Results, new: Results, before: Figure, after: Figure) -> Change:
    yardstick = YARDSTICKS.get(after.part, "")
    if is_swapfs(after.subject) and yardstick:
        was, now = _to_yardstick(old, before, yardstick), _to_yardstick(new, after, yardstick)
        if was is not None and now is not None:
            return Change(after, was, now, yardstick)
    return Change(after, spread(before.samples), spread(after.samples), "")


def _to_yardstick(results: Results, figure: Figure, yardstick: str) -> Spread | None:
    bottom = results.find(figure.part, figure.test, yardstick, figure.metric)
    return ratio(figure, bottom) if bottom is not None and bottom.unit == figure.unit else None


def missing(old: Results, new: Results) -> list[str]:
    """Return a line for each figure that only one run has or that changed its meaning."""
    lines = []
    for here, there, name in ((old, new, "old"), (new, old, "new")):
        for figure in here.figures:
            other = there.find(figure.part, figure.test, figure.subject, figure.metric)
            if other is None:
                lines.append(f"only in the {name} run: {_label(figure)}")
            elif here is old and (other.unit, other.better) != (figure.unit, figure.better):
                lines.append(f"unit or direction changed: {_label(figure)}")
    return lines


def warnings(old: Results, new: Results) -> list[str]:
    """Return a line for each way in which the runs were not made alike."""
    pairs = [(key, old.host.get(key), new.host.get(key)) for key in _HOST_KEYS]
    pairs += [(key, old.made.get(key), new.made.get(key)) for key in _MADE_KEYS]
    lines = [f"{key} differs: {was}, now {now}" for key, was, now in pairs if was != now]
    before, after = old.host.get("versions", {}), new.host.get("versions", {})
    lines += [
        f"{name} differs: {before.get(name)}, now {after.get(name)}"
        for name in dict.fromkeys([*before, *after])
        if before.get(name) != after.get(name)
    ]
    for when, results in (("old", old), ("new", new)):
        lines += [f"part {failure.part} failed in the {when} run" for failure in results.failed]
    return lines


def page(old: Results, new: Results) -> str:
    """Return what there is to say about both runs."""
    found = changes(old, new)
    shown = [change for change in found if change.counts]
    lines = [f"Old: {_about(old)}\nNew: {_about(new)}\n"]
    lines += [f"warning: {line}\n" for line in warnings(old, new)]
    if shown:
        lines.append("\n" + tables.markdown(_HEADER, [_row(change) for change in shown], words=2))
    lines += [f"\n{line}" for line in missing(old, new)]
    regressions = sum(change.regression for change in shown)
    lines.append(
        f"\n{len(found)} figures compared, {len(found) - len(shown)} within {THRESHOLD:.0%} or the"
        f" spread of their rounds, {regressions} worse.\n"
    )
    fewest = min((min(change.old.count, change.new.count) for change in shown), default=0)
    if regressions and 1 < fewest < 5:
        chance = math.comb(2 * fewest, fewest)
        lines.append(
            f"With {fewest} rounds chance alone sets one noisy figure in {chance} apart like this:"
            " measure again with more rounds before you believe it.\n"
        )
    return "".join(lines)


_HEADER: Final = ("", "", "change", "old", "new", "compared as")


def _row(change: Change) -> list[str]:
    shown = tables.ratios if change.yardstick else tables.samples
    unit = f", {change.figure.unit}" if change.figure.unit else ""
    how = f"ratio to {change.yardstick}" if change.yardstick else f"value{unit}"
    change_text = f"{change.size:+.0%}" if change.size != float("inf") else "from 0"
    cells = [change.word, _label(change.figure), change_text]
    return [*cells, shown(change.old), shown(change.new), how]


def _label(figure: Figure) -> str:
    return f"{figure.part}: {figure.test}, {figure.subject}, {figure.metric}"


def _about(results: Results) -> str:
    made = results.made
    changed = " with uncommitted changes" if made.get("dirty") else ""
    return (
        f"{made.get('kind', '')} run of {made.get('date', '')},"
        f" commit {str(made.get('commit', ''))[:12]}{changed}, {made.get('rounds', '')} rounds"
    )


def main() -> int:
    """Compare two files that were named on the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.compare", description="Show what became worse between two runs."
    )
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    options = parser.parse_args()
    try:
        old, new = load(options.old), load(options.new)
    except NotResultsError as error:
        print(f"bench-compare: {error}", file=sys.stderr)
        return 2
    print(page(old, new), end="")
    return 1 if any(change.regression for change in changes(old, new)) else 0


if __name__ == "__main__":
    sys.exit(main())

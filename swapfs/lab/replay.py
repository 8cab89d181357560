"""Replays of a trace: every policy by every size of the pool, and what they come to."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Final

from swapfs.errors import OperationError
from swapfs.lab.pages import floor
from swapfs.lab.player import Outcome, Player, Setup
from swapfs.lab.trace import Trace
from swapfs.policy import find
from swapfs.units import format_size

_HEADINGS: Final = (
    *("POLICY", "POOL", "LOADS", "MISSES", "MISS%", "REFAULTS"),
    *("DEMOTED", "PROMOTED", "DISK", "REFUSED", "EVENTS/S"),
)
Progress = Callable[[str, int, int], None]
"""(what, events done, events in all)."""


def replay(
    trace: Trace,
    policies: Sequence[str],
    pools: Sequence[int],
    setup: Setup,
    *,
    optimum: bool = True,
    progress: Progress = lambda *_: None,
) -> dict[str, Any]:
    """Play *trace* under each of *policies* with each of *pools* bytes; return all as JSON has it.

    :param optimum: with Belady's floor, for as many pages as the policy held that held most
    :raises ConfigError: there is no such policy, or no memory
    """
    kinds = [(name, find(name, "--policy")) for name in policies]
    runs: list[Outcome] = []
    floors = []
    for pool_bytes in pools:
        held = 0
        for name, kind in kinds:
            player = Player(trace, replace(setup, pool_bytes=pool_bytes), kind)
            try:
                what = f"{name} {format_size(pool_bytes)}"
                outcome = player.run(lambda done: progress(what, done, trace.count))  # noqa: B023
            finally:
                player.close()
            outcome.policy = name
            outcome.pool_bytes = pool_bytes
            held = max(held, outcome.peak_pages)
            runs.append(outcome)
        if optimum:
            floors.append({"pool_bytes": pool_bytes, "pages": held, "misses": floor(trace, held)})
    return {
        "trace": str(trace.path),
        "events": trace.count,
        "dropped": trace.dropped,
        "meta": asdict(trace.meta),
        "setup": asdict(setup),
        "runs": [asdict(run) for run in runs],
        "floors": floors,
    }


def table(found: dict[str, Any]) -> str:
    """Return *found* as lines with columns, and a line for each floor."""
    rows: list[Sequence[str]] = [_HEADINGS]
    by_pool = {each["pool_bytes"]: each for each in found["floors"]}
    last = None
    for run in found["runs"]:
        if last is not None and run["pool_bytes"] != last:
            rows += _floor_row(by_pool.get(last), _loads(found, last))
        last = run["pool_bytes"]
        rows.append(_row(run))
    rows += _floor_row(by_pool.get(last), _loads(found, last))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        " ".join(
            cell.ljust(width) if index == 0 else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def _loads(found: dict[str, Any], pool_bytes: int | None) -> int:
    return max((r["loads"] for r in found["runs"] if r["pool_bytes"] == pool_bytes), default=0)


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.2f}" if whole else "-"


def _row(run: dict[str, Any]) -> Sequence[str]:
    speed = run["events"] / run["seconds"] if run["seconds"] else 0
    return (
        *(run["policy"], format_size(run["pool_bytes"]), str(run["loads"]), str(run["misses"])),
        *(_percent(run["misses"], run["loads"]), str(run["refaults"]), str(run["demoted"])),
        *(str(run["promoted"]), format_size(run["written_bytes"]), str(run["refused"])),
        f"{speed:.0f}",
    )


def _floor_row(floor: dict[str, Any] | None, loads: int) -> list[Sequence[str]]:
    if floor is None:
        return []
    cells = ("(Belady)", format_size(floor["pool_bytes"]), str(loads), str(floor["misses"]))
    return [(*cells, _percent(floor["misses"], loads), *("-",) * 6)]


def save(found: dict[str, Any], path: Path) -> None:
    """Write *found* to *path*, as JSON.

    :raises OperationError: it cannot be written
    """
    try:
        path.write_text(json.dumps(found, indent=1) + "\n")
    except OSError as error:
        raise OperationError(f"{path}: {error.strerror}") from error


def plot(found: dict[str, Any], path: Path) -> None:
    """Draw *found* to *path*: misses by pool, and memory over time at the smallest pool.

    :raises OperationError: matplotlib is not there, or the file cannot be written
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise OperationError("a plot needs matplotlib: pip install 'swapfs[lab]'") from error
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    misses, memory = figure.subplots(1, 2)
    runs = found["runs"]
    smallest = min(run["pool_bytes"] for run in runs)
    for number, name in enumerate(dict.fromkeys(run["policy"] for run in runs)):
        mine = sorted(
            (run for run in runs if run["policy"] == name), key=lambda run: run["pool_bytes"]
        )
        style = {"label": name, "marker": "osv^D<>pXP"[number % 10], "markersize": 4}
        misses.plot([r["pool_bytes"] >> 20 for r in mine], [r["misses"] for r in mine], **style)
        ram = next(run["ram"] for run in mine if run["pool_bytes"] == smallest)
        memory.plot([s for s, _ in ram], [used / 2**20 for _, used in ram], label=name)
    if found["floors"]:
        xs = [each["pool_bytes"] >> 20 for each in found["floors"]]
        misses.plot(xs, [each["misses"] for each in found["floors"]], "k--", label="Belady")
    misses.set(xlabel="pool, MiB", ylabel="loads from below, pages", ylim=(0, None))
    memory.set(xlabel="time, s", ylabel=f"pool of {smallest >> 20} MiB in use, MiB")
    misses.legend()
    figure.suptitle(Path(found["trace"]).name)
    try:
        figure.savefig(path, dpi=110)
    except (OSError, ValueError) as error:
        raise OperationError(f"{path}: cannot be drawn: {error}") from error

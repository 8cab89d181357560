"""``swapfs reclaim``: swap out what a cgroup does not use, before memory is short."""

from __future__ import annotations

import signal
import sys
import threading
import time
from pathlib import Path

import click

from swapfs.command.options import FloatRange
from swapfs.config import values
from swapfs.lab.reclaim import Bounds, Cgroup, Step, drive
from swapfs.units import format_size


@click.command()
@click.option("--cgroup", "path", type=click.Path(path_type=Path), required=True, metavar="DIR")
@click.option(
    "--psi",
    type=FloatRange(0.001, 100),
    default=0.1,
    show_default=True,
    metavar="PERCENT",
    help="Pressure at which it stops to press.",
)
@click.option(
    "--ratio",
    type=FloatRange(0.00001, 0.1),
    default=0.0005,
    show_default=True,
    help="Share of the memory in use that a step asks for.",
)
@click.option("--max-step", default="64M", show_default=True, metavar="SIZE")
@click.option(
    "--floor", default="16M", show_default=True, metavar="SIZE", help="What the cgroup keeps."
)
@click.option(
    "--interval", type=FloatRange(0.1, 600), default=6.0, show_default=True, metavar="SECONDS"
)
@click.option("--seconds", type=FloatRange(min=0), help="Else until Ctrl-C.")
def reclaim(
    path: Path,
    psi: float,
    ratio: float,
    max_step: str,
    floor: str,
    interval: float,
    seconds: float | None,
) -> None:
    """Ask the kernel for the memory of a cgroup that it does not use, by its pressure (PSI).

    As senpai does: the less its tasks wait for memory, the more is asked for. Ctrl-C ends it;
    nothing is left set.
    """
    bounds = Bounds(
        psi_percent=psi,
        ratio=ratio,
        step_bytes=values.parse_size("--max-step", max_step),
        floor_bytes=values.parse_size("--floor", floor),
    )
    cgroup = Cgroup(path)
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: ended.set())
    until_s = None if seconds is None else time.monotonic() + seconds

    def wait(wanted_s: float) -> bool:
        left_s = wanted_s if until_s is None else min(wanted_s, until_s - time.monotonic())
        return left_s <= 0 or ended.wait(left_s) or left_s < wanted_s

    asked = drive(cgroup, bounds, wait, interval_s=interval, seen=_show)
    click.echo(
        f"{path}: asked for {format_size(asked)}, {format_size(cgroup.current_bytes())} left"
    )


def _show(step: Step) -> None:
    if sys.stderr.isatty():
        sizes = tuple(map(format_size, (step.current_bytes, step.asked_bytes)))
        freed = format_size(max(0, step.freed_bytes))
        line = f"pressure {step.pressure_percent:.2f} %  {sizes[0]} in use, asked for {sizes[1]}"
        sys.stderr.write(f"{line}, got {freed}\n")

"""``swapfs replay``: what a recorded trace would have come to under other policies and pools."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Final

import click

from swapfs.config import values
from swapfs.config.policy_name import parse_policy
from swapfs.errors import ConfigError
from swapfs.policy import DEFAULT
from swapfs.units import KiB, format_size

POOL_BYTES_MIN: Final = 256 * KiB
"""Four zspages: less than a server takes, for traces that are small."""


def _sizes(where: str, text: str) -> list[int]:
    sizes = [values.parse_size(where, each.strip()) for each in text.split(",")]
    if min(sizes) < POOL_BYTES_MIN:
        least = format_size(POOL_BYTES_MIN)
        raise ConfigError(where, f"{format_size(min(sizes))} is too small (least: {least})")
    return sizes


@click.command()
@click.argument("trace", type=click.Path(path_type=Path))
@click.option("--policy", "policies", metavar="LIST", help="By name, or MODULE:CLASS.")
@click.option("--pool", "pools", metavar="LIST", help="Sizes of the pool.")
@click.option("--tier", "tiers", multiple=True, metavar="SIZE", help="Below it; again for more.")
@click.option("--high-watermark", type=click.IntRange(1, 100), help="In percent of the pool.")
@click.option("--low-watermark", type=click.IntRange(1, 100), help="In percent of the pool.")
@click.option("--promote/--no-promote", default=None, help="What is read from below comes back.")
@click.option("--prefetch", type=click.IntRange(0, 64), metavar="PAGES", help="Most beside a read.")
@click.option("--no-optimum", is_flag=True, help="Without Belady's floor, which takes time.")
@click.option("--json", "as_json", is_flag=True, help="Everything, as JSON.")
@click.option("--plot", "picture", type=click.Path(path_type=Path), help="Draw it: PNG or SVG.")
def replay(
    trace: Path,
    policies: str | None,
    pools: str | None,
    tiers: tuple[str, ...],
    high_watermark: int | None,
    low_watermark: int | None,
    promote: bool | None,
    prefetch: int | None,
    no_optimum: bool,
    as_json: bool,
    picture: Path | None,
) -> None:
    """Play TRACE again over a slot layer in memory: no kernel, no root.

    LIST is separated by commas. What is not given is as it was when the trace was recorded.
    Misses are loads that a tier below had to serve; no policy can have fewer than Belady's
    optimum.
    """
    from swapfs.lab import replay as lab
    from swapfs.lab.player import Setup
    from swapfs.lab.trace import Trace

    source = Trace(trace)
    recorded = Setup.recorded(source.meta)
    sizes = _sizes("--pool", pools) if pools else [recorded.pool_bytes]
    below = [values.parse_size("--tier", size) for size in tiers]
    setup = replace(
        recorded,
        pool_bytes=sizes[0],
        tier_bytes=below or recorded.tier_bytes,
        high_percent=recorded.high_percent if high_watermark is None else high_watermark,
        low_percent=recorded.low_percent if low_watermark is None else low_watermark,
        promote=recorded.promote if promote is None else promote,
        prefetch=recorded.prefetch if prefetch is None else prefetch,
    )
    if setup.low_percent >= setup.high_percent:
        raise ConfigError("--low-watermark", "it must be below --high-watermark")
    wanted = policies or str(source.meta.config.get("policy", DEFAULT))
    names = [parse_policy("--policy", name.strip()) for name in wanted.split(",")]
    found = lab.replay(source, names, sizes, setup, optimum=not no_optimum, progress=_show)
    _clear()
    if picture is not None:
        lab.plot(found, picture)
    click.echo(json.dumps(found, indent=1) if as_json else lab.table(found))
    if found["dropped"] and not as_json:
        click.echo(f"{found['dropped']} events are missing in the trace", err=True)


def _show(what: str, done: int, whole: int) -> None:
    if sys.stderr.isatty():
        sys.stderr.write(f"\r{what}: {100 * done // max(1, whole)} %\033[K")
        sys.stderr.flush()


def _clear() -> None:
    if sys.stderr.isatty():
        sys.stderr.write("\r\033[K")

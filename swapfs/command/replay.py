"""``swapfs replay``: what a recorded trace would have come to under other policies and pools."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Final

import click

from swapfs.config import values
from swapfs.config.policy_name import parse_policy
from swapfs.errors import ConfigError
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
@click.option("--policy", "policies", default="second-chance", show_default=True, metavar="LIST")
@click.option("--pool", "pools", metavar="LIST", help="Sizes of the pool (that of the trace).")
@click.option("--tier", "tiers", multiple=True, metavar="SIZE", help="Below it; again for more.")
@click.option("--high-watermark", type=click.IntRange(1, 100), default=90, show_default=True)
@click.option("--low-watermark", type=click.IntRange(1, 100), default=80, show_default=True)
@click.option("--promote", is_flag=True, help="What is read from below comes back.")
@click.option("--no-optimum", is_flag=True, help="Without Belady's floor, which takes time.")
@click.option("--json", "as_json", is_flag=True, help="Everything, as JSON.")
@click.option("--plot", "picture", type=click.Path(path_type=Path), help="Draw it: PNG or SVG.")
def replay(
    trace: Path,
    policies: str,
    pools: str | None,
    tiers: tuple[str, ...],
    high_watermark: int,
    low_watermark: int,
    promote: bool,
    no_optimum: bool,
    as_json: bool,
    picture: Path | None,
) -> None:
    """Play TRACE again over a slot layer in memory: no kernel, no root.

    LIST is separated by commas. Misses are loads that a tier below had to serve; no policy can
    have fewer than Belady's optimum.
    """
    from swapfs.lab import replay as lab
    from swapfs.lab.player import Setup
    from swapfs.lab.trace import Trace

    if low_watermark >= high_watermark:
        raise ConfigError("--low-watermark", "it must be below --high-watermark")
    source = Trace(trace)
    sizes = _sizes("--pool", pools) if pools else [source.meta.pool_bytes]
    # As much as the swap file by default, with the overhead of blobs that do not compress.
    below = [values.parse_size("--tier", size) for size in tiers] or [source.meta.size_bytes * 2]
    setup = Setup(
        pool_bytes=sizes[0],
        tier_bytes=below,
        high_percent=high_watermark,
        low_percent=low_watermark,
        promote=promote,
    )
    names = [parse_policy("--policy", name.strip()) for name in policies.split(",")]
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

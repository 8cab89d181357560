"""``swapfs tier``: what an instance keeps below its pool, and moving it elsewhere."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any, Final

import click

from swapfs.command.options import NAME_ARGUMENT, RUNTIME_DIR
from swapfs.config import values
from swapfs.errors import OperationError
from swapfs.units import format_size
from swapfs.wire import control

_LOOK_EVERY_S: Final = 0.5
_ANSWER_S: Final = 30.0
_COLUMNS: Final = ("NAME", "KIND", "PRIO", "PHASE", "STATE", "SLOTS", "USED", "SIZE", "PATH")


@click.group()
def tier() -> None:
    """Show the tiers below the pool of an instance, or drain one."""


@tier.command("list")
@NAME_ARGUMENT
@click.option("--json", "as_json", is_flag=True, help="Everything, as JSON.")
@RUNTIME_DIR
def list_tiers(name: str, as_json: bool, runtime_dir: Path) -> None:
    """Show the tiers of instance NAME (swapfs), that which is filled first first."""
    tiers = _tiers(_socket(name, runtime_dir))
    if as_json:
        click.echo(json.dumps(tiers, indent=2))
        return
    rows = [_COLUMNS, *map(_row, tiers)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        click.echo(" ".join(cells).rstrip())


@tier.command()
@click.argument("which", metavar="TIER")
@NAME_ARGUMENT
@click.option("--stop", is_flag=True, help="Use it as before; what was moved stays there.")
@RUNTIME_DIR
def drain(which: str, name: str, stop: bool, runtime_dir: Path) -> None:
    """Move all that is in TIER of instance NAME (swapfs) to its other tiers.

    Nothing new goes there from then on. To interrupt this only ends the waiting.
    """
    sock = _socket(name, runtime_dir)
    control.request(sock, "drain", _ANSWER_S, tier=which, stop=stop)
    if stop:
        click.echo(f"{which}: in use")
        return
    first = last = _find(sock, which)["slots"]
    while last:
        time.sleep(_LOOK_EVERY_S)
        found = _find(sock, which)
        if found["phase"] != "draining":
            raise OperationError(
                f"{which}: somebody has ended it, with {found['slots']} pages left"
            )
        if found["note"] and found["slots"] >= last:
            raise OperationError(f"{which}: {found['note']}; {found['slots']} pages are left")
        last = found["slots"]
    click.echo(f"{which}: {first} pages moved, it is empty")


def _socket(name: str, runtime_dir: Path) -> Path:
    return control.socket_path(runtime_dir, values.parse_name("NAME", name))


def _tiers(sock: Path) -> list[dict[str, Any]]:
    tiers: list[dict[str, Any]] = control.request(sock, "status", _ANSWER_S)["tiers"]
    return tiers


def _find(sock: Path, which: str) -> dict[str, Any]:
    for found in _tiers(sock):
        if found["name"] == which:
            return found
    raise OperationError(f"there is no tier {which}")


def _row(tier: dict[str, Any]) -> tuple[str, ...]:
    used, size = format_size(tier["used_bytes"]), format_size(tier["size_bytes"])
    slots, priority = str(tier["slots"]), str(tier["priority"])
    how = (tier["phase"], tier["state"])
    return (tier["name"], tier["kind"], priority, *how, slots, used, size, tier["path"])

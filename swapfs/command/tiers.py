"""``swapfs tier``: what an instance keeps below its pool; adding, moving and removing it."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import click

from swapfs.command import waiting
from swapfs.command.options import NAME_ARGUMENT, RUNTIME_DIR
from swapfs.config import values
from swapfs.config.options import BY_KEY
from swapfs.config.tiers import KINDS
from swapfs.errors import ConfigError, OperationError, Refused, UsageError
from swapfs.units import format_size
from swapfs.wire import control

_ADD_S: Final = 600.0
"""A file's space is allocated first, which some file systems do by writing it."""
_COLUMNS: Final = ("NAME", "KIND", "PRIO", "PHASE", "STATE", "SLOTS", "USED", "SIZE", "PATH")
_NO_TEXT: Final = re.compile(r"true|false|\d{1,30}")
"""Longer ones are wrong whatever the key; Python refuses to read 4300 digits."""
_PATH_KEYS: Final = frozenset({"path", "ca-file", "password-file"})
_TEXT_KEYS: Final = _PATH_KEYS | {"name", "nodes", "user"}
_JSON: Final = click.option("--json", "as_json", is_flag=True, help="What came of it, as JSON.")


@click.group()
def tier() -> None:
    """Show, add, drain, remove or change the tiers below the pool of an instance."""


@tier.command("list")
@NAME_ARGUMENT
@click.option("--json", "as_json", is_flag=True, help="Everything, as JSON.")
@RUNTIME_DIR
def list_tiers(name: str, as_json: bool, runtime_dir: Path) -> None:
    """Show the tiers of instance NAME (swapfs), that which is filled first first."""
    tiers = waiting.tiers(_socket(name, runtime_dir))
    if as_json:
        click.echo(json.dumps(tiers, indent=2))
        return
    rows = [_COLUMNS, *map(_row, tiers)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        click.echo(" ".join(cells).rstrip())
    for each in tiers:
        for said in (each.get("note"), each.get("detail")):
            if said:
                click.echo(f"{each['name']}: {said}")


@tier.command()
@click.argument("kind", type=click.Choice(KINDS))
@click.argument("rest", metavar="KEY=VALUE... [NAME]", nargs=-1)
@_JSON
@RUNTIME_DIR
def add(kind: str, rest: Sequence[str], as_json: bool, runtime_dir: Path) -> None:
    """Add a tier of KIND to instance NAME (swapfs), with the keys of a [[tier]] table.

    Pages go there at once. So that the next start has it too, write it into the configuration.
    """
    table, name = _split(rest)
    table["kind"] = kind
    for key in _PATH_KEYS & set(table):
        table[key] = str(Path(table[key]).absolute())
    sock = _socket(name, runtime_dir)
    added = _add(sock, table)
    found = waiting.find(sock, added) or {}
    if as_json:
        click.echo(json.dumps(found, indent=2))
    else:
        click.echo(f"{added}: added, {format_size(found.get('size_bytes', 0))}")


def _add(sock: Path, table: dict[str, Any]) -> str:
    """Have it added, by the server that comes after if this one dies over it; return its name."""
    before = {each["name"] for each in waiting.tiers(sock)}
    try:
        return str(control.request(sock, "add", _ADD_S, table=table)["tier"])
    except Refused:
        raise
    except OperationError:
        for each in waiting.tiers(sock):
            if each["name"] not in before:
                return str(each["name"])
        return str(control.request(sock, "add", _ADD_S, table=table)["tier"])


@tier.command()
@click.argument("which", metavar="TIER")
@NAME_ARGUMENT
@click.option("--stop", is_flag=True, help="Use it as before; what was moved stays there.")
@_JSON
@RUNTIME_DIR
def drain(which: str, name: str, stop: bool, as_json: bool, runtime_dir: Path) -> None:
    """Move all that is in TIER of instance NAME (swapfs) to its other tiers.

    Nothing new goes there from then on. To interrupt this only ends the waiting.
    """
    sock = _socket(name, runtime_dir)
    before = _slots(sock, which)
    waiting.ask(sock, "drain", tier=which, stop=stop)
    if stop:
        _say(as_json, {"tier": which, "moved_pages": 0}, f"{which}: in use")
        return
    _wait_until_empty(sock, which, before, as_json=as_json, goes=False)
    said = {"tier": which, "moved_pages": before}
    _say(as_json, said, f"{which}: {before} pages moved, it is empty")


@tier.command()
@click.argument("which", metavar="TIER")
@NAME_ARGUMENT
@click.option("--force", is_flag=True, help="Though the rest is less than the size, for certain.")
@_JSON
@RUNTIME_DIR
def remove(which: str, name: str, force: bool, as_json: bool, runtime_dir: Path) -> None:
    """Drain TIER of instance NAME (swapfs), and let it go: its disk may then be taken away.

    To interrupt this only ends the waiting; `tier drain TIER --stop` ends the rest.
    """
    sock = _socket(name, runtime_dir)
    before = _slots(sock, which)
    waiting.ask(sock, "remove", tier=which, force=force)
    _wait_until_empty(sock, which, before, as_json=as_json, goes=True)
    said = {"tier": which, "moved_pages": before}
    _say(as_json, said, f"{which}: {before} pages moved, it is removed")


@tier.command("set")
@click.argument("which", metavar="TIER")
@click.argument("rest", metavar="KEY=VALUE... [NAME]", nargs=-1, required=True)
@_JSON
@RUNTIME_DIR
def set_tier(which: str, rest: Sequence[str], as_json: bool, runtime_dir: Path) -> None:
    """Change priority=, budget= or budget-exceed= of TIER of instance NAME (swapfs)."""
    table, name = _split(rest)
    if not table:
        raise UsageError("tier set: nothing to change: write priority=N, budget=SIZE/day")
    sock = _socket(name, runtime_dir)
    waiting.ask(sock, "set", tier=which, table=table)
    found = waiting.find(sock, which) or {}
    changed = " ".join(f"{key}={value}" for key, value in table.items())
    _say(as_json, found, f"{which}: {changed}")


def _wait_until_empty(sock: Path, which: str, before: int, *, as_json: bool, goes: bool) -> None:
    """Show how far it is until *which* is empty, or gone if it *goes*.

    :raises OperationError: it does not get on, or somebody has ended it
    """
    last = before
    with waiting.bar(f"draining {which}", before, quiet=as_json) as show:
        while (found := waiting.find(sock, which)) is not None:
            left = found["slots"]
            show(before - left)
            if not left and not goes:
                return
            if found["phase"] == "active":
                raise OperationError(f"{which}: somebody has ended it, with {left} pages left")
            if found["note"] and left >= last:
                raise OperationError(f"{which}: {found['note']}; {left} pages are left")
            last = left
            time.sleep(waiting.LOOK_EVERY_S)
    if not goes:
        raise OperationError(f"{which}: somebody has removed it")


def _say(as_json: bool, said: dict[str, Any], text: str) -> None:
    click.echo(json.dumps(said) if as_json else text)


def _slots(sock: Path, which: str) -> int:
    found = waiting.find(sock, which)
    if found is None:
        raise OperationError(f"there is no tier {which}")
    return int(found["slots"])


def _split(rest: Sequence[str]) -> tuple[dict[str, Any], str]:
    """Return the keys and values, and the name of the instance, that may come last."""
    table: dict[str, Any] = {}
    names = [each for each in rest if "=" not in each]
    if len(names) > 1 or (names and names[0] != rest[-1]):
        raise UsageError(f"{names[0]}: write KEY=VALUE, and the name of the instance last")
    for each in rest[: len(rest) - len(names)]:
        key, _, text = each.partition("=")
        if key in table:
            raise ConfigError(key, "is given twice")
        plain = key not in _TEXT_KEYS and _NO_TEXT.fullmatch(text)
        table[key] = json.loads(text) if plain else text
    return table, names[0] if names else str(BY_KEY["name"].default)


def _socket(name: str, runtime_dir: Path) -> Path:
    return control.socket_path(runtime_dir, values.parse_name("NAME", name))


def _row(tier: dict[str, Any]) -> tuple[str, ...]:
    used, size = format_size(tier["used_bytes"]), format_size(tier["size_bytes"])
    slots, priority = str(tier["slots"]), str(tier["priority"])
    how = (tier["phase"], tier["state"])
    return (tier["name"], tier["kind"], priority, *how, slots, used, size, tier["path"])

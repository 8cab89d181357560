"""``swapfs verify``: every blob read and checked where it lies."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import click

from swapfs.command import waiting
from swapfs.command.options import NAME_ARGUMENT, RUNTIME_DIR
from swapfs.config import values
from swapfs.errors import OperationError
from swapfs.wire import control

_FOUND = ("damaged", "unreadable", "lost")


@click.command()
@NAME_ARGUMENT
@click.option("--tier", metavar="TIER", help="Of this tier only, or `pool`.")
@click.option("--json", "as_json", is_flag=True, help="What came of it, as JSON.")
@RUNTIME_DIR
def verify(name: str, tier: str | None, as_json: bool, runtime_dir: Path) -> None:
    """Read and check every blob of instance NAME (swapfs), at low priority; changes nothing.

    Exit code 1 if a slot is damaged, cannot be read, or is lost.
    """
    sock = control.socket_path(runtime_dir, values.parse_name("NAME", name))
    waiting.ask(sock, "verify", tier=tier)
    try:
        found = _wait(sock, tier, quiet=as_json)
    except KeyboardInterrupt:
        control.request(sock, "verify", waiting.ANSWER_S, stop=True)
        raise
    if as_json:
        kept = ("checked", *_FOUND, "told")
        click.echo(json.dumps({key: found[key] for key in kept}))
    else:
        for line in found["told"]:
            click.echo(line)
        counted = ", ".join(f"{found[key]} {key}" for key in _FOUND)
        click.echo(f"{found['checked']} pages checked: {counted}")
    if any(found[key] for key in _FOUND):
        raise click.exceptions.Exit(1)


def _wait(sock: Path, tier: str | None, *, quiet: bool) -> dict[str, Any]:
    found = _status(sock)
    with waiting.bar("verifying", found["total"], quiet=quiet) as show:
        while not found["done"]:
            if found["problem"]:
                raise OperationError(f"verify: {found['problem']}")
            if not found["running"]:  # the server that did it has died
                waiting.ask(sock, "verify", tier=tier)
            time.sleep(waiting.LOOK_EVERY_S)
            found = _status(sock)
            show(found["checked"])
    return found


def _status(sock: Path) -> dict[str, Any]:
    status = waiting.patiently(sock, lambda: control.request(sock, "status", waiting.ANSWER_S))
    found: dict[str, Any] = status["verify"]
    return found

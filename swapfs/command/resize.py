"""``swapfs resize``: another size for the pool, while the kernel swaps."""

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
from swapfs.units import format_size
from swapfs.wire import control

_AGAIN_MAX = 3
"""Times that it is begun anew, by a server that comes after one that died over it."""


@click.command()
@NAME_ARGUMENT
@click.option("--pool", "size", metavar="SIZE", required=True, help="The size of it: 1G, 512M.")
@click.option("--force", is_flag=True, help="Though less than the size is certain then.")
@click.option("--json", "as_json", is_flag=True, help="What came of it, as JSON.")
@RUNTIME_DIR
def resize(name: str, size: str, force: bool, as_json: bool, runtime_dir: Path) -> None:
    """Give the pool of instance NAME (swapfs) another size, up to its `pool-max`.

    To interrupt this undoes it. So that the next start has it too, write it into the configuration.
    """
    sock = control.socket_path(runtime_dir, values.parse_name("NAME", name))
    size_bytes = values.parse_pool_size("--pool", size)
    before = _pool(sock)
    try:
        after = _resize(sock, size_bytes, before, force=force, quiet=as_json)
    except KeyboardInterrupt:
        control.request(sock, "resize", waiting.ANSWER_S, stop=True)
        raise
    if as_json:
        click.echo(json.dumps({"before_bytes": before["limit_bytes"], "pool_bytes": after}))
    else:
        click.echo(f"pool: {format_size(before['limit_bytes'])}, now {format_size(after)}")


def _resize(
    sock: Path, size_bytes: int, before: dict[str, Any], *, force: bool, quiet: bool
) -> int:
    for _ in range(_AGAIN_MAX):
        answer = waiting.ask(sock, "resize", pool_bytes=size_bytes, force=force)
        wanted = int(answer["pool_bytes"])
        total = abs(wanted - before["used_bytes"])
        with waiting.bar(f"pool to {format_size(wanted)}", total, quiet=quiet) as show:
            while (now := _pool(sock))["target_bytes"]:
                show(abs(now["used_bytes"] - before["used_bytes"]))
                time.sleep(waiting.LOOK_EVERY_S)
            show(total)
        if now["limit_bytes"] == wanted:
            return wanted
        if now["note"]:
            raise OperationError(f"resize: {now['note']}")
    raise OperationError("resize: servers die over it; the pool is as it was, see the log")


def _pool(sock: Path) -> dict[str, Any]:
    status = waiting.patiently(sock, lambda: control.request(sock, "status", waiting.ANSWER_S))
    pool: dict[str, Any] = status["pool"]
    return pool

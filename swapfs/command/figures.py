"""``swapfs stat`` and ``swapfs metrics``: the snapshot in the formats of others.

Reads what ``status`` reads, so that neither needs root, nor a server that answers.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from swapfs.command import status as status_of
from swapfs.command.options import ANY_NAME, NAME_ARGUMENT, RUNTIME_DIR
from swapfs.command.status import State
from swapfs.config import values
from swapfs.errors import OperationError
from swapfs.units import PAGE_SIZE

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from swapfs.command.status import Instance
    from swapfs.server.status import Status

GONE: Final = (State.DEAD, State.HELD)
"""Nobody serves; the figures are the last ones, and would look like those of now."""


def mm_stat(status: Status) -> str:
    """Return the line of zram's ``mm_stat``; see Documentation/admin-guide/blockdev/zram.rst."""
    # order and widths are those of mm_stat_show in drivers/block/zram/zram_drv.c
    return _line(
        status.orig_bytes,
        status.pool.payload_bytes,
        status.memory_bytes,
        status.pool.limit_bytes,
        status.pool.peak_bytes,
        status.slots.get("same"),
        status.counters.get("compacted_pages"),
        status.slots.get("raw"),
        status.counters.get("write_raw_pages"),
    )


def io_stat(status: Status) -> str:
    """Return the line of zram's ``io_stat``: failed reads and writes, invalid I/O, freed pages."""
    count = status.counters.get
    return _line(
        count("failed_read_io", 0) + count("failed_read_checksum", 0),
        count("failed_write_no_room", 0) + count("failed_write_io", 0),
        count("partial_requests"),
        count("discarded_pages"),
    )


def bd_stat(status: Status) -> str:
    """Return the line of zram's ``bd_stat``: what the file holds, reads, writes, in 4 KiB."""
    return _line(
        status.file_bytes // PAGE_SIZE,
        status.counters.get("file_read_bytes", 0) // PAGE_SIZE,
        status.counters.get("file_written_bytes", 0) // PAGE_SIZE,
    )


LINES: Final[dict[str, Callable[[Status], str]]] = {
    "mm_stat": mm_stat,
    "io_stat": io_stat,
    "bd_stat": bd_stat,
}


@click.command()
@NAME_ARGUMENT
@click.option("--mm-stat", "chosen", flag_value="mm_stat", help="Only the line of mm_stat.")
@click.option("--io-stat", "chosen", flag_value="io_stat", help="Only the line of io_stat.")
@click.option("--bd-stat", "chosen", flag_value="bd_stat", help="Only the line of bd_stat.")
@RUNTIME_DIR
def stat(name: str, chosen: str | None, runtime_dir: Path) -> None:
    """Show instance NAME (swapfs) as zram's files in /sys/block/zramN do; needs no root."""
    (instance,) = _instances(runtime_dir, name)
    status = instance.status
    if chosen:
        click.echo(LINES[chosen](status))
        return
    for file, line in LINES.items():
        click.echo(f"{file} {line(status)}")


@click.command()
@ANY_NAME
@click.option(
    "--textfile",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Write swapfs-NAME.prom there for each instance, for node_exporter.",
)
@RUNTIME_DIR
def metrics(name: str | None, textfile: Path | None, runtime_dir: Path) -> None:
    """Print the metrics of instance NAME, or of all; needs no root."""
    # Imported here: it takes a tenth of a second, which other commands must not pay for.
    from swapfs.server import metrics as exported

    instances = _instances(runtime_dir, name)
    if textfile is None:
        alive = [instance.status for instance in instances if instance.state not in GONE]
        click.echo(exported.text(*alive), nl=False)
        return
    if not textfile.is_dir():
        raise OperationError(f"{textfile} is no directory")
    for instance in instances:
        path = textfile / f"swapfs-{instance.name}.prom"
        if instance.state in GONE:
            path.unlink(missing_ok=True)
        else:
            exported.write_textfile(path, instance.status)


def _instances(runtime_dir: Path, name: str | None) -> Sequence[Instance]:
    names = None if name is None else [values.parse_name("NAME", name)]
    found = status_of.collect(runtime_dir, names)
    if name is not None and not found:
        raise OperationError(f"no instance {name} in {runtime_dir}")
    return found


def _line(*figures: int | None) -> str:
    return " ".join(f"{figure or 0:8d}" for figure in figures)

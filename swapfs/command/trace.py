"""``swapfs trace``: record what an instance does, look at a trace, convert it."""

from __future__ import annotations

import json
import signal
import sys
from collections import Counter
from pathlib import Path
from typing import Any, Final

import click

from swapfs.command.options import RUNTIME_DIR, FloatRange, require_root
from swapfs.config import values
from swapfs.errors import OperationError
from swapfs.region.access_log import SLOT_MASK, EventKind
from swapfs.units import PAGE_SIZE, format_size
from swapfs.wire import control

_ANSWER_S: Final = 30.0
_NS: Final = 1e9
_BAR: Final = 30
_SHOW_EVERY_S: Final = 0.2


@click.group()
def trace() -> None:
    """Record what is stored and read, look at it, convert it."""


@trace.command()
@click.argument("out", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--name", default="swapfs", show_default=True, help="The instance.")
@click.option("--seconds", type=FloatRange(min=0), help="Else until Ctrl-C.")
@click.option("--force", is_flag=True, help="Replace OUT if it is there.")
@RUNTIME_DIR
def record(out: Path, name: str, seconds: float | None, force: bool, runtime_dir: Path) -> None:
    """Record what happens to the slots of an instance into the file OUT.

    Ctrl-C ends it; the file is whole then. What came too fast to be read is counted.
    """
    require_root("trace record")
    from swapfs.lab import recorder
    from swapfs.lab.trace import TraceWriter

    recorder.new_file(out, force=force)
    sock = control.socket_path(runtime_dir, values.parse_name("--name", name))
    status = control.request(sock, "status", _ANSWER_S)
    stopped: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: stopped.append(number))
    ring = recorder.open_ring(status)
    bar = _Bar(seconds)
    try:
        with TraceWriter(out, recorder.describe(status, ring.geometry)) as writer:
            recorder.record(ring, writer, lambda: bool(stopped), seconds=seconds, progress=bar.show)
    except OSError as error:
        raise OperationError(f"{out}: {error.strerror}") from error
    finally:
        bar.end()
        ring.close()
    click.echo(f"{out}: {writer.events} events, {writer.dropped} dropped")


class _Bar:
    """How far it is, on one line of a terminal."""

    def __init__(self, seconds: float | None) -> None:
        self._seconds = seconds
        self._shown_s = -1.0
        self._wanted = sys.stderr.isatty()

    def show(self, passed_s: float, events: int, dropped: int) -> None:
        if not self._wanted or passed_s - self._shown_s < _SHOW_EVERY_S:
            return
        self._shown_s = passed_s
        part = min(1.0, passed_s / self._seconds) if self._seconds else 0.0
        bar = f"[{'#' * round(part * _BAR):{_BAR}}] " if self._seconds else ""
        lost = f", {dropped} dropped" if dropped else ""
        sys.stderr.write(f"\r{bar}{passed_s:6.1f} s  {events} events{lost}\033[K")
        sys.stderr.flush()

    def end(self) -> None:
        if self._shown_s >= 0:
            sys.stderr.write("\n")


@trace.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Everything, as JSON.")
def info(file: Path, as_json: bool) -> None:
    """Show what is in the trace FILE."""
    found = summary(file)
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    of, meta = found["events"], found["meta"]
    click.echo(f"{file}: {sum(of.values())} events in {found['seconds']:.1f} s")
    click.echo(f"  instance   {meta['name']} {meta['version']}, kernel {_kernel(meta)}")
    sizes = (format_size(meta["size_bytes"]), format_size(meta["pool_bytes"]))
    click.echo(f"  geometry   {sizes[0]} of swap, {sizes[1]} of pool")
    click.echo(f"  slots      {found['slots']} ({format_size(found['slots'] * PAGE_SIZE)})")
    click.echo("  events     " + ", ".join(f"{kind} {of[kind]}" for kind in of if of[kind]))
    click.echo(f"  dropped    {found['dropped']}")
    if not found["finished"]:
        click.echo("  not finished: the recorder was killed; good as far as it goes")


def _kernel(meta: dict[str, Any]) -> str:
    return str(meta["host"].get("kernel", "unknown"))


def summary(file: Path) -> dict[str, Any]:
    """Return what ``trace info --json`` prints of *file*.

    :raises OperationError: it is no trace
    """
    from dataclasses import asdict

    from swapfs.lab.trace import Trace

    trace = Trace(file)
    kinds: Counter[int] = Counter()
    slots: set[int] = set()
    first_ns = last_ns = 0
    for words in trace.chunks():
        kinds.update(word >> 40 & 15 for word in words[::2])
        slots.update(word & SLOT_MASK for word in words[::2] if word >> 40 & 15 < len(EventKind))
        times_ns = [time_ns for time_ns in words[1::2] if time_ns]
        if times_ns:
            first_ns, last_ns = first_ns or times_ns[0], times_ns[-1]
    return {
        "meta": asdict(trace.meta),
        "finished": trace.finished,
        "dropped": trace.dropped,
        "events": {kind.name.lower(): kinds[kind] for kind in EventKind},
        "slots": len(slots),
        "seconds": round((last_ns - first_ns) / _NS, 3),
    }


@trace.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path, dir_okay=False))
@click.option(
    "--to", type=click.Choice(["oracleGeneral", "csv"]), required=True, help="The format of OUT."
)
@click.option("--force", is_flag=True, help="Replace OUT if it is there.")
def convert(file: Path, out: Path, to: str, force: bool) -> None:
    """Write the trace FILE to OUT for other programs; oracleGeneral is libCacheSim's."""
    from swapfs.lab import convert as converter
    from swapfs.lab import recorder
    from swapfs.lab.trace import Trace

    source = Trace(file)
    recorder.new_file(out, force=force)
    click.echo(f"{out}: {converter.convert(source, to, out)} {_LINES[to]}")


_LINES: Final = {"oracleGeneral": "requests", "csv": "lines"}

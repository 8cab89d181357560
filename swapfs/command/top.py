"""``swapfs top``: what an instance does now, in a terminal, refreshed.

Reads what ``status`` reads, so it needs no root and holds nobody up.
"""

from __future__ import annotations

import contextlib
import select
import sys
import termios
import time
import tty
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from swapfs.command import status as status_of
from swapfs.command.options import NAME_ARGUMENT, RUNTIME_DIR, FloatRange
from swapfs.config import values
from swapfs.errors import OperationError
from swapfs.units import PAGE_SIZE, format_size

if TYPE_CHECKING:
    from rich.console import RenderableType

    from swapfs.server.status import Status

_BAR: Final = 24
_RATES: Final = (
    (
        "stored",
        ("write_same_pages", "write_compressed_pages", "write_raw_pages", "write_direct_pages"),
    ),
    ("read in memory", ("read_empty_pages", "read_same_pages", "read_pool_pages")),
    ("read from below", ("read_file_pages",)),
    ("refaults", ("refaulted_pages",)),
    ("demoted", ("demoted_pages",)),
    ("promoted", ("promoted_pages",)),
    ("discarded", ("discarded_pages",)),
)


@click.command()
@NAME_ARGUMENT
@click.option("--once", is_flag=True, help="Print it once, for scripts.")
@click.option("--seconds", type=FloatRange(min=0.2), default=1.0, show_default=True)
@RUNTIME_DIR
def top(name: str, once: bool, seconds: float, runtime_dir: Path) -> None:
    """Show what instance NAME (swapfs) does, refreshed; q quits. Needs no root."""
    try:
        from rich.console import Console
        from rich.live import Live
    except ImportError as error:
        raise OperationError("top needs rich: pip install 'swapfs[lab]'") from error
    name = values.parse_name("NAME", name)
    view = View()
    if once:
        view.look(_take(name, runtime_dir), time.monotonic())
        Console(highlight=False).print(view.render())
        return
    with _keys() as pressed, Live(screen=True, auto_refresh=False) as live:
        while True:
            view.look(_take(name, runtime_dir), time.monotonic())
            live.update(view.render(), refresh=True)
            if pressed(seconds) in ("q", "Q", "\x03"):
                return


def _take(name: str, runtime_dir: Path) -> status_of.Instance:
    found = status_of.collect(runtime_dir, [name])
    if not found:
        raise OperationError(f"no instance {name} in {runtime_dir}")
    return found[0]


@contextlib.contextmanager
def _keys() -> Iterator[Any]:
    """Give a function that waits so many seconds for a key, and returns it or ""."""
    if not sys.stdin.isatty():
        raise OperationError("top needs a terminal; --once prints it without one")
    fd = sys.stdin.fileno()
    before = termios.tcgetattr(fd)

    def pressed(seconds: float) -> str:
        return sys.stdin.read(1) if select.select([fd], [], [], seconds)[0] else ""

    try:
        tty.setcbreak(fd)
        yield pressed
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)


class View:
    """What is shown of one instance, with rates from one look to the next."""

    def __init__(self) -> None:
        self._status: Status
        self._state = ""
        self._counters: dict[str, int] = {}
        self._at_s = 0.0
        self._rates: dict[str, float] = {}

    def look(self, instance: status_of.Instance, now_s: float) -> None:
        """Take the next snapshot, seen at *now_s*."""
        status = instance.status
        self._state = str(instance.state)
        counters = dict(status.counters)
        passed_s = max(0.1, now_s - self._at_s)
        for name, names in _RATES if self._counters else ():
            more = sum(counters.get(one, 0) - self._counters.get(one, 0) for one in names)
            self._rates[name] = max(0, more) / passed_s
        self._counters, self._at_s, self._status = counters, now_s, status

    def render(self) -> RenderableType:
        """Return it, fit for 80 columns."""
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        status = self._status
        head = Text(f"{status.name}  {self._state}  {format_size(status.size_bytes or 0)} of swap")
        head.append(f"  policy {status.config.get('policy', '-')}")
        wrong = "; ".join(status.degraded)
        parts: list[RenderableType] = [head]
        if wrong:
            parts.append(Text(f"degraded: {wrong}", style="bold red"))
        tiers = Table.grid(padding=(0, 2))
        pool = status.pool
        self._tier(tiers, "pool", pool.used_bytes, pool.limit_bytes, self._resident(), "ok")
        for tier in status.tiers:
            self._tier(
                tiers, tier.name, tier.used_bytes, tier.size_bytes, tier.slots, str(tier.state)
            )
        parts += [Text(), tiers, Text(), self._flow(), Text(), self._slots()]
        return Group(*parts)

    def _resident(self) -> int:
        slots = self._status.slots
        return sum(slots.get(state, 0) for state in ("compressed", "raw", "recompressed"))

    def _tier(
        self,
        tiers: Any,
        name: str,
        used_bytes: int | None,
        size_bytes: int | None,
        slots: int | None,
        state: str,
    ) -> None:
        used, size = used_bytes or 0, size_bytes or 0
        full = round(_BAR * used / size) if size else 0
        bar = "#" * full + "." * (_BAR - full)
        of = f"{format_size(used)} of {format_size(size)}"
        tiers.add_row(name, f"|{bar}|", of, f"{slots or 0} pages", "" if state == "ok" else state)

    def _flow(self) -> RenderableType:
        from rich.table import Table

        table = Table.grid(padding=(0, 2))
        for _ in range(2):
            table.add_column()
        for _ in range(3):
            table.add_column(justify="right")
        for name, names in _RATES:
            total = sum(self._counters.get(one, 0) for one in names)
            rate = self._rates.get(name)
            a_second = "-" if rate is None else f"{rate:.0f}/s"
            volume = "-" if rate is None else f"{format_size(int(rate * PAGE_SIZE))}/s"
            table.add_row(name, "", f"{total} pages", a_second, volume)
        return table

    def _slots(self) -> RenderableType:
        from rich.text import Text

        slots = self._status.slots
        return Text("slots  " + "  ".join(f"{state} {count}" for state, count in slots.items()))

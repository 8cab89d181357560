"""What ``swapfs status`` shows: every instance's snapshot, as a table and in words.

Works without root: who may not use an instance's control socket gets the snapshot that its
server writes about once a second. Reads no file inside a mount, so no dead server can hang it.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from swapfs.command import stale
from swapfs.errors import OperationError
from swapfs.units import format_size
from swapfs.wire import control

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from swapfs.command.stale import GhostSwap

    Status = dict[str, Any]

CONTROL_TIMEOUT_S: Final = 2.0
SILENT_AFTER_S: Final = 10.0
"""A server that lives writes its snapshot about once a second."""
GHOST_CURE: Final = "only swapoff or a reboot ends it, and programs with pages there may be killed"
COLUMNS: Final = (
    "NAME",
    "ALGORITHM",
    "SIZE",
    "DATA",
    "COMPR",
    "TOTAL",
    "MEM-LIMIT",
    "SAME",
    "HUGE",
    "FILE-USED",
    "RATIO",
    "PRIO",
    "MOUNTPOINT",
)
"""What status shows unless told otherwise; after zramctl(8)."""


def collect(runtime_dir: Path, names: Iterable[str] | None = None) -> list[Status]:
    """Return the status of each instance in *runtime_dir*, or of those in *names*, by name.

    Adds to the server's own snapshot: ``state`` ("running"; "silent", it does not answer;
    "held", its server died again and again and is not started any more; "dead", monitor and
    server are gone) and ``age_s``, how old the values are.
    """
    found = {path.stem for path in runtime_dir.glob("*.json")}
    found |= {path.stem for path in runtime_dir.glob("*.sock")}
    wanted = found if names is None else found.intersection(names)
    return [_status_of(runtime_dir, name) for name in sorted(wanted)]


def format_table(
    statuses: Sequence[Status],
    columns: Sequence[str] = COLUMNS,
    *,
    in_bytes: bool = False,
    headings: bool = True,
    raw: bool = False,
) -> str:
    """Return one line per instance.

    :param columns: keys of the table of columns, see :func:`column_names`
    :param in_bytes: sizes as plain numbers of bytes
    :param raw: one blank between columns, blanks in values as ``\\x20``
    """
    show = str if in_bytes else format_size
    rows = [list(columns)] if headings else []
    rows += [[_cell(status, column, show) for column in columns] for status in statuses]
    if raw:
        return "\n".join(" ".join(cell.replace(" ", "\\x20") for cell in row) for row in rows)
    widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
    return "\n".join(_aligned(row, columns, widths) for row in rows)


def format_details(statuses: Sequence[Status], ghosts: Sequence[GhostSwap] = ()) -> str:
    """Return what the table has no room for: slots, metadata, guards, what is wrong."""
    lines = [line for status in statuses for line in _details(status)]
    lines += [f"ghost {ghost.device}: {ghost.reason}; {GHOST_CURE}" for ghost in ghosts]
    return "\n".join(lines)


def column_names() -> list[str]:
    """Return every column that :func:`format_table` knows."""
    return [*_TEXT, *_SIZE]


def _status_of(runtime_dir: Path, name: str) -> Status:
    try:
        status = control.request(
            control.socket_path(runtime_dir, name), "status", CONTROL_TIMEOUT_S
        )
    except OperationError:
        pass  # not root, or nobody there: the snapshot knows
    else:
        return {**status, "name": name, "state": "running", "age_s": 0.0}
    written = control.read_snapshot(runtime_dir, name)
    if written is None:
        return {"name": name, "state": "dead", "age_s": 0.0, "degraded": ["no snapshot to read"]}
    written_s, status = written
    age_s = max(0.0, time.time() - written_s)
    state = "running" if age_s < SILENT_AFTER_S else "silent"
    if status.get("held"):
        state = "held"  # its monitor has said so, and says no more
    if not stale.daemon_lives(runtime_dir, name):
        state = "dead"
    return {**status, "name": name, "state": state, "age_s": round(age_s, 1)}


def _get(status: Status, *keys: str) -> Any:
    """Return the value at the path *keys*; None where a dead instance left nothing."""
    value: Any = status
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _memory_bytes(status: Status) -> int | None:
    parts = [
        _get(status, "pool", "used_bytes"),
        _get(status, "metadata_bytes"),
        _get(status, "fixed_bytes"),
    ]
    return None if parts[0] is None else sum(part or 0 for part in parts)


def _file_bytes(status: Status) -> int:
    return sum(_get(tier, "used_bytes") or 0 for tier in _get(status, "tiers") or [])


def _ratio(status: Status) -> str | None:
    """Return orig/compr, with two digits behind the point."""
    orig_bytes, compr_bytes = _get(status, "orig_bytes"), _get(status, "compr_bytes")
    return f"{orig_bytes / compr_bytes:.2f}" if orig_bytes and compr_bytes else None


_TEXT: Final[dict[str, Callable[[Status], object]]] = {
    "NAME": lambda status: _get(status, "name"),
    "ALGORITHM": lambda status: _get(status, "algorithm"),
    "SAME": lambda status: _get(status, "slots", "same"),
    "HUGE": lambda status: _get(status, "slots", "raw"),
    "RATIO": _ratio,
    "PRIO": lambda status: _get(status, "swap", "priority"),
    "MOUNTPOINT": lambda status: _get(status, "mountpoint"),
    "STATE": lambda status: _get(status, "state"),
    "PID": lambda status: _get(status, "pid"),
    "DEVICE": lambda status: _get(status, "loop"),
}
_SIZE: Final[dict[str, Callable[[Status], int | None]]] = {
    "SIZE": lambda status: _get(status, "size_bytes"),
    "DATA": lambda status: _get(status, "orig_bytes"),
    "COMPR": lambda status: _get(status, "compr_bytes"),
    "TOTAL": _memory_bytes,
    "MEM-LIMIT": lambda status: _get(status, "pool", "limit_bytes"),
    "MEM-PEAK": lambda status: _get(status, "pool", "peak_bytes"),
    "FILE-USED": _file_bytes,
    "SWAP-USED": lambda status: _get(status, "swap", "used_bytes"),
}
_LEFT: Final = frozenset({"NAME", "ALGORITHM", "MOUNTPOINT", "STATE", "DEVICE"})


def _cell(status: Status, column: str, show: Callable[[int], str]) -> str:
    if column in _SIZE:
        size_bytes = _SIZE[column](status)
        return "-" if size_bytes is None else show(size_bytes)
    value = _TEXT[column](status)
    return "-" if value is None else str(value)


def _aligned(row: Sequence[str], columns: Sequence[str], widths: Sequence[int]) -> str:
    cells = [
        cell.ljust(width) if column in _LEFT else cell.rjust(width)
        for cell, column, width in zip(row, columns, widths, strict=True)
    ]
    return " ".join(cells).rstrip()


def _details(status: Status) -> list[str]:
    """Return the lines about one instance; those that a dead one knows nothing of left out."""
    lines = [f"{status['name']}: {_state(status)}"]
    slots = _get(status, "slots")
    if slots:
        lines.append("slots     " + "  ".join(f"{name} {count}" for name, count in slots.items()))
    if _get(status, "metadata_bytes") is not None:
        per_slot = _get(status, "metadata_bytes_per_slot") or 0.0
        fixed = format_size(_get(status, "fixed_bytes") or 0)
        total = format_size(status["metadata_bytes"])
        lines.append(f"metadata  {total} ({per_slot:.1f} bytes per occupied slot), {fixed} fixed")
    for tier in _get(status, "tiers") or []:
        used, has = (format_size(_get(tier, key) or 0) for key in ("used_bytes", "size_bytes"))
        lines.append(
            f"tier      {_get(tier, 'name')} {_get(tier, 'path')}: {used} of {has},"
            f" {_get(tier, 'state') or 'state unknown'}"
        )
    guards = _get(status, "guards") or []
    if guards:
        held = [str(guard["name"]) for guard in guards if guard["ok"]]
        lines.append("guards    " + (" ".join(held) or "none"))
        lines += [f"NOT HELD  {g['name']}: {g['detail']}" for g in guards if not g["ok"]]
    starts = _get(status, "counters", "server_starts") or 0
    if starts > 1:
        lines.append(f"restarts  the server was started {starts} times")
    lines += [f"DEGRADED  {reason}" for reason in _get(status, "degraded") or []]
    lines += [f"limit     {limit}" for limit in _get(status, "limits") or []]
    return lines


def _state(status: Status) -> str:
    pid, age_s = _get(status, "pid"), _get(status, "age_s") or 0.0
    if status.get("state") == "dead":
        return f"dead (process {pid} is gone; the values are its last)"
    swap = _get(status, "swap")
    on = "swap is off"
    if swap:
        used, has = format_size(swap["used_bytes"]), format_size(swap["size_bytes"])
        on = f"swap on {swap['device']}, {used} of {has} used"
    if status.get("state") == "held":
        return f"HELD (process {pid} keeps its pages, nobody serves them), {on}"
    if status.get("state") == "silent":
        return f"silent (process {pid} has said nothing for {age_s:.0f} s), {on}"
    return f"running (process {pid}), {on}"

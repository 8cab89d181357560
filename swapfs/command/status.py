"""What ``swapfs status`` tells of every instance: where its snapshot is from, and in words.

Works without root: who may not use an instance's control socket gets the snapshot that its
server writes about once a second. Reads no file inside a mount, so no dead server can hang it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from swapfs.command import stale
from swapfs.errors import OperationError
from swapfs.server.status import Status
from swapfs.units import PAGE_SIZE, format_size
from swapfs.wire import control, state_file

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from swapfs.command.stale import GhostSwap
    from swapfs.server.status import ExportStatus

CONTROL_TIMEOUT_S: Final = 2.0
SILENT_AFTER_S: Final = 10.0
"""A server that lives writes its snapshot about once a second."""
GHOST_CURE: Final = "only swapoff or a reboot ends it, and programs with pages there may be killed"


class State(StrEnum):
    """How an instance is, as far as can be seen from outside."""

    RUNNING = "running"
    SILENT = "silent"
    """It does not answer."""
    HELD = "held"
    """Its server died again and again, and is not started any more."""
    DEAD = "dead"
    """Monitor and server are gone."""


@dataclass(frozen=True, slots=True)
class Instance:
    """One instance: its snapshot, and what is known beside it.

    :param age_s: how old the values are
    :param raw: the snapshot as it came, with what only other versions understand
    """

    name: str
    state: State
    age_s: float
    raw: dict[str, Any]

    @property
    def status(self) -> Status:
        """The snapshot."""
        return Status.from_dict(self.raw)

    def as_dict(self) -> dict[str, Any]:
        """Return what ``swapfs status --json`` shows."""
        return {**self.raw, "name": self.name, "state": str(self.state), "age_s": self.age_s}


def collect(runtime_dir: Path, names: Iterable[str] | None = None) -> list[Instance]:
    """Return each instance in *runtime_dir*, or those in *names*, by name."""
    found = {path.stem for path in runtime_dir.glob("*.json")}
    found |= {path.stem for path in runtime_dir.glob("*.sock")}
    wanted = found if names is None else found.intersection(names)
    return [_look_at(runtime_dir, name) for name in sorted(wanted)]


def format_details(instances: Sequence[Instance], ghosts: Sequence[GhostSwap] = ()) -> str:
    """Return what the table has no room for: slots, metadata, guards, what is wrong."""
    lines = [line for instance in instances for line in _details(instance)]
    lines += [f"ghost {ghost.device}: {ghost.reason}; {GHOST_CURE}" for ghost in ghosts]
    return "\n".join(lines)


def _look_at(runtime_dir: Path, name: str) -> Instance:
    try:
        answer = control.request(
            control.socket_path(runtime_dir, name), "status", CONTROL_TIMEOUT_S
        )
    except OperationError:
        pass  # not root, or nobody there: the snapshot knows
    else:
        return Instance(name, State.RUNNING, 0.0, answer)
    written = state_file.read(runtime_dir, name)
    if written is None:
        return Instance(name, State.DEAD, 0.0, {"degraded": ["no snapshot to read"]})
    age_s, snapshot = round(written[0], 1), written[1]
    state = State.RUNNING if age_s < SILENT_AFTER_S else State.SILENT
    if Status.from_dict(snapshot).held:
        state = State.HELD  # its monitor has said so, and says no more
    if not stale.daemon_lives(runtime_dir, name):
        state = State.DEAD
    return Instance(name, state, age_s, snapshot)


def _details(instance: Instance) -> list[str]:
    """Return the lines about one instance; those that a dead one knows nothing of left out."""
    status = instance.status
    lines = [f"{instance.name}: {_in_words(instance, status)}"]
    if status.slots:
        counts = [f"{state} {count}" for state, count in status.slots.items()]
        lines.append("slots     " + "  ".join(counts))
    if status.metadata_bytes is not None:
        per_slot = status.metadata_bytes_per_slot or 0.0
        total, fixed = format_size(status.metadata_bytes), format_size(status.fixed_bytes or 0)
        lines.append(f"metadata  {total} ({per_slot:.1f} bytes per occupied slot), {fixed} fixed")
    for tier in status.tiers:
        used, has = format_size(tier.used_bytes or 0), format_size(tier.size_bytes or 0)
        how = tier.detail or tier.state
        lines.append(f"tier      {tier.name} {tier.path}: {used} of {has}, {how}")
    exports = status.exports
    if len(exports) > 1 or any(each.quota_bytes for each in exports):
        lines += map(_export, exports)
    if status.guards:
        held = [guard.name for guard in status.guards if guard.ok]
        lines.append("guards    " + (" ".join(held) or "none"))
        lines += [
            f"NOT HELD  {guard.name}: {guard.detail}" for guard in status.guards if not guard.ok
        ]
    if (awake := status.cpu_latency) and awake.mode != "off":
        now = "awake now" if awake.held else "free to sleep now"
        lines.append(
            f"latency   {awake.mode}: CPUs are {now}; kept awake {awake.holds or 0} times, "
            f"{awake.held_s or 0:.1f} s"
        )
    starts = status.counters.get("server_starts", 0)
    if starts > 1:
        lines.append(f"restarts  the server was started {starts} times")
    if status.log_dropped:
        lines.append(f"log       {status.log_dropped} records were lost: it took them too slowly")
    lines += [f"DEGRADED  {reason}" for reason in status.degraded]
    lines += [f"limit     {limit}" for limit in status.limits]
    return lines


def _export(export: ExportStatus) -> str:
    """Return the line about one swap file: virtual, compressed and physical apart."""
    sizes = (PAGE_SIZE * (export.slots or 0), export.payload_bytes, export.physical_bytes)
    held, compressed, taken = (format_size(size or 0) for size in sizes)
    quota = f" of a quota of {format_size(export.quota_bytes)}" if export.quota_bytes else ""
    refused = export.counters.get("refused_writes", 0)
    swap = f"on {export.swap.device}, priority {export.swap.priority}" if export.swap else "off"
    return (
        f"export    {export.name} {format_size(export.size_bytes or 0)}: {held} held, "
        f"{compressed} compressed, takes {taken}{quota}"
        f"{f', {refused} writes refused' if refused else ''}; swap {swap}"
    )


def _in_words(instance: Instance, status: Status) -> str:
    pid, swap = status.pid, status.swap
    on = "swap is off"
    if swap:
        used, has = format_size(swap.used_bytes or 0), format_size(swap.size_bytes or 0)
        on = f"swap on {swap.device}, {used} of {has} used"
    match instance.state:
        case State.DEAD:
            return f"dead (process {pid} is gone; the values are its last)"
        case State.HELD:
            return f"HELD (process {pid} keeps its pages, nobody serves them), {on}"
        case State.SILENT:
            return f"silent (process {pid} has said nothing for {instance.age_s:.0f} s), {on}"
        case State.RUNNING:
            return f"running (process {pid}), {on}"

"""What swapfs holds before a page is stored: two processes whose every mapping is locked.

Read from smaps of monitor and server, and from VmLck, without the pool. Programs and libraries
count once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from tests.bench import names
from tests.bench.process_memory import locked_bytes, memory_of, together
from tests.bench.subjects import swapfs_mount

if TYPE_CHECKING:
    from tests.bench.record import Plan, Recorder

MIB: Final = 1 << 20
_SIZE_BYTES: Final = 8 * MIB
_FILE_MIB: Final = 64


def record(plan: Plan, recorder: Recorder) -> None:
    """Measure an empty instance, without and with an encrypted file."""
    backing = plan.work / "fixed.tier"
    for test, file in (
        (names.FIXED_MEMORY, None),
        (names.FIXED_MEMORY_WITH_FILE, f"{backing}:{_FILE_MIB}M"),
    ):
        with swapfs_mount(
            plan.work, size_bytes=_SIZE_BYTES, pool_bytes=2 * _SIZE_BYTES, file=file
        ) as mounted:
            _record(test, mounted.status(), recorder)
        backing.unlink(missing_ok=True)


def _record(test: str, status: dict[str, Any], recorder: Recorder) -> None:
    monitor, server = memory_of(status["pid"]), memory_of(status["server_pid"])
    both, pool_bytes = together(monitor, server), status["pool"]["limit_bytes"]
    locked = sum(locked_bytes(status[pid]) for pid in ("pid", "server_pid"))
    for metric, size_bytes in (
        (names.HELD, both.total_bytes - pool_bytes),
        ("heap and stacks of the monitor", monitor.anonymous_bytes),
        ("heap and stacks of the server", server.anonymous_bytes),
        ("programs and libraries", both.file_bytes),
        ("buffers and lists", both.shared_bytes - pool_bytes),
        ("locked (VmLck of both)", locked),
    ):
        recorder.add(test, names.SWAPFS, metric, size_bytes / MIB, "MiB")

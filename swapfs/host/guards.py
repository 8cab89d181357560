"""The guards that keep the server from waiting for the swap that it serves (I5, I8).

Each guard is set, then read back from the kernel, and can be read back again at any time by
``Guards.verify``; what the setting call returned is never taken as proof. A required guard
that does not hold is an error unless the operator said ``--unsafe``. Knows nothing of files,
mounts or tiers: what they know is passed in as probes.

Why these guards (measured in a 512 MiB VM under whole-system pressure): a server that
allocates while it serves wedges the machine within a second, even with ``mlockall`` and
PR_SET_IO_FLUSHER. What survived was all of them together: locked preallocated pool, locked
process, IO_FLUSHER, SCHED_FIFO (a real-time task may use part of the reserve below the min
watermark), a heap that is warm and never returned, and no garbage collector.

Order that works: io_flusher (before any thread exists), heap, region, mlock, gc, oom_score,
threads, realtime. Nothing of this but IO_FLUSHER and the scheduler survives a fork as it is:
locks are gone in the child, which sets them again.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from swapfs.errors import GuardError, OperationError
from swapfs.host import syscalls
from swapfs.host.procself import ProcSelf
from swapfs.units import MiB, format_size

Check = Callable[[], tuple[bool, str]]
"""Read one guard back: whether it holds, and one line of what was found."""

OOM_SCORE: Final = -1000
FIFO_PRIORITY: Final = 1
HEAP_PREWARM_BYTES: Final = 16 * MiB
HEAP_TOP_PAD_BYTES: Final = 4 * MiB

CURES: Final = {
    "io_flusher": "run with CAP_SYS_RESOURCE, on Linux 5.6 or later",
    "mlock": "run with CAP_IPC_LOCK or LimitMEMLOCK=infinity, and enough free memory",
    "oom_score": "run with CAP_SYS_RESOURCE, or set OOMScoreAdjust=-1000 in the unit",
    "realtime": "run with CAP_SYS_NICE, and a cpu cgroup that allows real-time tasks",
    "heap": "run on glibc, started by the swapfs command with PYTHONMALLOC=malloc",
    "gc": "call gc.disable(), and nothing that enables it again",
    "direct_io": "attach the loop device with losetup --direct-io=on",
    "discard": "use a kernel whose loop driver offers discard on FUSE files",
    "max_background": "run with CAP_SYS_ADMIN, on Linux 5.2 or later",
}


@dataclass(frozen=True, slots=True)
class Guard:
    """What the kernel said of one guard when it was last read back."""

    name: str
    ok: bool
    required: bool
    detail: str

    def as_dict(self) -> dict[str, Any]:
        """Return the guard as it appears in the status snapshot."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class _Watch:
    required: bool
    check: Check
    refusal: str = ""  # what the setting call said when it failed
    proof: bool = True  # the check alone tells, whatever the setting call said


class Guards:
    """The guards of this process: ``set_*`` them, then ``require()``; ``verify()`` ever after.

    :param unsafe: go on when a required guard does not hold
    :param proc: where procfs is; tests pass a directory of their own
    """

    def __init__(self, unsafe: bool, proc: Path = Path("/proc")) -> None:
        self.unsafe = unsafe
        self._process = ProcSelf(proc)
        self._watches: dict[str, _Watch] = {}

    # setting

    def set_io_flusher(self) -> None:
        """Keep this process's allocations from starting I/O that only it could finish.

        Sets PF_MEMALLOC_NOIO and PF_LOCAL_THROTTLE on the calling thread. Threads created
        *afterwards* inherit them, existing ones do not: call this first. The check looks at
        every thread. Source: include/uapi/linux/prctl.h, include/linux/sched.h.
        """
        self._set("io_flusher", syscalls.set_io_flusher, self._check_io_flusher)

    def set_mlock(self, locked_bytes_min: int, on_fault: bool = False) -> None:
        """Lock every present and future mapping, so that no fault here waits for swap.

        :param locked_bytes_min: what VmLck must reach, at least the size of the region
        :param on_fault: lock pages when they are touched (MCL_ONFAULT) instead of populating
            everything now; needed when a large sparse mapping exists, and then whoever made
            the mapping must touch what it will use
        """
        flags = syscalls.MCL_CURRENT | syscalls.MCL_FUTURE
        if on_fault:
            flags |= syscalls.MCL_ONFAULT
        self._set(
            "mlock",
            lambda: syscalls.mlockall(flags),
            lambda: self._check_mlock(locked_bytes_min),
            proof=False,  # VmLck does not show whether future mappings will be locked
        )

    def set_oom_score(self, score: int = OOM_SCORE) -> None:
        """Tell the OOM killer to spare this process, whose death loses every page.

        Not required: a refusal (no CAP_SYS_RESOURCE) is only reported, as the machine is
        still correct until memory runs out. Inherited over fork.
        """
        path = self._process.oom_score_path
        self._set(
            "oom_score",
            lambda: _write_line(path, score),
            lambda: _check_oom_score(path, score),
            required=False,
        )

    def set_realtime(self, thread_ids: Iterable[int] | None = None) -> None:
        """Run threads under SCHED_FIFO, which may use memory below the min watermark.

        :param thread_ids: kernel thread ids (``threading.get_native_id``); None means every
            thread of the process, now and at each check. Prefer None: any thread can hold the
            GIL, and a normal one that holds it while it is starved or stuck in reclaim stops
            the real-time ones as well. Threads inherit the policy of their creator.
        """
        chosen = None if thread_ids is None else tuple(thread_ids)
        self._set(
            "realtime",
            lambda: self._make_realtime(chosen),
            lambda: self._check_realtime(chosen),
        )

    def set_heap(
        self, prewarm_bytes: int = HEAP_PREWARM_BYTES, python_malloc: str | None = None
    ) -> None:
        """Make the C heap warm and keep it: free() gives nothing back to the kernel.

        M_MMAP_MAX 0 serves large blocks from the heap too (M_MMAP_THRESHOLD cannot exceed
        32 MiB and would let them come and go by mmap); M_ARENA_MAX 1 makes every thread use
        the heap that is warmed here. Call before threads exist, else they may own an arena.

        :param prewarm_bytes: heap to touch now; it stays resident and free for later
        :param python_malloc: what the launcher put in PYTHONMALLOC, None to read the
            environment; ``malloc`` must then be in effect, as pymalloc's arenas are
            mmapped and unmapped while serving
        """
        asked = os.environ.get("PYTHONMALLOC") if python_malloc is None else python_malloc
        heap_bytes_min = 0

        def keep_heap() -> None:
            nonlocal heap_bytes_min
            syscalls.mallopt(syscalls.M_MMAP_MAX, 0)
            syscalls.mallopt(syscalls.M_TRIM_THRESHOLD, -1)  # as size_t: never
            syscalls.mallopt(syscalls.M_TOP_PAD, HEAP_TOP_PAD_BYTES)
            syscalls.mallopt(syscalls.M_ARENA_MAX, 1)
            syscalls.touch_heap(prewarm_bytes)
            heap_bytes_min = max(self._process.heap_bytes(), prewarm_bytes)

        self._set(
            "heap",
            keep_heap,
            lambda: self._check_heap(heap_bytes_min, asked),
            proof=False,  # nothing can be read back of mallopt but the heap's size
        )

    def set_gc(self) -> None:
        """Collect once, move what is left out of the collector's sight, and switch it off.

        A collection while serving would touch every object and allocate at a bad time.
        """

        def freeze() -> None:
            gc.collect()
            gc.freeze()
            gc.disable()
            frozen[0] = gc.get_freeze_count()  # counts them one by one: milliseconds

        frozen = [0]
        self._set("gc", freeze, lambda: _check_gc(frozen[0]))

    def set_direct_io(self, probe: Check, required: bool = True) -> None:
        """Report whether the loop device bypasses the page cache, as *probe* reads it."""
        self._watches["direct_io"] = _Watch(required, probe)

    def set_discard(self, probe: Check, required: bool = True) -> None:
        """Report whether the loop device passes discards on, as *probe* reads it."""
        self._watches["discard"] = _Watch(required, probe)

    def set_max_background(
        self, requests: int, put: Callable[[int], None], get: Callable[[], int]
    ) -> None:
        """Let the kernel have *requests* under way at a time instead of 12.

        All I/O of a loop device with direct I/O is background to FUSE. Without this, 12 reads
        that wait for a disk keep every other request from being sent, of pages in memory too.
        Not required: nothing goes wrong while disks answer.

        :param put: sets the number; may raise OperationError
        :param get: reads it back; may raise OperationError
        """

        def check() -> tuple[bool, str]:
            found = get()
            return found >= requests, f"{found} requests under way at the most"

        self._set("max_background", lambda: put(requests), check, required=False)

    # reading back

    def verify(self) -> list[Guard]:
        """Read every guard back from the kernel and return what was found. Never raises."""
        return [_look(name, watch) for name, watch in self._watches.items()]

    def require(self) -> None:
        """Check that every required guard holds.

        :raises GuardError: names those that do not, what was found and the cure; not raised
            when ``unsafe`` was given
        """
        broken = [guard for guard in self.verify() if guard.required and not guard.ok]
        if not broken or self.unsafe:
            return
        lines = [f"{g.name}: {g.detail} ({CURES.get(g.name, 'see the logs')})" for g in broken]
        raise GuardError(
            f"{len(broken)} guard(s) against deadlock do not hold; "
            f"{'; '.join(lines)}; or accept the risk with --unsafe"
        )

    # private

    def _set(
        self,
        name: str,
        action: Callable[[], None],
        check: Check,
        *,
        required: bool = True,
        proof: bool = True,
    ) -> None:
        refusal = ""
        try:
            action()
        except OSError as error:
            refusal = error.strerror or str(error)
        except OperationError as error:
            refusal = str(error)
        self._watches[name] = _Watch(required, check, refusal, proof)

    def _check_io_flusher(self) -> tuple[bool, str]:
        flags = dict(self._process.thread_flags())
        bare = [tid for tid, bits in flags.items() if ~bits & syscalls.PF_IO_FLUSHER]
        if bare or not flags:
            return False, f"{len(bare)} of {len(flags)} threads lack it: {bare}"
        return True, f"set on all {len(flags)} threads"

    def _check_mlock(self, locked_bytes_min: int) -> tuple[bool, str]:
        status = self._process.status_bytes()
        locked, swapped = status.get("VmLck", 0), status.get("VmSwap", 0)
        found = f"VmLck {format_size(locked)}"
        if locked < max(locked_bytes_min, 1):
            return False, f"{found}, expected at least {format_size(max(locked_bytes_min, 1))}"
        if swapped:
            return False, f"{found}, but {format_size(swapped)} of the server is itself in swap"
        return True, found

    def _make_realtime(self, thread_ids: tuple[int, ...] | None) -> None:
        parameter = os.sched_param(FIFO_PRIORITY)
        for tid in self._process.thread_ids() if thread_ids is None else thread_ids:
            try:
                os.sched_setscheduler(tid, os.SCHED_FIFO, parameter)
            except ProcessLookupError:
                continue
            except PermissionError as error:
                raise OSError(
                    error.errno, f"sched_setscheduler(SCHED_FIFO): {error.strerror}"
                ) from error

    def _check_realtime(self, thread_ids: tuple[int, ...] | None) -> tuple[bool, str]:
        policies: dict[int, int] = {}
        for tid in self._process.thread_ids() if thread_ids is None else thread_ids:
            try:
                # a child may carry the flag that its own children start as normal tasks
                policies[tid] = os.sched_getscheduler(tid) & ~os.SCHED_RESET_ON_FORK
            except ProcessLookupError:
                if thread_ids is not None:
                    return False, f"thread {tid} has ended"
        normal = [tid for tid, policy in policies.items() if policy != os.SCHED_FIFO]
        if normal or not policies:
            return False, f"{len(normal)} of {len(policies)} threads are not SCHED_FIFO: {normal}"
        return True, f"SCHED_FIFO on {len(policies)} threads"

    def _check_heap(self, heap_bytes_min: int, python_malloc: str | None) -> tuple[bool, str]:
        size_bytes = self._process.heap_bytes()
        if size_bytes < heap_bytes_min:
            return False, f"heap shrank to {format_size(size_bytes)}"
        # 0 exactly when pymalloc serves nothing (sys.getallocatedblocks counts its blocks)
        pymalloc = sys.getallocatedblocks() > 0
        if python_malloc == "malloc" and pymalloc:
            return False, "PYTHONMALLOC=malloc was asked for, but pymalloc is in use"
        allocator = "pymalloc" if pymalloc else "malloc"
        return True, f"heap {format_size(size_bytes)}, never returned; Python uses {allocator}"


def _look(name: str, watch: _Watch) -> Guard:
    try:
        ok, detail = watch.check()
    except (OSError, ValueError, IndexError, OperationError) as error:
        ok, detail = False, f"cannot be read back: {error}"
    if watch.refusal and not watch.proof:
        ok = False
    if watch.refusal and not ok:
        detail = f"{watch.refusal}; {detail}"
    return Guard(name, ok, watch.required, detail)


def _check_gc(frozen: int) -> tuple[bool, str]:
    if gc.isenabled():
        return False, "the garbage collector is enabled"
    return True, f"off, {frozen} objects frozen"


def _write_line(path: Path, value: int) -> None:
    try:
        path.write_text(f"{value}\n")
    except OSError as error:
        raise OSError(error.errno, f"writing {value} to {path}: {error.strerror}") from error


def _check_oom_score(path: Path, score: int) -> tuple[bool, str]:
    found = int(path.read_text())
    return found <= score, f"oom_score_adj {found}"

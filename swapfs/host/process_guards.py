"""The guards that a process sets on itself: memory that stays, threads that are not held up."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterable
from typing import Final

from swapfs.host import syscalls
from swapfs.host.guards import Guard
from swapfs.host.procself import ProcSelf
from swapfs.units import MiB, format_size

OOM_SCORE: Final = -1000
FIFO_PRIORITY: Final = 1
HEAP_RESERVE_BYTES: Final = 4 * MiB
"""Free heap of a server that begins. Measured: 512 requests of 4 KiB to 1 MiB at a time, half of
them deferred, with demotion, scrapes and a recovery, took 2.8 MiB at most."""
HEAP_TOP_PAD_BYTES: Final = MiB
_THIS: Final = ProcSelf()


class IoFlusher(Guard):
    """Keeps this process's allocations from starting I/O that only it could finish.

    Sets PF_MEMALLOC_NOIO and PF_LOCAL_THROTTLE on the calling thread. Threads created
    *afterwards* inherit them, existing ones do not: set this first. The check looks at every
    thread. Source: include/uapi/linux/prctl.h, include/linux/sched.h.
    """

    name = "io_flusher"
    cure = "run with CAP_SYS_RESOURCE, on Linux 5.6 or later"

    def __init__(self, process: ProcSelf = _THIS) -> None:
        self._process = process

    def set(self) -> None:  # noqa: D102
        syscalls.set_io_flusher()

    def check(self) -> tuple[bool, str]:  # noqa: D102
        flags = dict(self._process.thread_flags())
        bare = [tid for tid, bits in flags.items() if ~bits & syscalls.PF_IO_FLUSHER]
        if bare or not flags:
            return False, f"{len(bare)} of {len(flags)} threads lack it: {bare}"
        return True, f"set on all {len(flags)} threads"


class MemoryLock(Guard):
    """Locks every present and future mapping, so that no fault here waits for swap.

    :param locked_bytes_min: what VmLck must reach, at least the size of the region
    :param on_fault: lock pages when they are touched (MCL_ONFAULT) instead of populating
        everything now; needed when a large sparse mapping exists, and then whoever made
        the mapping must touch what it will use
    """

    name = "mlock"
    cure = "run with CAP_IPC_LOCK or LimitMEMLOCK=infinity, and enough free memory"
    check_is_proof = False  # VmLck does not show whether future mappings will be locked

    def __init__(
        self, locked_bytes_min: int, *, on_fault: bool = False, process: ProcSelf = _THIS
    ) -> None:
        self._locked_bytes_min = max(locked_bytes_min, 1)
        self._flags = syscalls.MCL_CURRENT | syscalls.MCL_FUTURE
        self._flags |= syscalls.MCL_ONFAULT if on_fault else 0
        self._process = process

    def set(self) -> None:  # noqa: D102
        syscalls.mlockall(self._flags)

    def check(self) -> tuple[bool, str]:  # noqa: D102
        status = self._process.status_bytes()
        locked, swapped = status.get("VmLck", 0), status.get("VmSwap", 0)
        found = f"VmLck {format_size(locked)}"
        if locked < self._locked_bytes_min:
            return False, f"{found}, expected at least {format_size(self._locked_bytes_min)}"
        if swapped:
            return False, f"{found}, but {format_size(swapped)} of the server is itself in swap"
        return True, found


class OomScore(Guard):
    """Tells the OOM killer to spare this process, whose death loses every page.

    Not required: a refusal (no CAP_SYS_RESOURCE) is only reported, as the machine is still
    correct until memory runs out. Inherited over fork.
    """

    name = "oom_score"
    cure = "run with CAP_SYS_RESOURCE, or set OOMScoreAdjust=-1000 in the unit"
    required = False

    def __init__(self, score: int = OOM_SCORE, *, process: ProcSelf = _THIS) -> None:
        self._score = score
        self._path = process.oom_score_path

    def set(self) -> None:  # noqa: D102
        try:
            self._path.write_text(f"{self._score}\n")
        except OSError as error:
            raise OSError(
                error.errno, f"writing {self._score} to {self._path}: {error.strerror}"
            ) from error

    def check(self) -> tuple[bool, str]:  # noqa: D102
        found = int(self._path.read_text())
        return found <= self._score, f"oom_score_adj {found}"


class Realtime(Guard):
    """Runs threads under SCHED_FIFO, which may use memory below the min watermark.

    :param thread_ids: kernel thread ids (``threading.get_native_id``); None means every
        thread of the process, now and at each check. Prefer None: any thread can hold the
        GIL, and a normal one that holds it while it is starved or stuck in reclaim stops
        the real-time ones as well. Threads inherit the policy of their creator.
    """

    name = "realtime"
    cure = "run with CAP_SYS_NICE, and a cpu cgroup that allows real-time tasks"

    def __init__(
        self, thread_ids: Iterable[int] | None = None, *, process: ProcSelf = _THIS
    ) -> None:
        self._chosen = None if thread_ids is None else tuple(thread_ids)
        self._process = process

    def set(self) -> None:  # noqa: D102
        parameter = os.sched_param(FIFO_PRIORITY)
        for tid in self._thread_ids():
            try:
                os.sched_setscheduler(tid, os.SCHED_FIFO, parameter)
            except ProcessLookupError:
                continue
            except PermissionError as error:
                raise OSError(
                    error.errno, f"sched_setscheduler(SCHED_FIFO): {error.strerror}"
                ) from error

    def check(self) -> tuple[bool, str]:  # noqa: D102
        policies: dict[int, int] = {}
        for tid in self._thread_ids():
            try:
                # a child may carry the flag that its own children start as normal tasks
                policies[tid] = os.sched_getscheduler(tid) & ~os.SCHED_RESET_ON_FORK
            except ProcessLookupError:
                if self._chosen is not None:
                    return False, f"thread {tid} has ended"
        # One that recompresses is below all others while it holds nothing (core/recode.c).
        fine = (os.SCHED_FIFO, os.SCHED_IDLE)
        normal = [tid for tid, policy in policies.items() if policy not in fine]
        if normal or not policies:
            return False, f"{len(normal)} of {len(policies)} threads are not SCHED_FIFO: {normal}"
        return True, f"SCHED_FIFO on {len(policies)} threads"

    def _thread_ids(self) -> Iterable[int]:
        return self._process.thread_ids() if self._chosen is None else self._chosen


class Heap(Guard):
    """Makes the C heap warm and keeps it: free() gives nothing back to the kernel.

    M_MMAP_MAX 0 serves large blocks from the heap too (M_MMAP_THRESHOLD cannot exceed 32 MiB
    and would let them come and go by mmap); M_ARENA_MAX 1 makes every thread use the heap that
    is warmed here. Set before threads exist, else they may own an arena.

    :param prewarm_bytes: heap to touch now; it stays resident and free for later
    :param python_malloc: what the launcher put in PYTHONMALLOC, None to read the environment;
        ``malloc`` must then be in effect, as pymalloc's arenas are mmapped and unmapped while
        serving
    """

    name = "heap"
    cure = "run on glibc, started by the swapfs command with PYTHONMALLOC=malloc"
    check_is_proof = False  # nothing can be read back of mallopt but the heap's size

    def __init__(
        self,
        prewarm_bytes: int = HEAP_RESERVE_BYTES,
        *,
        python_malloc: str | None = None,
        process: ProcSelf = _THIS,
    ) -> None:
        self._prewarm_bytes = prewarm_bytes
        self._asked = os.environ.get("PYTHONMALLOC") if python_malloc is None else python_malloc
        self._process = process
        self._heap_bytes_min = 0

    def set(self) -> None:  # noqa: D102
        syscalls.mallopt(syscalls.M_MMAP_MAX, 0)
        syscalls.mallopt(syscalls.M_TRIM_THRESHOLD, -1)  # as size_t: never
        syscalls.mallopt(syscalls.M_TOP_PAD, HEAP_TOP_PAD_BYTES)
        syscalls.mallopt(syscalls.M_ARENA_MAX, 1)
        syscalls.touch_heap(self._prewarm_bytes)
        self._heap_bytes_min = max(self._process.heap_bytes(), self._prewarm_bytes)

    def check(self) -> tuple[bool, str]:  # noqa: D102
        size_bytes = self._process.heap_bytes()
        if size_bytes < self._heap_bytes_min:
            return False, f"heap shrank to {format_size(size_bytes)}"
        # 0 exactly when pymalloc serves nothing (sys.getallocatedblocks counts its blocks)
        pymalloc = sys.getallocatedblocks() > 0
        if self._asked == "malloc" and pymalloc:
            return False, "PYTHONMALLOC=malloc was asked for, but pymalloc is in use"
        allocator = "pymalloc" if pymalloc else "malloc"
        return True, f"heap {format_size(size_bytes)}, never returned; Python uses {allocator}"


class NoCollector(Guard):
    """Collects once, moves what is left out of the collector's sight, and switches it off.

    A collection while serving would touch every object and allocate at a bad time.
    """

    name = "gc"
    cure = "call gc.disable(), and nothing that enables it again"

    def __init__(self) -> None:
        self._frozen = 0

    def set(self) -> None:  # noqa: D102
        gc.collect()
        gc.freeze()
        gc.disable()
        self._frozen = gc.get_freeze_count()  # counts them one by one: milliseconds

    def check(self) -> tuple[bool, str]:  # noqa: D102
        if gc.isenabled():
            return False, "the garbage collector is enabled"
        return True, f"off, {self._frozen} objects frozen"

"""What in a kernel log means that the run was not clean."""

from __future__ import annotations

import re

_PROBLEMS = re.compile(
    "|".join(
        (
            r"blocked for more than \d+ seconds",
            r"\bBUG:|kernel BUG at|\bWARNING:|\bOops\b|Kernel panic|general protection",
            r"soft lockup|hard LOCKUP|rcu.* detected stalls|self-detected stall",
            r"possible (?:circular|recursive|irq lock) |inconsistent lock state",
            r"suspicious RCU usage|bad unlock balance|lock held when returning",
            r"[Ss]wap-device|Bad swap|Unused swap",
            r"I/O error|EXT4-fs error|Remounting filesystem read-only",
            r"Out of memory: Killed|oom-kill:",
            r"Memory cgroup out of memory: Killed",
        )
    )
)
_MEMCG_OOM = re.compile(r"oom-kill:constraint=CONSTRAINT_MEMCG|Memory cgroup out of memory")
_SPURIOUS_TRAP = re.compile(r"WARNING: .* exc_debug_kernel\+")
"""QEMU before 8 at times computes flags wrong while it emulates: seen was a single-step trap in the
kernel's allocator with half a pointer in EFLAGS. Nothing single-steps these kernels."""


def kernel_log_problems(dmesg: str, *, allow_memcg_oom: bool = False) -> list[str]:
    """Return the lines of `dmesg` that report a hang, a fault, an I/O error or an OOM kill.

    With `allow_memcg_oom`, kills by a cgroup's own limit are left out: a test may want them.
    """
    return [
        line
        for line in dmesg.splitlines()
        if _PROBLEMS.search(line)
        and not (allow_memcg_oom and _MEMCG_OOM.search(line))
        and not _SPURIOUS_TRAP.search(line)
    ]

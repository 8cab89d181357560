"""What counts as a problem in a kernel log."""

from __future__ import annotations

import pytest

from deploy.vm.host.problems import kernel_log_problems

TRAP = (
    "[ 1777.4] WARNING: CPU: 0 PID: 34 at arch/x86/kernel/traps.c:1120 exc_debug_kernel+0xca/0x160"
)
LIMIT = "[ 21.6] Memory cgroup out of memory: Killed process 214 (python3) total-vm:248280kB"


@pytest.mark.parametrize(
    "line",
    [
        "[ 242.1] INFO: task kworker/0:1:12 blocked for more than 120 seconds.",
        "[ 10.0] WARNING: CPU: 1 PID: 4 at mm/page_alloc.c:4 __alloc_pages+0x1/0x2",
        "[ 10.0] Read-error on swap-device (7:0:8)",
        "[ 10.0] rcu: INFO: rcu_preempt self-detected stall on CPU",
        LIMIT,
    ],
)
def test_problems_are_found(line: str) -> None:
    assert kernel_log_problems(f"[ 1.0] fine\n{line}\n") == [line]


def test_what_the_emulator_or_the_test_did_is_none() -> None:
    assert kernel_log_problems(TRAP) == []
    assert kernel_log_problems(LIMIT, allow_memcg_oom=True) == []

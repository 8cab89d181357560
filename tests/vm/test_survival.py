"""What happens when something is full, fails or dies. `make test-vm` runs these."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.vm.conftest import RunVm

TIMEOUT_S = 1200
LONG_S = 3600
KILLS = int(os.environ.get("SWAPFS_TEST_KILLS", "100"))
PRESSURE_RUNS = int(os.environ.get("SWAPFS_TEST_PRESSURE_RUNS", "1"))
REFUSED = r"Write-error on swap-device|I/O error, dev loop\d+, sector \d+ op 0x1:\(WRITE\)"
"""What the kernel says when a swap device refuses a write for lack of room."""

pytestmark = [pytest.mark.vm, pytest.mark.vm_full, pytest.mark.timeout(LONG_S + 300)]


def _resends(kernel: str) -> bool:
    """Whether the kernel sends a dead server's requests again (Linux 6.9)."""
    major, minor = kernel.split(".")[:2]
    return (int(major), int(minor)) >= (6, 9)


def test_full_pool_refuses_and_keeps(run_vm: RunVm) -> None:
    run = run_vm("full", timeout_s=TIMEOUT_S)
    assert run.failed == ()
    assert run.problems(allow_memcg_oom=True, expected=REFUSED) == []


def test_nothing_is_refused_while_there_is_room(run_vm: RunVm) -> None:
    run = run_vm("room", timeout_s=TIMEOUT_S, disks_mib=[768])
    assert run.failed == ()
    assert run.problems() == []


def test_full_pool_on_a_machine_without_memory(run_vm: RunVm) -> None:
    run = run_vm("starved", timeout_s=TIMEOUT_S, memory_mib=448)
    assert run.failed == ()
    # The OOM killer may be called (SysRq), or the kernel gets to it by itself.
    killed = r"oom-kill:constraint=CONSTRAINT_NONE|Out of memory: Killed process \d+ \(python3\)"
    assert run.problems(expected=f"{REFUSED}|{killed}") == []


def test_failed_up_leaves_nothing(run_vm: RunVm) -> None:
    run = run_vm("failed_up", timeout_s=TIMEOUT_S)
    assert run.failed == ()
    assert run.problems() == []


def test_server_kills_lose_nothing(run_vm: RunVm, kernel: str) -> None:
    if not _resends(kernel):
        pytest.skip(f"kernel {kernel} does not resend requests (needs 6.9)")
    run = run_vm("kills", timeout_s=LONG_S, disks_mib=[768], params={"kills": KILLS})
    assert run.failed == ()
    assert run.problems() == []


def test_server_dies_while_its_log_is_in_swap(run_vm: RunVm, kernel: str) -> None:
    if not _resends(kernel):
        pytest.skip(f"kernel {kernel} does not resend requests (needs 6.9)")
    run = run_vm("log_swapped_out", timeout_s=TIMEOUT_S)
    assert run.failed == ()
    assert run.problems() == []


def test_whole_system_pressure(run_vm: RunVm) -> None:
    run = run_vm(
        "pressure",
        timeout_s=LONG_S,
        memory_mib=448,
        disks_mib=[1024],
        params={"runs": PRESSURE_RUNS},
    )
    assert run.failed == ()
    assert run.problems() == []


def test_upgrades_lose_nothing(run_vm: RunVm) -> None:
    run = run_vm("upgrade", timeout_s=TIMEOUT_S, disks_mib=[768])
    assert run.failed == ()
    assert run.problems() == []


def test_bad_disks(run_vm: RunVm) -> None:
    run = run_vm("disk", timeout_s=TIMEOUT_S, disks_mib=[768])
    assert run.failed == ()
    # The faults are reported by the disk, and by the swap device for the slots that had them.
    assert run.problems(expected=r"I/O error|Read-error on swap-device") == []


def test_a_disk_of_another_machine(run_vm: RunVm) -> None:
    run = run_vm("network_disk", timeout_s=TIMEOUT_S, packages=("nbdkit", "nbd-client"))
    assert run.failed == ()
    assert run.problems(expected=r"I/O error|Read-error on swap-device|nbd0") == []


def test_far_memory_over_a_network_under_whole_system_pressure(run_vm: RunVm) -> None:
    run = run_vm(
        "far_pressure",
        timeout_s=LONG_S,
        memory_mib=640,
        disks_mib=[1024],
        packages=("redis-server",),
    )
    assert run.failed == ()
    assert run.problems() == []

"""Others act on our swap too: systemd, an administrator, a second `down`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.vm.conftest import RunVm

TIMEOUT_S = 1200

pytestmark = [pytest.mark.vm, pytest.mark.vm_full, pytest.mark.timeout(TIMEOUT_S + 300)]


def test_two_that_take_swap_away_end_clean(run_vm: RunVm) -> None:
    run = run_vm("others", timeout_s=TIMEOUT_S)
    assert run.failed == ()
    assert run.problems() == []


def test_swapoff_without_room(run_vm: RunVm) -> None:
    run = run_vm("no_room", timeout_s=TIMEOUT_S, memory_mib=448, disks_mib=[1024])
    assert run.failed == ()
    killed = r"Out of memory: Killed process \d+ \((swapoff|python3)\)"
    oom = rf"oom-kill:constraint=CONSTRAINT_NONE|{killed}"
    assert run.problems(expected=oom) == []


def test_swap_that_was_turned_off_comes_back(run_vm: RunVm) -> None:
    run = run_vm("mended", timeout_s=TIMEOUT_S)
    assert run.failed == ()
    assert run.problems() == []


def test_an_abort_is_cleared_up(run_vm: RunVm) -> None:
    run = run_vm("aborted", timeout_s=TIMEOUT_S)
    assert run.failed == ()
    lost = r"I/O error, dev loop\d+|(Read|Write)-error on swap-device"
    # What comes back does not fit into the hog's group, whose limit stays: the kernel kills in it.
    killed = (
        r"oom-kill:constraint=CONSTRAINT_MEMCG.*oom_memcg=/hog,|Memory cgroup out of memory: Kill"
    )
    assert run.problems(expected=f"{lost}|{killed}") == []

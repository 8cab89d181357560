"""A kernel swaps on two files of one instance."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.vm.conftest import RunVm

TIMEOUT_S = 1800
QUIET_S = 300

pytestmark = [pytest.mark.vm, pytest.mark.vm_full, pytest.mark.timeout(TIMEOUT_S + 300)]


def test_two_files_are_swapped_on_at_once(run_vm: RunVm) -> None:
    run = run_vm("exports", timeout_s=TIMEOUT_S, quiet_s=QUIET_S, disks_mib=[512, 256])
    assert run.failed == ()
    assert run.problems() == []

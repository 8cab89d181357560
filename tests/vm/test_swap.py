"""A real kernel swaps on swapfs: what must hold for every user. `make test` runs this."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.vm.conftest import RunVm

TIMEOUT_S = 2700
QUIET_S = 300
"""The job says every 5 s how far it is: 900 s for all of it were too few on a busy machine."""

pytestmark = [pytest.mark.vm, pytest.mark.timeout(TIMEOUT_S + 300)]


def test_swap_under_a_limit(run_vm: RunVm) -> None:
    run = run_vm("swap", timeout_s=TIMEOUT_S, quiet_s=QUIET_S, disks_mib=[768])
    assert run.failed == ()
    assert run.problems() == []

"""A real kernel swaps on swapfs: what must hold for every user. `make test` runs this."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from swapfs.policy import BUILT_IN, DEFAULT

if TYPE_CHECKING:
    from tests.vm.conftest import RunVm

TIMEOUT_S = 2700
QUIET_S = 300
"""The job says every 5 s how far it is: 900 s for all of it were too few on a busy machine."""

pytestmark = [pytest.mark.vm, pytest.mark.timeout(TIMEOUT_S + 300)]


POLICIES = [
    pytest.param(name, marks=[] if name == DEFAULT else [pytest.mark.vm_full]) for name in BUILT_IN
]


@pytest.mark.parametrize("policy", POLICIES)
def test_swap_under_a_limit(run_vm: RunVm, policy: str) -> None:
    params = {"policy": policy}
    run = run_vm("swap", timeout_s=TIMEOUT_S, quiet_s=QUIET_S, disks_mib=[768], params=params)
    assert run.failed == ()
    assert run.problems() == []

"""The disk below a running swap is replaced, and the pool gets another size."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from deploy.vm.host.demo import DEMOS

if TYPE_CHECKING:
    from tests.vm.conftest import RunVm

TIMEOUT_S = 1200

pytestmark = [pytest.mark.vm, pytest.mark.vm_full, pytest.mark.timeout(TIMEOUT_S + 300)]


def test_tiers_and_pool_change_under_a_running_swap(run_vm: RunVm) -> None:
    run = run_vm("demo_tiers", timeout_s=TIMEOUT_S, disks_mib=list(DEMOS["demo_tiers"]))
    assert run.failed == ()
    assert run.problems() == []

"""The disk below a running swap is replaced, and the pool gets another size."""

from __future__ import annotations

import pytest

from deploy.vm.host.demo import run_demo

pytestmark = [pytest.mark.vm, pytest.mark.vm_full, pytest.mark.timeout(3900)]


def test_tiers_and_pool_change_under_a_running_swap(kernel: str) -> None:
    """What `make demo-tiers` shows; the table that it prints says which step failed."""
    assert run_demo(kernel, "demo_tiers") == 0

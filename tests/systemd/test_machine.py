"""The VM itself: what a job may do to it under systemd."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.systemd.conftest import RunSystemd

TIMEOUT_S = 900

pytestmark = [pytest.mark.vm, pytest.mark.vm_full, pytest.mark.timeout(TIMEOUT_S + 300)]


def test_a_job_goes_on_after_reboot_and_poweroff(run_systemd: RunSystemd) -> None:
    run = run_systemd("restarts", timeout_s=TIMEOUT_S)
    assert run.failed == ()
    assert run.problems() == []
    assert len([step for step in run.steps if step.endswith("the unit is up")]) == 4

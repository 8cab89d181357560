"""swapfs as a service of a systemd that is PID 1."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING

import pytest

from tests.systemd.packages import BUILD_TIMEOUT_S

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.systemd.conftest import RunSystemd

TIMEOUT_S = 900
EXPECTED = r"I/O error|Read-error on swap-device|lost async page write"
"""What the kernel says of a swap area whose server is dead."""

pytestmark = [
    *(pytest.mark.vm, pytest.mark.vm_full),
    pytest.mark.timeout(TIMEOUT_S + BUILD_TIMEOUT_S + 300),
]


def test_verbs_and_others_at_the_same_time(run_systemd: RunSystemd) -> None:
    run = run_systemd("verbs", timeout_s=TIMEOUT_S, disks_mib=(64,))
    assert run.failed == ()
    assert run.problems() == []


def test_deaths_refusals_and_sleep_are_mended_by_systemd_alone(run_systemd: RunSystemd) -> None:
    run = run_systemd("deaths", timeout_s=TIMEOUT_S)
    assert run.failed == ()
    assert run.problems(expected=EXPECTED) == []


def test_systemd_oomd_leaves_swapoff_alone(run_systemd: RunSystemd) -> None:
    run = run_systemd("oomd", timeout_s=TIMEOUT_S, packages=("systemd-oomd",))
    print(json.dumps(run.figures, indent=1))
    assert run.failed == ()
    assert run.problems() == []


def test_reboot_and_poweroff_with_swap_full(
    run_systemd: RunSystemd, record_property: Callable[[str, object], None]
) -> None:
    run = run_systemd("power", timeout_s=TIMEOUT_S, disks_mib=(512,))
    figures = run.figures
    for how in ("reboot", "poweroff"):
        asked_at_s = figures[f"{how}: asked at"]
        off_at_s = next((at_s for at_s in run.off_at_s if at_s > asked_at_s), math.inf)
        figures[f"{how}: to the end s"] = round(off_at_s - asked_at_s, 1)
    record_property("summary", json.dumps(figures))
    print(json.dumps(figures, indent=1))
    assert run.failed == ()
    assert run.problems() == []

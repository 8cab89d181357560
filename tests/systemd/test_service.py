"""swapfs as a service of a systemd that is PID 1."""

from __future__ import annotations

import json
import math
import os
from typing import TYPE_CHECKING

import pytest

from tests.systemd.packages import BUILD_TIMEOUT_S

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.systemd.conftest import RunSystemd

TIMEOUT_S = 900
ENDS = int(os.environ.get("SWAPFS_TEST_POWER", "2"))
"""How often the machine is rebooted and switched off with swap full, in turn."""
END_S = 300
AT_MOST = 2
"""Times what swapoff alone takes."""
EXPECTED = r"I/O error|Read-error on swap-device|lost async page write"
"""What the kernel says of a swap area whose server is dead."""

pytestmark = [
    *(pytest.mark.vm, pytest.mark.vm_full),
    pytest.mark.timeout(TIMEOUT_S + ENDS * END_S + BUILD_TIMEOUT_S),
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
    """Where more than two ends are asked for it is a measurement: each is within the bar."""
    limit_s = TIMEOUT_S + ENDS * END_S
    run = run_systemd("power", timeout_s=limit_s, disks_mib=(512,), params={"ends": ENDS})
    alone_s = run.figures["swapoff alone s"]
    summary = {"swapoff alone s": alone_s, "each s": run.figures["swapoff alone, each s"]}
    ratios = {}
    for key in [key for key in run.figures if key.endswith(": asked at")]:
        how, asked_at_s = key.removesuffix(": asked at"), run.figures[key]
        off_at_s = next((at_s for at_s in run.off_at_s if at_s > asked_at_s), math.inf)
        ratios[how] = (off_at_s - asked_at_s) / alone_s
        stop_s = run.figures.get(f"{how}: stop of the unit s")
        took = f"stop {stop_s} s, to the end {off_at_s - asked_at_s:.1f} s"
        summary[how] = f"{took}: {ratios[how]:.2f} x swapoff alone"
    record_property("summary", json.dumps(summary))
    print(json.dumps(summary, indent=1))
    assert run.failed == ()
    assert run.problems() == []
    assert len(ratios) == ENDS
    if ENDS > 2:
        assert {how: ratio for how, ratio in ratios.items() if ratio >= AT_MOST} == {}

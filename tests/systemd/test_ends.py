"""Reboot and poweroff with 300 MiB in swap, again and again, beside swapoff alone.

Every end begins from one snapshot of a machine whose swap is full, and swapoff alone is measured
from the same one, between the others: it is the same work in both.
"""

from __future__ import annotations

import json
import os
import re
import statistics
from typing import TYPE_CHECKING, Any

import pytest

from deploy.vm.host.ends import run_ends
from deploy.vm.host.job import make_job
from deploy.vm.host.mirror import host_release
from tests.systemd.packages import BUILD_TIMEOUT_S, DEPENDS, INSTALL, packages_for
from tests.systemd.test_service import TIMEOUT_S

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

ENDS = int(os.environ.get("SWAPFS_TEST_ENDS", "2"))
"""How often the machine is rebooted and switched off, in turn. From MANY on, each of them must be
within the bar; fewer are not a measurement."""
MANY = 10
AT_MOST = 2
"""Times what swapoff alone takes."""
ALONE_EVERY = 9
END_S = 600
LEAST_MIB = 270
USED = re.compile(r"swapon\[[0-9]+\]: ([0-9]+)$", re.MULTILINE)
WORSE = re.compile(r"FAILED|Failed|timed out|Killing|ordering cycle|error")

pytestmark = [
    *(pytest.mark.vm, pytest.mark.vm_full),
    pytest.mark.timeout(TIMEOUT_S + 2 * ENDS * END_S + BUILD_TIMEOUT_S),
]


def lines(ends: int) -> list[str]:
    """Return what is done: swapoff alone first, and again after every few ends."""
    ways = [("reboot", "poweroff")[number % 2] for number in range(ends)]
    for place in range(0, ends + ends // ALONE_EVERY + 1, ALONE_EVERY + 1):
        ways.insert(place, "swapoff")
    return ways


def test_each_end_takes_less_than_twice_what_swapoff_takes(
    kernel: str, release: str, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    options: dict[str, Any] = {"kernel": kernel, "release": release}
    module, before = "tests.systemd.jobs.ends", ""
    if release != host_release():
        options |= {"packages": DEPENDS, "installs": True}
        before = INSTALL
    job = make_job(tmp_path / "job", module, ["tests/systemd/jobs"], before=before)
    if before:
        (job / "first.deb").write_bytes(packages_for(release, tmp_path)["first.deb"].read_bytes())
    said, ends = run_ends(
        job,
        lines(ENDS),
        timeout_s=TIMEOUT_S,
        end_timeout_s=END_S,
        disks_mib=(512,),
        cmdline="systemd.show_status=yes",
        **options,
    )
    alone = [end for end in ends if end.typed == "swapoff"]
    bar_s = statistics.median(end.took_s for end in alone)
    others = [end for end in ends if end.typed != "swapoff"]
    ratios = [round(end.took_s / bar_s, 2) for end in others]
    summary = {
        "swapoff alone": [f"{e.took_s:.1f} s, QEMU {e.cpu_s:.1f} s" for e in alone],
        "ends": [
            f"{e.typed} {e.took_s:.1f} s: {ratio} x, QEMU {e.cpu_s:.1f} s"
            for e, ratio in zip(others, ratios, strict=True)
        ],
    }
    record_property("summary", json.dumps(summary))
    print(json.dumps(summary, indent=1))
    assert "FAIL  " not in said
    assert len(others) == ENDS
    for end in others:
        used = [int(found) >> 20 for found in USED.findall(end.said)]
        assert used, f"the unit was not stopped: {end.said[-1000:]}"
        assert used[-1] >= LEAST_MIB, end.said
        bad = [line for line in end.said.splitlines() if "swap" in line and WORSE.search(line)]
        assert bad == []
    if ENDS >= MANY:
        assert [ratio for ratio in ratios if ratio >= AT_MOST] == []

"""A hog that swaps and verifies without a pause, and what must hold once it has."""

from __future__ import annotations

from typing import Final

from deploy.vm.guest import lab
from deploy.vm.guest.churn import Churn as Churn

DISK: Final = "/dev/disk/by-id/virtio-data0"
UP: Final = ("--size", "384M", "--pool", "24M", "--file", f"{DISK}:512M")
LIMIT_MIB: Final = 48
DATA_MIB: Final = 128


def check_and_take_down(
    report: lab.Report, hog: lab.Hog, group: lab.Cgroup, zero: tuple[str, ...]
) -> None:
    """Verify all that *hog* has, before and after swapoff.

    :param zero: the counters whose names begin so must be 0
    """
    hog.verify(report, "verify all")
    found = lab.status()
    bad = {k: v for k, v in found["counters"].items() if k.startswith(zero) and v}
    report.check("no failures counted", not bad, f"{bad}")
    guards = lab.bad_guards(found)
    report.check("guards hold in the last server", not guards, "; ".join(guards) or "all")
    group.unlimited()
    report.check("down with everything in use", True, lab.down())
    hog.verify(report, "verify after swapoff")
    hog.quit()

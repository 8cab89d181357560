"""Swap that somebody turned off shows, and `up` turns it on again; nothing can resume from it."""

from __future__ import annotations

import sys
from typing import Final

from deploy.vm.guest import lab

UP: Final = ("--size", "192M", "--pool", "96M", "--overcommit", "3")
LIMIT_MIB: Final = 32
DATA_MIB: Final = 64
SEEN_BOUND_S: Final = 60


def turned_off(report: lab.Report, hog: lab.Hog, group: lab.Cgroup, how: str) -> None:
    """Turn swap off with *how*, see it shown, mend it and swap again."""
    group.unlimited()
    before = lab.status()
    for command in how.split(" && "):
        lab.must(*command.split())

    def shown() -> bool:
        return any("turned off" in reason for reason in lab.status()["degraded"])

    report.check(f"{how}: shown", lab.wait_for("degraded", shown, SEEN_BOUND_S), "")
    said = lab.up(*UP)
    after = lab.status()
    same = (after["pid"], after["server_pid"]) == (before["pid"], before["server_pid"])
    report.check(
        f"{how}: mended",
        same and after["swap"]["priority"] == before["swap"]["priority"] and not shown(),
        f"{said}; degraded: {after['degraded']}",
    )
    group.limit(LIMIT_MIB)
    swapped = group.bytes_of("swap.current") // lab.MIB
    report.check(f"{how}: it swaps again", swapped > LIMIT_MIB // 4, f"{swapped} MiB")
    hog.verify(report, f"{how}: verify")


def main() -> int:
    """Run the job and return its exit status."""
    report = lab.Report()
    with report:
        lab.up(*UP)
        seen = lab.must("blkid", "-p", "-o", "udev", lab.status()["loop"])
        report.check(
            "label and no UUID", "LABEL=swapfs:swapfs" in seen and "UUID" not in seen, seen
        )
        group = lab.Cgroup("hog", LIMIT_MIB)
        hog = lab.Hog(DATA_MIB, group)
        hog.do("fill")
        turned_off(report, hog, group, "swapoff -a")
        turned_off(report, hog, group, "losetup -D && swapoff -a")
        again = lab.run("swapfs", "up", *UP)
        report.check(
            "what is on is refused",
            again.returncode == 1 and "already" in again.stderr and bool(lab.status()["swap"]),
            again.stderr.strip(),
        )
        group.unlimited()
        lab.must("swapoff", "-a")
        other = lab.run("swapfs", "up", *UP, "--priority", "3")
        report.check(
            "other values are refused",
            other.returncode == 1 and "another priority" in other.stderr,
            other.stderr.strip(),
        )
        report.check("down of what is off", True, lab.down())
        hog.verify(report, "verify after all")
        hog.quit()
        report.check("nothing left", not lab.leftovers(), f"{lab.leftovers()}")
    return report.status


if __name__ == "__main__":
    sys.exit(main())

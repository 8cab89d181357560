"""Whole-system pressure: more data than the machine has memory, and no cgroup limit."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Final

from deploy.vm.guest import lab

DISK: Final = "/dev/disk/by-id/virtio-data0"
UP: Final = ("--size", "768M", "--pool", "64M", "--file", DISK)
DATA_MIB: Final = 480
RUNS: Final = 1


def vmstat(name: str) -> int:
    """Return the counter *name* of /proc/vmstat."""
    lines = Path("/proc/vmstat").read_text().splitlines()
    return int(dict(line.split() for line in lines)[name])


def memory_bytes() -> int:
    """Return how much memory the machine has."""
    return os.sysconf("SC_PHYS_PAGES") * lab.PAGE_BYTES


def one_run(report: lab.Report, number: int) -> None:
    """Fill beyond memory, rewrite, verify, take everything down."""
    before = {name: vmstat(name) for name in ("pswpout", "pswpin", "oom_kill")}
    lab.up(*UP)
    found = lab.status()
    report.check(f"{number}: guards hold", not lab.bad_guards(found), f"{lab.bad_guards(found)}")
    hog = lab.Hog(DATA_MIB, seed=number)
    filled = hog.do("fill")
    swapped_out = vmstat("pswpout") - before["pswpout"]
    report.check(
        f"{number}: fill beyond memory",
        swapped_out * lab.PAGE_BYTES > DATA_MIB * lab.MIB - memory_bytes(),
        f"{DATA_MIB} MiB in {filled['seconds']:.0f} s, {swapped_out} pages swapped out",
    )
    hog.do("rewrite 2")
    hog.verify(report, f"{number}: verify every page")
    after = lab.status()
    report.check(
        f"{number}: daemon survived",
        after["pid"] == found["pid"] and after["server_pid"] == found["server_pid"],
        f"monitor {after['pid']}, server {after['server_pid']}; degraded: {after['degraded']}",
    )
    report.check(
        f"{number}: no OOM kill",
        vmstat("oom_kill") == before["oom_kill"],
        f"{vmstat('pswpin') - before['pswpin']} swapped in",
    )
    report.check(f"{number}: guards still hold", not lab.bad_guards(after), "")
    hog.quit()
    report.check(f"{number}: down", True, lab.down())
    report.check(f"{number}: nothing left", not lab.leftovers(), f"{lab.leftovers()}")


def main() -> int:
    """Run the job and return its exit status."""
    report = lab.Report()
    runs = int(lab.param("runs", RUNS))
    with report:
        # Read ahead 128 KiB: an emulated request costs milliseconds, whatever its size.
        Path("/proc/sys/vm/page-cluster").write_text("5")
        for number in range(1, runs + 1):
            one_run(report, number)
        report.figures["summary"] = f"{runs} of {runs} runs, {vmstat('pswpout')} pages swapped out"
    return report.status


if __name__ == "__main__":
    sys.exit(main())

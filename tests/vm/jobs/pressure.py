"""Whole-system pressure: more data than the machine has memory, and no cgroup limit."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

from guest import lab

DISK: Final = "/dev/disk/by-id/virtio-data0"
UP: Final = ("--size", "1G", "--pool", "96M", "--file", DISK)
DATA_MIB: Final = 704


def vmstat(name: str) -> int:
    """Return the counter *name* of /proc/vmstat."""
    lines = Path("/proc/vmstat").read_text().splitlines()
    return int(dict(line.split() for line in lines)[name])


def main() -> int:
    """Run the job and return its exit status."""
    report = lab.Report()
    with report:
        lab.up(*UP)
        found = lab.status()
        report.check("guards hold", not lab.bad_guards(found), f"{lab.bad_guards(found)}")
        hog = lab.Hog(DATA_MIB)
        filled = hog.do("fill")
        report.check(
            "fill beyond memory",
            vmstat("pswpout") * lab.PAGE_BYTES > (DATA_MIB - 512) * lab.MIB,
            f"{DATA_MIB} MiB in {filled['seconds']:.0f} s, {vmstat('pswpout')} pages swapped out",
        )
        hog.do("rewrite 2")
        hog.verify(report, "verify every page")
        after = lab.status()
        report.check(
            "daemon survived",
            after["pid"] == found["pid"] and after["server_pid"] == found["server_pid"],
            f"monitor {after['pid']}, server {after['server_pid']}, "
            f"{vmstat('oom_kill')} OOM kills; degraded: {after['degraded']}",
        )
        report.check("no OOM kill", vmstat("oom_kill") == 0, f"{vmstat('pswpin')} swapped in")
        report.check("guards still hold", not lab.bad_guards(after), f"{lab.bad_guards(after)}")
        hog.quit()
        report.check("down", True, lab.down())
        report.check("nothing left", not lab.leftovers(), f"{lab.leftovers()}")
    return report.status


if __name__ == "__main__":
    sys.exit(main())

"""Pages that nothing compresses, rewritten again and again, as many as there is room for."""

from __future__ import annotations

import sys
from typing import Final

from deploy.vm.guest import lab

UP: Final = ("--size", "256M", "--pool", "64M", "--file", "/dev/disk/by-id/virtio-data0:256M")
"""Less than 1.4 times the pages on paper; no overcommit, so all of it is guaranteed (I6)."""
DATA_MIB: Final = 232
LIMIT_MIB: Final = 48
REWRITES_PERCENT: Final = (100, 60, 60)
CHURN_S: Final = 20
MANY: Final = 2 * DATA_MIB * lab.MIB // lab.PAGE_BYTES


def main() -> int:
    """Run the job and return its exit status."""
    report = lab.Report()
    with report:
        lab.up(*UP)
        group = lab.Cgroup("raw", LIMIT_MIB)
        hog = lab.Hog(DATA_MIB, group, 1, "--raw")
        hog.do("fill")
        for percent in REWRITES_PERCENT:
            hog.do(f"rewrite {percent}")
        churned = hog.do(f"churn {CHURN_S}")
        report.check("pages while they change", *lab.judge(churned))
        hog.verify(report, "every page")
        counters = lab.status()["counters"]
        figures = {
            name: counters[name]
            for name in ("write_raw_pages", "pool_full", "write_direct_pages", "cleaned_pages")
        }
        report.check(
            "they do not compress, and were written often",
            counters["write_raw_pages"] + counters["write_direct_pages"] > MANY,
            f"{figures}",
        )
        refused = counters["failed_write_no_room"]
        report.check("nothing was refused", refused == 0, f"{refused} refused, {figures}")
        failed = {k: v for k, v in counters.items() if k.startswith(("failed_", "handler")) and v}
        report.check("nothing failed", not failed, f"{failed}")
        report.check("nobody was killed", group.oom_kills() == 0, f"{group.oom_kills()} kills")
        report.figures["summary"] = f"{refused} refused, {figures}"
        hog.quit()
        report.check("down", True, lab.down())
        report.check("nothing left", not lab.leftovers(), f"{lab.leftovers()}")
    return report.status


if __name__ == "__main__":
    sys.exit(main())

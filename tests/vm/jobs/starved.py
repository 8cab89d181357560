"""Memory only, full, and the whole machine wants more: somebody is killed, and nothing hangs."""

from __future__ import annotations

import sys
from typing import Final

from deploy.vm.guest import lab
from tests.vm.jobs.pressure import vmstat

UP: Final = ("--size", "512M", "--pool", "64M", "--overcommit", "20")
KEPT_MIB: Final = 24
TOO_MUCH_MIB: Final = 480
FITS_MIB: Final = 96


def too_much(report: lab.Report) -> None:
    """Take more than memory and pool hold together; the one who does so is to die of it."""
    hog = lab.Hog(TOO_MUCH_MIB, seed=2)
    try:
        answer = hog.do("fill")
        how = f"it filled {answer['pages']} pages"
    except lab.LabError as error:
        how = str(error)
    found = lab.status()["counters"]
    report.check(
        "the kernel kills who takes too much",
        hog.process.poll() is not None and vmstat("oom_kill") > 0,
        f"{how}; {vmstat('oom_kill')} OOM kills, {found['oom_calls']} of them called for; "
        f"{found['failed_write_no_room']} writes refused",
    )
    report.figures["summary"] = f"{vmstat('oom_kill')} OOM kills, {found['oom_calls']} called for"
    hog.quit()


def main() -> int:
    """Run the job and return its exit status."""
    report = lab.Report()
    with report:
        lab.up(*UP)
        before = lab.status()
        kept = lab.Hog(KEPT_MIB, seed=1)
        kept.do("fill")
        too_much(report)
        kept.verify(report, "what was stored before")
        fits = lab.Hog(FITS_MIB, seed=3)
        fits.do("fill")
        fits.do("pageout")
        fits.verify(report, "room again")
        fits.quit()
        after = lab.status()
        report.check(
            "daemon survived",
            after["pid"] == before["pid"] and after["server_pid"] == before["server_pid"],
            f"monitor {after['pid']}, server {after['server_pid']}; degraded: {after['degraded']}",
        )
        kept.quit()
        report.check("down", True, lab.down())
        report.check("nothing left", not lab.leftovers(), f"{lab.leftovers()}")
    return report.status


if __name__ == "__main__":
    sys.exit(main())

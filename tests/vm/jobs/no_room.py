"""Swapoff without room: refused with a line, and if it is forced nobody tries again by himself."""

from __future__ import annotations

import os
import re
import signal
import sys
from pathlib import Path
from typing import Final

from deploy.vm.guest import lab
from tests.vm.jobs.pressure import vmstat

UP: Final = ("--size", "768M", "--pool", "64M", "--file", "/dev/disk/by-id/virtio-data0")
DATA_MIB: Final = 360
GROUP_MIB: Final = 48
LIMIT_MIB: Final = 16
LOG: Final = lab.RUNTIME_DIR / "swapfs.log"
REFUSED_BOUND_S: Final = 120
KILLED: Final = re.compile(r"Killed process \d+ \((\w+)\)")


def refused(report: lab.Report, what: str, reason: str, *arguments: str) -> None:
    """Run `down`, which must fail in one line with *reason*; swap stays on."""
    done = lab.run("swapfs", "down", *arguments)
    said = done.stderr.strip()
    on = len(Path("/proc/swaps").read_text().splitlines()) == 2
    ok = done.returncode == 1 and reason in said and "\n" not in said and on
    report.check(what, ok, f"exit {done.returncode}, swap on {on}, said {said!r}")


def group_at_its_limit(report: lab.Report) -> None:
    """See that a group is looked at by itself."""
    group = lab.Cgroup("small", LIMIT_MIB)
    hog = lab.Hog(GROUP_MIB, group, seed=7)
    hog.do("fill")
    refused(report, "a group at its limit", "cgroup /small:")
    report.check("nobody is killed in it", group.oom_kills() == 0, f"{group.oom_kills()} kills")
    hog.quit()


def whole_machine(report: lab.Report) -> None:
    """See that more than memory holds is refused, or killed once."""
    hog = lab.Hog(DATA_MIB)
    hog.do("fill")
    kills = vmstat("oom_kill")
    refused(report, "no room", "is missing")
    os.kill(lab.status()["pid"], signal.SIGTERM)
    said = lab.wait_for("SIGTERM to fail", lambda: "no room" in LOG.read_text(), REFUSED_BOUND_S)
    report.check("no room for SIGTERM either", said, f"{vmstat('oom_kill') - kills} OOM kills")
    report.check("nobody was killed", vmstat("oom_kill") == kills, "")

    refused(report, "forced", "OOM killer", "--force")
    after = vmstat("oom_kill")
    killed = KILLED.findall(lab.must("dmesg"))
    report.check("swapoff was killed first", killed[:1] == ["swapoff"], f"killed: {killed}")
    if hog.process.poll() is not None:
        # swapoff looks for a signal between two processes only (try_to_unuse): it has gone on with
        # the pages of this one, and the kernel took the next victim for those.
        report.check("and what it was reading next", killed[1:] == ["python3"], f"{killed}")
        return
    report.check("nobody else was", after == kills + 1, f"{after - kills} OOM kills")
    refused(report, "not again", "--force")
    report.check("nor killed again", vmstat("oom_kill") == after, "")
    hog.verify(report, "verify")
    hog.quit()


def main() -> int:
    """Run the job and return its exit status."""
    report = lab.Report()
    with report:
        lab.up(*UP)
        group_at_its_limit(report)
        whole_machine(report)
        report.check("down with room", True, lab.down())
        report.check("nothing left", not lab.leftovers(), f"{lab.leftovers()}")
    return report.status


if __name__ == "__main__":
    sys.exit(main())

"""Swap under a cgroup limit, demotion, swapoff in use, a second instance, discard."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path
from typing import Final

from deploy.vm.guest import lab

DISK: Final = "/dev/disk/by-id/virtio-data0"
POLICY: Final = lab.param("policy", "second-chance")
UP: Final = (
    *("--size", "384M", "--pool", "24M", "--file", f"{DISK}:512M", "--priority", "7"),
    *("--policy", POLICY),
)
LIMIT_MIB: Final = 48
DATA_MIB: Final = 160
SECOND_MIB: Final = 96
GUARDS: Final = {
    "io_flusher", "mlock", "realtime", "oom_score", "heap", "gc", "direct_io", "discard",
}  # fmt: skip
DISCARD_BOUND_S: Final = 60
LEFT_PERCENT_MAX: Final = 10


def bring_up(report: lab.Report) -> str:
    """Bring it up; check what is visible of it and every guard. Returns the loop device."""
    lab.up(*UP)
    found = lab.status()
    guards = {guard["name"] for guard in found["guards"]}
    bad = lab.bad_guards(found) + [f"{name} is not there" for name in GUARDS - guards]
    report.check("guards hold", not bad, "; ".join(bad) or " ".join(sorted(guards)))
    report.check("not degraded", not found["degraded"], f"degraded: {found['degraded']}")
    swap = found["swap"] or {}
    report.check("swap is on", swap.get("priority") == 7, f"swap: {swap}")
    mode = (Path(found["mountpoint"]) / "swap").stat()
    report.check(
        "file is root's alone",
        stat.S_IMODE(mode.st_mode) == 0o600 and mode.st_uid == 0,
        f"mode {stat.S_IMODE(mode.st_mode):o}, owner {mode.st_uid}",
    )
    loop: str = found["loop"]
    return loop


def swap_under_limit(report: lab.Report, loop: str, group: lab.Cgroup) -> lab.Hog:
    """Fill, change and verify; counters and sectors prove where the pages were."""
    before = lab.traffic(loop), lab.traffic(DISK)
    hog = lab.Hog(DATA_MIB, group)
    hog.do("fill")
    hog.do("rewrite 5")
    hog.verify(report, "verify every page")
    swap, disk = lab.traffic(loop) - before[0], lab.traffic(DISK) - before[1]
    counters = lab.status()["counters"]
    least = (DATA_MIB - LIMIT_MIB) // 2 * lab.MIB
    report.check("swap device I/O", min(swap.read, swap.written) > least, str(swap))
    report.check(
        "demotion",
        counters["demoted_pages"] > 0 and disk.written >= counters["demoted_payload_bytes"] > 0,
        f"{counters['demoted_pages']} pages, {counters['demoted_payload_bytes']} bytes of payload; "
        f"disk {disk}",
    )
    report.check(
        "reads from the file",
        counters["read_file_pages"] > 0 and disk.read > 0,
        f"{counters['read_file_pages']} pages in {counters['file_read_ops']} reads",
    )
    wrong = ("failed_", "handler_", "policy_failures")
    failures = {name: count for name, count in counters.items() if name.startswith(wrong) and count}
    report.check("no failures counted", not failures, f"{failures}")
    return hog


def down_in_use(report: lab.Report, group: lab.Cgroup, hog: lab.Hog) -> None:
    """Take it down while nearly everything is swapped out; the hog must not notice."""
    swapped = group.bytes_of("swap.current") // lab.MIB
    group.unlimited()
    printed = lab.down()
    report.check(
        "down with everything in use",
        swapped > (DATA_MIB - LIMIT_MIB) // 2 and group.bytes_of("swap.current") == 0,
        f"{swapped} MiB were swapped out; {printed}",
    )
    hog.verify(report, "verify after swapoff")
    hog.quit()
    report.check("nothing left", not lab.leftovers(), f"{lab.leftovers()}")
    again = lab.down()
    report.check("down again is harmless", "nothing" in again, again)


def second_instance(report: lab.Report, group: lab.Cgroup) -> None:
    """Do it again in the same boot; then the slots return when the hog ends."""
    lab.up(*UP)
    group.limit(LIMIT_MIB)
    hog = lab.Hog(SECOND_MIB, group, seed=2)
    hog.do("fill")
    hog.verify(report, "verify on the second instance")
    before = lab.occupied(lab.status())
    hog.quit()
    limit = before * LEFT_PERCENT_MAX // 100

    def returned() -> bool:
        found = lab.snapshot()
        return found is not None and lab.occupied(found) <= limit

    returns = lab.wait_for("slots to return", returned, DISCARD_BOUND_S)
    found = lab.status()
    counters = found["counters"]
    report.check(
        "discard returns slots",
        returns and before > (SECOND_MIB - LIMIT_MIB) // 2 * lab.MIB // lab.PAGE_BYTES,
        f"{before} slots occupied, {lab.occupied(found)} after the end; "
        f"{counters['discard_requests']} discards of {counters['discarded_pages']} pages",
    )
    report.check("second down", True, lab.down())
    report.check("nothing left again", not lab.leftovers(), f"{lab.leftovers()}")


def main() -> int:
    """Run the job and return its exit status."""
    report = lab.Report()
    with report:
        group = lab.Cgroup("hog", LIMIT_MIB)
        loop = bring_up(report)
        hog = swap_under_limit(report, loop, group)
        down_in_use(report, group, hog)
        second_instance(report, group)
        report.check("cgroup kept its processes", group.oom_kills() == 0, f"pid {os.getpid()}")
    return report.status


if __name__ == "__main__":
    sys.exit(main())

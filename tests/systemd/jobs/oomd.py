"""systemd-oomd beside us: what it sees and does while swapoff runs."""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from typing import Final

from deploy.vm.guest import lab
from tests.systemd.jobs import unit
from tests.systemd.jobs.unit import SERVICE, areas, systemctl

SIZE: Final = "256M"
SWAPPED_MIB: Final = 190
"""Three quarters of swap: below the 90 % at which systemd-oomd acts."""
LIMIT_MIB: Final = 32
SPARE_MIB: Final = 40
"""What is to be left after a swapoff that makes memory short: less than oomd's 10 %."""
SLICE: Final = "swapped.slice"
OOMD: Final = "systemd-oomd.service"
LOOK_EVERY_S: Final = 0.2


class Meminfo(threading.Thread):
    """Notes what /proc/meminfo says, until stopped: what systemd-oomd decides by.

    ``seen``: SwapTotal and SwapFree in KiB, and MemAvailable in percent of MemTotal.
    """

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.seen: list[tuple[int, int, int]] = []
        self._stop_asked = threading.Event()

    def run(self) -> None:
        """Look until `stop`."""
        while not self._stop_asked.wait(LOOK_EVERY_S):
            found = meminfo_kib()
            percent = found["MemAvailable:"] * 100 // found["MemTotal:"]
            self.seen.append((found["SwapTotal:"], found["SwapFree:"], percent))

    def stop(self) -> None:
        """End it."""
        self._stop_asked.set()
        self.join()


def meminfo_kib() -> dict[str, int]:
    """Return the lines of /proc/meminfo."""
    lines = (line.split() for line in Path("/proc/meminfo").read_text().splitlines())
    return {words[0]: int(words[1]) for words in lines}


def available_mib() -> int:
    """Return MemAvailable."""
    return meminfo_kib()["MemAvailable:"] >> 10


def put_under_oomd(report: lab.Report) -> Path:
    """Have systemd-oomd watch a slice; return its cgroup."""
    folder = Path(f"/etc/systemd/system/{SLICE}.d")
    folder.mkdir(parents=True)
    (folder / "oomd.conf").write_text("[Slice]\nManagedOOMSwap=kill\n")
    lab.must("systemctl", "daemon-reload")
    done, said = systemctl("start", OOMD, SLICE)
    watches = lab.wait_for(
        "systemd-oomd to watch it", lambda: SLICE in lab.run("oomctl").stdout, unit.BOUND_S
    )
    report.check("systemd-oomd watches the slice", done and watches, said)
    return Path("/sys/fs/cgroup") / SLICE


def swapped_hog(top: Path) -> tuple[lab.Hog, lab.Cgroup]:
    """Return a hog in a cgroup of the slice, all but LIMIT_MIB of it in swap."""
    (top / "cgroup.subtree_control").write_text("+memory")
    group = lab.Cgroup(f"{SLICE}/hog", LIMIT_MIB)
    hog = lab.Hog(SWAPPED_MIB + LIMIT_MIB, group)
    hog.do("fill")
    return hog, group


def swapoff(report: lab.Report, what: str, hog: lab.Hog, group: lab.Cgroup) -> bool:
    """Stop the unit and note what systemd-oomd saw and did; return whether the hog lives."""
    group.unlimited()
    meminfo = Meminfo()
    meminfo.start()
    done, said = systemctl("stop", SERVICE)
    meminfo.stop()
    used = [(total - free) * 100 // total for total, free, _ in meminfo.seen if total]
    least = min(available for _, _, available in meminfo.seen)
    lives = hog.process.poll() is None
    report.figures[what] = {
        "swap used, percent": sorted(set(used)),
        "least memory available, percent": least,
        "the largest user of swap lives": lives,
        "systemd-oomd": unit.journal(OOMD)[-1500:],
    }
    report.check(f"{what}: stopped", done and not areas(), f"{areas()} {said}")
    report.check(f"{what}: seen", bool(used), f"{report.figures[what]}")
    if lives:
        hog.verify(report, f"{what}: every page is there")
        hog.quit()
    group.path.rmdir()
    return lives


def main() -> int:
    """Run the job and return its exit status."""
    report = lab.Report()
    with report:
        unit.write_config(size=SIZE, pool="280M")
        unit.install()
        enabled, said = systemctl("enable", "--now", SERVICE)
        report.check("enable --now", enabled and len(areas()) == 1, said)
        top = put_under_oomd(report)
        lives = swapoff(report, "with memory to spare", *swapped_hog(top))
        report.check("nobody is killed where memory is not short", lives, f"{lives}")
        report.check("swap is on again", systemctl("start", SERVICE)[0], f"{areas()}")
        hog, group = swapped_hog(top)
        ballast = lab.Hog(max(0, available_mib() - SWAPPED_MIB - SPARE_MIB))
        ballast.do("fill")
        swapoff(report, "with memory that gets short", hog, group)
        ballast.quit()
        left = lab.leftovers()
        report.check("nothing is left", not left, f"{left}")
    return report.status


if __name__ == "__main__":
    sys.exit(main())

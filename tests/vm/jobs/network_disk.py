"""A file tier on another machine's disk, by NBD: its server hangs, dies and comes back (I4).

Nothing but pages that are there may suffer from it: EIO while it is dead, nothing when it is late.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Final

from deploy.vm.guest import lab
from tests.vm.jobs.disk import counter, sweep, tier_state

SOCKET: Final = Path("/run/nbd.sock")
BACKING: Final = Path("/var/tmp/nbd.img")
DEVICE: Final = "/dev/nbd0"
DISK_MIB: Final = 256
LIMIT_MIB: Final = 24
DATA_MIB: Final = 48
BOUND_S: Final = 150
HANGS_S: Final = 12


class Server:
    """nbdkit with a file, kept out of swap; the device on it connects again by itself."""

    def __init__(self) -> None:
        with BACKING.open("wb") as file:
            file.truncate(DISK_MIB * lab.MIB)
        self._group = lab.Cgroup("nbd", 128)
        (self._group.path / "memory.swap.max").write_text("0")
        self.start()
        lab.must("modprobe", "nbd")
        lab.must(
            *("nbd-client", "-unix", str(SOCKET), DEVICE, "-block-size", "4096"),
            *("-persist", "-nonetlink"),
        )
        lab.wait_for("the device", lambda: _sectors() > 0, BOUND_S)

    def start(self) -> None:
        """Have it serve."""
        SOCKET.unlink(missing_ok=True)
        command = ["nbdkit", "--foreground", "--unix", str(SOCKET), "file", str(BACKING)]
        self._process = subprocess.Popen(["sh", "-c", f"echo 0 >$0 && exec {' '.join(command)}",
                                          str(self._group.path / "cgroup.procs")])  # fmt: skip
        lab.wait_for("the NBD server", SOCKET.exists, BOUND_S)

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        lab.say(f"the NBD server gets {number.name}")
        self._process.send_signal(number)

    def kill(self) -> None:
        """End it at once."""
        self.signal(signal.SIGKILL)
        self._process.wait()


def _sectors() -> int:
    return int(Path("/sys/block/nbd0/size").read_text())


def check_hang(report: lab.Report, server: Server, hog: lab.Hog) -> None:
    """It answers nothing for a while, with the kernel swapping: nobody notices but by waiting."""
    hog.send("churn 4")
    server.signal(signal.SIGSTOP)
    lab.wait_for("time to pass", lambda: False, HANGS_S)
    server.signal(signal.SIGCONT)
    report.check("a hang costs nothing", *lab.judge(hog.answer()))
    hog.verify(report, "verify after the hang")


def check_death(report: lab.Report, server: Server, hog: lab.Hog) -> None:
    """It dies: exactly its pages are EIO, nothing more goes there, and all is back when it is."""
    lab.must("swapfs", "demote", "--pages", "4000")
    found = lab.status()
    slots, there = range(found["size_bytes"] // lab.PAGE_BYTES), found["slots"]["file"]
    server.kill()
    _, bad = sweep(found["loop"], slots)
    report.check("exactly its pages are EIO", bad == there > 0, f"{bad} EIO, {there} there")
    lab.run("swapfs", "demote", "--pages", "500")
    stays = lab.status()["slots"]["file"]
    report.check("nothing more goes there", stays == there, f"{stays} there; {tier_state()}")
    server.start()

    def is_back() -> bool:
        return _sectors() > 0 and sweep(found["loop"], slots)[1] == 0

    report.check("they are back with it", lab.wait_for("its pages", is_back, BOUND_S), "")
    moved = counter("demoted_pages")

    def goes_on() -> bool:
        lab.run("swapfs", "demote", "--pages", "500")
        return counter("demoted_pages") > moved and tier_state() == "ok"

    on = lab.wait_for("demotion to go on", goes_on, BOUND_S)
    report.check("demotion goes on", on, tier_state())
    hog.verify(report, "verify every page")


def main() -> int:
    """Run the job and return its exit status."""
    report = lab.Report()
    with report:
        lab.must("dmesg", "-n", "1")  # thousands of I/O errors, and the console is slow
        server = Server()
        lab.up("--size", "64M", "--pool", "48M", "--file", f"{DEVICE}:{DISK_MIB - 16}M")
        group = lab.Cgroup("hog", LIMIT_MIB)
        hog = lab.Hog(DATA_MIB, group)
        hog.do("fill")
        lab.must("swapfs", "demote", "--pages", "4000")
        hog.verify(report, "verify on NBD")
        there = lab.status()["slots"]["file"]
        report.check("pages are there", there > 500, f"{there} slots")
        check_hang(report, server, hog)
        check_death(report, server, hog)
        lost = {name: counter(name) for name in ("lost_pages", "failed_read_checksum")}
        report.check("nothing is lost", not any(lost.values()), f"{lost}")
        group.unlimited()
        report.check("down", True, lab.down())
        hog.verify(report, "verify after swapoff")
        hog.quit()
        lab.run("nbd-client", "-d", DEVICE)
        server.kill()
        report.check("nothing left", not lab.leftovers(), f"{lab.leftovers()}")
    return report.status


if __name__ == "__main__":
    sys.exit(main())

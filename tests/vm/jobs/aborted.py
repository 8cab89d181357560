"""The kernel ends the connection while it swaps there: said loudly, and `down` clears it up."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

from deploy.vm.guest import lab

UP: Final = ("--size", "192M", "--pool", "96M", "--overcommit", "3")
LIMIT_MIB: Final = 32
DATA_MIB: Final = 96
SEEN_BOUND_S: Final = 60
CONNECTIONS: Final = Path("/sys/fs/fuse/connections")


def abort() -> None:
    """End every FUSE connection, as an administrator can."""
    if not any(CONNECTIONS.iterdir()):
        lab.must("mount", "-t", "fusectl", "fusectl", str(CONNECTIONS))
    for connection in CONNECTIONS.iterdir():
        (connection / "abort").write_text("1\n")


def main() -> int:
    """Run the job and return its exit status."""
    report = lab.Report()
    with report:
        lab.must("dmesg", "-n", "1")
        lab.up(*UP)
        group = lab.Cgroup("hog", LIMIT_MIB)
        hog = lab.Hog(DATA_MIB, group)
        hog.do("fill")
        swapped_mib = group.bytes_of("swap.current") // lab.MIB
        abort()

        def ended() -> bool:
            return bool(lab.status()["state"] == "dead")

        report.check("the monitor ends", lab.wait_for("its end", ended, SEEN_BOUND_S), "")
        shown = lab.must("swapfs", "status")
        report.check(
            "status says what happened",
            "the kernel has ended the connection" in shown and "ghost" in shown,
            shown,
        )
        again = lab.run("swapfs", "up", *UP)
        report.check(
            "up beside it is refused",
            again.returncode == 1 and "swapfs down" in again.stderr,
            again.stderr.strip(),
        )
        report.check("down with pages that are lost", swapped_mib > LIMIT_MIB, lab.down())
        report.check("nothing left", not lab.leftovers(), f"{lab.leftovers()}")
        hog.process.kill()
        hog.process.wait()
        group.unlimited()
        lab.up(*UP)
        report.check("up again, and down", bool(lab.status()["swap"]), lab.down())
        report.check("nothing left again", not lab.leftovers(), f"{lab.leftovers()}")
    return report.status


if __name__ == "__main__":
    sys.exit(main())

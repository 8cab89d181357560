"""Two swap files of one instance in use by one kernel, each on the tier that it may use."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Final

from deploy.vm.guest import lab
from tests.vm.jobs.kills import kill_server

FIRST_DISK: Final = "/dev/disk/by-id/virtio-data0"
SECOND_DISK: Final = "/dev/disk/by-id/virtio-data1"
CONFIG: Final = Path("/run/exports.toml")
TABLES: Final = f"""
[[tier]]
name = "second"
path = "{SECOND_DISK}"
size = "128M"

[[export]]
name = "swap"
tiers = ["file"]

[[export]]
name = "fast"
size = "64M"
priority = 9
quota = "96M"
tiers = ["second"]
"""
UP: Final = (
    *("--config", str(CONFIG), "--size", "192M", "--pool", "24M", "--priority", "5"),
    *("--file", f"{FIRST_DISK}:256M"),
)
LIMIT_MIB: Final = 48
DATA_MIB: Final = 160
KILLS: Final = 3
SEEN_BOUND_S: Final = 60


def exports() -> dict[str, dict[str, Any]]:
    """Return what the status has of each file."""
    return {export["name"]: export for export in lab.status()["exports"]}


def priorities() -> dict[str, int]:
    """Return the priority of each swap area that the kernel has, by its device."""
    lines = Path("/proc/swaps").read_text().splitlines()[1:]
    return {line.split()[0]: int(line.split()[4]) for line in lines}


def swap_on_both(report: lab.Report, hog: lab.Hog) -> None:
    """Fill and verify; the figures of each file and tier say where the pages were."""
    hog.do("fill")
    hog.do("rewrite 5")
    hog.verify(report, "verify every page")
    found = lab.status()
    slots = {export["name"]: export["slots"] for export in found["exports"]}
    report.check(
        "both files hold pages",
        min(slots.values()) > 1000 and sum(slots.values()) == lab.occupied(found),
        f"{slots}, {lab.occupied(found)} slots occupied",
    )
    below = {tier["name"]: tier["slots"] for tier in found["tiers"]}
    report.check("each on its own tier", min(below.values()) > 0, f"{below}")
    fast = exports()["fast"]
    report.check(
        "within the quota",
        0 < fast["physical_bytes"] <= fast["quota_bytes"],
        f"{fast['physical_bytes']} of {fast['quota_bytes']} bytes",
    )


def kill_under_load(report: lab.Report, hog: lab.Hog) -> None:
    """Kill servers while every page is read and some are written."""
    dead: set[int] = set()
    for _ in range(KILLS):
        hog.send("rewrite 10")
        kill_server(dead, 1.5)
        hog.answer()
    hog.verify(report, f"verify after {KILLS} kills of the server")


def turn_one_off(report: lab.Report, hog: lab.Hog) -> None:
    """Turn off the area of one file by hand: it is shown, and `up` turns it on again."""
    loop = exports()["fast"]["loop"]
    lab.must("swapoff", loop)

    def shown() -> bool:
        return any("turned off" in reason for reason in lab.status()["degraded"])

    report.check("one turned off is shown", lab.wait_for("degraded", shown, SEEN_BOUND_S), "")
    report.check("the other goes on", list(priorities().values()) == [5], f"{priorities()}")
    hog.verify(report, "verify on one")
    said = lab.up(*UP)
    report.check("up turns it on again", priorities().get(loop) == 9 and not shown(), said)


def main() -> int:
    """Run the job and return its exit status."""
    report = lab.Report()
    with report:
        CONFIG.write_text(TABLES)
        lab.up(*UP)
        loops = {name: export["loop"] for name, export in exports().items()}
        wanted = {loops["swap"]: 5, loops["fast"]: 9}
        report.check("both areas are on", priorities() == wanted, f"{priorities()}")
        group = lab.Cgroup("hog", LIMIT_MIB)
        hog = lab.Hog(DATA_MIB, group)
        swap_on_both(report, hog)
        kill_under_load(report, hog)
        turn_one_off(report, hog)
        hog.do("rewrite 20")
        hog.verify(report, "verify on both again")
        group.unlimited()
        report.check("down with both in use", True, lab.down())
        hog.verify(report, "verify after swapoff")
        report.check("nothing left", not lab.leftovers(), f"{lab.leftovers()}")
        report.check("cgroup kept its processes", group.oom_kills() == 0, "")
    return report.status


if __name__ == "__main__":
    sys.exit(main())

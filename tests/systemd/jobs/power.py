"""Reboot and poweroff with swap full: in order, and in about the time that swapoff takes."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

from deploy.vm.guest import lab
from tests.systemd.jobs import unit
from tests.systemd.jobs.unit import SERVICE, areas, state, systemctl

SWAPPED_MIB: Final = 300
LIMIT_MIB: Final = 32
LEAST_MIB: Final = SWAPPED_MIB * 9 // 10
ENDS: Final = {1: "reboot", 2: "poweroff"}
_USED: Final = re.compile(r" swapon\[[0-9]+\]: ([0-9]+)$", re.MULTILINE)
WORSE: Final = ("Failed to start", "failed with result", "timed out", "Killing", "ordering cycle")


def used_mib() -> int:
    """Return how much of swap is used."""
    fields = lab.must("swapon", "--show=USED", "--bytes", "--noheadings").split()
    return sum(map(int, fields)) // lab.MIB


def fill(report: lab.Report, what: str, *more: str) -> tuple[lab.Hog, lab.Cgroup]:
    """Have SWAPPED_MIB in swap, of a process that nobody ends before the last moment.

    :param more: options of the hog
    """
    hog, group = unit.fill(SWAPPED_MIB + LIMIT_MIB, LIMIT_MIB, "hog", *more)
    group.unlimited()
    used = used_mib()
    report.check(f"{what}: swap is full", used >= LEAST_MIB, f"{used} MiB in swap")
    return hog, group


def swapoff_alone(report: lab.Report) -> None:
    """Measure what the kernel needs by itself."""
    hog, group = fill(report, "swapoff alone")
    began_s = time.monotonic()
    subprocess.run(("swapoff", *areas()), check=True)
    report.figures["swapoff alone s"] = round(time.monotonic() - began_s, 1)
    hog.quit()
    group.path.rmdir()
    done, said = systemctl("reload", SERVICE)
    report.check("swap is on again", done and len(areas()) == 1, said)


def show_swaps_at_stop(*, console: bool = False) -> None:
    """Have the unit put into the journal, or on the console, what was swapped at its stop."""
    text = lab.must("systemctl", "cat", SERVICE)
    stops = [line for line in text.splitlines() if line.startswith("ExecStop=/")]
    if not stops:
        raise lab.LabError(f"{SERVICE} has no ExecStop=")
    folder = Path(f"/etc/systemd/system/{SERVICE}.d")
    folder.mkdir(exist_ok=True)
    to = "StandardOutput=journal+console\nStandardError=journal+console\n" if console else ""
    show = "ExecStop=swapon --show=USED --bytes --noheadings"
    (folder / "60-show.conf").write_text(f"[Service]\n{to}ExecStop=\n{show}\n{stops[-1]}\n")
    lab.must("systemctl", "daemon-reload")


def look_back(report: lab.Report, how: str) -> None:
    """Check how the boot before this one ended."""
    said = unit.journal(SERVICE, "--boot=-1")
    took_s = unit.between(said, "Stopping", "Stopped")
    report.figures[f"{how}: stop of the unit s"] = took_s
    report.check(f"{how}: the unit was stopped", took_s is not None, said[-600:])
    used = [int(found[1]) // lab.MIB for found in _USED.finditer(said)]
    full = bool(used) and used[-1] >= LEAST_MIB
    report.check(f"{how}: swap was full until then", full, f"{used} MiB")
    everything = lab.must("journalctl", "--no-pager", "-o", "short-monotonic", "--boot=-1")
    ours = [line for line in everything.splitlines() if "swap" in line.lower()]
    bad = [line for line in ours if any(word in line for word in WORSE)]
    report.check(f"{how}: nothing of swap failed", not bad, "; ".join(bad) or "nothing")
    report.figures[f"{how}: journal"] = "\n".join(ours[-25:])


def main() -> int:
    """Run the job, one boot of it, and return its exit status."""
    report = lab.Report()
    boot = lab.boot_number()
    with report:
        if boot == 1:
            unit.write_config(size="512M", pool="256M", rest=f'file = "{unit.DISK}:512M"\n')
            unit.install()
            show_swaps_at_stop()
            enabled, said = systemctl("enable", "--now", SERVICE)
            report.check("enable --now", enabled and len(areas()) == 1, said)
            swapoff_alone(report)
        else:
            look_back(report, ENDS[boot - 1])
            on = state() == "active" and len(areas()) == 1
            report.check(f"boot {boot}: it is up", on, f"{state()} {areas()}")
        if boot in ENDS:
            unit.outlive_the_job(*fill(report, ENDS[boot]))
            report.figures[f"{ENDS[boot]}: asked at"] = time.time()
            lab.end_boot(report, "systemctl", ENDS[boot])
    return report.status


if __name__ == "__main__":
    sys.exit(main())

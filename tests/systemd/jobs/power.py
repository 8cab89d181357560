"""Reboot and poweroff with swap full: in order, and in about the time that swapoff takes."""

from __future__ import annotations

import re
import statistics
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
WAYS: Final = ("reboot", "poweroff")
ALONE: Final = 3
"""How often swapoff alone is measured, where many ends are compared with it."""
_USED: Final = re.compile(r" swapon\[[0-9]+\]: ([0-9]+)$", re.MULTILINE)
WORSE: Final = ("Failed to start", "failed with result", "timed out", "Killing", "ordering cycle")


def way(boot: int) -> str:
    """Return how the boot of this number ends: both ways in turn."""
    return WAYS[(boot - 1) % len(WAYS)]


def many() -> bool:
    """Whether this is a measurement of many ends."""
    return int(lab.param("ends", len(WAYS))) > len(WAYS)


def used_mib() -> int:
    """Return how much of swap is used."""
    fields = lab.must("swapon", "--show=USED", "--bytes", "--noheadings").split()
    return sum(map(int, fields)) // lab.MIB


def fill(report: lab.Report, what: str) -> tuple[lab.Hog, lab.Cgroup]:
    """Have SWAPPED_MIB in swap, of a process that nobody ends before the last moment.

    Of pages that are easily made and read where it is done many times: of the two times that are
    compared swapoff's gets shorter, and the bar no easier.
    """
    kind = ["--easy"] if many() else []
    hog, group = unit.fill(SWAPPED_MIB + LIMIT_MIB, LIMIT_MIB, "hog", *kind)
    group.unlimited()
    used = used_mib()
    report.check(f"{what}: swap is full", used >= LEAST_MIB, f"{used} MiB in swap")
    return hog, group


def swapoff_alone(report: lab.Report, times: int) -> None:
    """Measure what the kernel needs by itself: the median of so many *times*."""
    taken_s = []
    for _ in range(times):
        hog, group = fill(report, "swapoff alone")
        began_s = time.monotonic()
        subprocess.run(("swapoff", *areas()), check=True)
        taken_s.append(round(time.monotonic() - began_s, 1))
        hog.quit()
        group.path.rmdir()
        done, said = systemctl("reload", SERVICE)
        report.check("swap is on again", done and len(areas()) == 1, said)
    report.figures["swapoff alone, each s"] = taken_s
    report.figures["swapoff alone s"] = statistics.median(taken_s)


def show_swaps_at_stop() -> None:
    """Have the unit put into the journal what was swapped when it was stopped."""
    text = lab.must("systemctl", "cat", SERVICE)
    stops = [line for line in text.splitlines() if line.startswith("ExecStop=/")]
    if not stops:
        raise lab.LabError(f"{SERVICE} has no ExecStop=")
    folder = Path(f"/etc/systemd/system/{SERVICE}.d")
    folder.mkdir(exist_ok=True)
    show = "ExecStop=swapon --show=USED --bytes --noheadings"
    (folder / "60-show.conf").write_text(f"[Service]\nExecStop=\n{show}\n{stops[-1]}\n")
    lab.must("systemctl", "daemon-reload")


def look_back(report: lab.Report, number: int) -> None:
    """Check how the boot before this one, of that *number*, ended."""
    how = f"{number}: {way(number)}"
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
    boot, ends = lab.boot_number(), int(lab.param("ends", len(WAYS)))
    with report:
        if boot == 1:
            unit.write_config(size="512M", pool="256M", rest=f'file = "{unit.DISK}:512M"\n')
            unit.install()
            show_swaps_at_stop()
            enabled, said = systemctl("enable", "--now", SERVICE)
            report.check("enable --now", enabled and len(areas()) == 1, said)
            swapoff_alone(report, ALONE if many() else 1)
        else:
            look_back(report, boot - 1)
            on = state() == "active" and len(areas()) == 1
            report.check(f"boot {boot}: it is up", on, f"{state()} {areas()}")
        if boot <= ends:
            unit.outlive_the_job(*fill(report, f"{boot}: {way(boot)}"))
            report.figures[f"{boot}: {way(boot)}: asked at"] = time.time()
            lab.end_boot(report, "systemctl", way(boot))
    return report.status


if __name__ == "__main__":
    sys.exit(main())

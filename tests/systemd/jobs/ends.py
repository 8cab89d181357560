"""A machine with swap full, for the host to end it in many ways: see deploy/vm/host/ends.py."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Final

from deploy.vm.guest import lab
from tests.systemd.jobs import power, unit
from tests.systemd.jobs.unit import SERVICE, areas, systemctl

CONSOLE: Final = "/dev/ttyS0"
READY: Final = "swapfs-vm: ready"
DONE: Final = "swapfs-vm: done"


def expect_a_jump() -> None:
    """Have nobody take it amiss that the clock jumps when the machine is put back.

    It goes on from where QEMU's was last (cpu_ticks_prev in softmmu/cpu-timers.c).
    """
    lab.must("systemctl", "service-watchdogs", "no")
    Path("/proc/sys/kernel/hung_task_timeout_secs").write_text("0")
    Path("/sys/module/rcupdate/parameters/rcu_cpu_stall_suppress").write_text("1")


def main() -> int:
    """Run the job and return its exit status; as a rule the machine ends first."""
    report = lab.Report()
    with report:
        unit.write_config(size="512M", pool="256M", rest=f'file = "{unit.DISK}:512M"\n')
        unit.install()
        power.show_swaps_at_stop(console=True)
        enabled, said = systemctl("enable", "--now", SERVICE)
        report.check("enable --now", enabled and len(areas()) == 1, said)
        unit.outlive_the_job(*power.fill(report, "the end"))
        if report.status:
            return report.status
        expect_a_jump()
        # Not to be our terminal: at our end it would hang up on the hog too.
        terminal = os.open(CONSOLE, os.O_RDONLY | os.O_NOCTTY)
        print(READY, flush=True)
        with open(terminal) as typed:
            line = typed.readline().strip()
        if line == "swapoff":
            subprocess.run(("swapoff", *areas()), check=True)
            print(DONE, flush=True)
        else:
            lab.must("systemctl", line)
        subprocess.run(("sleep", "infinity"), check=False)
    return report.status


if __name__ == "__main__":
    sys.exit(main())

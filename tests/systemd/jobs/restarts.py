"""A unit is enabled; it comes up by itself after a reboot and after a poweroff."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

from deploy.vm.guest import lab

UNIT: Final = "probe.service"
STARTS: Final = Path("/var/lib/probe-starts")
STOPS: Final = Path("/var/lib/probe-stops")
TEXT: Final = f"""\
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/sh -c 'echo start >>{STARTS}'
ExecStop=/bin/sh -c 'echo stop >>{STOPS}'
[Install]
WantedBy=multi-user.target
"""
ENDS: Final = {1: ("systemctl", "reboot"), 2: ("systemctl", "poweroff"), 3: ("reboot", "-f")}
"""How a boot ends; the last one leaves nobody the time to stop anything."""
UNCLEAN: Final = 1


def lines(path: Path) -> int:
    """Return how many lines *path* has, 0 if there is none."""
    return len(path.read_text().splitlines()) if path.exists() else 0


def main() -> int:
    """Run the job, one boot of it, and return its exit status."""
    report = lab.Report()
    boot = lab.boot_number()
    with report:
        manager = Path("/proc/1/comm").read_text().strip()
        report.check(f"boot {boot}: systemd is PID 1", manager == "systemd", manager)
        failed = lab.must("systemctl", "--failed", "--no-legend", "--plain")
        report.check(f"boot {boot}: no unit has failed", not failed, failed)
        if boot == 1:
            Path("/etc/systemd/system", UNIT).write_text(TEXT)
            lab.must("systemctl", "enable", "--now", UNIT)
        state = lab.run("systemctl", "is-active", UNIT).stdout.strip()
        report.check(f"boot {boot}: the unit is up", state == "active", state)
        report.check(
            f"boot {boot}: it was started", lines(STARTS) == boot, f"{lines(STARTS)} times"
        )
        report.figures[f"boot {boot}"] = lab.run("systemd-analyze", "time").stdout
        report.figures[f"blame {boot}"] = lab.run("systemd-analyze", "blame").stdout[:2000]
        if boot in ENDS:
            lab.end_boot(report, *ENDS[boot])
        stops = len(ENDS) - UNCLEAN
        report.check("it was stopped in order", lines(STOPS) == stops, f"{lines(STOPS)} times")
        boots = lab.must("journalctl", "--list-boots", "--quiet").splitlines()
        report.check("the journal has every boot", len(boots) == boot, f"{len(boots)} boots")
    return report.status


if __name__ == "__main__":
    sys.exit(main())

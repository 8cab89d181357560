"""The Debian package: apt installs, upgrades, removes and purges it, at last with swap in use."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

from deploy.vm.guest import lab
from tests.systemd.jobs import unit
from tests.systemd.jobs.unit import SERVICE, areas, state, systemctl

DATA_MIB: Final = 64
LIMIT_MIB: Final = 24
UNITS: Final = Path("/etc/systemd/system")
DROP_IN: Final = Path("/etc/swapfs/swapfs.toml.d/50-vm.toml")
BACKING: Final = Path("/var/lib/swapfs/swapfs.tier")
FORMER: Final = """\
# systemd unit of the swapfs instance swapfs.
# Written by: swapfs install-unit swapfs --config /etc/swapfs/swapfs.toml
[Service]
ExecStart=/usr/local/bin/swapfs up
"""
"""A unit as one had before there was a package."""
PLACES: Final = ("/etc", "/run", "/usr", "/var/lib", "/var/log")
OURS: Final = ("swapfs-job.service", "swapfs-init", "swapfs.pth", "/usr/local/bin/swapfs")
"""What the VM's image has of that name; and what dpkg and apt remember is no leftover."""
REMEMBERED: Final = ("/var/lib/dpkg", "/var/lib/apt", "/var/log", "/var/lib/systemd/deb-systemd")


def apt(*words: str) -> tuple[bool, str]:
    """Run apt-get; return whether it succeeded, and what it said."""
    lab.say(f"apt-get {' '.join(words)}")
    done = subprocess.run(
        ("apt-get", "--yes", *words),
        env={**os.environ, "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode == 0, done.stdout + done.stderr


def left() -> list[str]:
    """Return the files that still have our name."""
    found = lab.must("find", *PLACES, "-name", "*swapfs*").splitlines()
    return [path for path in found if not path.endswith(OURS) and not path.startswith(REMEMBERED)]


def install(report: lab.Report) -> None:
    """What apt brings, and what it replaces; nothing runs before it is enabled."""
    (UNITS / SERVICE).write_text(FORMER)
    done, said = apt("install", "./first.deb")
    report.check("apt install", done, said[-2000:])
    report.check("the former unit is gone", not (UNITS / SERVICE).exists(), "")
    started = unit.shown(SERVICE, "ExecStart")
    ok = "/usr/bin/swapfs up" in started and "/usr/local" not in started
    report.check("the unit is the package's", ok, started)
    report.check("nothing is started", state() == "inactive" and not areas(), state())
    DROP_IN.write_text(f'size = "64M"\npool = "80M"\nfile = "{BACKING}:64M"\n')
    checked = lab.run("swapfs", "check-config", "--config", str(unit.CONFIG))
    ok = checked.returncode == 0 and f"# {DROP_IN}" in checked.stdout
    report.check("check-config says where a value is from", ok, checked.stdout + checked.stderr)
    done, said = systemctl("enable", SERVICE)
    report.check("enable", done, said)


def killed_server(report: lab.Report) -> None:
    """A death is in the journal of the unit, where one looks first."""
    before = lab.status()["server_pid"]
    os.kill(before, signal.SIGKILL)
    new = lab.wait_for(
        "another server",
        lambda: (lab.snapshot() or {}).get("server_pid") not in (None, before),
        unit.BOUND_S,
    )
    told = lab.wait_for(
        "it in the journal",
        lambda: f"server {before} died" in unit.journal(SERVICE, "--priority=warning"),
        unit.JOURNAL_BOUND_S,
    )
    report.check("the death of a server is in the journal", new and told, f"{new} {told}")


def upgrade(report: lab.Report, hog: lab.Hog) -> None:
    """The new version serves what the old one stored; swap was never off."""
    before, area = lab.status(), areas()
    began_s = time.monotonic()
    done, said = apt("install", "./newer.deb")
    report.figures["upgrade s"] = round(time.monotonic() - began_s, 1)
    report.check("apt upgrades", done and "goes on with" not in said, said[-2000:])
    after = lab.status()
    ok = after["version"] != before["version"] and after["pid"] != before["pid"]
    detail = f"{before['version']} -> {after['version']}, {before['pid']} -> {after['pid']}"
    report.check("the new version runs", ok, detail)
    ok = areas() == area and state() == "active"
    report.check("in the unit, on the same device", ok, f"{area} {areas()} {state()}")
    kept = unit.shown("dev-loop0.swap", "ActiveEnterTimestampMonotonic")
    report.figures["swap on since us"] = kept
    hog.verify(report, "the pages came through the upgrade")


def remove(report: lab.Report, hog: lab.Hog, group: lab.Cgroup) -> None:
    """Refused while the pages have no room, and nothing is lost; then swap goes off first."""
    done, said = apt("remove", "swapfs")
    ok = not done and len(areas()) == 1 and state() == "active" and "make room" in said
    report.check("a removal without room is refused", ok, f"{state()} {areas()} {said[-2000:]}")
    told = json.loads(lab.must("swapfs", "status", "--json"))["instances"]
    report.check("and all goes on", len(told) == 1 and not told[0]["degraded"], f"{told[0]}")
    group.unlimited()
    done, said = apt("remove", "swapfs")
    gone = not lab.leftovers() and not Path("/usr/bin/swapfs").exists()
    report.check("with room it takes swap down", done and gone, said[-2000:])
    hog.verify(report, "the pages came through the removal")
    report.check("the configuration stays", unit.CONFIG.exists() and BACKING.exists(), "")
    done, said = apt("purge", "swapfs")
    report.check("purge leaves nothing", done and not left(), f"{left()} {said[-1000:]}")


def main() -> int:
    """Run the job and return its exit status."""
    report = lab.Report()
    with report:
        if lab.boot_number() == 1:
            install(report)
            lab.end_boot(report, "systemctl", "reboot")
        ok = unit.settled(SERVICE, "active") and len(areas()) == 1
        report.check("swap is on after a reboot", ok, f"{state()} {areas()}")
        hog, group = unit.fill(DATA_MIB, LIMIT_MIB)
        killed_server(report)
        upgrade(report, hog)
        remove(report, hog, group)
        hog.quit()
    return report.status


if __name__ == "__main__":
    sys.exit(main())

"""systemctl's verbs, alone and against others who act on our swap."""

from __future__ import annotations

import subprocess
import sys
from typing import Final

from deploy.vm.guest import lab
from tests.systemd.jobs import unit
from tests.systemd.jobs.unit import SERVICE, areas, state, systemctl

DATA_MIB: Final = 64
LIMIT_MIB: Final = 24


def wrong_configurations(report: lab.Report) -> None:
    """A configuration that is missing or wrong: failed, and the reason in its status."""
    unit.write_config()
    printed = unit.install()
    report.check("install-unit says what to do next", "enable --now" in printed, printed)
    for what, text, reason in (
        ("missing", None, "No such file"),
        ("wrong", 'size = "64M"\npool = "sixty"\n', "not a size"),
    ):
        unit.CONFIG.unlink()
        if text is not None:
            unit.CONFIG.write_text(text)
        started, said = systemctl("start", SERVICE)
        ok = not started and state() == "failed" and unit.status_says(reason)
        report.check(f"a {what} configuration fails and says why", ok, said)
        systemctl("reset-failed", SERVICE)
        unit.CONFIG.touch()
    unit.write_config()


def start(report: lab.Report) -> None:
    """Start, and look at what systemd makes of our swap area and our mount."""
    started, said = systemctl("start", SERVICE)
    on = areas()
    report.check("start", started and state() == "active" and len(on) == 1, f"{on} {said}")
    listed = lab.must("systemctl", "list-units", "--plain", "--no-legend", "--type=swap,mount")
    made = [line.split()[0] for line in listed.splitlines()]
    ours = [name for name in made if name.endswith(".swap") or name.startswith("run-swapfs-")]
    orders = {name: "swapfs.slice" in unit.shown(name, "Before").split() for name in ours}
    report.check(
        "units that systemd made go after ours",
        len(orders) >= 2 and all(orders.values()),
        f"{orders}",
    )
    slices = unit.shown(SERVICE, "Slice")
    report.check("it is in the slice of all instances", slices == "swapfs.slice", slices)


def reload(report: lab.Report) -> None:
    """A new daemon in the unit; swap on again where it was turned off by hand."""
    before = lab.status()["pid"]
    done, said = systemctl("reload", SERVICE)
    after = lab.status()["pid"]
    ok = done and after != before and state() == "active" and len(areas()) == 1
    report.check("reload upgrades", ok, f"{before} -> {after}; {said}")
    lab.must("swapoff", "-a")
    told = lab.wait_for("degraded", lambda: bool(lab.status()["degraded"]), unit.BOUND_S)
    report.check("swapoff by hand is degraded", told, f"{lab.status()['degraded']}")
    done, said = systemctl("reload", SERVICE)
    report.check("reload has swap on again", done and len(areas()) == 1, f"{areas()} {said}")
    degraded = lab.status()["degraded"]
    report.check("and nothing is degraded", not degraded, f"{degraded}")


def at_once(report: lab.Report, name: str, *commands: str) -> None:
    """Run *commands* at the same time, with swap in use; nothing may be left."""
    hog, group = unit.fill(DATA_MIB, LIMIT_MIB, "at-once")
    group.unlimited()
    processes = [
        subprocess.Popen(
            command.split(), text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        for command in commands
    ]
    said = [process.communicate()[0].strip() for process in processes]
    codes = [process.returncode for process in processes]
    clean = unit.settled(SERVICE, "inactive") and not lab.leftovers()
    report.check(name, clean, f"{state()} {codes} {said} {lab.leftovers()}")
    hog.verify(report, f"{name}: the pages are there")
    hog.quit()
    group.path.rmdir()
    report.check(f"{name}: starts again", systemctl("start", SERVICE)[0], state())


def second_instance(report: lab.Report) -> None:
    """Another name by the template, with a device; it goes, and the first one stays."""
    unit.write_config("b", rest=f'file = "{unit.DISK}"\n')
    unit.install("b")
    started, said = systemctl("start", "swapfs@b.service")
    report.check("second instance", started and len(areas()) == 2, f"{areas()} {said}")
    wants = unit.shown("swapfs@b.service", "Wants").replace("\\\\", "\\")  # quoted
    report.check("it waits for its device", "virtio\\x2ddata0.device" in wants, wants)
    done, said = systemctl("reload", "swapfs@b.service")
    report.check("reload of it", done and len(areas()) == 2, said)
    done, said = systemctl("stop", "swapfs@b.service")
    ok = done and state("swapfs@b.service") == "inactive" and len(areas()) == 1
    report.check("stop of it alone", ok and state() == "active", f"{areas()} {said}")


def started_by_hand(report: lab.Report) -> None:
    """An instance that runs in a session is not the unit's to take over, or down."""
    systemctl("stop", SERVICE)
    lab.up("--config", str(unit.CONFIG))
    started, said = systemctl("start", SERVICE)
    told = unit.status_says("runs already, and not in")
    ok = not started and told and len(areas()) == 1
    report.check("one that was started by hand is left alone", ok, f"{areas()} {said}")
    lab.down()
    systemctl("reset-failed", SERVICE)
    report.check("then the unit starts", systemctl("start", SERVICE)[0], state())


def main() -> int:
    """Run the job and return its exit status."""
    report = lab.Report()
    with report:
        wrong_configurations(report)
        start(report)
        reload(report)
        at_once(report, "two stops", f"systemctl stop {SERVICE}", f"systemctl stop {SERVICE}")
        at_once(report, "stop and swapoff -a", f"systemctl stop {SERVICE}", "swapoff -a")
        at_once(report, "down and stop", "swapfs down", f"systemctl stop {SERVICE}")
        second_instance(report)
        started_by_hand(report)
        stopped, said = systemctl("stop", SERVICE)
        left = lab.leftovers()
        report.check("stop leaves nothing", stopped and not left, f"{left} {said}")
    return report.status


if __name__ == "__main__":
    sys.exit(main())

"""Deaths inside the unit, a stop that is refused, sleep: systemd alone puts it right."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Final

from deploy.vm.guest import lab
from tests.systemd.jobs import unit
from tests.systemd.jobs.unit import SERVICE, areas, state, systemctl

DATA_MIB: Final = 64
LIMIT_MIB: Final = 24
SLEEP: Final = "systemd-suspend.service"
SEEN: Final = Path("/run/seen-asleep")


def killed_server(report: lab.Report) -> None:
    """The monitor starts another one; systemd does not notice."""
    before = lab.status()["server_pid"]
    os.kill(before, signal.SIGKILL)
    new = lab.wait_for(
        "another server",
        lambda: (lab.snapshot() or {}).get("server_pid") not in (None, before),
        unit.BOUND_S,
    )
    ok = new and state() == "active" and len(areas()) == 1
    report.check("kill -9 of the server", ok, f"{before} -> {lab.status()['server_pid']}")


def killed_monitor(report: lab.Report) -> None:
    """The server goes on, and so does the unit; stop takes it down."""
    hog, group = unit.fill(DATA_MIB, LIMIT_MIB)
    group.unlimited()
    os.kill(lab.status()["pid"], signal.SIGKILL)
    told = lab.wait_for("degraded", lambda: bool(lab.status()["degraded"]), unit.BOUND_S)
    ok = told and state() == "active" and len(areas()) == 1
    report.check("kill -9 of the monitor", ok, f"{state()} {lab.status()['degraded']}")
    done, said = systemctl("restart", SERVICE)
    ok = done and state() == "active" and len(areas()) == 1 and not lab.status()["degraded"]
    report.check("restart mends it", ok, f"{state()} {areas()} {said}")
    hog.verify(report, "the pages came through")
    hog.quit()
    group.path.rmdir()


def killed_both(report: lab.Report) -> None:
    """Nothing is left to serve: the unit clears up by itself."""
    found = lab.status()
    os.kill(found["pid"], signal.SIGKILL)
    os.kill(found["server_pid"], signal.SIGKILL)
    ended = lab.wait_for("the end", lambda: state() in ("inactive", "failed"), unit.BOUND_S)
    left = lab.leftovers()
    report.check("kill -9 of both clears up", ended and not left, f"{state()} {left}")
    report.check("and it starts again", systemctl("start", SERVICE)[0], state())


def refused_stop(report: lab.Report) -> None:
    """No room for the pages of a group: the unit fails at once, all goes on, start takes it."""
    hog, group = unit.fill(DATA_MIB, LIMIT_MIB)
    pid = lab.status()["pid"]
    _, said = systemctl("stop", SERVICE)
    ok = state() == "failed" and unit.status_says("no room") and len(areas()) == 1
    report.check("a stop without room is refused", ok, f"{state()} {said}")
    started, said = systemctl("start", SERVICE)
    ok = started and state() == "active" and lab.status()["pid"] == pid
    report.check("start takes over what runs", ok, f"{state()} {said}")
    refused, said = systemctl("start", "suspend.target")
    ok = not refused and len(areas()) == 1 and state() == "active" and not SEEN.exists()
    report.check("sleep without room is refused", ok, f"{state()} {areas()} {said}")
    group.unlimited()
    stopped, said = systemctl("stop", SERVICE)
    ok = stopped and state() == "inactive" and not lab.leftovers()
    report.check("with room it stops", ok, f"{state()} {said} {lab.leftovers()}")
    hog.verify(report, "nobody's page was lost")
    hog.quit()
    group.path.rmdir()


def sleeps_as(command: str) -> None:
    """Have *command* in the place of what sends the machine to sleep."""
    folder = Path(f"/run/systemd/system/{SLEEP}.d")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "test.conf").write_text(f"[Service]\nExecStart=\nExecStart={command}\n")
    lab.must("systemctl", "daemon-reload")
    SEEN.unlink(missing_ok=True)


def sleep(report: lab.Report) -> None:
    """Swap is off while the machine sleeps, and on again when it wakes, or could not sleep."""
    look = f"sh -c 'cat /proc/swaps >{SEEN}"
    for what, command in (("sleep", f"{look}'"), ("sleep that fails", f"{look}; exit 1'")):
        sleeps_as(command)
        systemctl("start", "suspend.target")
        asleep = SEEN.read_text().splitlines()[1:] if SEEN.exists() else ["it did not sleep"]
        report.check(f"{what}: swap is off meanwhile", not asleep, f"{asleep}")
        again = unit.settled(SERVICE, "active") and len(areas()) == 1
        report.check(f"{what}: swap is on again", again, f"{state()} {areas()}")
        gone = unit.settled("swapfs-sleep.service", "inactive")
        report.check(f"{what}: ready for the next", gone, state("swapfs-sleep.service"))
    systemctl("stop", SERVICE)
    systemctl("start", "suspend.target")
    unit.settled("swapfs-sleep.service", "inactive")
    report.check("what was off stays off", state() == "inactive" and not areas(), state())


def main() -> int:
    """Run the job and return its exit status."""
    report = lab.Report()
    with report:
        unit.write_config()
        unit.install()
        enabled, said = systemctl("enable", "--now", SERVICE)
        report.check("enable --now", enabled and len(areas()) == 1, said)
        killed_server(report)
        killed_monitor(report)
        killed_both(report)
        sleeps_as(f"touch {SEEN}")
        refused_stop(report)
        systemctl("start", SERVICE)
        sleep(report)
        left = lab.leftovers()
        report.check("nothing is left", not left, f"{left}")
    return report.status


if __name__ == "__main__":
    sys.exit(main())

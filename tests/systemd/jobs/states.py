"""What systemd makes of the units in each event; a stand-in plays swapfs."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Final

from deploy.vm.guest import lab
from tests.systemd.jobs.unit import SERVICE, settled, shown, state, status_says, systemctl

STATE: Final = Path("/run/stand-in")
REFUSE: Final = STATE / "refuse"
SLEEP: Final = Path("/run/systemd/system/systemd-suspend.service.d/test.conf")
SEEN: Final = Path("/run/seen-asleep")


def on(name: str = "swapfs") -> bool:
    """Whether swap is on, as the stand-in has it."""
    return (STATE / f"{name}.on").exists()


def kill(*processes: str) -> None:
    """Kill processes of the instance, by name."""
    for process in processes:
        os.kill(int((STATE / f"swapfs.{process}").read_text()), signal.SIGKILL)


def sleeps_as(command: str) -> None:
    """Have *command* in the place of what sends the machine to sleep."""
    SLEEP.parent.mkdir(parents=True, exist_ok=True)
    SLEEP.write_text(f"[Service]\nExecStart=\nExecStart={command}\n")
    lab.must("systemctl", "daemon-reload")
    SEEN.unlink(missing_ok=True)


def lives(report: lab.Report) -> None:
    """Start, reload, deaths."""
    done, said = systemctl("enable", "--now", SERVICE)
    report.check("enable --now", done and on() and state() == "active", said)
    report.check("the slice", shown(SERVICE, "Slice") == "swapfs.slice", "")
    (STATE / "swapfs.on").unlink()
    done, said = systemctl("reload", SERVICE)
    report.check("reload has swap on again", done and on(), said)
    kill("monitor")
    done, said = systemctl("reload", SERVICE)
    report.check("up without a monitor", state() == "active" and on(), f"{state()} {said}")
    done, said = systemctl("restart", SERVICE)
    report.check("restart mends that", done and on() and state() == "active", said)
    kill("monitor", "server")
    ended = settled(SERVICE, "inactive")
    report.check("without both it ends, and clears up", ended and not on(), state())


def refusals(report: lab.Report) -> None:
    """A stop without room, sleep without room, a configuration that is missing."""
    systemctl("start", SERVICE)
    before = (STATE / "swapfs.monitor").read_text()
    REFUSE.touch()
    systemctl("stop", SERVICE)
    told = status_says("no room")
    ok = state() == "failed" and on() and told
    report.check("a refused stop fails at once and says why", ok, state())
    done, said = systemctl("start", SERVICE)
    ok = done and state() == "active" and (STATE / "swapfs.monitor").read_text() == before
    report.check("start takes over what runs", ok, f"{state()} {said}")
    sleeps_as(f"touch {SEEN}")
    done, said = systemctl("start", "suspend.target")
    ok = not done and on() and state() == "active" and not SEEN.exists()
    report.check("sleep without room is refused", ok, f"{state()} {said}")
    REFUSE.unlink()
    systemctl("stop", SERVICE)
    config = Path("/etc/swapfs/swapfs.toml")
    away = config.rename(config.with_suffix(".away"))
    done, said = systemctl("start", SERVICE)
    told = status_says("No such file")
    report.check("a missing configuration fails", not done and told and state() == "failed", said)
    away.rename(config)
    systemctl("reset-failed", SERVICE)  # so many starts in a few seconds are too many else


def sleep(report: lab.Report) -> None:
    """Off while the machine sleeps; on again if it was, however sleep went."""
    systemctl("start", SERVICE)
    look = f"sh -c 'ls {STATE} >{SEEN}"
    for what, command in (("sleep", f"{look}'"), ("sleep that fails", f"{look}; exit 1'")):
        sleeps_as(command)
        systemctl("start", "suspend.target")
        asleep = SEEN.read_text() if SEEN.exists() else "it did not sleep"
        report.check(f"{what}: swap is off meanwhile", not asleep, asleep)
        again = settled(SERVICE, "active") and on()
        report.check(f"{what}: swap is on again", again, state())
        ready = settled("swapfs-sleep.service", "inactive")
        report.check(f"{what}: ready for the next", ready, state("swapfs-sleep.service"))
    systemctl("stop", SERVICE)
    systemctl("start", "suspend.target")
    settled("swapfs-sleep.service", "inactive")
    report.check("what was off stays off", state() == "inactive" and not on(), state())


def template(report: lab.Report) -> None:
    """Two instances; one goes."""
    systemctl("reset-failed", SERVICE)
    done, said = systemctl("start", SERVICE, "swapfs@b-c.service")
    report.check("two instances", done and on() and on("b-c"), said)
    systemctl("stop", "swapfs@b-c.service")
    report.check("one goes", on() and not on("b-c") and state() == "active", state())


def main() -> int:
    """Run the job and return its exit status."""
    report = lab.Report()
    with report:
        report.figures["systemd"] = lab.must("systemctl", "--version").splitlines()[0]
        lives(report)
        refusals(report)
        sleep(report)
        template(report)
    return report.status


if __name__ == "__main__":
    sys.exit(main())

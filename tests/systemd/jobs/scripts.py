"""What the package's scripts do with units that are up, in use, or of another maker.

A stand-in plays swapfs: this kernel is the host's, and nothing here may swap.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

from deploy.vm.guest import lab
from tests.systemd.jobs import package, unit
from tests.systemd.jobs.package import apt, left
from tests.systemd.jobs.unit import SERVICE, shown, state, systemctl

STATE: Final = Path("/run/stand-in")
OTHER: Final = "swapfs@b.service"


def install(report: lab.Report) -> None:
    """A former unit makes way for the package's, with what its configuration needs."""
    lab.must("dpkg-divert", "--local", "--no-rename", "--add", "/usr/bin/swapfs")
    Path("/srv/b").mkdir()
    unit.write_config("b", rest='file = "/srv/b/tier:64M"\n')
    for name, service in (("swapfs", SERVICE), ("b", OTHER)):
        text = package.FORMER.replace("swapfs --config", f"{name} --config")
        (package.UNITS / service).write_text(text.replace("/swapfs.toml", f"/{name}.toml"))
    systemctl("enable", OTHER)
    done, said = apt("install", "./first.deb")
    report.check("apt install", done, said[-2000:])
    gone = not any((package.UNITS / name).exists() for name in (SERVICE, OTHER))
    report.check("the former units are gone", gone, "")
    started = shown(OTHER, "ExecStart")
    report.check("the unit is the package's", "/usr/bin/swapfs up" in started, started)
    enabled = shown(OTHER, "UnitFileState")
    report.check("what was enabled still is", enabled == "enabled", enabled)
    waits = shown(OTHER, "RequiresMountsFor")
    report.check("and waits for what its file names", "/srv/b" in waits, waits)
    verify = ("systemd-analyze", "verify", "--man=no")
    complaints = lab.run(*verify, SERVICE, OTHER, "swapfs-sleep.service").stderr.splitlines()
    ours = [line for line in complaints if "swapfs" in line]
    report.check("systemd knows all that the units say", not ours, f"{ours}")
    report.check("nothing is started", state() == state(OTHER) == "inactive", state())


def upgrade(report: lab.Report) -> None:
    """What is up is reloaded; one that cannot goes on, and apt succeeds and says so."""
    done, said = systemctl("start", SERVICE, OTHER)
    report.check("both are up", done, said)
    (STATE / "refuse").touch()
    done, said = apt("install", "./newer.deb")
    told = f"{SERVICE} goes on with the version before" in said
    ok = done and told and state() == state(OTHER) == "active"
    report.check("a refused upgrade leaves both up", ok, f"{state()} {said[-2000:]}")
    (STATE / "refuse").unlink()
    done, said = apt("install", "--allow-downgrades", "./first.deb")
    upgraded = all((STATE / f"{name}.upgraded").exists() for name in ("swapfs", "b"))
    ok = done and upgraded and state() == state(OTHER) == "active"
    report.check("the new version takes over in both", ok, f"{said[-2000:]}")


def remove(report: lab.Report) -> None:
    """Refused as a whole while one cannot stop."""
    (STATE / "refuse").touch()
    done, said = apt("remove", "swapfs")
    ok = not done and "make room" in said and state() == state(OTHER) == "active"
    on = all((STATE / f"{name}.on").exists() for name in ("swapfs", "b"))
    report.check("a refused removal leaves both up", ok and on, f"{state()} {said[-2000:]}")
    (STATE / "refuse").unlink()
    done, said = apt("remove", "swapfs")
    off = not any((STATE / f"{name}.on").exists() for name in ("swapfs", "b"))
    report.check("a removal takes both down", done and off, said[-2000:])
    report.check("the configuration stays", unit.CONFIG.exists(), "")
    lab.must("dpkg-divert", "--local", "--no-rename", "--remove", "/usr/bin/swapfs")
    Path("/usr/bin/swapfs").unlink()
    done, said = apt("purge", "swapfs")
    report.check("purge leaves nothing", done and not left(), f"{left()} {said[-1000:]}")


def main() -> int:
    """Run the job and return its exit status."""
    report = lab.Report()
    with report:
        install(report)
        upgrade(report)
        remove(report)
    return report.status


if __name__ == "__main__":
    sys.exit(main())

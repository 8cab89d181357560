"""A newer version takes the place of the running one, again and again, while a hog swaps."""

from __future__ import annotations

import re
import shutil
import sys
import time
from pathlib import Path
from typing import Final

import swapfs
from deploy.vm.guest import lab
from tests.vm.jobs.churn import DATA_MIB, LIMIT_MIB, UP, Churn, check_and_take_down

VERSIONS: Final = Path("/var/lib/swapfs/versions")
UPGRADES: Final = 5
PAUSE_S: Final = 3.0


def install(version: str) -> Path:
    """Put a copy of swapfs that calls itself *version* into a folder of its own."""
    folder = VERSIONS / version
    package = shutil.copytree(Path(swapfs.__file__).parent, folder / "swapfs")
    init = package / "__init__.py"
    text, changed = re.subn(r'__version__ = ".*"', f'__version__ = "{version}"', init.read_text())
    if changed != 1:
        raise lab.LabError(f"no version in {init}")
    init.write_text(text)
    return folder


def upgrade_to(folder: Path) -> float:
    """Run `swapfs upgrade` with the code in *folder*; return how long it took, in seconds."""
    started_s = time.monotonic()
    done = lab.run(sys.executable, "-m", "swapfs", "upgrade", env={"PYTHONPATH": str(folder)})
    if done.returncode:
        raise lab.LabError(f"upgrade: exit status {done.returncode}: {done.stderr.strip()}")
    return time.monotonic() - started_s


def main() -> int:
    """Run the job and return its exit status."""
    report = lab.Report()
    with report:
        lab.up(*UP)
        group = lab.Cgroup("hog", LIMIT_MIB)
        hog = lab.Hog(DATA_MIB, group)
        hog.do("fill")
        churn = Churn(hog)
        churn.start()
        for number in range(1, UPGRADES + 1):
            time.sleep(PAUSE_S)
            version, before = f"9.9.{number}", lab.status()
            took_s = upgrade_to(install(version))
            now = lab.status()
            report.check(
                f"upgrade to {version}",
                now["version"] == version and now["pid"] != before["pid"] and churn.is_alive(),
                f"{took_s:.1f} s, monitor {before['pid']} -> {now['pid']}, "
                f"{now['counters']['failed_read_io']} read errors",
            )
        churn.stop()
        report.check(
            "verify while it is upgraded",
            churn.wrong == 0 and churn.pages > 0,
            f"{churn.pages} pages verified, {churn.wrong} wrong " + "; ".join(churn.details),
        )
        check_and_take_down(report, hog, group, ("failed_", "handler"))
        report.check("nothing left", not lab.leftovers(), f"{lab.leftovers()}")
        report.figures["summary"] = (
            f"{UPGRADES} upgrades, {churn.pages} pages verified meanwhile, {churn.wrong} wrong"
        )
    return report.status


if __name__ == "__main__":
    sys.exit(main())

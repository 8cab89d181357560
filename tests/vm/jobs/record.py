"""Three workloads that swap, each recorded: traces and the counters of then in /job/out."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Final

from deploy.vm.guest import lab

if TYPE_CHECKING:
    from collections.abc import Callable

DISK: Final = "/dev/disk/by-id/virtio-data0"
UP: Final = (
    *("--size", "160M", "--pool", "8M", "--file", f"{DISK}:320M"),
    *("--access-log", "16M"),
)
LIMIT_MIB: Final = 24
DATA_MIB: Final = 64
CHURN_S: Final = 10


def scan(hog: lab.Hog) -> None:
    """Read all in order: the worst that a list of recency can meet."""
    hog.do("verify")


def skewed(hog: lab.Hog) -> None:
    """Read short runs at random places, and rewrite a third of them."""
    hog.do(f"churn {CHURN_S}")


def uniform(hog: lab.Hog) -> None:
    """Rewrite some, and read all in a random order."""
    hog.do("rewrite 10")
    hog.do("verify random")


def record(report: lab.Report, name: str, work: Callable[[lab.Hog], None]) -> None:
    """Swap under *work* on a new instance, and keep its trace and what its counters said."""
    lab.up(*UP)
    group = lab.Cgroup(name, LIMIT_MIB)
    out = lab.OUT / f"{name}.trace"
    recorder = subprocess.Popen(["swapfs", "trace", "record", str(out)], stdout=subprocess.PIPE)
    lab.wait_for("the recorder to begin", out.exists, 60)
    hog = lab.Hog(DATA_MIB, group)
    hog.do("fill")
    work(hog)
    recorder.send_signal(signal.SIGINT)
    said, _ = recorder.communicate(timeout=60)
    found = lab.status()
    (lab.OUT / f"{name}.json").write_text(json.dumps(found))
    report.check(f"{name} is recorded whole", b" 0 dropped" in said, said.decode().strip())
    hog.quit()
    group.unlimited()
    lab.down()


def main() -> int:
    """Run the job and return its exit status."""
    report = lab.Report()
    with report:
        lab.OUT.mkdir(exist_ok=True)
        for work in (scan, skewed, uniform):
            record(report, work.__name__, work)
    return report.status


if __name__ == "__main__":
    sys.exit(main())

"""kill -9 of the server again and again while a hog swaps and verifies: nothing may be lost."""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from typing import Final

from guest import lab

DISK: Final = "/dev/disk/by-id/virtio-data0"
UP: Final = ("--size", "384M", "--pool", "24M", "--file", f"{DISK}:512M")
LIMIT_MIB: Final = 48
DATA_MIB: Final = 128
KILLS: Final = 15
PAUSE_S: Final = (0.5, 1.5)
NEW_SERVER_BOUND_S: Final = 60
CHURN_S: Final = 5


def kill_server(dead: set[int]) -> float:
    """Kill the server that is not among the *dead*; return how long it took to appear."""
    started_s = time.monotonic()
    alive: list[int] = []

    def appeared() -> bool:
        found = lab.snapshot()
        alive[:] = [found["server_pid"]] if found else []
        return bool(alive) and alive[0] not in dead

    if not lab.wait_for("a new server", appeared, NEW_SERVER_BOUND_S):
        raise lab.LabError(f"no new server after {len(dead)} kills")
    os.kill(alive[0], signal.SIGKILL)
    dead.add(alive[0])
    return time.monotonic() - started_s


def main() -> int:
    """Run the job and return its exit status."""
    report = lab.Report()
    rng = random.Random(5)
    with report:
        lab.up(*UP)
        hog = lab.Hog(DATA_MIB, lab.Cgroup("hog", LIMIT_MIB))
        hog.do("fill")
        dead: set[int] = set()
        hog.send(f"churn {CHURN_S}")
        pages = wrong = 0
        details: list[str] = []
        while len(dead) < KILLS:
            time.sleep(rng.uniform(*PAUSE_S))
            waited_s = kill_server(dead)
            lab.say(f"kill {len(dead)}: server appeared after {waited_s:.1f} s")
            if len(dead) % 5 == 0:
                answer = hog.answer()
                pages, wrong = pages + answer["pages"], wrong + answer["wrong"]
                details += answer["details"]
                hog.send(f"churn {CHURN_S}")
        answer = hog.answer()
        pages, wrong = pages + answer["pages"], wrong + answer["wrong"]
        report.check(
            "verify while it is killed",
            wrong == 0,
            "; ".join([f"{len(dead)} kills, {pages} pages verified, {wrong} wrong", *details]),
        )
        hog.verify(report, "verify all after the kills")
        counters = lab.status()["counters"]
        report.check(
            "server starts counted",
            counters["server_starts"] == len(dead) + 1,
            f"{counters['server_starts']} starts",
        )
        bad = {k: v for k, v in counters.items() if k.startswith(("failed_", "handler")) and v}
        report.check("no failures counted", not bad, f"{bad}")
        guards = lab.bad_guards(lab.status())
        report.check("guards hold in the last server", not guards, "; ".join(guards) or "all")
        report.check("down with everything in use", True, lab.down())
        hog.verify(report, "verify after swapoff")
        hog.quit()
        report.check("nothing left", not lab.leftovers(), f"{lab.leftovers()}")
    return report.status


if __name__ == "__main__":
    sys.exit(main())

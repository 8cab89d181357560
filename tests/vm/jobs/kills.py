"""kill -9 of the server again and again while a hog swaps and verifies: nothing may be lost."""

from __future__ import annotations

import os
import random
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Final

from guest import lab

DISK: Final = "/dev/disk/by-id/virtio-data0"
UP: Final = ("--size", "384M", "--pool", "24M", "--file", f"{DISK}:512M")
LIMIT_MIB: Final = 48
DATA_MIB: Final = 128
KILLS: Final = 100
PAUSE_S: Final = (0.5, 1.5)
NEW_SERVER_BOUND_S: Final = 60
CHURN_S: Final = 2


def kill_server(dead: set[int], *, serving: bool = True) -> float:
    """Kill the server that is not among the *dead*; return how long it took to appear.

    :param serving: wait until it serves; else it is killed wherever it is in its recovery
    """
    started_s = time.monotonic()
    alive: list[int] = []

    def appeared() -> bool:
        found = lab.snapshot()
        if found:
            alive[:] = [found["server_pid"]] if serving else children_of(found["pid"])
        return bool(alive) and alive[0] not in dead

    if not lab.wait_for("a new server", appeared, NEW_SERVER_BOUND_S):
        raise lab.LabError(f"no new server after {len(dead)} kills")
    os.kill(alive[0], signal.SIGKILL)
    dead.add(alive[0])
    return time.monotonic() - started_s


def children_of(pid: int) -> list[int]:
    """Return the processes that *pid* has forked."""
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


class Churn(threading.Thread):
    """Has *hog* verify and rewrite without a pause until told to stop; sums its answers."""

    def __init__(self, hog: lab.Hog) -> None:
        super().__init__(name="churn")
        self.pages = self.wrong = 0
        self.details: list[str] = []
        self._hog = hog
        self._stop_asked = threading.Event()

    def run(self) -> None:
        """Go on until `stop`; a hog that dies ends it early, with the reason in details."""
        while not self._stop_asked.is_set():
            try:
                answer = self._hog.do(f"churn {CHURN_S}")
            except lab.LabError as error:
                self.details.append(str(error))
                self.wrong += 1
                return
            self.pages += answer["pages"]
            self.wrong += answer["wrong"]
            self.details += answer["details"]

    def stop(self) -> None:
        """Wait for the round that is under way and end."""
        self._stop_asked.set()
        self.join()


def main() -> int:
    """Run the job and return its exit status."""
    report = lab.Report()
    rng = random.Random(5)
    kills = int(lab.param("kills", KILLS))
    with report:
        lab.up(*UP)
        group = lab.Cgroup("hog", LIMIT_MIB)
        hog = lab.Hog(DATA_MIB, group)
        hog.do("fill")
        dead: set[int] = set()
        churn = Churn(hog)
        churn.start()
        while len(dead) < kills and churn.is_alive():
            time.sleep(rng.uniform(*PAUSE_S))
            waited_s = kill_server(dead, serving=len(dead) % 2 == 0)
            lab.say(f"kill {len(dead)}: server appeared after {waited_s:.1f} s")
        churn.stop()
        report.check(
            "verify while it is killed",
            churn.wrong == 0 and churn.pages > 0 and len(dead) == kills,
            f"{len(dead)} kills, {churn.pages} pages verified, {churn.wrong} wrong "
            + "; ".join(churn.details),
        )
        hog.verify(report, "verify all after the kills")
        counters = lab.status()["counters"]
        report.check(
            "server starts counted",
            # A server that was killed early in its recovery had not counted itself yet.
            len(dead) // 2 < counters["server_starts"] <= len(dead) + 1,
            f"{counters['server_starts']} starts",
        )
        bad = {k: v for k, v in counters.items() if k.startswith(("failed_", "handler")) and v}
        report.check("no failures counted", not bad, f"{bad}")
        guards = lab.bad_guards(lab.status())
        report.check("guards hold in the last server", not guards, "; ".join(guards) or "all")
        group.unlimited()
        report.check("down with everything in use", True, lab.down())
        hog.verify(report, "verify after swapoff")
        hog.quit()
        report.check("nothing left", not lab.leftovers(), f"{lab.leftovers()}")
        report.figures["summary"] = (
            f"{len(dead)} kills, {churn.pages} pages verified meanwhile, {churn.wrong} wrong"
        )
    return report.status


if __name__ == "__main__":
    sys.exit(main())

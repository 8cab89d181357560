"""kill -9 of the server again and again while a hog swaps and verifies: nothing may be lost."""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Final

from deploy.vm.guest import lab
from tests.vm.jobs.churn import DATA_MIB, LIMIT_MIB, UP, Churn, check_and_take_down

KILLS: Final = 100
SERVES_S: Final = (0.3, 1.5)
"""How long a server lives that is killed while it serves: longer than what the monitor calls
rapid (RAPID_LIFE_S), or it would give up, as it should."""
RECOVERS_S: Final = (0.0, 0.3)
NEW_SERVER_BOUND_S: Final = 60


def kill_server(dead: set[int], life_s: float, *, serving: bool = True) -> float:
    """Kill the server that is not among the *dead*; return how long it took to appear.

    :param life_s: let it live so long from then on
    :param serving: it appears when it serves; else when it is forked, and dies somewhere in its
        recovery
    """
    started_s = time.monotonic()
    alive: list[int] = []

    def appeared() -> bool:
        found = lab.snapshot()
        if found and found.get("held"):
            raise lab.LabError(f"the monitor has given up after {len(dead)} kills")
        if found:
            alive[:] = [found["server_pid"]] if serving else servers_of(found["pid"])
        return bool(alive) and alive[0] not in dead

    if not lab.wait_for("a new server", appeared, NEW_SERVER_BOUND_S):
        raise lab.LabError(f"no new server after {len(dead)} kills")
    waited_s = time.monotonic() - started_s
    time.sleep(life_s)
    os.kill(alive[0], signal.SIGKILL)
    dead.add(alive[0])
    return waited_s


def servers_of(pid: int) -> list[int]:
    """Return the servers among what monitor *pid* has forked; it execs all else."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    command = Path(f"/proc/{pid}/cmdline").read_bytes()
    return [int(child) for child in children if _cmdline(child) == command]


def _cmdline(pid: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:  # it has ended
        return b""


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
            serving = len(dead) % 2 == 0
            life_s = rng.uniform(*(SERVES_S if serving else RECOVERS_S))
            waited_s = kill_server(dead, life_s, serving=serving)
            lab.say(f"kill {len(dead)}: server appeared after {waited_s:.1f} s")
        churn.stop()
        report.check(
            "verify while it is killed",
            churn.wrong == 0 and churn.pages > 0 and len(dead) == kills,
            f"{len(dead)} kills, {churn.pages} pages verified, {churn.wrong} wrong "
            + "; ".join(churn.details),
        )
        counters = lab.status()["counters"]
        report.check(
            "server starts counted",
            # A server that was killed early in its recovery had not counted itself yet.
            len(dead) // 2 < counters["server_starts"] <= len(dead) + 1,
            f"{counters['server_starts']} starts",
        )
        check_and_take_down(report, hog, group, ("failed_", "handler"))
        report.check("nothing left", not lab.leftovers(), f"{lab.leftovers()}")
        report.figures["summary"] = (
            f"{len(dead)} kills, {churn.pages} pages verified meanwhile, {churn.wrong} wrong"
        )
    return report.status


if __name__ == "__main__":
    sys.exit(main())

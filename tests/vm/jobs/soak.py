"""Everything at once for as long as wanted: load, server kills, a disk that fails and recovers.

Minutes come from params.json beside this file. Write errors and slow spells only: a read error
on purpose would kill the hog with SIGBUS, which is right but ends the soak (see disk.py).
"""

from __future__ import annotations

import random
import subprocess
import sys
import time
from typing import Final

from deploy.vm.guest import lab
from tests.vm.jobs.churn import DATA_MIB, LIMIT_MIB, Churn, check_and_take_down
from tests.vm.jobs.disk import MAPPED, NAME, FaultyDisk
from tests.vm.jobs.kills import kill_server

FAULTS: Final = ("write errors", "slow")
SPELL_S: Final = (1.0, 4.0)
KILL_IN_SPELL: Final = 0.5
PAUSE_S: Final = (0.5, 3.0)
DEMOTION_BOUND_S: Final = 120
"""Longest wait for a demotion to end once the disk is good again."""


def bad_spell(disk: FaultyDisk, fault: str, rng: random.Random, dead: set[int]) -> None:
    """Have pages demoted while *disk* has *fault*, for a while; kill the server in half of them.

    Nothing waits for the demotion before the disk is good again: on a slow disk it stands.
    """
    disk.behave(fault)
    demotion = subprocess.Popen(
        ["swapfs", "demote", "--pages", "1000"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        if rng.random() < KILL_IN_SPELL:
            kill_server(dead, rng.uniform(*SPELL_S))
        else:
            time.sleep(rng.uniform(*SPELL_S))
    finally:
        disk.behave("good")
    try:
        demotion.wait(DEMOTION_BOUND_S)  # a server that was killed makes it fail: that is right
    except subprocess.TimeoutExpired:
        demotion.kill()
        raise lab.LabError(f"demotion stands {DEMOTION_BOUND_S} s after the disk is good") from None


def main() -> int:
    """Run the job and return its exit status."""
    minutes = lab.param("minutes", 10)
    report = lab.Report()
    rng = random.Random(time.time_ns())
    with report:
        lab.must("dmesg", "-n", "1")
        disk = FaultyDisk()
        lab.up("--size", "512M", "--pool", "96M", "--file", f"{MAPPED}:700M")
        group = lab.Cgroup("hog", LIMIT_MIB)
        hog = lab.Hog(DATA_MIB, group)
        hog.do("fill")
        churn = Churn(hog)
        churn.start()
        dead: set[int] = set()
        faults = 0
        end_s = time.monotonic() + minutes * 60
        while time.monotonic() < end_s and churn.is_alive():
            life_s = rng.uniform(*PAUSE_S)
            if rng.random() < 0.7:
                kill_server(dead, life_s)
            else:
                time.sleep(life_s)
                bad_spell(disk, rng.choice(FAULTS), rng, dead)
                faults += 1
            lab.say(f"{len(dead)} kills, {faults} disk faults, {churn.pages} pages verified")
        churn.stop()
        report.check(
            "nothing wrong in the soak",
            churn.wrong == 0 and churn.pages > 0,
            f"{len(dead)} kills, {faults} disk faults, {churn.pages} pages, {churn.wrong} wrong "
            + "; ".join(churn.details),
        )
        check_and_take_down(report, hog, group, ("failed_read", "handler"))
        lab.must("dmsetup", "remove", NAME)
        report.check("nothing left", not lab.leftovers(), f"{lab.leftovers()}")
    return report.status


if __name__ == "__main__":
    sys.exit(main())

"""A hog that swaps and verifies without a pause, and what must hold once it has."""

from __future__ import annotations

import threading
from typing import Final

from deploy.vm.guest import lab

DISK: Final = "/dev/disk/by-id/virtio-data0"
UP: Final = ("--size", "384M", "--pool", "24M", "--file", f"{DISK}:512M")
LIMIT_MIB: Final = 48
DATA_MIB: Final = 128
CHURN_S: Final = 2
ROUND_BOUND_S: Final = 300
"""Longest wait for the end of a round, which takes CHURN_S unless swap stands still."""


class Churn(threading.Thread):
    """Has *hog* verify and rewrite without a pause until told to stop; sums its answers."""

    def __init__(self, hog: lab.Hog) -> None:
        super().__init__(name="churn", daemon=True)
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
        """Wait for the round that is under way and end; LabError if it never does."""
        self._stop_asked.set()
        self.join(ROUND_BOUND_S)
        if self.is_alive():
            raise lab.LabError(f"the hog has not answered for {ROUND_BOUND_S} s: swap stands still")


def check_and_take_down(
    report: lab.Report, hog: lab.Hog, group: lab.Cgroup, zero: tuple[str, ...]
) -> None:
    """Verify all that *hog* has, before and after swapoff.

    :param zero: the counters whose names begin so must be 0
    """
    hog.verify(report, "verify all")
    found = lab.status()
    bad = {k: v for k, v in found["counters"].items() if k.startswith(zero) and v}
    report.check("no failures counted", not bad, f"{bad}")
    guards = lab.bad_guards(found)
    report.check("guards hold in the last server", not guards, "; ".join(guards) or "all")
    group.unlimited()
    report.check("down with everything in use", True, lab.down())
    hog.verify(report, "verify after swapoff")
    hog.quit()

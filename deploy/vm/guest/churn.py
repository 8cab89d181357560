"""A hog that swaps and verifies without a pause, while a job does something else."""

from __future__ import annotations

import threading
from typing import Final

from deploy.vm.guest import lab

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

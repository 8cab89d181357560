"""The C helper `toucher` as an object: a process in a cgroup whose pages are known."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

from deploy.vm.guest import lab

if TYPE_CHECKING:
    from types import TracebackType

PROGRAM: Final = lab.JOB / "toucher"
MIX: Final = lab.JOB / "mix"
_FIRST_PAGES: Final = 64


class Toucher:
    """A running helper with *pages* pages, none of them written yet."""

    def __init__(self, pages: int, seed: int, group: lab.Cgroup) -> None:
        self.pages = pages
        command = [str(PROGRAM), str(MIX), str(pages), str(seed), str(group.path)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._answer()
        self._run_on_every_cpu()

    def _run_on_every_cpu(self) -> None:
        """Have the process run on all CPUs before anything is measured.

        Each batch of pages that is unmapped interrupts the CPUs on which a process has ever run
        (x86, Linux 6.14 and later keep them in mm_cpumask), so whether it has met all of them
        would decide how fast it swaps out, by luck.
        """
        every = os.sched_getaffinity(0)
        for cpu in every:
            os.sched_setaffinity(self.process.pid, {cpu})
            self.do(f"fill 0 {_FIRST_PAGES}")
        os.sched_setaffinity(self.process.pid, every)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.process.kill()
        self.process.wait()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise lab.LabError(f"the toucher died: status {self.process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def do(self, command: str) -> dict[str, Any]:
        """Give *command* and wait for its answer."""
        assert self.process.stdin is not None
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()
        return self._answer()

    def swapped_pages(self) -> int:
        """Return how many of its pages are in swap and not mapped."""
        lines = Path("/proc", str(self.process.pid), "status").read_text().splitlines()
        kib = next(int(line.split()[1]) for line in lines if line.startswith("VmSwap:"))
        return kib * 1024 // lab.PAGE_BYTES

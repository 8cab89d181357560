"""Swaps under one workload after the other, each on an instance of its own, and records them all.

/job/out has, for each run: NAME.trace, and NAME.json with the status at its end and a sample of
each of its seconds.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from deploy.vm.guest import lab
from tests.bench.jobs import memcg, programs
from tests.lab.jobs.workloads import WORKLOADS

if TYPE_CHECKING:
    from collections.abc import Mapping

CONFIG: Final = lab.JOB / "setup.toml"
LOG: Final = ("--access-log", "16M")
START_BOUND_S: Final = 60
SETTLE_BOUND_S: Final = 60
SAMPLE_EVERY_S: Final = 0.5
_MOVES: Final = ("read_bytes", "written_bytes", "discarded_pages", "demoted_pages")
_DROP_CACHES: Final = Path("/proc/sys/vm/drop_caches")


class Samples(threading.Thread):
    """Keeps every status that the server leaves: [monotonic s, bytes of the pool, pages below]."""

    def __init__(self) -> None:
        super().__init__(name="samples", daemon=True)
        self.rows: list[tuple[float, int, int]] = []
        self._stop_asked = threading.Event()

    def run(self) -> None:
        while not self._stop_asked.wait(SAMPLE_EVERY_S):
            try:
                content = json.loads((lab.RUNTIME_DIR / "swapfs.json").read_text())
            except (OSError, ValueError):
                continue
            at_s, found = content["written_monotonic_s"], content["status"]
            if not self.rows or self.rows[-1][0] != at_s:
                self.rows.append((at_s, found["pool"]["used_bytes"], found["slots"]["file"]))

    def stop(self) -> None:
        """End it."""
        self._stop_asked.set()
        self.join()


class Run:
    """One workload, under one policy, on one set-up."""

    def __init__(self, report: lab.Report, wanted: Mapping[str, Any]) -> None:
        self._report = report
        self._wanted = wanted
        self.name: str = wanted["name"]
        self._trace = lab.OUT / f"{self.name}.trace"

    def do(self, program: programs.Program) -> None:
        """Swap, record, check; LabError if a step cannot be done."""
        program.before()
        os.sync()
        _DROP_CACHES.write_text("1")
        CONFIG.write_text(self._wanted["config"])
        lab.up("--config", str(CONFIG), "--policy", self._wanted["policy"], *LOG)
        try:
            with memcg.group(self.name, int(self._wanted["limit_mib"])) as group:
                self._record(program, group)
        finally:
            lab.down()
        program.check()

    def _record(self, program: programs.Program, group: memcg.Group) -> None:
        command = ["swapfs", "trace", "record", str(self._trace)]
        recorder = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )  # its progress is for people
        samples = Samples()
        try:
            if not lab.wait_for("the recorder", self._trace.exists, START_BOUND_S):
                raise lab.LabError("the recorder does not begin")
            samples.start()
            began_s = time.monotonic()
            program.run(group)
            seconds = time.monotonic() - began_s
            self._settle()
            samples.stop()
        finally:
            recorder.send_signal(signal.SIGINT)
            said, _ = recorder.communicate(timeout=START_BOUND_S)
        kills = group.oom_kills()
        self._report.check(
            f"{self.name} is recorded whole",
            ", 0 dropped" in said and kills == 0,
            f"{seconds:.1f} s, {kills} kills; {said.strip()}",
        )
        found = {"seconds": seconds, "samples": samples.rows, "status": lab.status()}
        (lab.OUT / f"{self.name}.json").write_text(json.dumps(found))

    def _settle(self) -> None:
        """Wait until nothing moves: the kernel discards a little after the end of a program."""
        before: dict[str, Any] = {}

        def still() -> bool:
            content = lab.snapshot() or {}
            counters = content.get("counters", {})
            stamp = {name: counters.get(name) for name in _MOVES}
            stamp["slots"] = content.get("slots")
            same = stamp == before
            before.update(stamp)
            if not same:
                time.sleep(2)  # the server leaves one each second
            return same

        lab.wait_for("the swap file to be at rest", still, SETTLE_BOUND_S)


def main() -> int:
    """Run the job and return its exit status."""
    report = lab.Report()
    params = json.loads(lab.PARAMS.read_text())
    made: dict[str, programs.Program] = {}
    with report:
        lab.OUT.mkdir(exist_ok=True)
        programs.WORK.mkdir(parents=True)
        for wanted in params["runs"]:
            run = Run(report, wanted)
            if time.monotonic() > params["begin_s"]:  # since the VM was booted
                report.check(run.name, False, "no time was left to begin it")
                continue
            try:
                name = wanted["workload"]
                if name not in made:
                    made[name] = WORKLOADS[name]({**params, **wanted.get("params", {})})
                run.do(made[name])
            except (lab.LabError, OSError, subprocess.SubprocessError) as error:
                report.check(run.name, False, str(error))  # the others tell more
        report.check("nothing left", not lab.leftovers(), f"{lab.leftovers()}")
    return report.status


if __name__ == "__main__":
    sys.exit(main())

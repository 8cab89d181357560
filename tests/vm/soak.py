"""`make soak MINUTES=n`: load, server kills and disk faults in a VM, and a count of each."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from deploy.vm.host.job import make_job, run_job
from deploy.vm.host.problems import kernel_log_problems

SET_UP_S = 900
"""Bound on boot, filling and the final verification under emulation."""


def main() -> int:
    """Run the soak; 0 if nothing was lost and the kernel's log is clean but for the faults."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--kernel", default="6.12")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        params = {"minutes": arguments.minutes}
        result = run_job(
            make_job(Path(work) / "job", "tests.vm.jobs.soak", ["tests/vm/jobs"], params),
            results_dir=Path(work) / "results",
            kernel=arguments.kernel,
            disks_mib=[768],
            timeout_s=arguments.minutes * 60 + SET_UP_S,
        )
    faults = ("I/O error, dev dm-", "I/O error, dev vd")
    problems = [
        line
        for line in kernel_log_problems(result.dmesg)
        if not any(fault in line for fault in faults)
    ]
    for problem in problems:
        print(f"kernel log: {problem}")
    passed = result.exit_status == 0 and not problems
    print("PASS" if passed else "FAIL")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())

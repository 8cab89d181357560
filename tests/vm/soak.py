"""`make soak MINUTES=n`: load, server kills and disk faults in a VM, and a count of each."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1] / "deploy/vm"))

import vm  # noqa: E402  (found through the line above)

SET_UP_S = 900
"""Bound on boot, filling and the final verification under emulation."""


def main() -> int:
    """Run the soak; 0 if nothing was lost and the kernel's log is clean but for the faults."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--kernel", default="6.12")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        job = Path(work) / "job"
        shutil.copytree(HERE / "jobs", job, ignore=shutil.ignore_patterns("__pycache__"))
        (job / "params.json").write_text(json.dumps({"minutes": arguments.minutes}))
        (job / "run").write_text("#!/bin/sh\nPYTHONPATH=/opt/swapfs exec python3 soak.py\n")
        (job / "run").chmod(0o755)
        result = vm.run_job(
            job,
            results_dir=Path(work) / "results",
            kernel=arguments.kernel,
            disks_mib=[768],
            timeout_s=arguments.minutes * 60 + SET_UP_S,
        )
    faults = ("I/O error, dev dm-", "I/O error, dev vd")
    problems = [
        line
        for line in vm.kernel_log_problems(result.dmesg)
        if not any(fault in line for fault in faults)
    ]
    for problem in problems:
        print(f"kernel log: {problem}")
    passed = result.exit_status == 0 and not problems
    print("PASS" if passed else "FAIL")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())

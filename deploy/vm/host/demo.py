"""Show swapfs at work: a VM swaps several times its memory limit on it, and verifies it all.

Prints what happens, then a table of the steps and PASS or FAIL.
"""

from __future__ import annotations

import json
import sys
import tempfile
import textwrap
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from deploy.vm.host.job import VmResult, make_job, run_job
from deploy.vm.host.problems import kernel_log_problems
from deploy.vm.host.proc import VmError

if TYPE_CHECKING:
    from collections.abc import Sequence

_MEMORY_MIB = 1024


@dataclass(frozen=True, slots=True)
class Demo:
    """What the machine of a demo has: MiB of each disk, and Debian packages."""

    disks_mib: tuple[int, ...]
    packages: tuple[str, ...] = ()


ENGINE: Final = ("redis-server",)
"""Far memory: Debian 12 has no other engine, and 13 has this one too."""
DEMOS: Final = {
    "demo": Demo((1280,)),
    "demo_tiers": Demo((640, 640), ENGINE),
}
"""The jobs that are shown."""
_TIMEOUT_S = 3600
_QUIET_S = 300
"""It says every 5 s how far it is; a busy machine took more than 900 s for all of it."""
_WIDTH = 100
_NAME_WIDTH = 20


def run_demo(kernel: str, name: str = "demo") -> int:
    """Run demo *name* of DEMOS on `kernel`; return the exit status, 0 for PASS."""
    started = time.monotonic()
    try:
        with tempfile.TemporaryDirectory(prefix="swapfs-demo-") as folder:
            job = make_job(Path(folder) / "job", f"deploy.vm.jobs.{name}")
            result = run_job(
                job,
                results_dir=Path(folder) / "results",
                kernel=kernel,
                memory_mib=_MEMORY_MIB,
                disks_mib=DEMOS[name].disks_mib,
                packages=DEMOS[name].packages,
                timeout_s=_TIMEOUT_S,
                quiet_s=_QUIET_S,
            )
            steps = _steps(result)
    except (VmError, OSError) as error:
        print(f"demo: {error}", file=sys.stderr)
        print("FAIL")
        return 1
    failed = _print_table(steps)
    print(f"took {time.monotonic() - started:.0f} s, {result.wall_s:.0f} s of it in the VM")
    print(f"FAIL: {', '.join(failed)}" if failed else "PASS")
    return 1 if failed else 0


def _steps(result: VmResult) -> list[dict[str, Any]]:
    """Return the steps that the guest reported, and what the host has to say of the run."""
    path = result.results_dir / "out/report.json"
    steps: list[dict[str, Any]] = json.loads(path.read_text())["steps"] if path.exists() else []
    ended = "hung: its blocked tasks are above" if result.timed_out else "died before the end"
    if result.exit_status is None or not path.exists():
        steps.append({"name": "virtual machine", "ok": False, "detail": ended})
    problems = kernel_log_problems(result.dmesg)
    detail = "; ".join(problems) or "no hang, no I/O error, no OOM kill"
    steps.append({"name": "kernel log", "ok": not problems, "detail": detail})
    return steps


def _print_table(steps: Sequence[dict[str, Any]]) -> list[str]:
    """Print one row a step; return the names of those that failed."""
    print(f"\n{'STEP':{_NAME_WIDTH}}  RESULT  FIGURES")
    indent = " " * (_NAME_WIDTH + 10)
    for step in steps:
        row = f"{step['name']:{_NAME_WIDTH}}  {'ok' if step['ok'] else 'FAIL':6}  {step['detail']}"
        print(textwrap.fill(row, _WIDTH, subsequent_indent=indent, break_long_words=False))
    return [step["name"] for step in steps if not step["ok"]]

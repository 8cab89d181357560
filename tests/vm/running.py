"""One job in a VM of its own, as tests see it."""

from __future__ import annotations

import json
import os
import re
import shutil
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

import pytest

from deploy.vm.host.job import VmResult, make_job, run_job
from deploy.vm.host.problems import kernel_log_problems

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

KERNELS: Final = tuple(os.environ.get("SWAPFS_TEST_KERNELS", "6.12").split(","))
_TAIL_LINES: Final = 60


@dataclass(frozen=True, slots=True)
class JobRun:
    """A job that ended: the steps it reported, its figures, and the kernel's log.

    `off_at_s` is when the VM was reset or switched off, in seconds since the epoch.
    """

    failed: tuple[str, ...]
    steps: tuple[str, ...]
    figures: dict[str, Any]
    dmesg: str
    off_at_s: tuple[float, ...] = ()

    def problems(self, *, expected: str = "", allow_memcg_oom: bool = False) -> list[str]:
        """Return the bad lines of the kernel log but those that match *expected* (a regex)."""
        found = kernel_log_problems(self.dmesg, allow_memcg_oom=allow_memcg_oom)
        return [line for line in found if not (expected and re.search(expected, line))]


def run_module(
    module: str,
    work: Path,
    *,
    params: Mapping[str, float | str] = MappingProxyType({}),
    files: Mapping[str, Path] = MappingProxyType({}),
    before: str = "",
    **options: Any,
) -> JobRun:
    """Run the job that is the Python *module*, with its whole folder, and read its report.

    *files* are put into the job's folder, by name there, and *before* is what its shell does first.
    *options* are those of `run_job`. Fails the test if the VM hung or died.
    """
    folder = module.rpartition(".")[0].replace(".", "/")
    job = make_job(work / "job", module, [folder], params, before=before)
    for name, file in files.items():
        shutil.copy(file, job / name)
    return _read(run_job(job, results_dir=work / "results", **options))


def _read(result: VmResult) -> JobRun:
    """Return what the job reported; fails the test if the VM hung or died."""
    path = result.results_dir / "out/report.json"
    if result.exit_status is None or not path.is_file():
        how = "hung; blocked tasks" if result.timed_out else "died without a report; its end"
        tail = "\n".join(result.console.splitlines()[-_TAIL_LINES:])
        log = result.results_dir / "console.log"
        pytest.fail(f"the VM {how} (all in {log}):\n{tail}", pytrace=False)
    report = json.loads(path.read_text())
    steps = report["steps"]
    failed = [f"{step['name']}: {step['detail']}" for step in steps if not step["ok"]]
    if result.exit_status != 0 and not failed:
        failed = [f"the job exited with {result.exit_status}"]
    return JobRun(
        tuple(failed),
        tuple(step["name"] for step in steps),
        report["figures"],
        result.dmesg,
        tuple(event.at_s for event in result.power if event.by_guest),
    )

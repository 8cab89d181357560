"""Runs jobs in the test VM: one boot a job, each on every kernel of $SWAPFS_TEST_KERNELS."""

from __future__ import annotations

import faulthandler
import json
import os
import re
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

import pytest

from deploy.vm.host.job import VmResult, make_job, run_job
from deploy.vm.host.problems import kernel_log_problems

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from _pytest.terminal import TerminalReporter

    RunVm = Callable[..., "JobRun"]

KERNELS: Final = tuple(os.environ.get("SWAPFS_TEST_KERNELS", "6.12").split(","))
_TAIL_LINES: Final = 60
_NODE: Final = re.compile(r"tests/vm/.*::test_(?P<test>\w+)\[(?P<kernel>[\w.]+)\]$")


@dataclass(frozen=True, slots=True)
class JobRun:
    """A job that ended: the steps it reported, its figures, and the kernel's log."""

    failed: tuple[str, ...]
    steps: tuple[str, ...]
    figures: dict[str, Any]
    dmesg: str

    def problems(self, *, expected: str = "", allow_memcg_oom: bool = False) -> list[str]:
        """Return the bad lines of the kernel log but those that match *expected* (a regex)."""
        found = kernel_log_problems(self.dmesg, allow_memcg_oom=allow_memcg_oom)
        return [line for line in found if not (expected and re.search(expected, line))]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run every test of this directory once for each kernel."""
    if "kernel" in metafunc.fixturenames:
        metafunc.parametrize("kernel", KERNELS)


@pytest.fixture(autouse=True)
def _no_traceback_dump() -> None:
    """Take the suite's traceback dump back: a VM may take longer, and has a bound of its own."""
    faulthandler.cancel_dump_traceback_later()


@pytest.fixture
def run_vm(kernel: str, tmp_path: Path, record_property: Callable[[str, object], None]) -> RunVm:
    """Return a function that runs jobs/NAME.py in a VM of its own and reads its report."""

    def run(
        name: str,
        *,
        timeout_s: float,
        memory_mib: int = 1024,
        disks_mib: Sequence[int] = (),
        params: Mapping[str, float] = MappingProxyType({}),
    ) -> JobRun:
        result = run_job(
            make_job(tmp_path / "job", f"tests.vm.jobs.{name}", ["tests/vm/jobs"], params),
            results_dir=tmp_path / "results",
            kernel=kernel,
            memory_mib=memory_mib,
            disks_mib=disks_mib,
            timeout_s=timeout_s,
        )
        done = _read(result)
        record_property("summary", done.figures.get("summary", ""))
        return done

    return run


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
        tuple(failed), tuple(step["name"] for step in steps), report["figures"], result.dmesg
    )


def pytest_terminal_summary(terminalreporter: TerminalReporter) -> None:
    """Print one table: a line a test, a column a kernel, and below what each run counted."""
    cells: dict[str, dict[str, str]] = {}
    counted = []
    for outcome in ("passed", "failed", "error", "skipped"):
        for report in terminalreporter.stats.get(outcome, []):
            found = _NODE.search(getattr(report, "nodeid", ""))
            if found is None:
                continue
            test, kernel = found["test"].replace("_", " "), found["kernel"]
            word = "ok" if outcome == "passed" else outcome
            took = "" if outcome == "skipped" else f" {report.duration:.0f} s"
            cells.setdefault(test, {})[kernel] = word + took
            if summary := dict(report.user_properties).get("summary"):
                counted.append(f"{kernel}: {test}: {summary}")
    if not cells:
        return
    terminalreporter.section("VM tests by kernel")
    width = max(map(len, cells)) + 2
    terminalreporter.line(" " * width + "".join(f"{kernel:<14}" for kernel in KERNELS))
    for test, row in cells.items():
        line = "".join(f"{row.get(kernel, '-'):<14}" for kernel in KERNELS)
        terminalreporter.line(f"{test:<{width}}{line}".rstrip())
    for line in counted:
        terminalreporter.line(line)

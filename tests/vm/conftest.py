"""Runs jobs in the test VM: one boot a job, each on every kernel of $SWAPFS_TEST_KERNELS."""

from __future__ import annotations

import faulthandler
import math
import re
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, Protocol

import pytest

from tests.vm.running import KERNELS, JobRun, run_module

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from _pytest.terminal import TerminalReporter

_NODE: Final = re.compile(
    r"tests/vm/.*::test_(?P<test>\w+)\[(?P<before>[\w-]+-)?(?P<kernel>[\d.]+)(?P<after>-[\w-]+)?\]$"
)


class RunVm(Protocol):
    """Runs jobs/NAME.py in a VM of its own and reads its report."""

    def __call__(
        self,
        name: str,
        *,
        timeout_s: float,
        quiet_s: float = math.inf,
        memory_mib: int = 1024,
        disks_mib: Sequence[int] = (),
        params: Mapping[str, float | str] = MappingProxyType({}),
        packages: Sequence[str] = (),
    ) -> JobRun: ...


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
    """Return what runs a job on this kernel."""

    def run(
        name: str,
        *,
        timeout_s: float,
        quiet_s: float = math.inf,
        memory_mib: int = 1024,
        disks_mib: Sequence[int] = (),
        params: Mapping[str, float | str] = MappingProxyType({}),
        packages: Sequence[str] = (),
    ) -> JobRun:
        done = run_module(
            f"tests.vm.jobs.{name}",
            tmp_path,
            params=params,
            kernel=kernel,
            memory_mib=memory_mib,
            disks_mib=disks_mib,
            timeout_s=timeout_s,
            quiet_s=quiet_s,
            packages=packages,
        )
        record_property("summary", done.figures.get("summary", ""))
        return done

    return run


def pytest_terminal_summary(terminalreporter: TerminalReporter) -> None:
    """Print one table: a line a test, a column a kernel, and below what each run counted."""
    cells: dict[str, dict[str, str]] = {}
    counted = []
    for outcome in ("passed", "failed", "error", "skipped"):
        for report in terminalreporter.stats.get(outcome, []):
            found = _NODE.search(getattr(report, "nodeid", ""))
            if found is None:
                continue
            kernel, more = found["kernel"], (found["before"] or found["after"] or "").strip("-")
            test = f"{found['test'].replace('_', ' ')} {more}".rstrip()
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

"""Runs jobs in a VM in which systemd is PID 1, and which may be restarted."""

from __future__ import annotations

import faulthandler
from typing import TYPE_CHECKING, Any

import pytest

from tests.vm.running import KERNELS, JobRun, run_module

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    RunSystemd = Callable[..., JobRun]

RELEASES = ("bookworm", "trixie")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run every test of this directory once for each kernel and each Debian."""
    if "kernel" in metafunc.fixturenames:
        metafunc.parametrize("kernel", KERNELS)
    if "release" in metafunc.fixturenames:
        metafunc.parametrize("release", RELEASES)


@pytest.fixture(autouse=True)
def _no_traceback_dump() -> None:
    """Take the suite's traceback dump back: a VM may take longer, and has a bound of its own."""
    faulthandler.cancel_dump_traceback_later()


@pytest.fixture
def run_systemd(kernel: str, release: str, tmp_path: Path) -> RunSystemd:
    """Return a function that runs jobs/NAME.py with systemd as PID 1 and reads its report."""

    def run(name: str, **options: Any) -> JobRun:
        module = f"tests.systemd.jobs.{name}"
        return run_module(module, tmp_path, kernel=kernel, release=release, systemd=True, **options)

    return run

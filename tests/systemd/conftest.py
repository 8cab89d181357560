"""Runs jobs in a VM in which systemd is PID 1, and which may be restarted."""

from __future__ import annotations

import faulthandler
from typing import TYPE_CHECKING, Any

import pytest

from deploy.vm.host.mirror import host_release
from tests.systemd.packages import DEPENDS, INSTALL, packages_for
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
    """Return a function that runs jobs/NAME.py with systemd as PID 1 and reads its report.

    The image of a release that is not the host's has no swapfs: there the package is installed.
    """

    def run(name: str, *, packages: tuple[str, ...] = (), **options: Any) -> JobRun:
        if release != host_release() and not options.get("installs"):
            options |= {"installs": True, "before": INSTALL}
            options["files"] = packages_for(release, tmp_path)
            packages = tuple(sorted({*packages, *DEPENDS}))
        options |= {"kernel": kernel, "release": release, "systemd": True, "packages": packages}
        return run_module(f"tests.systemd.jobs.{name}", tmp_path, **options)

    return run

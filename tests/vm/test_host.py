"""What a test run leaves on the host when it is killed: nothing."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from deploy.vm.host.cache import Cache
from deploy.vm.host.job import work_dir

CHECKOUT = Path(__file__).parents[2]
GONE_WITHIN_S = 20.0

pytestmark = [pytest.mark.vm, pytest.mark.vm_full, pytest.mark.timeout(600)]


def _children(pid: int) -> list[int]:
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in found]


def _alive(pid: int) -> bool:
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False


def test_killed_run_leaves_nothing(kernel: str, tmp_path: Path) -> None:
    job = tmp_path / "job"
    job.mkdir()
    (job / "run").write_text("#!/bin/sh\necho the job runs\nexec sleep 600\n")
    (job / "run").chmod(0o755)
    command = [sys.executable, "-m", "deploy.vm", "run", str(job), "--kernel", kernel]
    with subprocess.Popen(
        [*command, "--results", str(tmp_path / "results")],
        cwd=CHECKOUT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert any("the job runs" in line for line in process.stdout), "ended before its job began"
        machines = _children(process.pid)
        assert machines
        process.kill()
    deadline_s = time.monotonic() + GONE_WITHIN_S
    while any(_alive(pid) for pid in machines):
        assert time.monotonic() < deadline_s, f"still there: {machines}"
        time.sleep(0.1)
    with work_dir():  # the next run sweeps up
        leftovers = [path for path in (Cache().root / "runs").glob(f"{process.pid}-*")]
    assert leftovers == []

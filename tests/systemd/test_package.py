"""The life of the Debian package on a real system: install, reboot, upgrade, remove, purge."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from deploy.vm.host import container
from deploy.vm.host.job import make_job
from deploy.vm.host.mirror import host_release
from tests.systemd.conftest import RELEASES
from tests.systemd.packages import BUILD_TIMEOUT_S, DEPENDS, packages_for

if TYPE_CHECKING:
    from tests.systemd.conftest import RunSystemd

TIMEOUT_S = 1800
STATES_TIMEOUT_S = 240

pytestmark = [pytest.mark.vm, pytest.mark.timeout(TIMEOUT_S + BUILD_TIMEOUT_S + 300)]


@pytest.mark.parametrize(
    "userland",
    [
        pytest.param(release, marks=() if release == host_release() else pytest.mark.vm_full)
        for release in RELEASES
    ],
)
def test_its_scripts_keep_what_runs_or_refuse(userland: str, tmp_path: Path) -> None:
    """With a stand-in for swapfs, under a real systemd in namespaces: no VM."""
    sources = ["tests/systemd/jobs", "deploy/__init__.py", "deploy/vm/__init__.py"]
    job = make_job(tmp_path / "job", "tests.systemd.jobs.scripts", [*sources, "deploy/vm/guest"])
    for name, path in packages_for(userland, tmp_path).items():
        shutil.copy(path, job / name)
    stand_in = {"/usr/bin/swapfs": Path(__file__).with_name("jobs") / "stand-in"}
    out = container.run_job(
        job, stand_in, release=userland, timeout_s=STATES_TIMEOUT_S, packages=DEPENDS
    )
    report = out / "report.json"
    assert report.exists(), (out / "systemd.log").read_text()[-3000:]
    steps = json.loads(report.read_text())["steps"]
    assert [step for step in steps if not step["ok"]] == []
    assert len(steps) > 10


@pytest.mark.vm_full
def test_install_reboot_upgrade_remove_purge(
    run_systemd: RunSystemd, release: str, tmp_path: Path
) -> None:
    run = run_systemd(
        "package",
        timeout_s=TIMEOUT_S,
        packages=DEPENDS,
        installs=True,
        files=packages_for(release, tmp_path),
    )
    print(json.dumps(run.figures, indent=1))
    assert run.failed == ()
    assert run.problems() == []

"""The units under a real systemd, that of each Debian, in namespaces: seconds, and no VM."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from deploy.vm.host import container
from deploy.vm.host.job import make_job
from deploy.vm.host.mirror import host_release
from tests.systemd.conftest import RELEASES

DEPLOY = Path(__file__).parents[2] / "deploy"
UNITS = ("swapfs.service", "swapfs@.service", "swapfs-sleep.service", "swapfs-sleep@.service")
DROP_INS = ("swap.d/50-swapfs.conf", "run-swapfs-.mount.d/50-swapfs.conf")
TIMEOUT_S = 240

pytestmark = [pytest.mark.vm, pytest.mark.timeout(TIMEOUT_S + 300)]


@pytest.mark.parametrize(
    "userland",
    [
        pytest.param(release, marks=() if release == host_release() else pytest.mark.vm_full)
        for release in RELEASES
    ],
)
def test_every_event_ends_in_the_state_that_the_docs_say(userland: str, tmp_path: Path) -> None:
    sources = ["tests/systemd/jobs", "deploy/__init__.py", "deploy/vm/__init__.py"]
    job = make_job(tmp_path / "job", "tests.systemd.jobs.states", [*sources, "deploy/vm/guest"])
    files = {f"/etc/systemd/system/{name}": DEPLOY / name for name in (*UNITS, *DROP_INS)}
    files["/usr/local/bin/swapfs"] = Path(__file__).with_name("jobs") / "stand-in"
    for name in ("swapfs", "b-c"):
        files[f"/etc/swapfs/{name}.toml"] = DEPLOY / "swapfs.toml.example"
    out = container.run_job(job, files, release=userland, timeout_s=TIMEOUT_S)
    report = out / "report.json"
    assert report.exists(), (out / "systemd.log").read_text()[-3000:]
    steps = json.loads(report.read_text())["steps"]
    assert [step for step in steps if not step["ok"]] == []
    assert len(steps) > 15

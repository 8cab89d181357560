"""The life of the Debian package on a real system: install, reboot, upgrade, remove, purge."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from deploy import deb
from deploy.vm.host import container
from deploy.vm.host.app import CHECKOUT
from deploy.vm.host.cache import Cache
from deploy.vm.host.job import make_job
from deploy.vm.host.mirror import host_release
from tests.systemd.conftest import RELEASES

if TYPE_CHECKING:
    from tests.systemd.conftest import RunSystemd

TIMEOUT_S = 1800
BUILD_TIMEOUT_S = 900
NEWER = ".99"
"""Makes of a version a newer one."""
INIT = Path("swapfs/__init__.py")
DEPENDS = (
    *("python3-click", "python3-lz4", "python3-prometheus-client"),
    *("python3-pyfuse3", "python3-trio"),
)

STATES_TIMEOUT_S = 240

pytestmark = [pytest.mark.vm, pytest.mark.timeout(TIMEOUT_S + BUILD_TIMEOUT_S + 300)]


def packages_for(release: str, work: Path) -> dict[str, Path]:
    """Return both packages for *release*, by the names that the jobs know."""
    first, newer = built_here(work) if release == host_release() else built_in(release)
    return {"first.deb": first, "newer.deb": newer}


def built_here(work: Path) -> list[Path]:
    """Return packages of this checkout and of a newer one, made on this machine."""
    newer = work / "newer"
    newer.mkdir()
    for name in ("CHANGELOG.md", "LICENSE", "README.md", "pyproject.toml"):
        shutil.copy(CHECKOUT / name, newer)
    for name in ("deploy", "docs", "swapfs"):
        shutil.copytree(CHECKOUT / name, newer / name, ignore=shutil.ignore_patterns("*.so"))
    text, changed = re.subn(r'(__version__ = "[^"]+)', rf"\g<1>{NEWER}", (newer / INIT).read_text())
    assert changed == 1
    (newer / INIT).write_text(text)
    return [deb.build(project, work / "deb", lint=False) for project in (CHECKOUT, newer)]


def built_in(release: str) -> list[Path]:
    """Return the same, made of what is committed in a bare Debian of that *release*."""
    folder = Cache().root.parent / f"bare-{release}" / "deb"
    shutil.rmtree(folder, ignore_errors=True)
    build = 'python3 -m deploy.deb --no-lint "$SWAPFS_CACHE/deb"'
    newer = rf"""sed -i 's/^\(__version__ = "[^"]*\)"/\1{NEWER}"/' {INIT}"""
    commands = ("make deb-packages", build, newer, build)
    subprocess.run(
        (sys.executable, "-m", "deploy.bare", release, *commands),
        cwd=CHECKOUT,
        check=True,
        timeout=BUILD_TIMEOUT_S,
    )
    made = sorted(folder.glob("swapfs_*.deb"), key=lambda path: NEWER in path.name)
    assert len(made) == 2, shlex.join(map(str, made))
    return made


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

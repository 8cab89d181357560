"""swapfs as Debian packages, for the tests that install it."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

from deploy import deb
from deploy.vm.host.app import CHECKOUT
from deploy.vm.host.cache import Cache, digest
from deploy.vm.host.mirror import host_release
from deploy.vm.host.proc import run

BUILD_TIMEOUT_S: Final = 900
NEWER: Final = ".99"
"""Makes of a version a newer one."""
INIT: Final = Path("swapfs/__init__.py")
DEPENDS: Final = (
    *("python3-click", "python3-lz4", "python3-prometheus-client"),
    *("python3-pyfuse3", "python3-trio"),
)
FILES: Final = ("CHANGELOG.md", "LICENSE", "README.md", "pyproject.toml")
FOLDERS: Final = ("deploy", "docs", "swapfs")
INSTALL: Final = "dpkg-query -W swapfs >/dev/null 2>&1 || apt-get -y install ./first.deb || exit\n"
"""What a job in an image without swapfs does before anything else, at its first boot."""


def packages_for(release: str, work: Path) -> dict[str, Path]:
    """Return this package and a newer one for *release*, by the names that the jobs know."""
    first, newer = built_here(work) if release == host_release() else built_in(release)
    return {"first.deb": first, "newer.deb": newer}


def built_here(work: Path) -> list[Path]:
    """Return packages of this checkout and of a newer one, made on this machine."""
    newer = work / "newer"
    newer.mkdir()
    for name in FILES:
        shutil.copy(CHECKOUT / name, newer)
    for name in FOLDERS:
        shutil.copytree(CHECKOUT / name, newer / name, ignore=shutil.ignore_patterns("*.so"))
    text, changed = re.subn(r'(__version__ = "[^"]+)', rf"\g<1>{NEWER}", (newer / INIT).read_text())
    assert changed == 1
    (newer / INIT).write_text(text)
    return [deb.build(project, work / "deb", lint=False) for project in (CHECKOUT, newer)]


def built_in(release: str) -> list[Path]:
    """Return the same, made of what is committed in a bare Debian of that *release*.

    That takes minutes, so they are kept for the next test of the same sources.
    """
    bare = Cache().root.parent / f"bare-{release}"
    folder = bare / f"deb-{_committed()}"
    if len(_made(folder)) != 2:
        for old in bare.glob("deb*"):
            shutil.rmtree(old, ignore_errors=True)
        build = f'python3 -m deploy.deb --no-lint "$SWAPFS_CACHE/{folder.name}"'
        newer = rf"""sed -i 's/^\(__version__ = "[^"]*\)"/\1{NEWER}"/' {INIT}"""
        commands = ("make deb-packages", build, newer, build)
        subprocess.run(
            (sys.executable, "-m", "deploy.bare", release, *commands),
            cwd=CHECKOUT,
            check=True,
            timeout=BUILD_TIMEOUT_S,
        )
    made = _made(folder)
    assert len(made) == 2, shlex.join(map(str, made))
    return made


def _made(folder: Path) -> list[Path]:
    return sorted(folder.glob("swapfs_*.deb"), key=lambda path: NEWER in path.name)


def _committed() -> str:
    """Return a digest of the committed state of what goes into a package: not of the test VM."""
    git = ("git", "-c", "safe.directory=*", "-C", str(CHECKOUT), "ls-tree", "-r", "HEAD", "--")
    listed = run([*git, *FILES, *FOLDERS], "asking git").splitlines()
    return digest(*(line for line in listed if "\tdeploy/vm/" not in line))

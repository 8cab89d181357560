"""Build the Debian package for the release that this runs on: ``make deb``.

A build tree is made in a temporary folder: the sources, debian/ from deploy/debian, a changelog
made from the version, and the setup.py that the oldest setuptools needs. Nothing is left in the
checkout but the package, and the version stands in swapfs/__init__.py alone.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from email.utils import formatdate
from pathlib import Path

from deploy.vm.host.app import CHECKOUT, copy_files, source_files
from deploy.vm.host.proc import VmError, need, run, say

_SOURCES = ("CHANGELOG.md", "LICENSE", "README.md", "deploy", "docs", "swapfs")
_VERSION = re.compile(r'^__version__ = "([^"]+)"$', re.MULTILINE)
_MAINTAINER = re.compile(r"^Maintainer: (.+)$", re.MULTILINE)
_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"  # Debian's own Python, whatever else is installed
_LINTIAN = ("lintian", "--fail-on", "error,warning", "--info", "--allow-root")


def version(project: Path) -> str:
    """Return the version of the checkout `project` for this release of Debian.

    The release is part of it: a package for Debian 12 does not fit Python of 13, and an upgrade of
    the release must find a newer one.
    """
    found = _VERSION.search((project / "swapfs" / "__init__.py").read_text())
    if found is None:
        raise VmError(f"{project}/swapfs/__init__.py has no __version__")
    release = platform.freedesktop_os_release()
    if release.get("ID") != "debian" or "VERSION_ID" not in release:
        raise VmError(f"this is {release.get('PRETTY_NAME')}: build in Debian 12 or later")
    return f"{found[1]}+deb{release['VERSION_ID']}"


def make_tree(project: Path, tree: Path) -> None:
    """Make the build tree of the checkout `project` in the empty folder `tree`."""
    files = [file for name in _SOURCES for file in source_files(project / name)]
    copy_files(files, project, tree)
    debian = tree / "debian"
    shutil.copytree(project / "deploy" / "debian", debian)
    shutil.move(debian / "setup.py", tree / "setup.py")
    shutil.copy(project / "pyproject.toml", debian / "pyproject.toml")
    shutil.move(debian / "swapfs.changelog.in", debian / "changelog")
    _fill_changelog(debian / "changelog", project, _maintainer(debian))


def build(project: Path, out: Path, *, lint: bool) -> Path:
    """Build the package of the checkout `project` into `out`; return the path of it.

    VmError if it cannot be built, or lintian complains.
    """
    need("dpkg-buildpackage", "dh", *(_LINTIAN[:1] if lint else ()))
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="swapfs-deb-") as work:
        tree = Path(work, "swapfs")
        make_tree(project, tree)
        log = out / "build.log"
        say(f"building swapfs {version(project)} ...")
        inside = ["env", "-C", str(tree), "LC_ALL=C.UTF-8", f"PATH={_PATH}"]
        run(
            [*inside, "dpkg-buildpackage", "--build=binary", "--no-sign"],
            "building the package",
            log,
        )
        changes = next(Path(work).glob("*.changes"))
        if lint:
            say("lintian ...")
            said = subprocess.run(
                [*_LINTIAN, str(changes)], text=True, capture_output=True, check=False
            )
            if said.returncode != 0:
                raise VmError(f"lintian complains:\n{said.stdout}{said.stderr}")
        built = next(Path(work).glob("swapfs_*.deb"))
        return Path(shutil.copy(built, out))


def _maintainer(debian: Path) -> str:
    found = _MAINTAINER.search((debian / "control").read_text())
    assert found is not None, "debian/control names no maintainer"
    return found[1]


def _fill_changelog(path: Path, project: Path, maintainer: str) -> None:
    """Put version, maintainer and date into the changelog: the date of the newest source."""
    newest = max(file.stat().st_mtime for file in source_files(project / "swapfs"))
    given = os.environ.get("SOURCE_DATE_EPOCH")
    values = {
        "VERSION": version(project),
        "MAINTAINER": maintainer,
        "DATE": formatdate(float(given) if given else newest),
    }
    text = path.read_text()
    for key, value in values.items():
        text = text.replace(f"@{key}@", value)
    path.write_text(text)


def main(argv: list[str] | None = None) -> int:
    """Run the command line `argv` and return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m deploy.deb", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--project", type=Path, default=CHECKOUT, help="the checkout to build")
    parser.add_argument("--no-lint", action="store_true", help="without lintian")
    parser.add_argument("out", type=Path, help="where the package goes")
    args = parser.parse_args(argv)
    try:
        print(build(args.project, args.out, lint=not args.no_lint))
    except (VmError, OSError) as error:
        print(f"deb: error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

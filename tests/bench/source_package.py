"""The upstream source of a Debian package, fetched by apt and kept in the VM's cache.

The archive is the one that this machine's apt is configured with; apt checks its signatures.
"""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

from deploy.vm.host.cache import Cache, digest
from deploy.vm.host.mirror import PrivateApt, host_release, source_line
from deploy.vm.host.proc import VmError, run

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


class _Sources(PrivateApt):
    """The same private apt, for source packages."""

    def update(self) -> None:
        for folder in ("state/lists/partial", "cache/archives/partial"):
            (self.work / folder).mkdir(parents=True, exist_ok=True)
        (self.work / "status").touch()
        line = source_line(self.suite).replace("deb ", "deb-src ", 1)
        (self.work / "sources.list").write_text(line + "\n")
        run(["apt-get", *self._options(), "update"], f"fetching the {self.suite} index", self.log)

    def download(self, packages: Sequence[str], into: Path) -> list[Path]:
        into.mkdir(parents=True, exist_ok=True)
        fetch = ["apt-get", *self._options(), "source", "--download-only", *packages]
        run(["env", "-C", str(into), *fetch], f"fetching {' '.join(packages)}", self.log)
        return sorted(into.iterdir())


def fetch_source(package: str) -> Path:
    """Return the upstream tar file of *package* in the host's release; VmError if it fails."""
    cache, release = Cache(), host_release()

    def build(into: Path) -> None:
        apt = _Sources(into / "apt", release, cache.logs / f"source-{package}.log")
        apt.update()
        tars = [file for file in apt.download([package], into / "all") if ".orig.tar." in file.name]
        if len(tars) != 1:
            raise VmError(f"the source of {package} has {len(tars)} upstream tar files, not one")
        tars[0].rename(into / tars[0].name)
        for scrap in ("apt", "all"):
            shutil.rmtree(into / scrap)

    with cache.locked():
        entry = cache.entry(f"source-{package}", digest(release, package), build)
    return next(entry.glob("*.orig.tar.*"))

"""What the machine must have for swapfs to be built, by the names of Debian's packages."""

from __future__ import annotations

import os
import shutil
import subprocess
import sysconfig
from pathlib import Path
from typing import Final

LIBRARIES: Final = {
    "fuse3": "libfuse3-dev",
    "libcrypto": "libssl-dev",
    "liblz4": "liblz4-dev",
    "libzstd": "libzstd-dev",
    "zlib": "zlib1g-dev",
}
"""By the name that pkg-config knows: Debian's package."""


def missing() -> list[str]:
    """Return Debian's names of the packages that are needed to build and are not there."""
    compiler = (os.environ.get("CC") or "cc").split()[0]
    lacks = [] if shutil.which(compiler) else ["gcc", "libc6-dev"]
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        lacks.append("python3-dev")
    if shutil.which("pkg-config") is None:  # pyfuse3 asks it too
        return [*lacks, "pkg-config", *LIBRARIES.values()]
    for library, package in LIBRARIES.items():
        asked = subprocess.run(("pkg-config", "--exists", library), check=False)
        if asked.returncode != 0:
            lacks.append(package)
    return lacks


def check() -> None:
    """Stop, with the command that helps, where something is missing.

    :raises SystemExit: it is
    """
    lacks = missing()
    if lacks:
        raise SystemExit(
            f"swapfs: to build it, these are missing: apt-get install {' '.join(lacks)}"
        )

"""Builds swapfs with setuptools, if the machine has what its C sources need; says what it lacks.

``pip``, ``pipx`` and ``uv`` build through this (pyproject.toml). A compiler that misses a header
says so in a hundred lines, and not which package has it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sysconfig
from pathlib import Path
from typing import Any, Final

from setuptools import build_meta
from setuptools.build_meta import (
    build_sdist,
    get_requires_for_build_editable,
    get_requires_for_build_sdist,
    get_requires_for_build_wheel,
)

__all__ = [
    "build_editable",
    "build_sdist",
    "build_wheel",
    "get_requires_for_build_editable",
    "get_requires_for_build_sdist",
    "get_requires_for_build_wheel",
    "prepare_metadata_for_build_editable",
    "prepare_metadata_for_build_wheel",
]

LIBRARIES: Final = {"fuse3": "libfuse3-dev", "liblz4": "liblz4-dev", "libzstd": "libzstd-dev"}
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


def prepare_metadata_for_build_wheel(*args: Any, **kwargs: Any) -> str:
    """Do as setuptools does; it is what comes first, before any dependency is built."""
    check()
    return str(build_meta.prepare_metadata_for_build_wheel(*args, **kwargs))


def prepare_metadata_for_build_editable(*args: Any, **kwargs: Any) -> str:
    """Do as setuptools does."""
    check()
    return str(build_meta.prepare_metadata_for_build_editable(*args, **kwargs))


def build_wheel(*args: Any, **kwargs: Any) -> str:
    """Do as setuptools does."""
    check()
    return str(build_meta.build_wheel(*args, **kwargs))


def build_editable(*args: Any, **kwargs: Any) -> str:
    """Do as setuptools does."""
    check()
    return str(build_meta.build_editable(*args, **kwargs))

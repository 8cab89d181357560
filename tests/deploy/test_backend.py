"""Who builds swapfs without the packages it needs is told which they are, and how to get them."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PLACE = ROOT / "deploy" / "setup"
CHECK = "import build_needs; build_needs.check()"


def checked(path: Path | str) -> tuple[int, str]:
    done = subprocess.run(
        (sys.executable, "-c", CHECK),
        env={"PATH": str(path), "PYTHONPATH": str(PLACE)},
        text=True,
        capture_output=True,
        check=False,
    )
    return done.returncode, done.stderr


def test_it_is_what_pip_and_the_vm_build_with() -> None:
    built = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]
    assert (built["build-backend"], built["backend-path"]) == ("deploy.setup.backend", ["."])


def test_every_package_is_one_that_the_set_up_installs() -> None:
    listed = (PLACE / "packages.txt").read_text().split()
    _, said = checked("/nowhere")
    wanted = said.strip().rpartition("apt-get install ")[2].split()
    assert {"gcc", "pkg-config", "libfuse3-dev", "libzstd-dev"} <= set(wanted) <= set(listed)


def test_every_library_that_is_linked_is_looked_for() -> None:
    extensions = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    linked = {name for each in extensions["ext-modules"] for name in each.get("libraries", ())}
    code = "import build_needs; print(*build_needs.LIBRARIES)"
    known = subprocess.run(
        (sys.executable, "-c", code),
        env={"PYTHONPATH": str(PLACE)},
        text=True,
        capture_output=True,
        check=True,
    ).stdout.split()
    assert {f"-l{name}" for name in linked - {"dl"}} <= set(_link_flags(known))


def _link_flags(libraries: list[str]) -> list[str]:
    asked = ("pkg-config", "--libs", *libraries)
    return subprocess.run(asked, text=True, capture_output=True, check=True).stdout.split()


def test_one_library_that_is_missing_is_named_alone(tmp_path: Path) -> None:
    for name, body in (("cc", "exit 0"), ("pkg-config", '[ "$2" != fuse3 ]')):
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / name).chmod(0o755)
    status, said = checked(tmp_path)
    assert status == 1
    assert said == "swapfs: to build it, these are missing: apt-get install libfuse3-dev\n"


@pytest.mark.parametrize("path", ["/usr/bin:/bin"])
def test_where_all_is_there_nothing_is_said(path: str) -> None:
    assert checked(path) == (0, "")

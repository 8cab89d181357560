"""Instances of the shipped command on real FUSE mounts. Root, no swapon."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fuse.instance import Instance, Start

_numbers = itertools.count(1)  # an instance's name is its own on the whole machine
_TOOLS = ("losetup", "mkswap", "blkid", "fio")


def _missing() -> str:
    """Return what keeps these tests from running here and the cure, or an empty string."""
    if os.geteuid() != 0:
        return "needs root to mount: run it with sudo"
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        return "needs /dev/fuse: run 'modprobe fuse', or give the container the device"
    if not os.path.exists("/dev/loop-control"):
        return "needs loop devices: run 'modprobe loop'"
    missing = [tool for tool in _TOOLS if shutil.which(tool) is None]
    if missing:
        return f"needs {', '.join(missing)}: run 'make build', or install mount, util-linux, fio"
    return ""


@pytest.fixture(scope="session", autouse=True)
def machine() -> None:
    """Skip where FUSE cannot be mounted; in CI that is a failure, never a silent gap."""
    reason = _missing()
    if reason and os.environ.get("CI"):
        pytest.fail(reason, pytrace=False)
    if reason:
        pytest.skip(reason)


@contextlib.contextmanager
def _makers(directory: Path) -> Iterator[tuple[Start, Start]]:
    """Give a function that makes instances and one that mounts them; all are taken down."""
    made: list[Instance] = []

    def make() -> Instance:
        made.append(Instance(directory, f"t{os.getpid()}-{next(_numbers)}"))
        return made[-1]

    def start(
        size: str = "64M", pool: str = "96M", file: str | None = None, *options: object
    ) -> Instance:
        instance = make()
        words: list[object] = ["--size", size, "--pool", pool, *options]
        if file is not None:
            words += ["--file", f"{instance.backing}:{file}"]
        instance.mount(*words)
        return instance

    try:
        yield make, start
    finally:
        for instance in reversed(made):
            instance.close()


@pytest.fixture
def make_instance(tmp_path: Path) -> Iterator[Start]:
    """Make instances that are not mounted yet."""
    with _makers(tmp_path) as (make, _):
        yield make


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Mount an instance in the background: size, pool, file (None: no file tier), more options."""
    with _makers(tmp_path) as (_, start):
        yield start


@pytest.fixture(scope="module")
def start_module(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    """Mount an instance for all tests of a module."""
    with _makers(tmp_path_factory.mktemp("module")) as (_, start):
        yield start


@pytest.fixture
def small(start: Start) -> Instance:
    """64 MiB over a pool that is 16 MiB and a file: everything is demoted sooner or later."""
    return start("64M", "16M", "128M")

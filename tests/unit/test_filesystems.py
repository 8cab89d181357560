"""What the kernel says of a file system, and what that means."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from swapfs.host import filesystems, syscalls
from swapfs.host.filesystems import Kind


def test_the_type_is_that_of_stat(tmp_path: Path) -> None:
    for place in (tmp_path, Path("/proc"), Path("/dev")):
        fd = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
        try:
            found = syscalls.file_system_type(fd)
        finally:
            os.close(fd)
        shown = subprocess.check_output(["stat", "-f", "-c", "%t", place], text=True)
        assert found == int(shown, 16)


def test_dev_is_memory_and_the_unknown_is_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    assert filesystems.of(Path("/dev")).kind is Kind.MEMORY
    monkeypatch.setattr(syscalls, "file_system_type", lambda fd: 0x1234567)
    assert filesystems.of(Path("/")).kind is Kind.PLAIN


def test_a_place_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        filesystems.of(tmp_path / "none")

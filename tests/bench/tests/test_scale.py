"""Part "scale" of the benchmarks: what it refuses to call a result."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.bench import scale
from tests.bench.record import Recorder, Results


def _instance(**slots: int) -> Any:
    return SimpleNamespace(status=lambda: {"slots": slots})


def test_another_number_of_slots_is_no_result() -> None:
    scale.check_used(_instance(empty=7, same=3, compressed=1), 4)
    with pytest.raises(RuntimeError, match="4 slots are in use, not 5"):
        scale.check_used(_instance(empty=7, same=3, compressed=1), 5)


def test_what_does_not_fit_into_memory_is_skipped_and_said() -> None:
    results = Results()
    recorder = Recorder(results, scale.NAME)
    assert scale.fits(recorder, "little", 1 << 20)
    assert not scale.fits(recorder, "a pool of 1 PiB", 1 << 50)
    assert [skipped.subject for skipped in results.skipped] == ["a pool of 1 PiB"]


def test_a_page_is_read_in_time_or_its_error_is_told(tmp_path: Path) -> None:
    file = tmp_path / "swap"
    file.write_bytes(b"x" * scale.PAGE_SIZE)
    fd = os.open(file, os.O_RDONLY)
    assert scale.read_in_time(fd, 0) == b"x" * scale.PAGE_SIZE
    os.close(fd)
    with pytest.raises(RuntimeError, match="Bad file descriptor"):
        scale.read_in_time(fd, 0)


def test_age_and_end_of_a_process() -> None:
    with subprocess.Popen(["sleep", "60"]) as process:
        young = scale.age_s(process.pid)
        assert 0 <= young < 30
        assert young < scale.age_s(os.getpid())
        process.kill()
        scale.wait_for_end(process.pid)  # a zombie until we wait for it
    scale.wait_for_end(process.pid)


def test_what_is_written_is_all_that_is_read_at_random(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "O_DIRECT", 0)  # a tmpfs may refuse it
    file = tmp_path / "swap"
    file.touch()
    page = os.urandom(scale.PAGE_SIZE)
    scale.write(file, page, [0, scale.MiB])
    assert file.read_bytes() == page * (2 * scale.MiB // scale.PAGE_SIZE)
    assert scale.read_p50_us(file, [0, scale.MiB]) > 0
    with pytest.raises(RuntimeError, match="short read"):
        scale.read_p50_us(file, [7 * scale.MiB])

"""Proactive reclaim: how hard it presses, and where it stops."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from swapfs.command.main import main
from swapfs.errors import OperationError
from swapfs.lab.reclaim import Bounds, Cgroup, Step, drive, wanted_bytes
from swapfs.units import GiB, MiB

LINE = "some avg10=0.00 avg60=0.00 avg300=0.00 total={}\nfull avg10=0.00 total=0\n"


def make(path: Path, current: int = GiB, stalled_us: int = 0) -> Cgroup:
    (path / "memory.current").write_text(f"{current}\n")
    (path / "memory.pressure").write_text(LINE.format(stalled_us))
    (path / "memory.reclaim").touch()
    return Cgroup(path)


@pytest.mark.parametrize(
    ("pressure", "current", "expected"),
    [
        (0.0, GiB, int(GiB * 0.0005) // 4096 * 4096),
        (0.05, GiB, int(GiB * 0.00025) // 4096 * 4096),
        (0.1, GiB, 0),
        (7.0, GiB, 0),
        (0.0, 64 * MiB, 0),
        (0.0, 1 << 50, 32 * MiB),
    ],
)
def test_the_less_pressure_the_more_is_asked_for(
    pressure: float, current: int, expected: int
) -> None:
    bounds = Bounds(step_bytes=32 * MiB, floor_bytes=64 * MiB)
    assert wanted_bytes(bounds, pressure, current) == expected


def test_pressure_is_that_of_the_interval_and_the_end_is_at_once(tmp_path: Path) -> None:
    cgroup = make(tmp_path, stalled_us=5_000_000)
    steps: list[Step] = []
    now = [0.0]
    script: Iterator[int | None] = iter([5_000_000, 5_500_000, None])

    def wait(seconds: float) -> bool:
        total = next(script)
        if total is None:
            return True
        now[0] += seconds
        (tmp_path / "memory.pressure").write_text(LINE.format(total))
        return False

    asked = drive(cgroup, Bounds(), wait, interval_s=6.0, seen=steps.append, clock_s=lambda: now[0])
    assert [round(step.pressure_percent, 2) for step in steps] == [0.0, 8.33]
    assert [bool(step.asked_bytes) for step in steps] == [True, False]
    assert asked == steps[0].asked_bytes == int((tmp_path / "memory.reclaim").read_text())


def test_what_is_no_cgroup_is_one_clear_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["reclaim", "--cgroup", str(tmp_path)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "memory.current" in line
    make(tmp_path)
    (tmp_path / "memory.pressure").write_text("nothing")
    with pytest.raises(OperationError, match="not as the kernel"):
        Cgroup(tmp_path).stalled_us()


def test_the_command_ends_when_its_time_is_up(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make(tmp_path)
    assert main(["reclaim", "--cgroup", str(tmp_path), "--seconds", "0"]) == 0
    assert "asked for 0" in capsys.readouterr().out

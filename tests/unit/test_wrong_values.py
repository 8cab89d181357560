"""Values on the command line that no type of Python's refuses by itself: one line, exit code 2."""

from __future__ import annotations

from pathlib import Path

import pytest

from swapfs.command.main import main

NO_NUMBERS = [
    ["reclaim", "--cgroup", ".", "--interval", "nan"],
    ["reclaim", "--cgroup", ".", "--seconds", "NaN"],
    ["reclaim", "--cgroup", ".", "--psi", "nan"],
    ["reclaim", "--cgroup", ".", "--ratio", "-nan"],
    ["top", "--once", "--seconds", "nan"],
    ["trace", "record", "out", "--seconds", "nan"],
]


@pytest.mark.parametrize("argv", NO_NUMBERS, ids=" ".join)
def test_nan_is_no_number(
    argv: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(argv) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1, said
    assert "not a number" in said
    assert not list(tmp_path.iterdir())


def test_a_number_that_python_does_not_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["tier", "set", "one", f"priority={'1' * 5000}", "--runtime-dir", str(tmp_path)]
    assert main(argv) == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_a_directory_that_looks_like_a_cgroup(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "memory.current").write_text("much")
    (tmp_path / "memory.pressure").write_text("some avg10=0.00 avg60=0.00 avg300=0.00 total=0\n")
    (tmp_path / "memory.reclaim").write_text("")
    assert main(["reclaim", "--cgroup", str(tmp_path), "--seconds", "0"]) == 1
    assert "not as the kernel writes it" in capsys.readouterr().err


def test_a_directory_for_metrics_that_is_not_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also when nothing is up: the timer that calls it is wrong now, and not at the next boot."""
    where = ["--textfile", str(tmp_path / "nowhere"), "--runtime-dir", str(tmp_path)]
    assert main(["metrics", *where]) == 1
    assert capsys.readouterr().err == f"swapfs: {tmp_path}/nowhere is no directory\n"

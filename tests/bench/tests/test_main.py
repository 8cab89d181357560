"""Running the benchmarks: parts that fail, a stop in the middle, what is written, exit codes."""

from __future__ import annotations

import importlib
import os
import re
import shutil
import signal
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.bench import host, names, release, report
from tests.bench.record import Failure, Plan, Recorder, load

bench = importlib.import_module("tests.bench.__main__")
Run = Callable[[Plan, Recorder], None]


@pytest.fixture(autouse=True)
def _signals() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in bench.SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def part(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Run], None]:
    """Return a function that puts a part of our own in place of one that measures."""

    def put(name: str, run: Run) -> None:
        module = types.ModuleType(name)
        module.__dict__["run"] = run
        monkeypatch.setitem(sys.modules, f"tests.bench.{name}", module)

    return put


def measured(plan: Plan, recorder: Recorder) -> None:
    for value in (26.0, 27.0, 28.0)[: plan.rounds]:
        for subject, factor in ((names.SWAPFS_POOL, 1.1), (names.FLOOR, 1.0)):
            recorder.add(names.random_read(4), subject, names.P50, value * factor, "us")


def broken(_plan: Plan, _recorder: Recorder) -> None:
    raise RuntimeError("no\nsuch thing")


def test_a_part_that_fails_does_not_stop_the_others(
    part: Callable[[str, Run], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    part(names.BLOCK, broken)
    part(names.SCALE, measured)
    assert bench.main(["--only", "scale,block", "--out", str(tmp_path)]) == 1
    found = load(tmp_path / "quick-block-scale.json")
    assert found.failed == [Failure(names.BLOCK, "RuntimeError: no such thing")]
    assert [figure.part for figure in found.figures] == [names.SCALE, names.SCALE]
    said = capsys.readouterr()
    assert "Traceback" in said.err
    assert "RuntimeError: no such thing" in said.out
    assert "RuntimeError: no such thing" in (tmp_path / "quick-block-scale.md").read_text()


def test_a_part_that_exits_is_a_part_that_failed(
    part: Callable[[str, Run], None], tmp_path: Path
) -> None:
    part(names.BLOCK, lambda _plan, _recorder: sys.exit("fio is missing"))
    assert bench.main(["--only", "block", "--out", str(tmp_path)]) == 1
    assert load(tmp_path / "quick-block.json").failed[0].why == "SystemExit: fio is missing"


def test_what_is_written_is_the_same_run(
    part: Callable[[str, Run], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    part(names.BLOCK, measured)
    assert bench.main(["--only", "block", "--rounds", "2", "--out", str(tmp_path)]) == 0
    found = load(tmp_path / "quick-block.json")
    assert [figure.samples for figure in found.figures] == [[26 * 1.1, 27 * 1.1], [26, 27]]
    assert found.made["kind"] == "quick-block"
    assert found.made["rounds"] == 2
    assert set(found.made) >= {"commit", "dirty", "date", "load_before", "load_after", "seconds"}
    assert set(found.made["parts"][names.BLOCK]) == {"seconds", "load"}
    said = capsys.readouterr().out
    assert report.targets_table(found) in said
    for line in said.splitlines():
        if line.startswith(f"  {tmp_path}"):
            assert Path(line.strip()).stat().st_size > 100
    pictures = list((tmp_path / "quick-block").glob("*.png"))
    page = (tmp_path / "quick-block.md").read_text()
    assert all(f"(quick-block/{picture.name})" in page for picture in pictures)


@pytest.mark.parametrize("factor", [1.1, 9.0])  # 1.1 is enough, but 32 KiB are not measured
def test_check_needs_every_target_of_the_parts(
    part: Callable[[str, Run], None], tmp_path: Path, factor: float
) -> None:
    def run(_plan: Plan, recorder: Recorder) -> None:
        for subject, value in ((names.SWAPFS_POOL, factor), (names.FLOOR, 1.0)):
            recorder.add(names.random_read(4), subject, names.P50, value, "us")

    part(names.BLOCK, run)
    words = ["--only", "block", "--out", str(tmp_path)]
    assert bench.main(words) == 0
    assert bench.main([*words, "--check"]) == 3


def test_check_is_content_when_all_are_met(
    part: Callable[[str, Run], None], tmp_path: Path
) -> None:
    def run(_plan: Plan, recorder: Recorder) -> None:
        for subject, value in ((names.SWAPFS_POOL, 1.1), (names.FLOOR, 1.0)):
            for kib in (4, 32):
                recorder.add(names.random_read(kib), subject, names.P50, value, "us")

    part(names.BLOCK, run)
    assert bench.main(["--only", "block", "--out", str(tmp_path), "--check"]) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_unwinds_the_part_and_writes_nothing(
    part: Callable[[str, Run], None], tmp_path: Path, number: signal.Signals,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    unwound: list[Path] = []

    def run(plan: Plan, _recorder: Recorder) -> None:
        try:
            os.kill(os.getpid(), number)
            raise AssertionError("the signal did nothing")
        finally:
            os.kill(os.getpid(), number)  # a second one does not cut the clean-up short
            unwound.append(plan.work)

    part(names.BLOCK, run)
    assert bench.main(["--only", "block", "--out", str(tmp_path)]) == 130
    assert f"stopped by {number.name}" in capsys.readouterr().err
    assert not unwound[0].exists()
    assert list(tmp_path.iterdir()) == []


def test_parts_have_directories_of_their_own_that_are_removed(
    part: Callable[[str, Run], None], tmp_path: Path
) -> None:
    seen: list[Path] = []

    def run(plan: Plan, _recorder: Recorder) -> None:
        assert list(plan.work.iterdir()) == []
        (plan.work / "left").touch()
        seen.append(plan.work)

    part(names.BLOCK, run)
    part(names.SCALE, run)
    bench.main(["--only", "block,scale", "--out", str(tmp_path)])
    assert len(set(seen)) == 2
    assert not any(path.exists() for path in seen)


@pytest.mark.parametrize("words", [["--only", "blok"], ["--rounds", "0"], ["--only", ","]])
def test_wrong_arguments_are_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as refused:
        bench.main(words)
    assert refused.value.code == 2
    assert "python -m tests.bench: error: " in capsys.readouterr().err


def test_full_and_quick_have_files_of_their_own() -> None:
    assert bench.arguments([]).name == "quick"
    assert bench.arguments(["--full"]).name == "full"
    assert bench.arguments(["--full"]).rounds > bench.arguments([]).rounds
    assert bench.arguments(["--only", ",".join(reversed(names.PARTS))]).name == "quick"


def test_the_host_is_described_without_its_name() -> None:
    found = host.describe()
    assert found["kernel"] == os.uname().release
    assert found["cpus"] >= 1
    assert found["memory_mib"] > 0
    assert {"python", "pyfuse3", "lz4", "fio", "libfuse", "liblz4"} <= set(found["versions"])
    assert os.uname().nodename not in found.values()


def test_a_directory_that_is_no_checkout_has_no_commit(tmp_path: Path) -> None:
    assert host.commit(tmp_path) == {"commit": host.UNKNOWN, "dirty": False}


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_a_checkout_is_dirty_by_changes_but_not_by_results(tmp_path: Path) -> None:
    def git(*words: str) -> None:
        author = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
        subprocess.run(["git", "-C", str(tmp_path), *author, *words], check=True, timeout=30)

    git("init", "-q")
    git("commit", "-q", "--allow-empty", "-m", "first")
    (tmp_path / "docs" / "bench").mkdir(parents=True)
    (tmp_path / "docs" / "bench" / "quick.json").touch()
    assert len(host.commit(tmp_path)["commit"]) == 40
    assert host.commit(tmp_path)["dirty"] is False
    (tmp_path / "docs" / "page.md").touch()
    assert host.commit(tmp_path)["dirty"] is True


# the results of a release


def test_a_run_becomes_the_release_with_its_two_pictures(tmp_path: Path) -> None:
    run = tmp_path / "full.json"
    shutil.copyfile(release.PLACE / "release.json", run)
    (tmp_path / "full").mkdir()
    for name in ("block-latency.png", "swap-throughput.png", "scale-by-pool.png"):
        (tmp_path / "full" / name).write_bytes(name.encode())
    place = tmp_path / "kept"
    assert release.main([str(run), "--place", str(place)]) == 0
    kept = {path.name for path in place.iterdir()}
    assert kept == {"release.md", "release.json", "block-latency.png", "swap-throughput.png"}
    page = (place / "release.md").read_text()
    assert re.findall(r"!\[.*\]\((.*)\)", page) == ["block-latency.png", "swap-throughput.png"]


def test_a_run_without_its_pictures_is_no_release(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "full.json"
    shutil.copyfile(release.PLACE / "release.json", run)
    assert release.main([str(run), "--place", str(tmp_path / "kept")]) == 2
    assert "block-latency.png" in capsys.readouterr().err


def test_docs_hold_one_release_one_native_run_and_nothing_else() -> None:
    there = {path.name for path in release.PLACE.iterdir()}
    pictures = {name for _, name in release.PICTURES.values()}
    native = {"native.md", "native-latency.png", "native-throughput.png"}
    assert there == {"release.md", "release.json", *pictures, *native}

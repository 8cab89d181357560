"""Part "swap" of the benchmarks, its host side: what a VM run becomes in the results."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from deploy.vm.host import job as vm_job
from deploy.vm.host.app import CHECKOUT
from deploy.vm.host.proc import VmError
from tests.bench import in_vm, native, swap
from tests.bench.jobs import redis
from tests.bench.place import PlaceError
from tests.bench.record import Plan, Recorder, Results

GOOD = {"name": "every page", "ok": True, "detail": "12288 pages, 0 wrong"}
BAD = {"name": "every page", "ok": False, "detail": "12288 pages, 3 wrong"}
ROW = {
    "test": "swap-out",
    "subject": "zram",
    "metric": "throughput",
    "value": 10.0,
    "unit": "MiB/s",
    "better": "higher",
}


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    return Plan(False, 2, 1.0, tmp_path, CHECKOUT)


@pytest.fixture
def results() -> Results:
    return Results()


def pretend(monkeypatch: pytest.MonkeyPatch, report: dict[str, Any] | None, **ended: Any) -> None:
    """Make the VM end with *report* in its output folder."""

    def run_job(job: Path, *, results_dir: Path, **_: Any) -> Any:
        assert os.access(job / "run", os.X_OK)
        if report is not None:
            (results_dir / "out").mkdir(parents=True)
            (results_dir / "out/report.json").write_text(json.dumps(report))
        values = {"exit_status": 0, "timed_out": False, "console": "", "dmesg": "", **ended}
        return vm_job.VmResult(results_dir=results_dir, wall_s=1.0, **values)

    monkeypatch.setattr(vm_job, "prepare", lambda *_, **__: SimpleNamespace(accel="tcg"))
    monkeypatch.setattr(vm_job, "run_job", run_job)


def measure(plan: Plan, results: Results) -> None:
    recorder = Recorder(results, "swap")
    swap.measure_swap(plan, recorder, ("zram",), in_vm.place(plan, recorder))


def test_samples_and_skips_reach_the_results(
    monkeypatch: pytest.MonkeyPatch, plan: Plan, results: Results
) -> None:
    figures = {"samples": [ROW, {**ROW, "value": 12.0}], "skipped": [["swapfs", "no /dev/fuse"]]}
    pretend(monkeypatch, {"steps": [GOOD], "figures": figures})
    measure(plan, results)
    found = results.find("swap", "swap-out", "zram", "throughput")
    assert found is not None
    assert found.samples == [10.0, 12.0]
    assert "emulated" in found.note
    assert [(s.subject, s.why) for s in results.skipped] == [("swapfs", "no /dev/fuse")]


@pytest.mark.parametrize(
    ("steps", "ended", "words"),
    [
        ([GOOD, BAD], {"exit_status": 1}, "3 wrong"),
        ([GOOD], {"exit_status": 1}, "exited with 1"),
        ([GOOD], {"dmesg": "[1.0] Buffer I/O error on dev loop0"}, "loop0"),
        (None, {"exit_status": None, "timed_out": True}, "hung"),
        (None, {"exit_status": None, "console": "Kernel panic - not syncing"}, "panic"),
    ],
)
def test_a_run_that_did_not_hold_is_no_result(
    monkeypatch: pytest.MonkeyPatch,
    plan: Plan,
    results: Results,
    steps: list[dict[str, Any]] | None,
    ended: dict[str, Any],
    words: str,
) -> None:
    report = None if steps is None else {"steps": steps, "figures": {"samples": [ROW]}}
    pretend(monkeypatch, report, **ended)
    with pytest.raises(PlaceError, match=words):
        measure(plan, results)
    assert not results.figures


def test_no_vm_is_a_skip(monkeypatch: pytest.MonkeyPatch, plan: Plan, results: Results) -> None:
    def prepare(*_: Any, **__: Any) -> None:
        raise VmError("missing on this machine: mmdebstrap")

    monkeypatch.setattr(vm_job, "prepare", prepare)
    swap.run(plan, Recorder(results, "swap"))
    assert {entry.subject for entry in results.skipped} == {
        "swapfs",
        "swapfs, pool + disk",
        "zram",
        "zswap + swapfile",
        "swapfile",
    }
    assert all("mmdebstrap" in entry.why for entry in results.skipped)


def test_the_job_has_what_the_guest_imports(plan: Plan) -> None:
    job = swap.make_job(plan.work / "job", "swap", {"rounds": 2})
    inside = {str(path.relative_to(job)) for path in job.rglob("*") if path.is_file()}
    assert {"run", "params.json", "mix", "tests/bench/names.py"} <= inside
    assert {f"tests/bench/jobs/{name}.py" for name in ("swap", "backends", "counters")} <= inside


def test_redis_commands_have_lengths_in_bytes() -> None:
    assert redis.command(b"SET", b"k", b"\r\n") == b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$2\r\n\r\n\r\n"


# ---- natively ----

MEMINFO = "MemTotal:       24000000 kB\nMemAvailable:   23000000 kB\n"
SWAPS = "Filename\tType\tSize\tUsed\tPriority\n"


@pytest.fixture
def machine(tmp_path: Path) -> dict[str, Path]:
    """Return the kernel's files of a machine that may be swapped on."""
    files = {"swaps": tmp_path / "swaps", "meminfo": tmp_path / "meminfo"}
    files["swaps"].write_text(SWAPS)
    files["meminfo"].write_text(MEMINFO)
    return files


@pytest.fixture
def _root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)


@pytest.mark.usefixtures("_root")
def test_a_machine_without_swap_and_with_memory_may_be_swapped_on(
    plan: Plan, machine: dict[str, Path]
) -> None:
    assert native.why_not(plan, **machine) == ""


@pytest.mark.usefixtures("_root")
def test_a_machine_that_swaps_already_is_refused(plan: Plan, machine: dict[str, Path]) -> None:
    machine["swaps"].write_text(f"{SWAPS}/dev/sda2 partition 1048572 0 -2\n")
    assert "swap is on already (/dev/sda2)" in native.why_not(plan, **machine)


@pytest.mark.usefixtures("_root")
def test_a_machine_without_memory_for_the_pool_is_refused(
    plan: Plan, machine: dict[str, Path]
) -> None:
    machine["meminfo"].write_text("MemAvailable:   900000 kB\n")
    assert "MiB of free memory, there are 878" in native.why_not(plan, **machine)


def test_who_is_not_root_may_not_swap(
    monkeypatch: pytest.MonkeyPatch, plan: Plan, machine: dict[str, Path]
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert native.why_not(plan, **machine) == "needs root"


def test_a_refused_machine_skips_every_subject(
    monkeypatch: pytest.MonkeyPatch, plan: Plan, results: Results
) -> None:
    monkeypatch.setattr(native, "why_not", lambda _: "swap is on already")
    swap.run(replace(plan, native=True), Recorder(results, "swap"))
    assert {entry.why for entry in results.skipped} == {"not natively: swap is on already"}
    assert not results.figures


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a job folder for a module `work` of our own, on a machine that has no swap."""
    swaps = tmp_path / "swaps"
    swaps.write_text(SWAPS)
    monkeypatch.setattr(native, "SWAPS", swaps)
    folder = tmp_path / "job"
    folder.mkdir()
    (folder / "run").write_text("#!/bin/sh\nexec python3 -m work\n")
    return folder


def write_work(job: Path, *lines: str) -> None:
    text = "import json, os, signal, sys, time\nfrom pathlib import Path\n"
    text += "out = Path(os.environ['SWAPFS_JOB'], 'out')\n" + "\n".join(lines) + "\n"
    (job.parent / "work.py").write_text(text)


def run_here(job: Path, results: Results, timeout_s: float = 60) -> dict[str, Any]:
    return native.run_job(job, job.parent, timeout_s, Recorder(results, "swap"))


def test_a_native_job_has_its_folder_and_gives_its_figures(job: Path, results: Results) -> None:
    report = {"steps": [GOOD], "figures": {"samples": [ROW]}}
    write_work(job, f"(out / 'report.json').write_text({json.dumps(report)!r})")
    assert run_here(job, results) == report["figures"]
    assert os.access(job / "guard", os.X_OK)


def test_a_native_job_that_did_not_hold_is_no_result(job: Path, results: Results) -> None:
    report = {"steps": [BAD], "figures": {"samples": [ROW]}}
    write_work(job, f"(out / 'report.json').write_text({json.dumps(report)!r})")
    with pytest.raises(PlaceError, match="3 wrong"):
        run_here(job, results)


def test_a_native_job_that_overstays_may_end_by_itself(job: Path, results: Results) -> None:
    write_work(
        job,
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit((out / 'off').write_text('')))",
        "(out / 'on').write_text('')",
        "time.sleep(60)",
    )
    with pytest.raises(PlaceError, match="not done after 2 s"):
        run_here(job, results, 2)
    assert (job / "out/off").exists()


def test_swap_that_came_on_meanwhile_is_not_touched(job: Path, results: Results) -> None:
    native.SWAPS.write_text(f"{SWAPS}/dev/sda2 partition 1048572 0 -2\n")
    with pytest.raises(PlaceError, match="turned on meanwhile: /dev/sda2"):
        run_here(job, results)


def test_the_guard_wants_a_time(job: Path) -> None:
    swap.build(job, "guard")
    done = subprocess.run([job / "guard", "0", "/dev/null"], capture_output=True, check=False)
    assert done.returncode == 2


def test_the_guard_cuts_when_its_time_is_over(job: Path) -> None:
    swap.build(job, "guard")
    abort = job / "abort"
    abort.touch()
    done = subprocess.run([job / "guard", "1", abort], capture_output=True, check=False)
    if done.returncode == 1:
        pytest.skip(f"needs root: {done.stderr.decode().strip()}")
    assert (done.returncode, abort.read_text()) == (3, "1")
    assert done.stdout == b"guarding\n"


def test_sqlite_job_checks_itself() -> None:
    script = Path(swap.__file__).parent / "jobs/sqlite.py"
    done = subprocess.run([sys.executable, script, "2"], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert b"2048 rows, 131072 numbers, 0 wrong answers" in done.stderr

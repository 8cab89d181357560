"""Part "swap" of the benchmarks, its host side: what a VM run becomes in the results."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from deploy.vm.host import job as vm_job
from deploy.vm.host.app import CHECKOUT
from deploy.vm.host.proc import VmError
from tests.bench import swap
from tests.bench.jobs import redis
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

    monkeypatch.setattr(vm_job, "run_job", run_job)


def measure(plan: Plan, results: Results) -> None:
    helper = plan.work / "helper"
    helper.write_bytes(b"")
    swap.measure_swap(plan, Recorder(results, "swap"), ["zram"], helper, "tcg")


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
    with pytest.raises(swap.SwapBenchError, match=words):
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

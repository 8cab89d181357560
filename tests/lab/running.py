"""Boots a VM for an experiment, has every run of it recorded there, and fetches what was found."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from deploy.vm.host import job as vm_job
from deploy.vm.host.problems import kernel_log_problems
from swapfs.lab.beside import Sample
from swapfs.testing.pages import mixed_pages
from tests.bench import in_vm, swap
from tests.bench.source_package import fetch_source
from tests.lab.experiment import Experiment, Run

SOURCES: Final = ("tests/lab/jobs", "tests/bench/jobs", "tests/bench/names.py")
EMULATED_TIMES: Final = 6
"""How much longer an emulated VM may take; it takes some twenty times as long to compute."""

BEGIN_SHARE: Final = 0.75
"""Of the time, after which no run begins: what was recorded is to come back."""


class RunningError(Exception):
    """The VM did not get to the end of its job."""


@dataclass(frozen=True, slots=True)
class Recorded:
    """One run that was recorded."""

    run: Run
    trace: Path
    seconds: float
    status: dict[str, Any]
    samples: Sequence[Sample]


@dataclass(frozen=True, slots=True)
class Found:
    """What a VM brought back; *problems* are steps that did not hold and lines of its log."""

    recorded: Sequence[Recorded]
    problems: Sequence[str]
    accel: str


def run(experiment: Experiment, work: Path, *, echo: bool = True) -> Found:
    """Run all of *experiment* in one VM; traces are below *work*.

    :raises RunningError: the VM hung or died before it could report
    :raises VmError: there is none to be had here
    """
    packages = packages_for(experiment)
    accel = vm_job.prepare(experiment.kernel, packages=packages).accel
    timeout_s = experiment.minutes * 60 * (1 if accel == "kvm" else EMULATED_TIMES)
    job = make_job(work / "job", experiment, timeout_s * BEGIN_SHARE)
    result = vm_job.run_job(
        job,
        results_dir=work / "results",
        kernel=experiment.kernel,
        memory_mib=experiment.memory_mib,
        cpus=in_vm.CPUS[accel],
        disks_mib=experiment.disks_mib,
        timeout_s=timeout_s,
        packages=packages,
        echo=echo,
    )
    out = result.results_dir / "out"
    if result.exit_status is None or not (out / "report.json").is_file():
        how = "hung" if result.timed_out else "died"
        tail = " | ".join(result.console.splitlines()[-3:])
        raise RunningError(f"the VM {how}; its console ends with: {tail}")
    report = json.loads((out / "report.json").read_text())
    problems = [f"{s['name']}: {s['detail']}" for s in report["steps"] if not s["ok"]]
    problems += kernel_log_problems(result.dmesg)
    recorded = [_fetch(each, out) for each in experiment.runs() if _was_recorded(each, out)]
    return Found(recorded, problems, accel)


def packages_for(experiment: Experiment) -> tuple[str, ...]:
    """Return the Debian packages that its workloads need in the VM."""
    named = {workload.name for workload in experiment.workloads}
    wanted = named & {"build", "redis-uniform", "redis-skewed"}
    return in_vm.PACKAGES if wanted else ()


def make_job(folder: Path, experiment: Experiment, begin_s: float) -> Path:
    """Make the job folder, with what the workloads read.

    :param begin_s: after so many seconds no run begins
    """
    named = {workload.name for workload in experiment.workloads}
    params: dict[str, Any] = dict(experiment.params) | {"begin_s": begin_s}
    params["runs"] = [
        {
            "name": each.name,
            "workload": each.workload.name,
            "policy": each.policy,
            "config": experiment.setups[each.setup],
            "limit_mib": each.workload.limit_mib,
            "params": dict(each.workload.params),
        }
        for each in experiment.runs()
    ]
    lines = _lines(params) if "sort" in named else []
    params["sorted_sha256"] = hashlib.sha256(b"".join(sorted(lines))).hexdigest()
    job = vm_job.make_job(folder, "tests.lab.jobs.record", SOURCES, params)
    (job / "lines").write_bytes(b"".join(lines))
    if named & {"redis-uniform", "redis-skewed"}:
        (job / "mix").write_bytes(b"".join(mixed_pages(swap.MIX_SEED, swap.MIX_PAGES)))
    if "build" in named:
        shutil.copy(fetch_source(swap.SOURCE_PACKAGE), job)
    return job


def _lines(params: dict[str, Any]) -> list[bytes]:
    """Return the first `sort_mib` of the benchmark's lines."""
    lines, size = [], 0
    for line in swap.make_lines():
        size += len(line)
        if size > int(params.get("sort_mib", 32)) << 20:
            break
        lines.append(line)
    return lines


def _was_recorded(each: Run, out: Path) -> bool:
    return (out / f"{each.name}.json").is_file() and (out / f"{each.name}.trace").is_file()


def _fetch(each: Run, out: Path) -> Recorded:
    found = json.loads((out / f"{each.name}.json").read_text())
    samples = [(float(at_s), int(pool), int(below)) for at_s, pool, below in found["samples"]]
    trace = out / f"{each.name}.trace"
    return Recorded(each, trace, float(found["seconds"]), found["status"], samples)

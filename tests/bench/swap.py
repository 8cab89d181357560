"""Part "swap": a real kernel swaps on swapfs, zram, zswap and a swapfile, in a VM.

This is the host's side: it builds what the VM needs, boots it, and records what the jobs in
tests/bench/jobs measured. Whether the VM ran under KVM or was emulated is noted with every figure:
emulation makes instructions some twenty times slower and waiting not at all, so that its ratios
are not those of a machine.
"""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from deploy.vm.host import job as vm_job
from deploy.vm.host.problems import kernel_log_problems
from deploy.vm.host.proc import VmError
from swapfs.testing.pages import mixed_pages
from tests.bench import names
from tests.bench.jobs.samples import BUILD, REDIS, SORT, SWAPFS_DISK
from tests.bench.source_package import fetch_source

if TYPE_CHECKING:
    from tests.bench.record import Plan, Recorder

NAME: Final = names.SWAP
KERNEL: Final = "6.12"
MIX_PAGES: Final = 1024
MIX_SEED: Final = 4
CPUS: Final = {"kvm": 2, "tcg": 1}
"""Of the VM. Two emulated CPUs wait for each other, and for the host: a swap-in from swapfs, which
wakes three threads in turn, then takes several times as long as with one CPU, in the kernel's
wake-ups, while zram, which wakes nobody, takes the same. It would be the emulator that is measured.
"""
_NOTES: Final = {
    "kvm": f"in a VM under KVM, {CPUS['kvm']} CPUs, Linux {KERNEL}",
    "tcg": f"in an emulated VM (TCG), {CPUS['tcg']} CPU, Linux {KERNEL}: instructions cost about "
    "twenty times as much as on a machine, so these ratios are not a machine's",
}


class SwapBenchError(Exception):
    """The VM did not do what it should; the message says what, in one line."""


@dataclass(frozen=True)
class Machine:
    """What the VM has, and how much each swap in it holds."""

    size_mib: int
    """Of every swap; more than twice what is swapped, or the kernel frees slots early."""
    disks_mib: tuple[int, int]
    memory_mib: int
    timeout_s: float


@dataclass(frozen=True)
class Sizes:
    """How much the helper swaps."""

    data_mib: int
    limit_mib: int
    """What zswap compresses counts against it, so that it must hold all the data compressed."""
    machine: Machine


QUICK: Final = Sizes(64, 32, Machine(160, (256, 256), 1024, 900))
FULL: Final = Sizes(192, 96, Machine(416, (768, 768), 2048, 7200))

PACKAGES: Final = ("gcc", "libc6-dev", "make", "redis-server")
"""What the real programs need in the VM."""
SOURCE_PACKAGE: Final = "lua5.4"
PROGRAM_MACHINE: Final = Machine(416, (768, 768), 2048, 4 * 3600)
PROGRAM_ROUNDS_MAX: Final = {"kvm": 5, "tcg": 1}
"""Emulated, one round of all programs takes some twenty minutes."""
LIMITS_MIB: Final = {BUILD: 64, REDIS: 48, SORT: 64}
"""Below what each wants, but enough for all of it compressed: zswap's pool counts against the
limit, and a program whose data does not fit into it compressed is killed there."""
PROGRAM_PARAMS: Final = {
    "build_jobs": 4,
    "redis_mib": 64,
    "redis_gets": 10000,
    "sort_buffer_mib": 192,
}
LINES_BYTES: Final = 32 << 20
_WORDS: Final = ("swap", "page", "slot", "tier", "pool", "disk", "kernel", "memory", "cluster")


def run(plan: Plan, recorder: Recorder) -> None:
    """Measure; raises SwapBenchError if a page was wrong or the VM did not get to its end."""
    subjects = [names.SWAPFS, SWAPFS_DISK, names.ZRAM, names.ZSWAP, names.SWAPFILE]
    try:
        accel = vm_job.prepare(KERNEL, project=plan.project).accel
        helper = build_helper(plan.work)
    except (VmError, OSError) as error:
        for subject in subjects:
            recorder.skip(subject, f"no VM: {error}")
        return
    measure_swap(plan, recorder, subjects, helper, accel)
    if plan.full:
        run_programs(plan, recorder, subjects, accel)


def measure_swap(
    plan: Plan, recorder: Recorder, subjects: list[str], helper: Path, accel: str
) -> None:
    """Record swap-out and swap-in of known pages."""
    sizes = FULL if plan.full else QUICK
    params = {
        "subjects": subjects,
        "rounds": plan.rounds,
        "data_mib": sizes.data_mib,
        "limit_mib": sizes.limit_mib,
        "size_mib": sizes.machine.size_mib,
    }
    job = make_job(plan.work / "swap-job", "swap", params)
    shutil.copy(helper, job / "toucher")
    recorder.say(f"booting the VM ({accel}): {plan.rounds} rounds of {'; '.join(subjects)}")
    record(run_in_vm(job, plan, sizes.machine, accel, recorder), recorder, _NOTES[accel])


def run_programs(plan: Plan, recorder: Recorder, subjects: list[str], accel: str) -> None:
    """Record the real programs; those whose packages or source cannot be had are skipped."""
    limits = dict(LIMITS_MIB)
    try:
        vm_job.prepare(KERNEL, project=plan.project, packages=PACKAGES)
    except VmError as error:
        for test in limits:
            recorder.skip(test, f"no image with {', '.join(PACKAGES)}: {error}")
        return
    try:
        source = fetch_source(SOURCE_PACKAGE)
    except (VmError, OSError) as error:
        recorder.skip(BUILD, f"no source of {SOURCE_PACKAGE}: {error}")
        del limits[BUILD]
    rounds = min(plan.rounds, PROGRAM_ROUNDS_MAX[accel])
    params = {
        **PROGRAM_PARAMS,
        "subjects": subjects,
        "rounds": rounds,
        "programs": limits,
        "size_mib": PROGRAM_MACHINE.size_mib,
    }
    lines = make_lines()
    params["sorted_sha256"] = hashlib.sha256(b"".join(sorted(lines))).hexdigest()
    job = make_job(plan.work / "programs-job", "programs", params)
    (job / "lines").write_bytes(b"".join(lines))
    if BUILD in limits:
        shutil.copy(source, job)
    recorder.say(f"booting the VM ({accel}): {rounds} rounds of {'; '.join(limits)}")
    figures = run_in_vm(job, plan, PROGRAM_MACHINE, accel, recorder, PACKAGES)
    record(figures, recorder, _NOTES[accel])


def make_lines() -> list[bytes]:
    """Return lines to sort, always the same, that compress about as memory does."""
    rng, lines, size = random.Random(MIX_SEED), [], 0
    while size < LINES_BYTES:
        words = " ".join(rng.choices(_WORDS, k=3))
        lines.append(f"{words} {rng.randrange(1 << 24)}\n".encode())
        size += len(lines[-1])
    return lines


def build_helper(work: Path) -> Path:
    """Compile the helper that touches pages, static: the guest has no compiler."""
    program = work / "toucher"
    source = Path(__file__).parent / "jobs/toucher.c"
    done = subprocess.run(
        ["cc", "-O2", "-static", "-Wall", "-o", str(program), str(source)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode != 0:
        said = done.stderr.strip().splitlines()
        raise OSError(f"cc -static failed: {said[-1] if said else done.returncode}")
    return program


def make_job(job: Path, module: str, params: dict[str, Any]) -> Path:
    """Make a job folder that runs tests.bench.jobs.*module* with *params*."""
    sources = ["tests/bench/jobs", "tests/bench/names.py"]
    vm_job.make_job(job, f"tests.bench.jobs.{module}", sources, params)
    (job / "mix").write_bytes(b"".join(mixed_pages(MIX_SEED, MIX_PAGES)))
    return job


def run_in_vm(
    job: Path,
    plan: Plan,
    machine: Machine,
    accel: str,
    recorder: Recorder,
    packages: tuple[str, ...] = (),
) -> dict[str, Any]:
    """Boot, run the job, and return its figures; SwapBenchError unless every step held."""
    result = vm_job.run_job(
        job,
        results_dir=plan.work / f"{job.name}-results",
        kernel=KERNEL,
        memory_mib=machine.memory_mib,
        cpus=CPUS[accel],
        disks_mib=machine.disks_mib,
        timeout_s=machine.timeout_s,
        echo=False,
        project=plan.project,
        packages=packages,
    )
    path = result.results_dir / "out/report.json"
    if result.exit_status is None or not path.is_file():
        how = "hung" if result.timed_out else "died"
        tail = " | ".join(result.console.splitlines()[-3:])
        raise SwapBenchError(f"the VM {how}; its console ends with: {tail}")
    report = json.loads(path.read_text())
    failed = [f"{s['name']}: {s['detail']}" for s in report["steps"] if not s["ok"]]
    failed += kernel_log_problems(result.dmesg)
    if failed or result.exit_status != 0:
        raise SwapBenchError("; ".join(failed) or f"the job exited with {result.exit_status}")
    recorder.say(f"{len(report['steps'])} steps held, {result.wall_s:.0f} s in the VM")
    figures: dict[str, Any] = report["figures"]
    return figures


def record(figures: dict[str, Any], recorder: Recorder, note: str) -> None:
    """Give what a job measured to the recorder."""
    for subject, why in figures.get("skipped", []):
        recorder.skip(subject, why)
    for row in figures["samples"]:
        recorder.add(**row, note=note)

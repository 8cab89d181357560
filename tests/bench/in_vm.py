"""Part "swap" in a VM: what it has, and how a job runs in it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from deploy.vm.host import job as vm_job
from deploy.vm.host.problems import kernel_log_problems
from deploy.vm.host.proc import VmError
from tests.bench import names
from tests.bench.place import Machine, Place, PlaceError, Programs, Sizes

if TYPE_CHECKING:
    from tests.bench.record import Plan, Recorder

KERNEL: Final = "6.12"
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
QUICK: Final = Sizes(64, 32, Machine(160, 900, (256, 256), 1024))
FULL: Final = Sizes(192, 96, Machine(416, 7200, (768, 768), 2048))

PACKAGES: Final = ("gcc", "libc6-dev", "make", "redis-server")
"""What the real programs need in the VM."""
PROGRAM_MACHINE: Final = Machine(416, 4 * 3600, (768, 768), 2048)
PROGRAM_ROUNDS_MAX: Final = {"kvm": 5, "tcg": 1}
"""Emulated, one round of all programs takes some twenty minutes."""
LIMITS_MIB: Final = {names.BUILD: 64, names.REDIS: 48, names.SORT: 64, names.SQLITE: 64}
PARAMS: Final = {
    "build_jobs": 4,
    "redis_mib": 64,
    "redis_gets": 10000,
    "sort_buffer_mib": 192,
    "sqlite_mib": 96,
}


def place(plan: Plan, recorder: Recorder) -> Place:
    """Make the VM ready.

    :raises VmError: there is none to be had here
    """
    accel = vm_job.prepare(KERNEL, project=plan.project).accel

    def run(job: Path, machine: Machine, packages: tuple[str, ...]) -> dict[str, Any]:
        return run_in_vm(job, plan, machine, accel, recorder, packages)

    def programs() -> Programs | str:
        try:
            vm_job.prepare(KERNEL, project=plan.project, packages=PACKAGES)
        except VmError as error:
            return f"no image with {', '.join(PACKAGES)}: {error}"
        rounds = PROGRAM_ROUNDS_MAX[accel]
        return Programs(LIMITS_MIB, PARAMS, PROGRAM_MACHINE, rounds, PACKAGES)

    sizes = FULL if plan.full else QUICK
    what = f"booting the VM ({accel})"
    return Place(what, _NOTES[accel], plan.work, sizes, {}, run, programs)


def run_in_vm(
    job: Path,
    plan: Plan,
    machine: Machine,
    accel: str,
    recorder: Recorder,
    packages: tuple[str, ...] = (),
) -> dict[str, Any]:
    """Boot, run the job, and return its figures; PlaceError unless every step held."""
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
        raise PlaceError(f"the VM {how}; its console ends with: {tail}")
    report = json.loads(path.read_text())
    failed = [f"{s['name']}: {s['detail']}" for s in report["steps"] if not s["ok"]]
    failed += kernel_log_problems(result.dmesg)
    if failed or result.exit_status != 0:
        raise PlaceError("; ".join(failed) or f"the job exited with {result.exit_status}")
    recorder.say(f"{len(report['steps'])} steps held, {result.wall_s:.0f} s in the VM")
    figures: dict[str, Any] = report["figures"]
    return figures

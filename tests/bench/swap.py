"""Part "swap": a real kernel swaps on swapfs, zram, zswap and a swapfile, in a VM or natively.

This builds what a place needs (`in_vm.py`, or with `--native` `native.py`), has the jobs in
tests/bench/jobs run there, and records what they measured. Whether a VM ran under KVM or was
emulated is noted with every figure: emulation makes instructions some twenty times slower and
waiting not at all, so that its ratios are not those of a machine.
"""

from __future__ import annotations

import hashlib
import random
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from deploy.vm.host import job as vm_job
from deploy.vm.host.proc import VmError
from swapfs.testing.pages import mixed_pages
from tests.bench import in_vm, names, native
from tests.bench.source_package import fetch_source

if TYPE_CHECKING:
    from tests.bench.place import Place
    from tests.bench.record import Plan, Recorder

NAME: Final = names.SWAP
SUBJECTS: Final = (names.SWAPFS, names.SWAPFS_DISK, names.ZRAM, names.ZSWAP, names.SWAPFILE)
MIX_PAGES: Final = 1024
MIX_SEED: Final = 4
SOURCE_PACKAGE: Final = "lua5.4"
LINES_BYTES: Final = 32 << 20
_WORDS: Final = ("swap", "page", "slot", "tier", "pool", "disk", "kernel", "memory", "cluster")


def run(plan: Plan, recorder: Recorder) -> None:
    """Measure; raises PlaceError if a page was wrong or a job did not get to its end."""
    if not plan.native:
        try:
            where = in_vm.place(plan, recorder)
        except (VmError, OSError) as error:
            _skip_all(recorder, f"no VM: {error}")
            return
        _measure(plan, recorder, where)
        return
    if reason := native.why_not(plan):
        _skip_all(recorder, f"not natively: {reason}")
        return
    with native.place(plan, recorder) as where:
        _measure(plan, recorder, where)


def _skip_all(recorder: Recorder, why: str) -> None:
    for subject in SUBJECTS:
        recorder.skip(subject, why)


def _measure(plan: Plan, recorder: Recorder, where: Place) -> None:
    measure_swap(plan, recorder, SUBJECTS, where)
    if plan.full:
        run_programs(plan, recorder, SUBJECTS, where)


def measure_swap(plan: Plan, recorder: Recorder, subjects: tuple[str, ...], where: Place) -> None:
    """Record swap-out, swap-in and swapoff of known pages."""
    sizes = where.sizes
    params = {
        "subjects": subjects,
        "rounds": plan.rounds,
        "data_mib": sizes.data_mib,
        "limit_mib": sizes.limit_mib,
        "size_mib": sizes.machine.size_mib,
        **where.params,
    }
    job = make_job(where.folder / "swap-job", "swap", params)
    build(job, "toucher")
    recorder.say(f"{where.what}: {plan.rounds} rounds of {'; '.join(subjects)}")
    record(where.run(job, sizes.machine, ()), recorder, where.note)


def run_programs(plan: Plan, recorder: Recorder, subjects: tuple[str, ...], where: Place) -> None:
    """Record the real programs; those whose packages or source cannot be had are skipped."""
    programs = where.programs()
    if isinstance(programs, str):
        recorder.skip("real programs", programs)
        return
    limits, source = dict(programs.limits_mib), None
    try:
        source = fetch_source(SOURCE_PACKAGE) if names.BUILD in limits else None
    except (VmError, OSError) as error:
        recorder.skip(names.BUILD, f"no source of {SOURCE_PACKAGE}: {error}")
        del limits[names.BUILD]
    lines = make_lines()
    params = {
        **programs.params,
        "subjects": subjects,
        "rounds": min(plan.rounds, programs.rounds_max),
        "programs": limits,
        "size_mib": programs.machine.size_mib,
        "sorted_sha256": hashlib.sha256(b"".join(sorted(lines))).hexdigest(),
        **where.params,
    }
    job = make_job(where.folder / "programs-job", "programs", params)
    (job / "lines").write_bytes(b"".join(lines))
    if source is not None:
        shutil.copy(source, job)
    recorder.say(f"{where.what}: {params['rounds']} rounds of {'; '.join(limits)}")
    record(where.run(job, programs.machine, programs.packages), recorder, where.note)


def make_lines() -> list[bytes]:
    """Return lines to sort, always the same, that compress about as memory does."""
    rng, lines, size = random.Random(MIX_SEED), [], 0
    while size < LINES_BYTES:
        words = " ".join(rng.choices(_WORDS, k=3))
        lines.append(f"{words} {rng.randrange(1 << 24)}\n".encode())
        size += len(lines[-1])
    return lines


def build(job: Path, name: str) -> None:
    """Compile a C program of the jobs into *job*, static: a guest has no compiler.

    :raises OSError: it cannot be compiled
    """
    source = Path(__file__).parent / "jobs" / f"{name}.c"
    done = subprocess.run(
        ["cc", "-O2", "-static", "-Wall", "-o", str(job / name), str(source)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode != 0:
        said = done.stderr.strip().splitlines()
        raise OSError(f"cc -static failed: {said[-1] if said else done.returncode}")


def make_job(job: Path, module: str, params: dict[str, Any]) -> Path:
    """Make a job folder that runs tests.bench.jobs.*module* with *params*."""
    sources = ["tests/bench/jobs", "tests/bench/names.py"]
    vm_job.make_job(job, f"tests.bench.jobs.{module}", sources, params)
    (job / "mix").write_bytes(b"".join(mixed_pages(MIX_SEED, MIX_PAGES)))
    return job


def record(figures: dict[str, Any], recorder: Recorder, note: str) -> None:
    """Give what a job measured to the recorder."""
    for subject, why in figures.get("skipped", []):
        recorder.skip(subject, why)
    for row in figures["samples"]:
        recorder.add(**row, note=note)

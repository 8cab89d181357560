"""Part "swap" on this very machine, as `--native` asks for; the jobs are those of the VM.

Pages of every process may land on what is measured, so: root, no other swap, memory for it, a
guard over the FUSE connection (`jobs/site.py`), a bound on the whole, and swap is off again
however it ends.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tests.bench import names, subjects
from tests.bench.place import Machine, Place, PlaceError, Programs, Sizes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.bench.record import Plan, Recorder

QUICK: Final = Sizes(400, 128, Machine(832, 1800))
FULL: Final = Sizes(768, 256, Machine(1600, 3 * 3600))
TURN_S: Final = 120
"""After which the guard cuts the connection of a swapfs. A turn takes a quarter of it."""
NOTE: Final = "native: on the machine itself and not in a VM"
ROUNDS_MAX: Final = 5
LIMITS_MIB: Final = {names.BUILD: 64, names.REDIS: 128, names.SORT: 64, names.SQLITE: 128}
PARAMS: Final = {
    "build_jobs": 4,
    "redis_mib": 300,
    "redis_gets": 300 * 256,  # every value that there is
    "sort_buffer_mib": 192,
    "sqlite_mib": 300,
}
_COMMANDS: Final = {
    names.BUILD: ("gcc", "make"),
    names.REDIS: ("redis-server",),
    names.SORT: (),
    names.SQLITE: (),
}
_END_BOUND_S: Final = 2 * TURN_S
SWAPS: Final = Path("/proc/swaps")
_MEMINFO: Final = Path("/proc/meminfo")
_MEMORY_FACTOR: Final = 3
"""Of the size of a swap: the pool, which is locked, what is swapped, and all the rest."""


def why_not(plan: Plan, *, swaps: Path = SWAPS, meminfo: Path = _MEMINFO) -> str:
    """Return why this machine must not be swapped on, or ""."""
    if os.geteuid() != 0:
        return "needs root"
    if areas := swaps.read_text().splitlines()[1:]:
        return f"swap is on already ({areas[0].split()[0]}): turn it off first"
    wanted_mib = _MEMORY_FACTOR * _sizes(plan).machine.size_mib
    lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
    free_mib = int(lines["MemAvailable"].split()[0]) // 1024
    if free_mib < wanted_mib:
        return f"needs {wanted_mib} MiB of free memory, there are {free_mib}"
    return ""


@contextmanager
def place(plan: Plan, recorder: Recorder) -> Iterator[Place]:
    """Make a folder on a disk for swapfile and tier, and take it away again.

    :raises UnavailableError: there is no disk
    """
    # Not in /tmp, which may be in memory itself.
    with tempfile.TemporaryDirectory(prefix="swapfs-native-", dir="/var/tmp") as directory:
        folder, sizes = Path(directory), _sizes(plan)
        subjects.need_disk(folder)

        def run(job: Path, machine: Machine, _: tuple[str, ...]) -> dict[str, Any]:
            return run_job(job, plan.project, machine.timeout_s, recorder)

        def programs() -> Programs:
            limits = {name: mib for name, mib in LIMITS_MIB.items() if _is_there(name, recorder)}
            return Programs(limits, PARAMS, QUICK.machine, ROUNDS_MAX)

        params = site_params(folder, sizes.machine.size_mib)
        yield Place("swapping on this machine", NOTE, folder, sizes, params, run, programs)


def _sizes(plan: Plan) -> Sizes:
    return FULL if plan.full else QUICK


def _is_there(program: str, recorder: Recorder) -> bool:
    missing = [command for command in _COMMANDS.get(program, ()) if shutil.which(command) is None]
    if missing:
        recorder.skip(program, f"not natively: {', '.join(missing)} is not installed")
    return not missing


def site_params(folder: Path, size_mib: int) -> dict[str, Any]:
    """Return what the jobs need to know of this machine (`jobs/site.py`)."""
    return {
        "awake": [False, True] if Path("/dev/cpu_dma_latency").exists() else [False],
        "native": {
            "folder": str(folder),
            "tier_mib": 2 * size_mib,
            "up": [] if subjects.may_set_guards() else ["--unsafe"],
            "turn_s": TURN_S,
        },
    }


def run_job(job: Path, project: Path, timeout_s: float, recorder: Recorder) -> dict[str, Any]:
    """Run *job* and return its figures.

    :raises PlaceError: it took too long, a page was wrong, a step failed or swap was left on
    """
    if areas := _areas():
        raise PlaceError(f"swap was turned on meanwhile: {', '.join(areas)}")
    (job / "out").mkdir()
    (job / "boot").write_text("1")
    # Static: it must not wait for a library that is in swap.
    guard = Path(__file__).parent / "jobs/guard.c"
    subjects.run("cc", "-O2", "-static", "-Wall", "-o", job / "guard", guard)
    try:
        status = _run(job, project, timeout_s)
    finally:
        left = switch_off()
    if left:
        raise PlaceError(f"the job left swap on, which is off now: {', '.join(left)}")
    path = job / "out/report.json"
    if not path.is_file():
        tail = " | ".join((job / "console").read_text().splitlines()[-3:])
        raise PlaceError(f"the job ended with {status}: {tail}")
    report = json.loads(path.read_text())
    failed = [f"{s['name']}: {s['detail']}" for s in report["steps"] if not s["ok"]]
    if failed or status != 0:
        raise PlaceError("; ".join(failed) or f"the job ended with {status}")
    recorder.say(f"{len(report['steps'])} steps held, natively")
    figures: dict[str, Any] = report["figures"]
    return figures


def _run(job: Path, project: Path, timeout_s: float) -> int:
    module = (job / "run").read_text().split()[-1]
    with (job / "console").open("w") as console:
        process = subprocess.Popen(
            [sys.executable, "-m", module],
            cwd=project, env=_environment(job), stdin=subprocess.DEVNULL, stdout=console,
            stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        try:
            return process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise PlaceError(f"not done after {timeout_s:.0f} s") from None
        finally:
            if process.poll() is None:  # it switches swap off by itself; a kill would not
                process.send_signal(signal.SIGTERM)
                process.wait(_END_BOUND_S)


def _environment(job: Path) -> dict[str, str]:
    folders = [str(Path(sys.executable).parent), os.environ.get("PATH", "/usr/bin:/bin")]
    path = os.pathsep.join([*folders, "/usr/sbin", "/sbin"])
    return {**os.environ, "LC_ALL": "C", "PATH": path, "SWAPFS_JOB": str(job)}


def switch_off() -> list[str]:
    """Switch off whatever is still on; return what that was."""
    left = _areas()
    if left:
        swapfs = Path(sys.executable).with_name("swapfs")
        subprocess.run([swapfs, "down"], check=False, timeout=_END_BOUND_S)
    for area in _areas():
        subprocess.run(["swapoff", area], check=False, timeout=_END_BOUND_S)
    return left


def _areas() -> list[str]:
    return [line.split()[0] for line in SWAPS.read_text().splitlines()[1:]]

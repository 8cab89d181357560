"""Run a job in a throw-away VM: a folder goes in, a folder and an exit status come out."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploy.vm.host.accel import choose_accel
from deploy.vm.host.app import CHECKOUT, copy_files, make_app, make_guest_only, source_files
from deploy.vm.host.cache import Cache
from deploy.vm.host.image import make_root
from deploy.vm.host.initrd import make_initrd
from deploy.vm.host.kernel import fetch_kernel
from deploy.vm.host.mirror import host_release
from deploy.vm.host.proc import VmError, run, say
from deploy.vm.host.qemu import Disk, Machine, run_captured
from deploy.vm.host.qmp import PowerEvent

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

_MIB = 1 << 20
_SPOILED_MAX = 2
_RESULTS_MIB = 4096
_TAR_MAGIC = b"ustar"
_TAR_MAGIC_END = 262
_SYSTEMD_CMDLINE = (
    "swapfs.init=/lib/systemd/systemd systemd.log_color=0 systemd.show_status=auto TERM=dumb"
)


@dataclass(frozen=True, slots=True)
class VmResult:
    """How a job ended.

    `exit_status` is the job's own, or None if the VM hung (`timed_out`) or died before it could
    report. `results_dir` holds `out/` (what the job left in /job/out), `dmesg.txt`, `exit-status`
    and under systemd `journal.txt`, as far as the VM got, and always `console.log`. `power` is when
    a VM that may restart was reset and switched off.
    """

    exit_status: int | None
    timed_out: bool
    console: str
    results_dir: Path
    dmesg: str
    wall_s: float
    power: tuple[PowerEvent, ...] = ()


@dataclass(frozen=True, slots=True)
class Size:
    """How large a machine is; each of `disks_mib` is an empty disk."""

    memory_mib: int = 1024
    cpus: int = 2
    disks_mib: Sequence[int] = ()


@dataclass(frozen=True, slots=True)
class Images:
    """Everything a VM boots from, and how to run it."""

    vmlinuz: Path
    initrd: Path
    disks: tuple[Disk, ...]
    accel: str
    systemd: bool = False

    def machine(self, work: Path, disks: Sequence[Disk], size: Size, cmdline: str) -> Machine:
        """Return the machine that has these images first and `disks` after them."""
        words = f"{_SYSTEMD_CMDLINE} {cmdline}" if self.systemd else cmdline
        return Machine(
            self.vmlinuz, self.initrd, work, self.accel, [*self.disks, *disks],
            size.memory_mib, size.cpus, words, restarts=self.systemd,
        )  # fmt: skip


def make_job(
    job_dir: Path,
    module: str,
    sources: Sequence[str] = (),
    params: Mapping[str, Any] | None = None,
    before: str = "",
) -> Path:
    """Make `job_dir` a job that runs the Python `module`, and return it.

    `sources` are files and folders of the checkout that it imports beyond swapfs and what
    `deploy.vm` gives it; they keep their places, so a module has one name on host and guest.
    `params` is what `lab.param` finds, and `before` is what the shell does before the module runs.
    """
    for source in sources:
        copy_files(source_files(CHECKOUT / source), CHECKOUT, job_dir)
    job_dir.mkdir(parents=True, exist_ok=True)
    (job_dir / "params.json").write_text(json.dumps(dict(params or {})))
    script = job_dir / "run"
    script.write_text(f"#!/bin/sh\n{before}exec python3 -m {module}\n")
    script.chmod(0o755)
    return job_dir


def prepare(
    kernel: str = "6.12",
    *,
    project: Path = CHECKOUT,
    packages: Sequence[str] = (),
    systemd: bool = False,
    release: str = "",
    installs: bool = False,
) -> Images:
    """Bring the cache up to date for `kernel` and the checkout `project`; quick if it is.

    `packages` are Debian packages that the root image shall have beyond the usual ones. With
    `systemd` that is PID 1, and a job may reboot: see `run_job`. With a `release` that is not the
    host's, swapfs is not in it, as its wheels are built here: the job brings its own. So it is for
    one that `installs` it.
    """
    cache = Cache()
    with cache.locked():
        files = fetch_kernel(kernel, cache)
        initrd = make_initrd(kernel, files, cache)
        root = make_root(cache, packages, systemd=systemd, release=release)
        if release in ("", host_release()) and not installs:
            app = make_app(project, root.python_version, cache)
        else:
            app = make_guest_only(cache)
        accel = choose_accel(files.vmlinuz, initrd, cache)
    disks = (
        Disk("root", root.image, overlay=True),
        Disk("modules", files.modules_image, read_only=True),
        Disk("app", app, read_only=True),
    )
    return Images(files.vmlinuz, initrd, disks, accel, systemd)


@contextmanager
def work_dir() -> Iterator[Path]:
    """Yield a folder for one run's overlays and disks; sweeps away those of dead runs."""
    runs = Cache().root / "runs"
    runs.mkdir(parents=True, exist_ok=True)
    for leftover in runs.iterdir():
        if not Path("/proc", leftover.name.split("-")[0]).exists():
            shutil.rmtree(leftover, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=f"{os.getpid()}-", dir=runs) as folder:
        yield Path(folder)


def sparse_disks(sizes_mib: Sequence[int], work: Path) -> list[Disk]:
    """Make an empty disk of each size; the guest sees /dev/disk/by-id/virtio-data0, ..."""
    disks = []
    for number, size in enumerate(sizes_mib):
        path = work / f"data{number}.raw"
        with path.open("wb") as handle:
            handle.truncate(size * _MIB)
        disks.append(Disk(f"data{number}", path))
    return disks


def run_job(
    job_dir: Path,
    *,
    results_dir: Path,
    kernel: str = "6.12",
    memory_mib: int = 1024,
    cpus: int = 2,
    disks_mib: Sequence[int] = (),
    timeout_s: float = 600,
    cmdline: str = "",
    echo: bool = True,
    project: Path = CHECKOUT,
    packages: Sequence[str] = (),
    systemd: bool = False,
    release: str = "",
    installs: bool = False,
    quiet_s: float = math.inf,
) -> VmResult:
    """Boot a VM, run `job_dir`/run as root with cwd /job (a copy of `job_dir`), power off.

    The images are brought up to date first; `timeout_s` counts from QEMU's start, and a VM that
    prints nothing for `quiet_s` is taken to hang as well. `cmdline` is added to the kernel's.
    `packages`, `release` and `installs` are as for `prepare`. With `echo` the console goes to our
    stdout as it comes. Results of an earlier run in `results_dir` are deleted. Raises VmError if a
    build step or QEMU itself fails.

    A run that the emulator spoiled is done again, twice at most, and a line says so.

    With `systemd` as PID 1, a job that reboots the VM or powers it off before it has ended is run
    again at the next boot, with all its files as they were; `lab.boot_number()` tells it which.
    """
    if not os.access(job_dir / "run", os.X_OK):
        raise VmError(f"{job_dir}/run is not an executable file; a job needs one")
    images = prepare(
        kernel,
        project=project,
        packages=packages,
        systemd=systemd,
        release=release,
        installs=installs,
    )
    size = Size(memory_mib, cpus, disks_mib)
    once = partial(
        _run_once, job_dir, results_dir, images, size, timeout_s, quiet_s, cmdline, echo=echo
    )
    for _ in range(_SPOILED_MAX):
        result = once()
        if images.accel != "tcg" or not spoiled_by_emulator(result.console):
            return result
        say("the emulator mangled the kernel's own code (Oops: int3, not swapfs); once more")
    return once()


def spoiled_by_emulator(console: str) -> bool:
    """Whether the VM died of TCG's way with code that the kernel patches while it runs.

    The kernel puts an int3 where it patches (text_poke_bp) and takes it away again; CPUs that
    QEMU before 8.1 emulates at times run into one that is gone, for which nobody answers
    (mended by QEMU commit deba78709a, "accel/tcg: Always lock pages before translation").
    """
    return "Oops: int3" in console and "Kernel panic" in console


def _run_once(
    job_dir: Path,
    results_dir: Path,
    images: Images,
    size: Size,
    timeout_s: float,
    quiet_s: float,
    cmdline: str,
    *,
    echo: bool,
) -> VmResult:
    results_dir.mkdir(parents=True, exist_ok=True)
    _clear(results_dir)
    with work_dir() as work, (results_dir / "console.log").open("w") as log:
        job = Disk("job", work / "job.tar", read_only=True)
        run(
            ["tar", "--owner=0", "--group=0", "-C", str(job_dir), "-cf", str(job.path), "."],
            f"packing {job_dir}",
        )
        data = sparse_disks(size.disks_mib, work)
        results = Disk("results", work / "results.raw")
        with results.path.open("wb") as handle:
            handle.truncate(_RESULTS_MIB * _MIB)

        def sink(text: str) -> None:
            log.write(text)
            log.flush()
            if echo:
                sys.stdout.write(text)
                sys.stdout.flush()

        machine = images.machine(work, [job, results, *data], size, cmdline)
        outcome = run_captured(
            machine,
            timeout_s,
            sink,
            finished=lambda: _has_results(results.path),
            quiet_s=quiet_s,
        )
        _unpack(results.path, results_dir)
    return VmResult(
        _read_status(results_dir / "exit-status"),
        outcome.timed_out,
        outcome.console,
        results_dir,
        _read(results_dir / "dmesg.txt"),
        outcome.wall_s,
        outcome.power,
    )


def _clear(results_dir: Path) -> None:
    """Delete what an earlier run left, and nothing else: a caller may name any folder."""
    shutil.rmtree(results_dir / "out", ignore_errors=True)
    for name in ("dmesg.txt", "journal.txt", "exit-status", "console.log"):
        (results_dir / name).unlink(missing_ok=True)


def _has_results(disk: Path) -> bool:
    """Whether the guest has written to the results disk, which it does last."""
    with disk.open("rb") as handle:
        return handle.read(_TAR_MAGIC_END)[-len(_TAR_MAGIC) :] == _TAR_MAGIC


def _unpack(disk: Path, into: Path) -> None:
    """Unpack what the guest wrote; a disk it never wrote to, or only in part, gives less."""
    if not _has_results(disk):
        return
    command = ["tar", "--no-same-owner", "-C", str(into), "-xf", str(disk)]
    subprocess.run(command, check=False, capture_output=True)


def _read(path: Path) -> str:
    return path.read_text(errors="replace") if path.is_file() else ""


def _read_status(path: Path) -> int | None:
    text = _read(path).strip()
    return int(text) if text.isdigit() else None

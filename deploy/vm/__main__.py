"""Build and run the VM in which a real kernel swaps on swapfs."""

from __future__ import annotations

import argparse
import os
import re
import sys
import time
from dataclasses import replace
from pathlib import Path

from deploy.vm.host.app import CHECKOUT
from deploy.vm.host.cache import cache_dir
from deploy.vm.host.demo import DEMOS, run_demo
from deploy.vm.host.job import Size, prepare, run_job, sparse_disks, work_dir
from deploy.vm.host.kernel import KERNELS
from deploy.vm.host.problems import kernel_log_problems
from deploy.vm.host.proc import VmError, say
from deploy.vm.host.qemu import run_interactive

_HUNG_STATUS = 124
_DIED_STATUS = 125


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m deploy.vm",
        description=(__doc__ or "").splitlines()[0],
        epilog="Environment: SWAPFS_CACHE (where the images are kept), "
        "SWAPFS_VM_ACCEL=kvm|tcg (instead of the trial). "
        "Exit status of run: the job's; 124 if the VM hung, 125 if it died, 1 on other errors.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("path", help="print where the images are kept")
    build = commands.add_parser("build", help="bring the images up to date")
    shell = commands.add_parser("shell", help="boot and give you a shell; ctrl-a x leaves")
    job = commands.add_parser("run", help="boot, run JOB/run in it, fetch its results")
    demo = commands.add_parser("demo", help="swap on swapfs, verify every page, show the figures")
    demo.add_argument("which", nargs="?", default="demo", choices=DEMOS, help="default demo")
    for command in (build, shell, job, demo):
        command.add_argument("--kernel", default="6.12", choices=KERNELS, help="default 6.12")
    for command in (build, shell, job):
        command.add_argument(
            "--project", type=Path, default=CHECKOUT, help="checkout to install (default: this)"
        )
    for command in (build, shell, job):
        command.add_argument("--systemd", action="store_true", help="with systemd as PID 1")
        command.add_argument(
            "--release", default="", help="another Debian than the host's, and without swapfs"
        )
    for command in (shell, job):
        command.add_argument("--memory", type=int, default=1024, metavar="MIB")
        command.add_argument("--cpus", type=int, default=2)
        command.add_argument(
            "--disk", type=int, action="append", default=[], metavar="MIB",
            help="an extra empty disk, /dev/disk/by-id/virtio-data0 and up; repeatable",
        )  # fmt: skip
        command.add_argument("--cmdline", default="", help="added to the kernel's command line")
    job.add_argument("job", type=Path, help="folder with an executable `run`")
    job.add_argument("--results", type=Path, required=True, help="folder to fill")
    job.add_argument("--timeout", type=float, default=600, metavar="SECONDS")
    return parser


def _build(args: argparse.Namespace) -> int:
    started = time.monotonic()
    images = prepare(args.kernel, project=args.project, systemd=args.systemd, release=args.release)
    took_s = time.monotonic() - started
    say(f"kernel {args.kernel} is ready ({images.accel}), {took_s:.1f} s, in {cache_dir()}")
    return 0


def _shell(args: argparse.Namespace) -> int:
    images = prepare(args.kernel, project=args.project, systemd=args.systemd, release=args.release)
    try:
        window = os.get_terminal_size()
    except OSError:
        window = os.terminal_size((80, 24))
    term = re.sub(r"[^\w+.-]", "", os.environ.get("TERM", "")) or "vt100"
    tty = f"swapfs.rows={window.lines} swapfs.cols={window.columns} swapfs.term={term}"
    with work_dir() as work:
        size = Size(args.memory, args.cpus, args.disk)
        say(f"booting {args.kernel} with {images.accel}; ctrl-a x leaves")
        machine = images.machine(work, sparse_disks(args.disk, work), size, f"{args.cmdline} {tty}")
        return run_interactive(replace(machine, restarts=False))


def _run(args: argparse.Namespace) -> int:
    result = run_job(
        args.job,
        results_dir=args.results,
        kernel=args.kernel,
        memory_mib=args.memory,
        cpus=args.cpus,
        disks_mib=args.disk,
        timeout_s=args.timeout,
        cmdline=args.cmdline,
        project=args.project,
        systemd=args.systemd,
        release=args.release,
    )
    for line in kernel_log_problems(result.dmesg):
        say(f"kernel log: {line}")
    log = result.results_dir / "console.log"
    if result.timed_out:
        say(f"VM hung after {args.timeout:.0f} s; its blocked tasks are at the end of {log}")
        return _HUNG_STATUS
    if result.exit_status is None:
        say(f"VM ended without a result (a kernel panic?); see {log}")
        return _DIED_STATUS
    say(f"job exited with {result.exit_status} after {result.wall_s:.0f} s")
    return result.exit_status


def _demo(args: argparse.Namespace) -> int:
    return run_demo(args.kernel, args.which)


def main(argv: list[str] | None = None) -> int:
    """Run the command line `argv` and return the exit status."""
    args = _parser().parse_args(argv)
    actions = {"build": _build, "shell": _shell, "run": _run, "demo": _demo}
    try:
        if args.command == "path":
            print(cache_dir())
            return 0
        return actions[args.command](args)
    except (VmError, OSError) as error:
        print(f"vm: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())

"""Swap is taken away by two at once: every pair ends clean, and no page is lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from deploy.vm.guest import lab

if TYPE_CHECKING:
    from collections.abc import Mapping

UP: Final = ("--size", "192M", "--pool", "96M", "--overcommit", "3")
LIMIT_MIB: Final = 32
DATA_MIB: Final = 64
END_BOUND_S: Final = 180
PAIRS: Final = (
    ("down", "down"),
    ("swapoff -a", "down"),
    ("down", "swapoff -a"),
    ("swapoff -a", "SIGTERM"),
    ("SIGTERM", "down"),
    ("down", "SIGTERM"),
    ("SIGTERM", "SIGTERM"),
    ("losetup -D", "down"),
    ("losetup -D", "swapoff -a"),
    ("swapoff -a", "losetup -D"),
    ("down", "losetup -D"),
    ("umount -l", "down"),
    ("umount -l", "SIGTERM"),
    ("down", "umount -l"),
)
MAY_FAIL: Final = {"swapoff -a", "losetup -D", "umount -l"}
"""Not ours: the second of them finds nothing to do, and may say so."""


def start(what: str, found: Mapping[str, str]) -> subprocess.Popen[str] | None:
    """Begin *what*; None if that is a signal, which is sent at once."""
    if what == "SIGTERM":
        os.kill(int(found["pid"]), signal.SIGTERM)
        return None
    words = {"down": ["swapfs", "down"], "umount -l": ["umount", "-l", found["mountpoint"]]}
    return subprocess.Popen(
        words.get(what, what.split()),
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, stdin=subprocess.DEVNULL,
    )  # fmt: skip


def swap_total_kib() -> int:
    """Return SwapTotal, which falls when a swapoff begins."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("SwapTotal:"))


def swaps() -> list[str]:
    """Return the lines of /proc/swaps."""
    return Path("/proc/swaps").read_text().splitlines()[1:]


def end(what: str, process: subprocess.Popen[str] | None) -> list[str]:
    """Wait for the end of *process*; return what is wrong with it."""
    if process is None:
        return []
    try:
        said, _ = process.communicate(timeout=END_BOUND_S)
    except subprocess.TimeoutExpired:
        process.kill()
        return [f"{what} has not ended"]
    failed = process.returncode != 0 and what not in MAY_FAIL
    return [f"{what}: exit status {process.returncode}: {said.strip()}"] if failed else []


def round_of(report: lab.Report, first: str, second: str, hog: lab.Hog, group: lab.Cgroup) -> None:
    """Bring it up, swap, let *first* and *second* take it away, and look."""
    lab.up(*UP)
    group.limit(LIMIT_MIB)
    swapped_mib = group.bytes_of("swap.current") // lab.MIB
    group.unlimited()
    found, full_kib = lab.status(), swap_total_kib()
    started_s = time.monotonic()
    processes = [(first, start(first, found))]
    if first not in ("losetup -D", "umount -l"):
        while swap_total_kib() == full_kib:
            time.sleep(0.01)
    else:
        wrong = end(*processes[0])
    overlap = bool(swaps())
    processes.append((second, start(second, found)))
    wrong = [problem for process in processes for problem in end(*process)]
    if not {"down", "SIGTERM"} & {first, second}:
        wrong += end("down", start("down", found))
    if not lab.wait_for("nothing to be left", lambda: not lab.leftovers(), END_BOUND_S):
        wrong += lab.leftovers()
    took_s = time.monotonic() - started_s
    report.check(
        f"{first}, then {second}",
        not wrong and overlap and swapped_mib > (DATA_MIB - LIMIT_MIB) // 2,
        f"{swapped_mib} MiB swapped, {took_s:.1f} s; {wrong or 'clean'}; overlap {overlap}",
    )
    hog.verify(report, "verify")


def what_the_kernel_shows(report: lab.Report, hog: lab.Hog, group: lab.Cgroup) -> None:
    """See that an area that leaves is listed to the end, and what a second swapoff is told."""
    lab.up(*UP)
    group.limit(LIMIT_MIB)
    group.unlimited()
    full_kib, device = swap_total_kib(), str(lab.status()["loop"])
    started_s = time.monotonic()
    process = start("swapoff -a", {"mountpoint": ""})
    assert process is not None
    while swap_total_kib() == full_kib:
        time.sleep(0.01)
    listed, second = swaps(), lab.run("swapoff", device)
    process.communicate()
    report.check(
        "listed to the end, EINVAL for the second",
        len(listed) == 1 and "Invalid argument" in second.stderr and not swaps(),
        f"{listed}; {second.returncode}: {second.stderr.strip()}; "
        f"swapoff alone took {time.monotonic() - started_s:.1f} s",
    )
    report.check("down of what is off", True, lab.down())
    hog.verify(report, "verify")


def main() -> int:
    """Run the job and return its exit status."""
    report = lab.Report()
    with report:
        group = lab.Cgroup("hog", 2 * DATA_MIB)
        hog = lab.Hog(DATA_MIB, group)
        hog.do("fill")
        what_the_kernel_shows(report, hog, group)
        for first, second in PAIRS[int(lab.param("skip", 0)) :]:
            round_of(report, first, second, hog, group)
        hog.quit()
        report.figures["summary"] = f"{len(PAIRS)} pairs"
    return report.status


if __name__ == "__main__":
    sys.exit(main())

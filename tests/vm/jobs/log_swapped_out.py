"""The log lies on a tmpfs, and its page in swap: no server that dies then may be the last one."""

from __future__ import annotations

import ctypes
import functools
import json
import mmap
import os
import signal
import sys
import time
from pathlib import Path
from typing import Final

from deploy.vm.guest import lab

LOG: Final = lab.RUNTIME_DIR / "swapfs.log"
RECLAIM: Final = Path("/sys/fs/cgroup/memory.reclaim")
PAGE_CLUSTER: Final = Path("/proc/sys/vm/page-cluster")
MADV_PAGEOUT: Final = 21
NEW_SERVER_BOUND_S: Final = 30
KILLS: Final = 3


def is_resident(path: Path) -> bool:
    """Whether the first page of *path* is in memory."""
    mincore = ctypes.CDLL(None, use_errno=True).mincore
    mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p]
    answer = ctypes.create_string_buffer(1)
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
        held = ctypes.c_char.from_buffer(mapped)
        mincore(ctypes.addressof(held), 1, answer)
        del held
    return bool(answer.raw[0] & 1)


def page_out(path: Path) -> bool:
    """Do to *path* what memory pressure does to a page that nobody has used for a while."""

    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
        mapped[0]  # only what this process has mapped goes out
        mapped.madvise(MADV_PAGEOUT)

    def is_out() -> bool:  # it may still be in the swap cache
        if RECLAIM.exists():
            try:
                RECLAIM.write_text("24M swappiness=200")
            except OSError as error:  # less was to be had, or the kernel knows no swappiness here
                lab.say(f"memory.reclaim: {error.strerror}")
        return not is_resident(path)

    return lab.wait_for("the log's page to leave memory", is_out, 30)


def serves_again(dead: int) -> bool:
    """Whether another server than *dead* has written its state."""
    found = lab.snapshot()
    return found is not None and found["server_pid"] not in (dead, None)


def main() -> int:
    """Run the job and return its exit status."""
    report = lab.Report()
    with report:
        lab.up("--size", "96M", "--pool", "128M")
        where = lab.must("findmnt", "-no", "FSTYPE", "-T", str(lab.RUNTIME_DIR)).strip()
        report.check("the log can be swapped out", where == "tmpfs", where)
        group = lab.Cgroup("hog", 32)
        hog = lab.Hog(64, group)
        hog.do("fill")
        PAGE_CLUSTER.write_text("0")  # swap-ins bring no neighbours in
        for number in range(KILLS):
            with LOG.open("a") as log:
                log.write("the page that goes out\n")
            dead = lab.status()["server_pid"]
            out = page_out(LOG)
            os.kill(dead, signal.SIGKILL)  # at once: a swap-in of another page could bring it back
            report.check(f"log swapped out, {number}", out, f"{LOG.stat().st_size} bytes")
            started_s = time.monotonic()
            again = functools.partial(serves_again, dead)
            there = lab.wait_for("a new server", again, NEW_SERVER_BOUND_S)
            took_s = time.monotonic() - started_s
            if not report.check(f"another server, {number}", there, f"after {took_s:.1f} s"):
                os._exit(_give_up(report))
        hog.verify(report, "verify")
        said = LOG.read_text().count("died (SIGKILL)")
        report.check("the log has them all", said == KILLS, f"{said} deaths")
        hog.quit()
        report.check("down", True, lab.down())
        report.check("nothing left", not lab.leftovers(), f"{lab.leftovers()}")
    return report.status


def _give_up(report: lab.Report) -> int:
    """Say what is known when swap stands still: nothing may be waited for, not even the hog."""
    found = lab.snapshot() or {}
    for task in (found.get("pid"), found.get("server_pid")):
        stack = Path(f"/proc/{task}/stack")
        lab.say(f"{task}: {stack.read_text() if stack.exists() else 'gone'}")
    (lab.OUT / "report.json").write_text(json.dumps({"steps": report.steps, "figures": {}}))
    return 1


if __name__ == "__main__":
    sys.exit(main())

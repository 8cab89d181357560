"""The disk below a running swap is replaced and the pool resized, a server killed over each step.

A hog swaps under a limit on a pool, zstd, file A and far memory all the while, and verifies what it
reads.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from deploy.vm.guest import lab
from deploy.vm.guest.churn import Churn

DISK_A: Final = "/dev/disk/by-id/virtio-data0"
DISK_B: Final = "/dev/disk/by-id/virtio-data1"
POOL: Final = "12M"
SOCKET: Final = Path("/run/engine.sock")
CONFIG: Final = Path("/run/demo.toml")
UP: Final = (
    *("--size", "384M", "--pool", POOL, "--pool-max", "32M", "--recompress"),
    *("--file", f"{DISK_A}:512M", "--config", str(CONFIG)),
)
TIERS: Final = f"""
[[tier]]
kind = "valkey"
name = "far"
path = "{SOCKET}"
size = "128M"
"""
"""Of the priority of the file: pages go to both, by turns."""
ENGINE_MIB: Final = 192
LIMIT_MIB: Final = 40
DATA_MIB: Final = 96
BOUND_S: Final = 600
"""Longest that a step takes: emulated, a disk read costs 7 ms, and draining makes many."""
SAY_EVERY_S: Final = 15
NEVER_COUNTED: Final = ("failed_", "lost_", "handler_errors")


def start_engine() -> subprocess.Popen[bytes]:
    """Start a Redis that is kept out of swap, as swapfs demands, and wait until it answers."""
    group = lab.Cgroup("engine", ENGINE_MIB)
    (group.path / "memory.swap.max").write_text("0")

    def enter() -> None:
        (group.path / "cgroup.procs").write_text("0")

    command = ["redis-server", "--port", "0", "--unixsocket", str(SOCKET), "--save", ""]
    command += ["--maxmemory-policy", "noeviction", "--maxmemory", "160mb", "--dir", "/run"]
    engine = subprocess.Popen(command, stdout=subprocess.DEVNULL, preexec_fn=enter)
    lab.wait_for("the engine", lambda: SOCKET.exists() or engine.poll() is not None, BOUND_S)
    return engine


class Stepper:
    """Does one step after the other on the one instance, and notes how each went."""

    def __init__(self, report: lab.Report, churn: Churn) -> None:
        self._report = report
        self._churn = churn

    def do(self, name: str, *command: str, begun: str = "") -> dict[str, Any]:
        """Run `swapfs` with *command*, whose server is killed once *begun* shows; its answer.

        :param begun: what to wait for in the status before the kill; "": kill at once
        """
        before, started_s = self._churn.pages, time.monotonic()
        with _running("swapfs", *command, "--json") as process:
            killed = _kill_server(begun)
            said, problem = self._watch(process)
        answer: dict[str, Any] = json.loads(said) if process.returncode == 0 else {}
        ok = process.returncode == 0 and self._churn.wrong == 0 and self._churn.is_alive()
        self._report.check(
            name,
            ok,
            problem.strip()
            or f"{time.monotonic() - started_s:.1f} s, server {killed} killed over "
            f"it; {self._churn.pages - before} pages verified meanwhile, {self._churn.wrong} wrong",
        )
        return answer

    def _watch(self, process: subprocess.Popen[str]) -> tuple[str, str]:
        """Wait for the end of *process*, and say how far it is; return what it said."""
        end_s = time.monotonic() + BOUND_S
        while True:
            try:
                return process.communicate(timeout=min(SAY_EVERY_S, end_s - time.monotonic()))
            except subprocess.TimeoutExpired:
                if time.monotonic() >= end_s:
                    raise
            found = lab.snapshot() or {"tiers": (), "pool": {}}
            there = {tier["name"]: tier["slots"] for tier in found["tiers"]}
            pool = {key: found["pool"].get(key) for key in ("limit_bytes", "used_bytes")}
            lab.say(f"  pages {there}, pool {pool}, {self._churn.pages} pages verified")


@contextlib.contextmanager
def _running(*command: str) -> Iterator[subprocess.Popen[str]]:
    lab.say(" ".join(command))
    with subprocess.Popen(
        command, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        yield process


def _kill_server(begun: str) -> int:
    """Kill the server of the moment, once a tier is *begun*; return its pid."""

    def has_begun() -> bool:
        found = lab.snapshot() or {}
        return any(tier["phase"] == begun for tier in found.get("tiers", ()))

    if begun:
        lab.wait_for(f"a tier to be {begun}", has_begun, BOUND_S)
    pid = int((lab.snapshot() or {})["server_pid"])
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    return pid


def _names(found: dict[str, Any]) -> list[str]:
    return [tier["name"] for tier in found["tiers"]]


def replace_disk(report: lab.Report, step: Stepper) -> None:
    """Add B, drain A into it, and take A away."""
    step.do("add disk B", "tier", "add", "file", f"path={DISK_B}", "size=512M", "name=b")
    step.do("drain disk A", "tier", "drain", "file", begun="draining")
    step.do("remove disk A", "tier", "remove", "file")
    found, free = lab.status(), False
    with contextlib.suppress(OSError):
        os.close(os.open(DISK_A, os.O_RDWR | os.O_EXCL))  # refused while anybody uses it
        free = True
    there = {tier["name"]: tier["slots"] for tier in found["tiers"]}
    report.check(
        "disk A is free",
        set(there) == {"b", "far"} and free,
        f"pages in tiers: {there}; {found['counters']['drained_pages']} were moved",
    )


def wait_for_zstd() -> int:
    """Return how many pages have been put into zstd, in the pool or on their way down."""

    def count() -> int:
        counters = lab.status()["counters"]
        return int(counters["recompressed_pages"] + counters["recompressed_down_pages"])

    lab.wait_for("recompression", lambda: count() > 0, BOUND_S)
    return count()


def resize(step: Stepper) -> None:
    """Let the pool grow and shrink."""
    step.do("pool to 32 MiB", "resize", "--pool", "32M")
    step.do("pool to 8 MiB", "resize", "--pool", "8M", "--force")


def main() -> int:
    """Run the demo and return its exit status."""
    report = lab.Report()
    with report:
        engine = start_engine()
        CONFIG.write_text(TIERS)
        report.check("swapfs up", True, lab.up(*UP))
        group = lab.Cgroup("hog", LIMIT_MIB)
        hog = lab.Hog(DATA_MIB, group)
        hog.do("fill")
        churn = Churn(hog)
        churn.start()
        step = Stepper(report, churn)
        below = {tier["name"]: tier["slots"] for tier in lab.status()["tiers"]}
        zstd = wait_for_zstd()
        report.check(
            "pages in every place",
            all(below.values()) and zstd > 0,
            f"tiers: {below}; {zstd} were recompressed",
        )
        replace_disk(report, step)
        resize(step)
        before = lab.status()
        lab.must("swapfs", "upgrade")
        now = lab.status()
        report.check(
            "upgrade",
            now["pid"] != before["pid"] and set(_names(now)) == {"b", "far"},
            f"monitor {before['pid']} -> {now['pid']}; pool {now['pool']['limit_bytes'] >> 20} MiB",
        )
        churn.stop()
        report.check(
            "verify meanwhile",
            churn.wrong == 0 and churn.pages > 0,
            f"{churn.pages} pages, {churn.wrong} wrong " + "; ".join(churn.details),
        )
        hog.verify(report, "verify every page")
        counters = lab.status()["counters"]
        bad = {k: v for k, v in counters.items() if k.startswith(NEVER_COUNTED) and v}
        report.check(
            "nothing failed", not bad, f"{bad or ''} {counters['server_starts']} servers in all"
        )
        group.unlimited()
        report.check("swapfs down", True, lab.down())
        hog.verify(report, "verify after swapoff")
        hog.quit()
        report.check("nothing left", not lab.leftovers(), f"{lab.leftovers()}")
        engine.kill()
    return report.status


if __name__ == "__main__":
    sys.exit(main())

"""Whole-system pressure with far memory over TCP: more data than memory, and no cgroup limit.

The engine is in a network namespace behind a veth pair, and kept out of swap. So each page that
goes to it takes buffers of the network, for which memory must be found while it is what is missing.
"""

from __future__ import annotations

import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Final

from deploy.vm.guest import lab
from tests.vm.jobs.pressure import vmstat

DISK: Final = "/dev/disk/by-id/virtio-data0"
NAMESPACE: Final = "far"
HERE: Final = "10.99.0.1"
THERE: Final = "10.99.0.2"
PORT: Final = 6379
CONFIG: Final = Path("/run/far.toml")
TIERS: Final = f"""
[[tier]]
kind = "valkey"
name = "far"
nodes = "{THERE}:{PORT}"
network = true
size = "160M"
priority = 5
"""
UP: Final = ("--size", "768M", "--pool", "64M", "--file", DISK, "--config", str(CONFIG))
DATA_MIB: Final = 560
ENGINE_MIB: Final = 208
BOUND_S: Final = 120


def start_engine() -> subprocess.Popen[bytes]:
    """Start a Redis in a namespace of its own, and wait until it answers over the network."""
    for words in (
        f"netns add {NAMESPACE}",
        f"link add far0 type veth peer name far1 netns {NAMESPACE}",
        f"addr add {HERE}/24 dev far0",
        "link set far0 up",
        f"-n {NAMESPACE} addr add {THERE}/24 dev far1",
        f"-n {NAMESPACE} link set far1 up",
    ):
        lab.must("ip", *words.split())
    group = lab.Cgroup("engine", ENGINE_MIB)
    (group.path / "memory.swap.max").write_text("0")
    redis = f"redis-server --bind {THERE} --port {PORT} --protected-mode no --save '' --dir /run"
    redis += " --maxmemory 180mb --maxmemory-policy noeviction"
    enter = f"echo 0 >{group.path}/cgroup.procs && exec ip netns exec {NAMESPACE} {redis}"
    engine = subprocess.Popen(["sh", "-c", enter], stdout=subprocess.DEVNULL)
    lab.wait_for("the engine", _answers, BOUND_S)
    return engine


def _answers() -> bool:
    with suppress(OSError), socket.create_connection((THERE, PORT), 2) as link:
        link.sendall(b"PING\r\n")
        return link.recv(16).startswith(b"+PONG")
    return False


def main() -> int:
    """Run the job and return its exit status."""
    report = lab.Report()
    with report:
        Path("/proc/sys/vm/page-cluster").write_text("5")
        engine = start_engine()
        CONFIG.write_text(TIERS)
        before = {name: vmstat(name) for name in ("pswpout", "oom_kill")}
        lab.up(*UP)
        found = lab.status()
        report.check("guards hold", not lab.bad_guards(found), f"{lab.bad_guards(found)}")
        hog = lab.Hog(DATA_MIB)
        filled = hog.do("fill")
        out = vmstat("pswpout") - before["pswpout"]
        report.check("fill beyond memory", out > 0, f"{filled['seconds']:.0f} s, {out} pages out")
        hog.do("rewrite 2")
        hog.verify(report, "verify every page")
        after = lab.status()
        there = {tier["name"]: tier["slots"] for tier in after["tiers"]}
        report.check("pages were swapped over the network", there["far"] > 1000, f"{there}")
        killed = vmstat("oom_kill") - before["oom_kill"]
        same = after["pid"] == found["pid"] and after["server_pid"] == found["server_pid"]
        report.check("nobody died", same and not killed, f"{killed} OOM kills, {after['degraded']}")
        errors = {k: v for k, v in after["counters"].items() if k.startswith("failed_") and v}
        report.check("nothing failed", not errors, f"{errors}")
        hog.quit()
        report.check("down", True, lab.down())
        report.check("nothing left", not lab.leftovers(), f"{lab.leftovers()}")
        engine.kill()
        report.figures["summary"] = f"{out} pages out, {there}"
    return report.status


if __name__ == "__main__":
    sys.exit(main())

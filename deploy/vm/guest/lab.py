"""What jobs in the test VM share: checked steps, the swapfs command, cgroups, hogs, counters.

A job makes a `Report`, does its steps inside `with report:`, and returns `report.status`.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import traceback
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn, Self, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import TracebackType

MIB: Final = 1 << 20
PAGE_BYTES: Final = 4096
SECTOR_BYTES: Final = 512
RUNTIME_DIR: Final = Path("/run/swapfs")
JOB: Final = Path(os.environ.get("SWAPFS_JOB", "/job"))
"""Elsewhere only for a job that runs without a VM (tests/bench/native.py)."""
OUT: Final = JOB / "out"
PARAMS: Final = JOB / "params.json"
REPORT: Final = OUT / "report.json"
BOOT: Final = JOB / "boot"
_HOG: Final = Path(__file__).with_name("hog.py")
_Param = TypeVar("_Param", float, str)


class LabError(Exception):
    """A step could not be done; the message says which and why."""


def param(name: str, default: _Param) -> _Param:
    """Return what whoever runs the job gave for *name* in its params.json, a number or a word."""
    try:
        given: dict[str, _Param] = json.loads(PARAMS.read_text())
    except FileNotFoundError:
        return default
    return given.get(name, default)


def boot_number() -> int:
    """Return which boot of this job this is, from 1; more than 1 only under systemd."""
    return int(BOOT.read_text())


def end_boot(report: Report, *command: str) -> NoReturn:
    """Save *report* and end this boot by *command*, such as `systemctl reboot`.

    The job ends here, and is run again at the next boot; after `poweroff` too, as the host
    switches the VM on again.
    """
    say(" ".join(command))
    report.save()
    os.sync()
    must(*command)
    while True:
        signal.pause()


def say(text: str) -> None:
    """Print one progress line to the console."""
    print(f"[{time.monotonic():6.1f}] {text}", flush=True)


class Report:
    """The steps of a job and how they went; `with` turns an exception into a failed step.

    At a boot after the first it goes on from where `end_boot` left it.
    """

    def __init__(self) -> None:
        earlier = json.loads(REPORT.read_text()) if boot_number() > 1 and REPORT.exists() else {}
        self.steps: list[dict[str, Any]] = earlier.get("steps", [])
        self.figures: dict[str, Any] = earlier.get("figures", {})
        self._last_s = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        if error is not None:
            traceback.print_exception(error, file=sys.stdout)
            self.check("job", False, f"{type(error).__name__}: {error}")
        if self.status:
            _print_evidence()
        for log in RUNTIME_DIR.glob("*.log"):
            shutil.copy(log, OUT / log.name)
        self.save()
        return isinstance(error, Exception)

    def save(self) -> None:
        """Write it where the host, or the next boot, finds it."""
        REPORT.write_text(json.dumps({"steps": self.steps, "figures": self.figures}, indent=1))

    def check(self, name: str, ok: bool, detail: str) -> bool:
        """Note that step *name* held or not; *detail* has the figures. Returns *ok*."""
        now_s = time.monotonic()
        seconds, self._last_s = now_s - self._last_s, now_s
        self.steps.append(
            {"name": name, "ok": bool(ok), "detail": detail, "seconds": round(seconds, 1)}
        )
        say(f"{'ok  ' if ok else 'FAIL'}  {name}: {detail}")
        return ok

    @property
    def status(self) -> int:
        """The job's exit status: 0 if every step held."""
        return 0 if self.steps and all(step["ok"] for step in self.steps) else 1


def _print_evidence() -> None:
    """Print what explains a failure; nothing here may wait for a mount that is dead."""
    for log in RUNTIME_DIR.glob("*.log"):
        print(f"--- {log}\n{log.read_text(errors='replace')[-4000:]}")
    for snapshot in RUNTIME_DIR.glob("*.json"):
        status = json.loads(snapshot.read_text())["status"]
        print(f"--- {snapshot}")
        for key in ("slots", "pool", "tiers", "counters", "degraded", "swap", "loop"):
            print(f"{key}: {status.get(key)}")
    meminfo = Path("/proc/meminfo").read_text().splitlines()
    print("--- memory\n" + "  ".join(" ".join(line.split()) for line in meminfo[:18]))
    print("--- /proc/swaps\n" + Path("/proc/swaps").read_text())
    listed = run("ps", "-eLo", "pid,ppid,tid,stat,cls,wchan:24,rss,args").stdout.splitlines()
    print("--- processes\n" + "\n".join(line for line in listed if not line.endswith("]")))
    print("--- dmesg\n" + "\n".join(run("dmesg").stdout.splitlines()[-30:]), flush=True)


# ---- commands ----


def run(*command: str, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run *command* to its end and return how it went; prints nothing."""
    return subprocess.run(
        command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL,
        env=None if env is None else {**os.environ, **env},
    )  # fmt: skip


def must(*command: str) -> str:
    """Run *command*, return its stdout; LabError with its words if it fails."""
    done = run(*command)
    if done.returncode != 0:
        said = " | ".join((done.stderr or done.stdout).strip().splitlines()[-5:])
        raise LabError(f"{' '.join(command)}: exit status {done.returncode}: {said}")
    return done.stdout


def up(*arguments: str) -> str:
    """Run `swapfs up` and return what it printed."""
    say("swapfs up " + " ".join(arguments))
    return must("swapfs", "up", *arguments).strip()


def down() -> str:
    """Run `swapfs down` and return what it printed."""
    say("swapfs down")
    return must("swapfs", "down").strip()


def status() -> dict[str, Any]:
    """Return the status of the one instance that there is."""
    instances = json.loads(must("swapfs", "status", "--json"))["instances"]
    if len(instances) != 1:
        raise LabError(f"{len(instances)} instances instead of one")
    instance: dict[str, Any] = instances[0]
    return instance


def snapshot(name: str = "swapfs") -> dict[str, Any] | None:
    """Return the status that the server last wrote to its file, at most a second or so old.

    Costs no process, unlike `status`; None while there is none.
    """
    try:
        content = json.loads((RUNTIME_DIR / f"{name}.json").read_text())
    except (OSError, ValueError):
        return None
    found: dict[str, Any] = content["status"]
    return found


def occupied(found: Mapping[str, Any]) -> int:
    """Return the occupied slots in a status."""
    slots: dict[str, int] = found["slots"]
    return sum(slots.values()) - slots["empty"]


def bad_guards(found: Mapping[str, Any]) -> list[str]:
    """Return the guards in a status that do not hold, with what was found of each."""
    return [f"{g['name']}: {g['detail']}" for g in found["guards"] if not g["ok"]]


def scrape(address: str) -> dict[str, float]:
    """Return every sample that http://*address*/metrics has, by its name with labels."""
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=30) as answer:
        lines = answer.read().decode().splitlines()
    samples = (line.rpartition(" ") for line in lines if line and not line.startswith("#"))
    return {name: float(value) for name, _, value in samples}


def leftovers() -> list[str]:
    """Return what an instance left behind: swaps, loop devices, mounts, processes."""
    found = [f"swap: {line}" for line in Path("/proc/swaps").read_text().splitlines()[1:]]
    found += [f"loop: {line}" for line in must("losetup", "-a").splitlines()]
    mounts = Path("/proc/self/mounts").read_text().splitlines()
    found += [f"mount: {line}" for line in mounts if "swapfs:" in line]
    found += [
        f"process: {line}"
        for line in run("pgrep", "-af", "swapfs.monitor").stdout.split("\n")
        if line
    ]
    return found


def wait_for(what: str, condition: Callable[[], bool], bound_s: float) -> bool:
    """Poll *condition* until it holds; False, with a line, if it does not within *bound_s*."""
    end_s = time.monotonic() + bound_s
    while not condition():
        if time.monotonic() > end_s:
            say(f"waited {bound_s:.0f} s in vain for {what}")
            return False
        time.sleep(0.25)
    return True


# ---- block devices ----


@dataclass(frozen=True, slots=True)
class Traffic:
    """Bytes that a block device has read, written and discarded since it exists."""

    read: int
    written: int
    discarded: int

    def __sub__(self, other: Traffic) -> Traffic:
        return Traffic(
            self.read - other.read, self.written - other.written, self.discarded - other.discarded
        )

    def __str__(self) -> str:
        text = f"read {self.read / MIB:.1f} MiB, wrote {self.written / MIB:.1f} MiB"
        return text + (f", discarded {self.discarded / MIB:.1f} MiB" if self.discarded else "")


def traffic(device: str) -> Traffic:
    """Return the traffic of *device* (a path), from its sector counters in sysfs."""
    name = Path(device).resolve().name
    fields = Path("/sys/block", name, "stat").read_text().split()
    return Traffic(*(int(fields[index]) * SECTOR_BYTES for index in (2, 6, 13)))


# ---- cgroups and hogs ----


class Cgroup:
    """A cgroup of the one hierarchy, limited to *limit_mib* of memory."""

    _TOP = Path("/sys/fs/cgroup")

    def __init__(self, name: str, limit_mib: int) -> None:
        self.path = self._TOP / name
        self.path.mkdir()
        self.limit(limit_mib)

    def limit(self, limit_mib: int) -> None:
        """Set memory.max; the kernel reclaims what is above before this returns."""
        (self.path / "memory.max").write_text(str(limit_mib * MIB))

    def unlimited(self) -> None:
        """Take the limit away."""
        (self.path / "memory.max").write_text("max")

    def bytes_of(self, name: str) -> int:
        """Return the number in memory.*name* (current, peak, swap.current)."""
        return int((self.path / f"memory.{name}").read_text())

    def oom_kills(self) -> int:
        """Return how many processes the limit has killed."""
        lines = (self.path / "memory.events").read_text().splitlines()
        return int(dict(line.split() for line in lines)["oom_kill"])


class Hog:
    """A process with *mib* of memory that does as `hog.py` says."""

    def __init__(self, mib: int, cgroup: Cgroup | None = None, seed: int = 1, *more: str) -> None:
        self.mib = mib
        command = [sys.executable, str(_HOG), str(mib), f"--seed={seed}", *more]
        command += [f"--cgroup={cgroup.path}"] if cgroup else []
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.answer()

    def send(self, command: str) -> None:
        """Give *command* without waiting for its answer."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(command + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            raise LabError(f"the hog is gone: status {self.process.wait()}") from None

    def answer(self) -> dict[str, Any]:
        """Wait for the answer to the last command; LabError if the hog has died."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise LabError(f"the hog died: status {self.process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def do(self, command: str) -> dict[str, Any]:
        """Give *command* and wait for its answer."""
        self.send(command)
        return self.answer()

    def verify(self, report: Report, name: str, order: str = "") -> bool:
        """Verify every page and note the result as step *name*."""
        return report.check(name, *judge(self.do(f"verify {order}".rstrip())))

    def quit(self) -> None:
        """End it, and wait until its memory is free."""
        if self.process.poll() is None:
            self.send("quit")
            self.process.wait()


def judge(answer: Mapping[str, Any]) -> tuple[bool, str]:
    """Return whether the verification that gave *answer* found nothing, and the figures."""
    text = f"{answer['pages']} pages, {answer['wrong']} wrong, {answer['seconds']:.1f} s"
    return answer["wrong"] == 0, "; ".join([text, *answer["details"]])

"""One swapfs instance as a user starts it, for tests: commands, files under /proc and no shortcuts.

Everything is bounded by time, and ``close`` takes down what a failed test left behind.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from swapfs.config.paths import swap_backing
from swapfs.host import loop, mounts
from swapfs.region.layout import Region
from swapfs.wire import control, state_file

COMMAND_TIMEOUT_S: Final = 60.0
WAIT_S: Final = 30.0

FALLOC_KEEP_SIZE: Final = 0x01
FALLOC_PUNCH_HOLE: Final = 0x02
FALLOC_COLLAPSE_RANGE: Final = 0x08
FALLOC_ZERO_RANGE: Final = 0x10
FALLOC_INSERT_RANGE: Final = 0x20
_CAP_SYS_RESOURCE: Final = 24
_libc: Final = ctypes.CDLL(None, use_errno=True)


def run(*command: object, timeout_s: float = COMMAND_TIMEOUT_S) -> subprocess.CompletedProcess[str]:
    """Run *command* to its end; its exit code is the caller's to judge."""
    return subprocess.run(
        [str(word) for word in command],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
        env={**os.environ, "LC_ALL": "C"},
    )


def check(*command: object, timeout_s: float = COMMAND_TIMEOUT_S) -> str:
    """Run *command*, which must succeed; return what it printed."""
    done = run(*command, timeout_s=timeout_s)
    assert done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    """Call fallocate(2); Python has only posix_fallocate(3)."""
    call = _libc.fallocate
    call.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
    if call(fd, mode, offset, length) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def punch(fd: int, offset: int, length: int) -> None:
    """Discard a range, as the loop driver does."""
    fallocate(fd, FALLOC_PUNCH_HOLE | FALLOC_KEEP_SIZE, offset, length)


def guards_hold() -> bool:
    """Whether this machine lets a server set its guards; else instances need --unsafe."""
    found = re.search(r"^CapEff:\t(\w+)$", Path("/proc/self/status").read_text(), re.MULTILINE)
    return bool(found and int(found[1], 16) >> _CAP_SYS_RESOURCE & 1)


def wait_until(condition: Any, what: str, timeout_s: float = WAIT_S) -> None:
    """Poll *condition* until it is true; fail when it is not in time."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {timeout_s:g} s"
        time.sleep(0.01)


def is_alive(pid: int) -> bool:
    """Whether *pid* is a process that has not ended (a zombie has)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):  # the second: it ended between open and read
        return False


class Instance:
    """An instance called *name* with its files under *directory*; ``mount`` starts it."""

    def __init__(self, directory: Path, name: str) -> None:
        self.name = name
        self.directory = directory
        self.runtime_dir = directory / f"{name}.run"
        self.mountpoint = directory / f"{name}.mnt"
        self.mountpoint.mkdir(parents=True)
        self.swap = self.mountpoint / "swap"
        self.swap_backing = swap_backing(self.mountpoint, None)
        self.backing = directory / f"{name}.backing"
        self.foreground: subprocess.Popen[str] | None = None
        self.command = [sys.executable, "-m", "swapfs"]
        self._pids: set[int] = set()

    # ---- starting and stopping, as a user does ----

    def mount_command(self, *options: object) -> list[str]:
        """Return the command line that mounts this instance."""
        words = [*self.command, "mount", self.mountpoint, "--name", self.name]
        words += ["--runtime-dir", self.runtime_dir, *options]
        if not guards_hold():
            words.append("--unsafe")
        return [str(word) for word in words]

    def mount(self, *options: object) -> None:
        """Mount in the background; it must work."""
        check(*self.mount_command(*options))
        self.note_pids()

    def mount_in_foreground(self, *options: object) -> None:
        """Mount with --foreground and return when it serves."""
        self.foreground = subprocess.Popen(
            [*self.mount_command(*options), "--foreground"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        process = self.foreground
        path = state_file.path(self.runtime_dir, self.name)
        wait_until(lambda: path.exists() or process.poll() is not None, "mount")
        assert process.poll() is None, process.communicate()
        # Until it has read the daemon's answer, a signal to the command goes nowhere.
        fds = Path(f"/proc/{process.pid}/fd")
        wait_until(lambda: len(list(fds.iterdir())) == 3, "the answer to be read")
        self.note_pids()

    def cli(self, command: str, *options: object) -> subprocess.CompletedProcess[str]:
        """Run a swapfs command on this instance."""
        words = [*self.command, command, self.name, "--runtime-dir", self.runtime_dir, *options]
        return run(*words)

    def down(self) -> None:
        """Take it down; it must work, and leave nothing."""
        done = self.cli("down")
        assert done.returncode == 0, done.stderr
        self.assert_gone()

    # ---- looking at it ----

    def status(self) -> dict[str, Any]:
        """Return the status of this moment, from the server itself."""
        sock = control.socket_path(self.runtime_dir, self.name)
        return control.request(sock, "status", COMMAND_TIMEOUT_S)

    def counters(self) -> dict[str, int]:
        """Return the counters of this moment."""
        counters: dict[str, int] = self.status()["counters"]
        return counters

    def demote(self, pages: int) -> int:
        """Move about *pages* pages to the file tier; return how many were."""
        sock = control.socket_path(self.runtime_dir, self.name)
        return int(control.request(sock, "demote", COMMAND_TIMEOUT_S, pages=pages)["demoted"])

    def open(self, flags: int = os.O_RDWR) -> int:
        """Return a descriptor of the swap file."""
        return os.open(self.swap, flags | os.O_CLOEXEC)

    def log(self) -> str:
        """Return what the daemon logged."""
        path = self.runtime_dir / f"{self.name}.log"
        return path.read_text() if path.exists() else ""

    def region(self) -> Region:
        """Map the region of the running instance; the caller closes it."""
        monitor = Path(f"/proc/{self.status()['pid']}/fd")
        for link in monitor.iterdir():
            if "memfd:swapfs-region" in os.readlink(link):
                return Region.attach(os.open(link, os.O_RDWR | os.O_CLOEXEC))
        raise AssertionError("the monitor holds no region")

    def note_pids(self) -> None:
        status = self.status()
        self._pids |= {status["pid"], status["server_pid"]}
        self.swap_backing = swap_backing(self.mountpoint, status["handover"]["device"])

    # ---- loop devices ----

    def attach_loop(self, sector_bytes: int = 4096) -> Path:
        """Attach a loop device with direct I/O to the swap file."""
        return loop.attach(self.swap, sector_size=sector_bytes).device

    def detach_loops(self) -> None:
        """Detach every loop device on the swap file."""
        while (attached := loop.find(self.swap_backing)) is not None:
            loop.detach(attached.device)

    # ---- the end ----

    def assert_gone(self) -> None:
        """Check that the instance left no mount, loop device, lock or process."""
        assert mounts.at(self.mountpoint) is None, "still mounted"
        assert loop.find(self.swap_backing) is None, "a loop device is left"
        # A swapfs down that the monitor started ends just after the monitor.
        wait_until(lambda: processes_of(self.runtime_dir) == [], "the end of every process", 5)

    def close(self) -> None:
        """Take down whatever is left, with force if need be."""
        with suppress(Exception):
            self.note_pids()
        with suppress(Exception):
            self.detach_loops()
        with suppress(Exception):
            if self.cli("down").returncode == 0 and self.foreground is None:
                return
        if mounts.at(self.mountpoint) is not None:
            run("umount", "-l", self.mountpoint)
        if self.foreground is not None:
            with suppress(subprocess.TimeoutExpired):
                self.foreground.communicate(timeout=5)
            self.foreground.kill()
            self.foreground.communicate()
        for pid in self._pids | set(processes_of(self.runtime_dir)):
            with suppress(ProcessLookupError):
                if is_alive(pid):
                    os.kill(pid, signal.SIGKILL)


def processes_of(runtime_dir: Path) -> list[int]:
    """Return the living processes that have a file under *runtime_dir* open."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            links = [os.readlink(link) for link in (process / "fd").iterdir()]
        except OSError:
            continue
        pid = int(process.name)
        if any(link.startswith(f"{runtime_dir}/") for link in links) and is_alive(pid):
            found.append(pid)
    return found


def errno_of(call: Any, *args: object) -> str:
    """Return the name of the errno that *call* fails with; "" when it succeeds."""
    try:
        call(*args)
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return ""


Start = Callable[..., Instance]
"""Starts an instance with the options given, and takes it down when the test is over."""

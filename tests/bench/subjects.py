"""What is measured, brought up and taken down: each a context manager that leaves nothing behind.

Nothing here turns swap on. A subject that cannot exist on this machine raises `UnavailableError`
with one line that says why; anything else that goes wrong is a bug or a broken machine.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from swapfs.host import loop, mounts, process_guards
from swapfs.wire import control

COMMAND_TIMEOUT_S: Final = 120.0
START_TIMEOUT_S: Final = 10.0
NOOP_SOURCE: Final = Path(__file__).with_name("noop_server.c")
_ZRAM_CONTROL: Final = Path("/sys/class/zram-control")
_CAP_SYS_RESOURCE: Final = 24
_numbers: Final = itertools.count(1)


class UnavailableError(Exception):
    """This machine cannot have that subject. The message is one line that says why."""


@dataclass(frozen=True)
class Mounted:
    """A swapfs instance that is mounted, and not swapped on."""

    name: str
    swap: Path
    """The FUSE file."""
    runtime_dir: Path
    metrics_url: str
    """Where Prometheus metrics are; "" if they were not asked for."""

    def status(self) -> dict[str, Any]:
        """Return what ``swapfs status --json`` says of this instance at this moment."""
        return self._ask("status")

    def demote(self, pages: int) -> int:
        """Move about *pages* pages to the file tier; return how many were moved."""
        return int(self._ask("demote", pages=pages)["demoted"])

    @property
    def server_pid(self) -> int:
        """The process that serves pages; another one after a crash."""
        return int(self.status()["server_pid"])

    def _ask(self, command: str, **arguments: object) -> dict[str, Any]:
        where = control.socket_path(self.runtime_dir, self.name)
        return control.request(where, command, COMMAND_TIMEOUT_S, **arguments)


@dataclass(frozen=True)
class Served:
    """A file or device that a process of ours serves."""

    path: Path
    pid: int


def run(*words: object, timeout_s: float = COMMAND_TIMEOUT_S) -> str:
    """Run a command that must succeed; return what it printed."""
    # su without "-" leaves the sbin directories out of PATH.
    path = os.pathsep.join([os.environ.get("PATH", "/usr/bin:/bin"), "/usr/sbin", "/sbin"])
    done = subprocess.run(
        [str(word) for word in words],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
        env={**os.environ, "LC_ALL": "C", "PATH": path},
    )
    if done.returncode != 0:
        said = done.stderr.strip() or done.stdout.strip()
        raise RuntimeError(f"{words[0]}: exit code {done.returncode}: {said}")
    return done.stdout


def need_tools(*tools: str) -> None:
    """Raise UnavailableError if one of the programs *tools* is not installed."""
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
    if missing := [tool for tool in tools if shutil.which(tool, path=path) is None]:
        raise UnavailableError(f"needs {' and '.join(missing)}")


def need_root() -> None:
    """Raise UnavailableError unless this process may mount and attach devices."""
    if os.geteuid() != 0:
        raise UnavailableError("needs root")


def need_disk(work: Path) -> None:
    """Raise UnavailableError for a directory in memory: it would be measured as if on a disk."""
    holders = [
        entry for entry in mounts.entries() if work.resolve().is_relative_to(entry.mountpoint)
    ]
    kind = max(holders, key=lambda entry: len(entry.mountpoint.parts)).fstype
    if kind in {"tmpfs", "ramfs"}:
        raise UnavailableError(f"{work} is on {kind}: set TMPDIR to a directory on a disk")


@contextlib.contextmanager
def swapfs_mount(
    directory: Path,
    *,
    size_bytes: int,
    pool_bytes: int,
    file: str | None = None,
    metrics: bool = False,
    arguments: Sequence[object] = (),
) -> Iterator[Mounted]:
    """Mount swapfs with its files under *directory*, which may hold several instances.

    :param file: the backing file, as ``--file`` takes it: PATH:SIZE
    :param metrics: serve Prometheus metrics on a free port of 127.0.0.1
    :param arguments: more options of ``swapfs mount``
    """
    need_root()
    name = f"bench-{os.getpid()}-{next(_numbers)}"
    mountpoint, runtime_dir = directory / f"{name}.mnt", directory / f"{name}.run"
    mountpoint.mkdir(parents=True)
    command = [sys.executable, "-m", "swapfs"]
    where = ["--name", name, "--runtime-dir", runtime_dir]
    options: list[object] = ["--size", size_bytes, "--pool", pool_bytes, *arguments]
    options += ["--file", file] if file else []
    address = f"127.0.0.1:{_free_port()}" if metrics else ""
    options += ["--metrics", address] if metrics else []
    options += [] if may_set_guards() else ["--unsafe"]
    try:
        try:
            run(*command, "mount", mountpoint, *where, *options)
        except RuntimeError as error:
            # It names a log that is gone by the time somebody reads this.
            log = runtime_dir / f"{name}.log"
            error.add_note(log.read_text()[-2000:] if log.exists() else "")
            raise
        url = f"http://{address}/metrics" if address else ""
        yield Mounted(name, mountpoint / "swap", runtime_dir, url)
    finally:
        if mounts.at(mountpoint) is not None:
            run(*command, "down", name, "--runtime-dir", runtime_dir)


@contextlib.contextmanager
def loop_device(file: Path) -> Iterator[Path]:
    """Attach a loop device to *file* as ``swapfs up`` does: direct I/O, 4096-byte sectors."""
    need_root()
    need_tools("losetup")
    device = loop.attach(file).device
    try:
        yield device
    finally:
        loop.detach(device)


@contextlib.contextmanager
def plain_file(directory: Path, size_bytes: int) -> Iterator[Path]:
    """Make a file that has its space but not its contents yet."""
    path = directory / f"plain-{next(_numbers)}"
    try:
        with path.open("xb") as stream:
            os.posix_fallocate(stream.fileno(), 0, size_bytes)
        yield path
    finally:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def noop_server(directory: Path, size_bytes: int) -> Iterator[Served]:
    """Serve the floor of FUSE: a C server that does nothing (noop_server.c)."""
    need_root()
    program = compile_c(NOOP_SOURCE, directory, package="fuse3")
    mountpoint = directory / f"noop-{next(_numbers)}.mnt"
    mountpoint.mkdir()
    with _process(program, mountpoint, size_bytes) as server:
        try:
            _wait(lambda: mounts.at(mountpoint) is not None, server, "the C server mounts")
            # swapfs runs so; on a busy machine the floor would otherwise lie above it.
            with contextlib.suppress(PermissionError):
                priority = os.sched_param(process_guards.FIFO_PRIORITY)
                os.sched_setscheduler(server.pid, os.SCHED_FIFO, priority)
            yield Served(mountpoint / "swap", server.pid)
        finally:
            if mounts.at(mountpoint) is not None:
                run("umount", mountpoint)


@contextlib.contextmanager
def zram(size_bytes: int, algorithm: str = "lz4") -> Iterator[Path]:
    """Make one more zram device, as a block device only."""
    need_root()
    _load_module("zram", _ZRAM_CONTROL, "num_devices=0")
    number = int((_ZRAM_CONTROL / "hot_add").read_text())
    sysfs = Path(f"/sys/block/zram{number}")
    try:
        try:
            (sysfs / "comp_algorithm").write_text(algorithm)
        except OSError as error:
            raise UnavailableError(f"this kernel's zram has no {algorithm}") from error
        (sysfs / "disksize").write_text(str(size_bytes))
        yield Path("/dev") / sysfs.name
    finally:
        _remove_zram(sysfs, number)


@contextlib.contextmanager
def nbdkit(directory: Path, size_bytes: int, allocator: str) -> Iterator[Served]:
    """Serve nbdkit's memory plugin as a block device; *allocator* is "malloc" or "zstd"."""
    need_root()
    need_tools("nbdkit", "nbd-client")
    _load_module("nbd", Path("/sys/block/nbd0"))
    device = _free_nbd()
    sock = directory / f"nbdkit-{next(_numbers)}.sock"
    words = ["nbdkit", "--foreground", "--unix", sock, "memory", str(size_bytes)]
    with _process(*words, f"allocator={allocator}") as server:
        _wait(sock.exists, server, "nbdkit listens")
        run("nbd-client", "-unix", sock, device, "-block-size", 4096)
        try:
            size = Path("/sys/block", device.name, "size")
            _wait(lambda: int(size.read_text()) * 512 == size_bytes, server, "the device appears")
            yield Served(device, server.pid)
        finally:
            run("nbd-client", "-d", device)


def compile_c(source: Path, directory: Path, package: str = "") -> Path:
    """Build *source* with the C compiler, against the pkg-config *package* if given."""
    need_tools("cc", *(["pkg-config"] if package else []))
    program = directory / source.stem
    if program.exists():
        return program
    try:
        flags = run("pkg-config", "--cflags", "--libs", package).split() if package else []
    except RuntimeError as error:
        raise UnavailableError(f"needs the headers of {package}") from error
    run("cc", "-O2", "-Wall", "-Wextra", source, "-o", program, "-pthread", *flags)
    return program


def cpu_seconds(pid: int) -> float:
    """Return the processor time that process *pid* has used so far (all threads)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextlib.contextmanager
def _process(*words: object) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server for as long as the block lasts."""
    server = subprocess.Popen([str(word) for word in words], stdin=subprocess.DEVNULL)
    try:
        yield server
    finally:
        server.terminate()
        try:
            server.wait(START_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def _wait(condition: Callable[[], bool], server: subprocess.Popen[bytes], what: str) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while not condition():
        if server.poll() is not None:
            raise RuntimeError(f"waiting until {what}: it ended with code {server.returncode}")
        if time.monotonic() > deadline:
            raise RuntimeError(f"waiting until {what}: not within {START_TIMEOUT_S:g} s")
        time.sleep(0.01)


def _load_module(name: str, proof: Path, *options: str) -> None:
    """Have the kernel's module *name*, which shows itself at *proof*."""
    if not proof.exists():
        with contextlib.suppress(RuntimeError, OSError):
            run("modprobe", "-q", name, *options)
    if not proof.exists():
        raise UnavailableError(f"this kernel has no {name} ({proof} is missing)")


def _remove_zram(sysfs: Path, number: int) -> None:
    """Reset and remove; udev may hold a new device open for a moment."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        try:
            (sysfs / "reset").write_text("1")
            (_ZRAM_CONTROL / "hot_remove").write_text(str(number))
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
        else:
            return


def _free_nbd() -> Path:
    for block in sorted(Path("/sys/block").glob("nbd*")):
        if not (block / "pid").exists() and int((block / "size").read_text()) == 0:
            return Path("/dev") / block.name
    raise UnavailableError("every /dev/nbd* is in use")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def may_set_guards() -> bool:
    """Whether this machine lets a server set its guards; else it is mounted with --unsafe."""
    found = re.search(r"^CapEff:\t(\w+)$", Path("/proc/self/status").read_text(), re.MULTILINE)
    return bool(found and int(found[1], 16) >> _CAP_SYS_RESOURCE & 1)

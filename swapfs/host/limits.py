"""What the caller's limits leave us: resource limits of the process, and those of its cgroup.

A limit of the shell, the unit or the container that is too low shows late and badly: EFBIG from a
write, a thread that cannot be made, "Killed". So all are read before anything is made; those that
may be are raised, and the rest are named. Sources: setrlimit(2), cgroups(7),
Documentation/admin-guide/cgroup-v2.rst.
"""

from __future__ import annotations

import contextlib
import resource
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from swapfs.errors import OperationError
from swapfs.host import mounts
from swapfs.host.proc import ROOT, read_text
from swapfs.units import MiB, format_size

PROCESS_BYTES: Final = 96 * MiB
"""Locked memory of monitor and server beside the region: 75 MiB with encryption (6.18)."""
ADDRESS_BYTES: Final = 1024 * MiB
"""Address space of a server beside the region: libraries, stacks of 20 threads, malloc's arenas."""
FILES: Final = 256
TASKS: Final = 64
"""Threads and processes: some 20 of a server, those of the next one, and what `down` runs."""
_NO_LIMIT: Final = resource.RLIM_INFINITY
_V1_NO_LIMIT: Final = 1 << 60  # of memory.limit_in_bytes: the largest multiple of a page, really

_CAUSES: Final[dict[int, str]] = {
    signal.SIGXCPU: "a limit on processor time (RLIMIT_CPU, RLIMIT_RTTIME)",
    signal.SIGXFSZ: "a limit on the size of files (RLIMIT_FSIZE)",
    signal.SIGSYS: "a filter on system calls (SystemCallFilter=, seccomp)",
    signal.SIGBUS: "no memory left for a mapping",
}


@dataclass(frozen=True, slots=True)
class Needs:
    """What an instance needs of its caller, in bytes: its region, and its largest file."""

    region_bytes: int
    file_bytes: int

    @property
    def memory_bytes(self) -> int:
        """Memory that is charged to its cgroup."""
        return self.region_bytes + PROCESS_BYTES


@dataclass(frozen=True, slots=True)
class Cgroup:
    """A cgroup that this process is in, or one above it.

    :param shown: its path as the user knows it
    """

    shown: str
    directory: Path
    version: int


def problems(needs: Needs, root: Path = ROOT) -> list[str]:
    """Return the limits that are too low for *needs*, each in one line; after ``lift`` only."""
    return [*_process_problems(needs), *_cgroup_problems(needs, root)]


def lift(needs: Needs) -> None:
    """Raise the resource limits of this process and what it starts, as far as it may."""
    for number, _, needed in _resource_needs(needs):
        soft, hard = resource.getrlimit(number)
        for wanted in ((needed, _max(needed, hard)), (_min(needed, hard), hard)):
            if not _less(soft, wanted[0]):
                break
            with contextlib.suppress(OSError, ValueError):  # beyond the hard one: needs the right
                resource.setrlimit(number, wanted)
                break


def slowed(root: Path = ROOT) -> str:
    """Say in one line that a cgroup may stop our threads for a while; "" if none does."""
    for group in _cgroups("cpu", root):
        name = {2: "cpu.max", 1: "cpu.cfs_quota_us"}[group.version]
        with contextlib.suppress(OperationError, ValueError, IndexError):
            words = read_text(group.directory / name).split()
            if words[0] not in ("max", "-1"):
                return (
                    f"{name} of cgroup {group.shown} is {' '.join(words)}: whoever swaps waits "
                    "while its processor time is used up"
                )
    return ""


def explain_death(status: int, root: Path = ROOT) -> str:
    """Say what ended a process, and why probably.

    :param status: as ``subprocess`` has it: an exit code, or a signal's number below 0
    """
    if status >= 0:
        return f"exit code {status}"
    named = {known.value: known.name for known in signal.Signals}
    name = named.get(-status, f"signal {-status}")
    why = _why_killed(root) if -status == signal.SIGKILL else _CAUSES.get(-status)
    return f"killed by {name}: {why}" if why else f"killed by {name}"


# ---- resource limits ----


def _resource_needs(needs: Needs) -> Iterator[tuple[int, str, int]]:
    """Yield number, name and need of each resource limit that matters."""
    address_bytes = needs.region_bytes + ADDRESS_BYTES
    yield resource.RLIMIT_FSIZE, "RLIMIT_FSIZE", max(needs.file_bytes, needs.region_bytes)
    yield resource.RLIMIT_AS, "RLIMIT_AS", address_bytes
    yield resource.RLIMIT_DATA, "RLIMIT_DATA", PROCESS_BYTES
    yield resource.RLIMIT_NOFILE, "RLIMIT_NOFILE", FILES
    yield resource.RLIMIT_CPU, "RLIMIT_CPU", _NO_LIMIT
    yield resource.RLIMIT_RTTIME, "RLIMIT_RTTIME", _NO_LIMIT
    # The next two are for callers without CAP_IPC_LOCK or CAP_SYS_NICE: guards look at the result.
    yield resource.RLIMIT_MEMLOCK, "RLIMIT_MEMLOCK", _NO_LIMIT
    yield resource.RLIMIT_RTPRIO, "RLIMIT_RTPRIO", 1


def _process_problems(needs: Needs) -> Iterator[str]:
    guarded = (resource.RLIMIT_MEMLOCK, resource.RLIMIT_RTPRIO)
    for number, name, needed in _resource_needs(needs):
        soft, _ = resource.getrlimit(number)
        if number not in guarded and _less(soft, needed):
            wants = "no limit" if needed == _NO_LIMIT else _figure(name, needed)
            yield (
                f"{name} is {_figure(name, soft)}, {wants} needed, and it may not be raised "
                f"(ulimit, {_unit_key(name)} of a unit)"
            )


def _figure(name: str, value: int) -> str:
    in_bytes = name in ("RLIMIT_FSIZE", "RLIMIT_AS", "RLIMIT_DATA")
    return format_size(value) if in_bytes else str(value)


def _unit_key(name: str) -> str:
    return f"Limit{name.removeprefix('RLIMIT_')}="


def _less(one: int, other: int) -> bool:
    """Whether limit *one* is below *other*; both may be "no limit", which is -1."""
    return one != _NO_LIMIT and (other == _NO_LIMIT or one < other)


def _max(one: int, other: int) -> int:
    return other if _less(one, other) else one


def _min(one: int, other: int) -> int:
    return one if _less(one, other) else other


# ---- cgroups ----


def _cgroup_problems(needs: Needs, root: Path) -> Iterator[str]:
    for group in _cgroups("memory", root):
        name = {2: "memory.max", 1: "memory.limit_in_bytes"}[group.version]
        limit_bytes = _number(group.directory / name)
        if limit_bytes is not None and limit_bytes < min(needs.memory_bytes, _V1_NO_LIMIT):
            yield (
                f"{name} of cgroup {group.shown} is {format_size(limit_bytes)}, "
                f"{format_size(needs.memory_bytes)} needed, all of it locked"
            )
    for group in _cgroups("pids", root):
        most = _number(group.directory / "pids.max")
        now = _number(group.directory / "pids.current") or 0
        if most is not None and most - now < TASKS:
            yield f"pids.max of cgroup {group.shown} is {most}, with {now} in use; {TASKS} needed"


def _cgroups(controller: str, root: Path) -> Iterator[Cgroup]:
    """Yield the cgroup of this process that has *controller*, and those above it, that are seen."""
    try:
        lines = read_text(root / "proc/self/cgroup").splitlines()
        mounted = mounts.entries(root)
    except OperationError:
        return
    found = [line.split(":", 2) for line in lines if line.count(":") >= 2]
    for version, fstype in ((1, "cgroup"), (2, "cgroup2")):
        path = next(
            (
                path
                for number, controllers, path in found
                if (controller in controllers.split(",") if version == 1 else number == "0")
            ),
            None,
        )
        for entry in mounted if path is not None else ():
            top = root / str(entry.mountpoint).lstrip("/")
            if entry.fstype == fstype and (version == 2 or _has(top, controller)):
                yield from _upwards(top, path or "/", version)
                break


def _has(top: Path, controller: str) -> bool:
    """Whether *top* is the hierarchy of *controller*; v1 mounts it under that name."""
    return controller in top.name.split(",")


def _upwards(top: Path, path: str, version: int) -> Iterator[Cgroup]:
    shown = Path("/", path.lstrip("/"))
    for each in (shown, *shown.parents):
        directory = top / str(each).lstrip("/")
        if directory.is_dir():
            yield Cgroup(str(each), directory, version)


def _number(path: Path) -> int | None:
    """Return the number in *path*; None: there is none, or it says "max"."""
    try:
        return int(read_text(path))
    except (OperationError, ValueError):
        return None


def _why_killed(root: Path) -> str:
    for group in _cgroups("memory", root):
        name = {2: "memory.max", 1: "memory.limit_in_bytes"}[group.version]
        limit_bytes = _number(group.directory / name)
        if limit_bytes is not None and limit_bytes < _V1_NO_LIMIT:
            return (
                f"out of memory, probably: {name} of cgroup {group.shown} is "
                f"{format_size(limit_bytes)}; the kernel log knows (journalctl -k)"
            )
    return "out of memory, probably: a smaller pool; the kernel log knows (journalctl -k)"

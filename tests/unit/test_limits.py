"""The limits of the caller: raised where that may be, named where not."""

from __future__ import annotations

import resource
import signal
from pathlib import Path

import pytest

from swapfs.host import limits
from swapfs.host.limits import Needs
from swapfs.units import GiB, MiB

NEEDS = Needs(region_bytes=512 * MiB, file_bytes=2 * GiB)
INFINITY = resource.RLIM_INFINITY

Limits = dict[int, tuple[int, int]]


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> Limits:
    """The resource limits of this process, which may not raise the hard ones."""
    held: Limits = {}

    def put(number: int, wanted: tuple[int, int]) -> None:
        soft, hard = wanted
        now = held.get(number, (INFINITY, INFINITY))[1]
        if now != INFINITY and (hard == INFINITY or hard > now):
            raise ValueError("not allowed to raise maximum limit")
        assert soft == hard or hard == INFINITY or soft <= hard
        held[number] = wanted

    monkeypatch.setattr(resource, "getrlimit", lambda n: held.get(n, (INFINITY, INFINITY)))
    monkeypatch.setattr(resource, "setrlimit", put)
    return held


def test_nothing_is_said_or_changed_where_there_is_no_limit(own: Limits, tmp_path: Path) -> None:
    limits.lift(NEEDS)
    assert own == {}
    assert limits.problems(NEEDS, tmp_path) == []


@pytest.mark.parametrize(
    ("number", "soft", "after"),
    [
        (resource.RLIMIT_FSIZE, MiB, 2 * GiB),
        (resource.RLIMIT_AS, 512 * MiB, 512 * MiB + limits.ADDRESS_BYTES),
        (resource.RLIMIT_NOFILE, 20, limits.FILES),
        (resource.RLIMIT_CPU, 60, INFINITY),
        (resource.RLIMIT_MEMLOCK, 64 * 1024, INFINITY),
    ],
)
def test_a_soft_limit_is_raised_to_what_is_needed(
    own: Limits, tmp_path: Path, number: int, soft: int, after: int
) -> None:
    own[number] = (soft, INFINITY)
    limits.lift(NEEDS)
    assert own[number] == (after, INFINITY)
    assert limits.problems(NEEDS, tmp_path) == []


@pytest.mark.parametrize(
    ("number", "hard", "says"),
    [
        (resource.RLIMIT_FSIZE, MiB, "RLIMIT_FSIZE is 1M, 2G needed, and it may not be raised"),
        (resource.RLIMIT_AS, 600 * MiB, "RLIMIT_AS is 600M, 1.5G needed"),
        (resource.RLIMIT_NOFILE, 64, "RLIMIT_NOFILE is 64, 256 needed"),
        (resource.RLIMIT_RTTIME, 95, "RLIMIT_RTTIME is 95, no limit needed"),
    ],
)
def test_a_hard_limit_is_used_up_and_named(
    own: Limits, tmp_path: Path, number: int, hard: int, says: str
) -> None:
    own[number] = (hard // 2, hard)
    limits.lift(NEEDS)
    assert own[number] == (hard, hard)
    (line,) = limits.problems(NEEDS, tmp_path)
    assert line.startswith(says)


@pytest.fixture
def v2(tmp_path: Path) -> Path:
    """A machine where this process is in /system.slice/swapfs.service of cgroup v2."""
    group = tmp_path / "sys/fs/cgroup/system.slice/swapfs.service"
    group.mkdir(parents=True)
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("0::/system.slice/swapfs.service\n")
    (tmp_path / "proc/self/mountinfo").write_text("30 1 0:26 / /sys/fs/cgroup rw - cgroup2 cg rw\n")
    for name in ("memory.max", "pids.max"):
        (group / name).write_text("max\n")
    return group


@pytest.fixture
def v1(tmp_path: Path) -> Path:
    """A machine where this process is in /job of cgroup v1."""
    top = tmp_path / "sys/fs/cgroup"
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("5:memory:/job\n3:cpu,cpuacct:/job\n0::/\n")
    lines = []
    for number, name in enumerate(("memory", "cpu,cpuacct")):
        (top / name / "job").mkdir(parents=True)
        lines.append(f"3{number} 1 0:3{number} / /sys/fs/cgroup/{name} rw - cgroup cgroup rw\n")
    (tmp_path / "proc/self/mountinfo").write_text("".join(lines))
    (top / "memory/job/memory.limit_in_bytes").write_text("9223372036854771712\n")
    return top


def test_a_cgroup_without_limits_is_fine(own: Limits, v2: Path, tmp_path: Path) -> None:
    assert limits.problems(NEEDS, tmp_path) == []
    assert limits.slowed(tmp_path) == ""


def test_memory_of_a_cgroup_or_one_above_is_named(own: Limits, v2: Path, tmp_path: Path) -> None:
    (v2.parent / "memory.max").write_text(f"{256 * MiB}\n")
    (line,) = limits.problems(NEEDS, tmp_path)
    assert line == "memory.max of cgroup /system.slice is 256M, 608M needed, all of it locked"
    (v2.parent / "memory.max").write_text(f"{GiB}\n")
    assert limits.problems(NEEDS, tmp_path) == []


def test_tasks_of_a_cgroup_are_named(own: Limits, v2: Path, tmp_path: Path) -> None:
    (v2 / "pids.max").write_text("70\n")
    (v2 / "pids.current").write_text("10\n")
    (line,) = limits.problems(NEEDS, tmp_path)
    assert line.startswith("pids.max of cgroup /system.slice/swapfs.service is 70, with 10 in use")


def test_processor_time_of_a_cgroup_is_told(v2: Path, tmp_path: Path) -> None:
    (v2 / "cpu.max").write_text("20000 100000\n")
    assert limits.slowed(tmp_path).startswith("cpu.max of cgroup /system.slice/swapfs.service is 2")


def test_cgroups_of_version_1(own: Limits, v1: Path, tmp_path: Path) -> None:
    assert limits.problems(NEEDS, tmp_path) == []
    (v1 / "memory/job/memory.limit_in_bytes").write_text(f"{64 * MiB}\n")
    (line,) = limits.problems(NEEDS, tmp_path)
    assert line.startswith("memory.limit_in_bytes of cgroup /job is 64M, 608M needed")
    (v1 / "cpu,cpuacct/job/cpu.cfs_quota_us").write_text("-1\n")
    assert limits.slowed(tmp_path) == ""
    (v1 / "cpu,cpuacct/job/cpu.cfs_quota_us").write_text("20000\n")
    assert limits.slowed(tmp_path).startswith("cpu.cfs_quota_us of cgroup /job is 20000")


def test_a_death_is_explained(v2: Path, tmp_path: Path) -> None:
    assert limits.explain_death(3, tmp_path) == "exit code 3"
    assert "the kernel log knows" in limits.explain_death(-signal.SIGKILL, tmp_path)
    (v2 / "memory.max").write_text(f"{64 * MiB}\n")
    said = limits.explain_death(-signal.SIGKILL, tmp_path)
    assert said.startswith("killed by SIGKILL: out of memory, probably: memory.max of cgroup ")
    assert limits.explain_death(-signal.SIGSEGV, tmp_path) == "killed by SIGSEGV"
    assert "SystemCallFilter" in limits.explain_death(-signal.SIGSYS, tmp_path)
    assert limits.explain_death(-signal.SIGRTMIN - 1, tmp_path) == "killed by signal 35"

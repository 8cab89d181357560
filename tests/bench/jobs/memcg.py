"""A memory cgroup for what is measured: of the one hierarchy (v2), or of a controller's own (v1).

The VM has v2. A machine that is measured natively may have either.
"""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from deploy.vm.guest import lab

if TYPE_CHECKING:
    from collections.abc import Iterator

LEFT_MIB: Final = 2
"""So much of a group's memory may stay unswapped after `reclaim`."""
_RECLAIM_TRIES: Final = 20
_V1: Final = Path("/sys/fs/cgroup/memory")
_END_BOUND_S: Final = 10
_LIMITS_MIB: Final = (64, 32, 16, 8, 4, 2)


class Group(lab.Cgroup):
    """A cgroup v2 whose memory can be pushed out."""

    def __init__(self, name: str, limit_mib: int) -> None:
        self.limit_mib = limit_mib
        super().__init__(name, limit_mib)

    def reclaim(self) -> int:
        """Swap out what is left of the group's memory; return the bytes that would not go."""
        for _ in range(_RECLAIM_TRIES):
            left = self._left()
            if left < LEFT_MIB * lab.MIB:
                break
            try:
                (self.path / "memory.reclaim").write_text(str(left))
            except OSError as error:
                if error.errno != errno.EAGAIN:  # less than asked for was reclaimed
                    raise
        return left

    def _left(self) -> int:
        stat = self._stat()
        return stat["anon"] + stat["swapcached"]

    def _stat(self) -> dict[str, int]:
        lines = (self.path / "memory.stat").read_text().splitlines()
        return {name: int(value) for name, value in map(str.split, lines)}


class GroupV1(Group):
    """The same by the memory controller of cgroup v1, where a lower limit is what reclaims."""

    _TOP = _V1

    def __init__(self, name: str, limit_mib: int) -> None:
        super().__init__(name, limit_mib)
        (self.path / "memory.swappiness").write_text("100")

    def limit(self, limit_mib: int) -> None:
        """Set the limit; the kernel reclaims what is above before this returns."""
        (self.path / "memory.limit_in_bytes").write_text(str(limit_mib * lab.MIB))

    def unlimited(self) -> None:
        """Take the limit away."""
        (self.path / "memory.limit_in_bytes").write_text("-1")

    def bytes_of(self, name: str) -> int:
        """Return what v2 calls memory.*name* (current, peak)."""
        file = {"current": "usage_in_bytes", "peak": "max_usage_in_bytes"}[name]
        return int((self.path / f"memory.{file}").read_text())

    def oom_kills(self) -> int:
        """Return how many processes the limit has killed."""
        lines = (self.path / "memory.oom_control").read_text().splitlines()
        return int(dict(line.split() for line in lines)["oom_kill"])

    def reclaim(self) -> int:
        """Swap out what is left, as far as limits that the kernel accepts go."""
        for limit_mib in _LIMITS_MIB:
            with suppress(OSError):  # EBUSY: it could not reclaim that much, but some
                self.limit(limit_mib)
        return self._left()

    def _left(self) -> int:
        return self._stat()["rss"]


@contextmanager
def group(name: str, limit_mib: int) -> Iterator[Group]:
    """Make a group of this machine's kind and take it away again; it must be empty then."""
    if not (_V1 / "memory.limit_in_bytes").exists():
        made = Group(name, limit_mib)
        try:
            yield made
        finally:
            _remove(made.path)
        return
    made = GroupV1(name, limit_mib)
    flusher = _flush(made.path / "memory.stat")
    try:
        yield made
    finally:
        flusher.kill()
        flusher.wait()
        _remove(made.path)


def _flush(stat: Path) -> subprocess.Popen[bytes]:
    """Read *stat* again and again.

    Kernel 6.18 with v1 and no file pages reclaims by stale statistics, and kills though swap is
    free, on any device, unless they are read now and then.
    """
    loop = f"import time\nwhile True:\n open({str(stat)!r}).read()\n time.sleep(0.01)"
    return subprocess.Popen(
        ["nice", "-n", "-15", sys.executable, "-S", "-c", loop], stderr=subprocess.DEVNULL
    )


def _remove(path: Path) -> None:
    def gone() -> bool:
        with suppress(OSError):
            os.rmdir(path)
        return not path.exists()

    lab.wait_for(f"{path} to be empty", gone, _END_BOUND_S)

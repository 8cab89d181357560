"""What the jobs do with units: systemctl, the journal, swap that is in use."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Final

from deploy.vm.guest import lab

SERVICE: Final = "swapfs.service"
CONFIG: Final = Path("/etc/swapfs/swapfs.toml")
MINIMUM: Final = 'size = "{size}"\npool = "{pool}"\n'
DISK: Final = "/dev/disk/by-id/virtio-data0"
BOUND_S: Final = 300
JOURNAL_BOUND_S: Final = 60
_STAMP: Final = re.compile(r"^\[ *([0-9.]+)\]")


def write_config(
    name: str = "swapfs", size: str = "64M", pool: str = "80M", rest: str = ""
) -> Path:
    """Write the configuration of instance *name* and return where."""
    path = CONFIG.with_name(f"{name}.toml")
    path.parent.mkdir(exist_ok=True)
    path.write_text(MINIMUM.format(size=size, pool=pool) + rest)
    return path


def install(name: str = "swapfs") -> str:
    """Write the unit of *name* by `swapfs install-unit`; return what that printed."""
    printed = lab.must("swapfs", "install-unit", name)
    lab.must("systemctl", "daemon-reload")
    return printed


def systemctl(*words: str) -> tuple[bool, str]:
    """Run systemctl; return whether it succeeded, and what it said."""
    lab.say(f"systemctl {' '.join(words)}")
    done = lab.run("systemctl", *words)
    return done.returncode == 0, (done.stdout + done.stderr).strip()


def state(unit: str = SERVICE) -> str:
    """Return the state of *unit*: active, failed, inactive, ..."""
    return lab.run("systemctl", "is-active", unit).stdout.strip()


def shown(unit: str, key: str) -> str:
    """Return what `systemctl show` has for *key*."""
    return lab.must("systemctl", "show", "--value", "-p", key, unit).strip()


def status_says(text: str, unit: str = SERVICE) -> bool:
    """Wait until `systemctl status` has *text*: the journal is a little behind."""
    return lab.wait_for(
        f"{text!r} in the status of {unit}",
        lambda: text in lab.run("systemctl", "status", "--no-pager", unit).stdout,
        JOURNAL_BOUND_S,
    )


def areas() -> list[str]:
    """Return the swap areas of the kernel, by device."""
    return [line.split()[0] for line in Path("/proc/swaps").read_text().splitlines()[1:]]


def settled(unit: str, wanted: str) -> bool:
    """Wait until *unit* is *wanted*."""
    return lab.wait_for(f"{unit} to be {wanted}", lambda: state(unit) == wanted, BOUND_S)


def journal(unit: str, *words: str) -> str:
    """Return what the journal has of *unit*."""
    return lab.must("journalctl", "--no-pager", "-o", "short-monotonic", "-u", unit, *words)


def between(text: str, first: str, last: str) -> float | None:
    """Return the seconds between the last lines of a journal with *first* and with *last*."""
    stamps = {}
    for line in text.splitlines():
        for word in (first, last):
            if word in line and (found := _STAMP.match(line)):
                stamps[word] = float(found[1])
    return round(stamps[last] - stamps[first], 1) if len(stamps) == 2 else None


def fill(mib: int, limit_mib: int, name: str = "hog", *more: str) -> tuple[lab.Hog, lab.Cgroup]:
    """Return a hog of *mib*, of which all but *limit_mib* is in swap, and what limits it.

    :param more: options of the hog
    """
    group = lab.Cgroup(name, limit_mib)
    hog = lab.Hog(mib, group, 1, *more)
    hog.do("fill")
    return hog, group


def outlive_the_job(hog: lab.Hog, group: lab.Cgroup) -> None:
    """Have *hog* stay until the last moment of a shutdown: it is in no unit, and must hear no end.

    It ends with its standard input, which a process beside it holds open.
    """
    assert hog.process.stdin is not None
    keeper = subprocess.Popen(("sleep", "infinity"), pass_fds=(hog.process.stdin.fileno(),))
    (group.path / "cgroup.procs").write_text(str(keeper.pid))

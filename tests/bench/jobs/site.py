"""Where a job runs: in the test VM, with disks of its own, or natively, with what the machine has.

Natively pages of every process may land on what is measured. So no other swap may be on, and a
guard cuts the FUSE connection of a swapfs that takes longer than a turn may take: a server that
hangs then costs the pages on it and not the machine.
"""

from __future__ import annotations

import json
import os
import signal
import struct
import subprocess
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from deploy.vm.guest import lab

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from types import FrameType

_FUSECTL: Final = lab.JOB / "fusectl"
_GUARD: Final = lab.JOB / "guard"
_LATENCY: Final = Path("/dev/cpu_dma_latency")
_SWAP_DISK: Final = "/dev/disk/by-id/virtio-data0"
_MOUNT: Final = Path("/swapdisk")


@dataclass(frozen=True, slots=True)
class Site:
    """One machine.

    *swapfile* lies on *disk*, whose sector counters see its traffic; *tier* is the disk tier as
    `--file` takes it. *up* are the options that `swapfs up` needs here. *turn_s* is the time after
    which the guard ends a turn; None: none is needed.
    """

    swapfile: Path
    disk: str
    tier: str
    up: tuple[str, ...] = ()
    turn_s: int | None = None

    @property
    def native(self) -> bool:
        """Whether it is the very machine."""
        return self.turn_s is not None

    def prepare(self) -> None:
        """Make the file system of the swapfile, if it shall have one of its own."""
        if self.native:
            return
        # virtio disks call themselves rotating, and the kernel swaps on those by other rules
        rotational = Path("/sys/block", Path(self.disk).resolve().name, "queue/rotational")
        rotational.write_text("0")
        lab.must("mkfs.ext4", "-q", "-F", self.disk)
        _MOUNT.mkdir(exist_ok=True)
        lab.must("mount", self.disk, str(_MOUNT))

    def leftovers(self) -> list[str]:
        """Return what was left behind; natively there may be mounts and loops of others."""
        found = lab.leftovers()
        return [line for line in found if line.startswith("swap:")] if self.native else found


VM: Final = Site(_MOUNT / "swapfile", _SWAP_DISK, "/dev/disk/by-id/virtio-data1")


def here(params: Mapping[str, Any]) -> Site:
    """Return the site that *params* describe; LabError if it must not be used."""
    native = params.get("native")
    if native is None:
        return VM
    if swaps := Path("/proc/swaps").read_text().splitlines()[1:]:
        raise lab.LabError(f"swap is on already: {swaps[0].split()[0]}")
    signal.signal(signal.SIGTERM, _end)
    folder = Path(native["folder"])
    device = folder.stat().st_dev
    disk = Path("/sys/dev/block", f"{os.major(device)}:{os.minor(device)}").resolve().name
    tier = f"{folder}/tier:{native['tier_mib']}M"
    up = tuple(native["up"])
    return Site(folder / "swapfile", f"/dev/{disk}", tier, up, int(native["turn_s"]))


def _end(number: int, _frame: FrameType | None) -> None:
    """End by an exception, so that swap is switched off on the way."""
    signal.signal(number, signal.SIG_IGN)
    raise SystemExit("told to stop")


@contextmanager
def guarded(site: Site) -> Iterator[None]:
    """Have the guard watch over the instance that is up, until the turn is over."""
    if site.turn_s is None:
        yield
        return
    device = json.loads(lab.must("swapfs", "status", "--json"))["instances"][0]["handover"]
    _FUSECTL.mkdir(exist_ok=True)
    lab.must("mount", "-t", "fusectl", "none", str(_FUSECTL))
    abort = _FUSECTL / str(os.minor(device["device"])) / "abort"
    process = subprocess.Popen(
        [str(_GUARD), str(site.turn_s), str(abort)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        if process.stdout.readline().strip() != "guarding":
            raise lab.LabError("the guard did not start")
        yield
    finally:
        process.kill()
        process.wait()
        lab.must("umount", "-l", str(_FUSECTL))


@contextmanager
def power(awake: bool) -> Iterator[None]:
    """Keep CPUs from sleeping while it lasts, or leave the machine as it is.

    Source: Documentation/power/pm_qos_interface.rst.
    """
    if not awake:
        yield
        return
    with _LATENCY.open("wb", buffering=0) as file:
        file.write(struct.pack("i", 0))
        yield

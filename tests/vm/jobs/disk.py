"""Bad disks below the file tier: errors on write and read, a hang, flipped bits (I4).

The file tier lies on a device-mapper device whose table is changed while the kernel swaps on
swapfs. What a fault costs is read off the swap device itself, slot by slot with O_DIRECT: a
slot that is in memory must be readable throughout, one that is on the disk must be right or EIO.
"""

from __future__ import annotations

import errno
import mmap
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from deploy.vm.guest import lab

DISK: Final = "/dev/disk/by-id/virtio-data0"
NAME: Final = "faulty"
MAPPED: Final = f"/dev/mapper/{NAME}"
DELAY_S: Final = 30
LIMIT_MIB: Final = 24
DATA_MIB: Final = 48
RECOVERY_BOUND_S: Final = 150
FLIPPED_BLOBS: Final = 5


class FaultyDisk:
    """A device-mapper device over the test disk; ``behave`` changes what it does."""

    def __init__(self) -> None:
        self.device = str(Path(DISK).resolve())
        self.sectors = int(lab.must("blockdev", "--getsz", self.device))
        for module in ("dm-mod", "dm-flakey", "dm-delay"):
            lab.must("modprobe", module)
        lab.must("dmsetup", "create", NAME, "--table", self._table("good"))

    def _table(self, how: str) -> str:
        device, size = self.device, self.sectors
        return {
            "good": f"0 {size} linear {device} 0",
            "write errors": f"0 {size} flakey {device} 0 0 3600 1 error_writes",
            "read errors": f"0 {size} error",
            "slow": f"0 {size} delay {device} 0 {DELAY_S * 1000}",
        }[how]

    def behave(self, how: str) -> None:
        """Change the table; what is under way ends first."""
        lab.say(f"the disk from now on: {how}")
        lab.must("dmsetup", "suspend", "--noflush", NAME)
        lab.must("dmsetup", "reload", NAME, "--table", self._table(how))
        lab.must("dmsetup", "resume", NAME)


def sweep(device: str, slots: Iterable[int]) -> tuple[list[int], int]:
    """Read *slots* of the swap device; return those readable, and how many gave EIO."""
    good: list[int] = []
    bad = 0
    with mmap.mmap(-1, lab.PAGE_BYTES) as page:
        fd = os.open(device, os.O_RDONLY | os.O_DIRECT)
        for slot in slots:
            try:
                os.preadv(fd, [page], slot * lab.PAGE_BYTES)
                good.append(slot)
            except OSError as error:
                if error.errno != errno.EIO:
                    raise
                bad += 1
        os.close(fd)
    return good, bad


def counter(name: str) -> int:
    """Return one counter as it is now."""
    return int(lab.status()["counters"][name])


def tier_state() -> str:
    """Return the file tier's state as status shows it: the word, and what is wrong."""
    tier = lab.status()["tiers"][0]
    return f"{tier['state']} {tier['detail']}".strip()


def check_write_errors(report: lab.Report, disk: FaultyDisk, hog: lab.Hog) -> None:
    """A disk that refuses writes: nothing is lost, demotion stops and starts again."""
    disk.behave("write errors")
    before = counter("failed_demotions")
    lab.run("swapfs", "demote", "--pages", "2000")
    state = tier_state()
    failed = counter("failed_demotions") - before
    report.check("write errors are seen", failed > 0 and "writes fail" in state, state)
    hog.verify(report, "verify while writes fail")
    disk.behave("good")
    moved = counter("demoted_pages")

    def writes_again() -> bool:
        lab.run("swapfs", "demote", "--pages", "500")
        return counter("demoted_pages") > moved and tier_state() == "ok"

    recovered = lab.wait_for("the tier to take writes", writes_again, RECOVERY_BOUND_S)
    report.check("demotion goes on when the disk does", recovered, tier_state())
    hog.verify(report, "verify after the write errors")


def check_read_errors(report: lab.Report, disk: FaultyDisk) -> list[int]:
    """A disk that refuses reads: EIO for the slots on it and for no other. Returns the others."""
    found = lab.status()
    slots, on_disk = range(found["size_bytes"] // lab.PAGE_BYTES), found["slots"]["file"]
    disk.behave("read errors")
    in_memory, bad = sweep(found["loop"], slots)
    report.check("only slots on the disk fail", bad == on_disk > 0, f"{bad} EIO, {on_disk} there")
    errors = counter("failed_read_io")
    report.check("read errors are counted", errors >= bad, f"failed_read_io {errors}")
    disk.behave("good")
    _, bad = sweep(found["loop"], slots)
    report.check("they are readable when the disk is", bad == 0, f"{bad} EIO")
    return in_memory


def check_hang(report: lab.Report, disk: FaultyDisk, in_memory: list[int]) -> None:
    """A disk that takes half a minute: what is in memory does not wait for it."""
    found = lab.status()
    device, slots = found["loop"], range(found["size_bytes"] // lab.PAGE_BYTES)
    disk.behave("slow")
    demotion = subprocess.Popen(
        ["swapfs", "demote", "--pages", "500"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    stuck = lab.wait_for("the state to say stuck", lambda: "stuck" in tier_state(), 20)
    report.check("a stuck write is reported", stuck, tier_state())
    before = counter("read_pool_pages")
    took_s: list[float] = []

    def read_in_memory() -> None:
        for slot in in_memory[:: len(in_memory) // 200]:
            started_s = time.monotonic()
            sweep(device, [slot])
            took_s.append(time.monotonic() - started_s)

    reader = threading.Thread(target=read_in_memory)
    reader.start()
    reader.join(DELAY_S / 2)
    from_pool = counter("read_pool_pages") - before
    done = not reader.is_alive() and from_pool > 0
    worst = f"{len(took_s)} reads, {from_pool} from the pool, worst {max(took_s, default=99):.3f} s"
    report.check("memory is read meanwhile", done, worst)
    disk.behave("good")
    reader.join()
    demotion.wait()
    _, bad = sweep(device, slots)
    report.check("nothing failed for being late", bad == 0, f"{bad} EIO")


def flip_bits(disk: FaultyDisk) -> int:
    """Flip a bit in some blobs on the raw disk; return in how many."""
    flipped = 0
    fd = os.open(disk.device, os.O_RDWR)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    for sector in range(0, disk.sectors, 1):
        head = os.pread(fd, 32, sector * lab.SECTOR_BYTES)
        if head[:4] != b"SwBl":
            continue
        where = sector * lab.SECTOR_BYTES + 26
        byte = os.pread(fd, 1, where)
        os.pwrite(fd, bytes([byte[0] ^ 4]), where)
        flipped += 1
        if flipped == FLIPPED_BLOBS:
            break
    os.fsync(fd)
    os.close(fd)
    return flipped


def check_flipped_bits(report: lab.Report, disk: FaultyDisk) -> None:
    """Bits that changed on the disk: EIO for those slots, never wrong bytes."""
    found = lab.status()
    slots = range(found["size_bytes"] // lab.PAGE_BYTES)
    before = counter("failed_read_checksum")
    flipped = flip_bits(disk)
    _, bad = sweep(found["loop"], slots)
    counted = counter("failed_read_checksum") - before
    # A blob whose slot has since been freed may lie there still: then nobody misses it.
    held = 0 < bad <= flipped and counted >= bad
    report.check("flipped bits are refused", held, f"{flipped} blobs, {bad} EIO, {counted} counted")


def main() -> int:
    """Run the job and return its exit status."""
    report = lab.Report()
    with report:
        lab.must("dmesg", "-n", "1")  # thousands of I/O errors, and the console is slow
        disk = FaultyDisk()
        lab.up("--size", "64M", "--pool", "48M", "--file", f"{MAPPED}:512M")
        group = lab.Cgroup("hog", LIMIT_MIB)
        hog = lab.Hog(DATA_MIB, group)
        hog.do("fill")
        lab.must("swapfs", "demote", "--pages", "4000")
        on_disk = lab.status()["slots"]["file"]
        report.check("pages are on the disk", on_disk > 1000, f"{on_disk} slots")
        check_write_errors(report, disk, hog)
        lab.must("swapfs", "demote", "--pages", "4000")
        in_memory = check_read_errors(report, disk)
        check_hang(report, disk, in_memory)
        hog.verify(report, "verify after all faults that pass")
        lab.must("swapfs", "demote", "--pages", "4000")
        check_flipped_bits(report, disk)
        hog.process.kill()
        hog.process.wait()
        report.check("down", True, lab.down())
        lab.must("dmsetup", "remove", NAME)
        report.check("nothing left", not lab.leftovers(), f"{lab.leftovers()}")
    return report.status


if __name__ == "__main__":
    sys.exit(main())

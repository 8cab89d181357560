"""The demo's job in the VM: swap far more than fits, verify it, and take it all down again."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Final

from deploy.vm.guest import lab

DISK: Final = "/dev/disk/by-id/virtio-data0"
METRICS: Final = "127.0.0.1:9809"
UP: Final = ("--size", "1G", "--pool", "112M", "--file", DISK, "--metrics", METRICS)
LIMIT_MIB: Final = 96
DATA_MIB: Final = 448
PAGE_CLUSTER: Final = 5
"""vm.page-cluster: swap-in reads 32 pages at a time. Emulated, a request costs milliseconds."""
SHOWN_METRICS: Final = (
    "swapfs_slots{",
    "swapfs_orig_data_bytes{",
    "swapfs_compr_data_bytes{",
    "swapfs_mem_used_bytes{",
    "swapfs_tier_used_bytes{",
    "swapfs_demoted_pages_total{",
)
DISCARD_BOUND_S: Final = 60
LEFT_PERCENT_MAX: Final = 10
"""Of the slots; the kernel discards whole free clusters of 512 and keeps started ones."""


def show(title: str, text: str) -> None:
    """Print *text* so that a reader sees whose output it is."""
    print(f"\n$ {title}\n{text.rstrip()}\n", flush=True)


def bring_up(report: lab.Report) -> dict[str, Any]:
    """Run `swapfs up` and check that the kernel swaps on it with every guard held."""
    printed = lab.up(*UP)
    found = lab.status()
    bad = lab.bad_guards(found)
    report.check("swapfs up", not bad, "; ".join([printed, *bad]))
    return found


def swap_and_verify(report: lab.Report, loop: str) -> lab.Hog:
    """Fill and verify memory; prove by counters that the pages went through the devices."""
    before = lab.traffic(loop), lab.traffic(DISK)
    group = lab.Cgroup("hog", LIMIT_MIB)
    lab.say(f"a hog fills {DATA_MIB} MiB in a cgroup limited to {LIMIT_MIB} MiB")
    hog = lab.Hog(DATA_MIB, group)
    filled = hog.do("fill")
    swapped_mib = group.bytes_of("swap.current") // lab.MIB
    report.check(
        "fill memory",
        swapped_mib >= (DATA_MIB - LIMIT_MIB) * 9 // 10,
        f"{DATA_MIB} MiB of data, limit {LIMIT_MIB} MiB, {swapped_mib} MiB swapped out, "
        f"{filled['seconds']:.0f} s",
    )
    hog.verify(report, "verify every page")
    swap, disk = lab.traffic(loop) - before[0], lab.traffic(DISK) - before[1]
    counters = (lab.snapshot() or {})["counters"]
    report.check(
        "swap device I/O",
        swap.read > swapped_mib * lab.MIB // 2 and swap.written > swapped_mib * lab.MIB // 2,
        f"{loop} {swap}",
    )
    report.check(
        "file tier I/O",
        min(disk.read, disk.written, counters["demoted_pages"], counters["read_file_pages"]) > 0,
        f"{counters['demoted_pages']} pages demoted, {counters['read_file_pages']} read back; "
        f"disk {disk}",
    )
    return hog


def show_state(report: lab.Report) -> None:
    """Print status, metrics and /proc/swaps for the reader, and check that they agree."""
    show("swapfs status", lab.must("swapfs", "status"))
    samples = lab.scrape(METRICS)
    lines = [f"{n} {v:.0f}" for n, v in samples.items() if n.startswith(SHOWN_METRICS)]
    show(f"curl -s {METRICS}/metrics", "\n".join(lines) + f"\n... {len(samples)} samples in all")
    show("cat /proc/swaps", Path("/proc/swaps").read_text())
    found = lab.status()
    report.check(
        "status and metrics",
        samples['swapfs_swap_active{name="swapfs"}'] == 1 and not found["degraded"],
        f"{len(samples)} samples; {found['orig_bytes'] / lab.MIB:.0f} MiB held in "
        f"{found['compr_bytes'] / lab.MIB:.0f} MiB, {found['metadata_bytes_per_slot']} bytes of "
        "metadata a slot",
    )


def return_slots(report: lab.Report, hog: lab.Hog) -> None:
    """End the hog and wait until discards have freed nearly every slot."""
    before = lab.occupied(lab.status())
    lab.say("the hog ends; its slots return as the kernel discards free clusters")
    hog.quit()
    limit = before * LEFT_PERCENT_MAX // 100

    def returned() -> bool:
        found = lab.snapshot()
        return found is not None and lab.occupied(found) <= limit

    lab.wait_for("slots to return", returned, DISCARD_BOUND_S)
    found = lab.status()
    after = lab.occupied(found)
    report.check(
        "slots return",
        after <= limit,
        f"{before} slots occupied, {after} after the hog's end, "
        f"{found['counters']['discard_requests']} discards",
    )


def main() -> int:
    """Run the demo and return its exit status."""
    report = lab.Report()
    with report:
        Path("/proc/sys/vm/page-cluster").write_text(str(PAGE_CLUSTER))
        found = bring_up(report)
        hog = swap_and_verify(report, found["loop"])
        show_state(report)
        return_slots(report, hog)
        report.check("swapfs down", True, lab.down())
        left = lab.leftovers()
        report.check("nothing left", not left, "; ".join(left) or "no swap, loop device or mount")
    return report.status


if __name__ == "__main__":
    sys.exit(main())

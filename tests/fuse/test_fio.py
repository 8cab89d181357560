"""fio's verifying workloads with trims on the loop device, over a pool that is far too small."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.fuse.instance import Instance, Start, check
from tests.fuse.load import fill

COMMON = (
    "--name=verify",
    "--direct=1",
    "--verify=crc32c",
    "--verify_fatal=1",
    "--verify_state_save=0",
    "--buffer_compress_percentage=60",
    "--refill_buffers",
    "--randrepeat=1",
    "--output-format=json",
    "--runtime=40",
)
WORKLOADS = {
    "writes beside trims": (
        "--ioengine=libaio", "--iodepth=16", "--rw=randrw", "--bsrange=4k-64k", "--size=24M",
        "--io_size=72M", "--verify_backlog=256",
        "--name=trims", "--ioengine=psync", "--direct=1", "--rw=randtrim", "--bsrange=4k-64k",
        "--offset=24M", "--size=24M", "--filename=LOOP",
    ),
    "trim, then write, the same blocks": (
        "--ioengine=psync", "--rw=randtrimwrite", "--bsrange=4k-64k", "--size=24M",
        "--verify_backlog=128",
    ),
    "mixed reads and writes": (
        "--ioengine=libaio", "--iodepth=16", "--rw=randrw", "--bsrange=4k-128k", "--size=48M",
        "--io_size=96M", "--verify_backlog=512",
    ),
    "sub-page blocks": (
        "--ioengine=psync", "--rw=randrw", "--bsrange=512-16k", "--bs_unaligned=0",
        "--blockalign=512", "--size=4M",
    ),
}  # fmt: skip


def fio(instance: Instance, sector_bytes: int, *options: str) -> dict[str, Any]:
    """Run fio, which must find no error; return the report of its first job."""
    loop = instance.attach_loop(sector_bytes)
    aux = f"--aux-path={instance.directory}"
    out = check("fio", *COMMON, aux, f"--filename={loop}",
                *(word.replace("LOOP", str(loop)) for word in options), timeout_s=100)  # fmt: skip
    jobs: list[dict[str, Any]] = json.loads(out[out.index("{") :])["jobs"]
    assert [job["error"] for job in jobs] == [0] * len(jobs)
    return jobs[0]


@pytest.mark.parametrize("workload", WORKLOADS)
def test_verify(start: Start, workload: str) -> None:
    instance = start("64M", "4M", "160M")
    fill(instance, 0, 12288)  # so that a trim has something to free
    sector_bytes = 512 if workload == "sub-page blocks" else 4096
    job = fio(instance, sector_bytes, *WORKLOADS[workload])
    assert job["write"]["total_ios"] > 100
    assert job["read"]["total_ios"] > 100, "nothing was verified"
    counters = instance.counters()
    if "trim" in workload:
        assert counters["discard_requests"] > 100
        assert counters["discarded_pages"] > 1000
    if sector_bytes == 4096:
        assert counters["demoted_pages"] + counters["write_direct_pages"] > 0
        assert counters["read_file_pages"] > 0, "the file tier was never read"
    else:
        assert counters["partial_requests"] > 100
    failures = ("handler_errors", "failed_read_io", "failed_read_checksum", "failed_write_no_room")
    assert {name: counters[name] for name in failures} == dict.fromkeys(failures, 0)

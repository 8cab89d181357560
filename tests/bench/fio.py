"""One measurement of one device: reads by fio, writes by mix_writer.c."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tests.bench.subjects import compile_c, run

WRITER_SOURCE: Final = Path(__file__).with_name("mix_writer.c")
_GRACE_S: Final = 60.0


class FioError(Exception):
    """A measurement that failed, or output that is none. The message is one line."""


@dataclass(frozen=True)
class Measured:
    """What one run of requests of one size came to."""

    operations: int
    seconds: float
    block_bytes: int
    p50_us: float
    p99_us: float
    p999_us: float | None = None
    """Reads only."""

    @property
    def mib_per_s(self) -> float:
        """Throughput."""
        return self.operations * self.block_bytes / self.seconds / (1 << 20)


def random_reads(
    device: Path, *, block_kib: int, depth: int, seconds: float, first_bytes: int | None = None
) -> Measured:
    """Read blocks of *device* at random with fio, past the page cache, *depth* at once.

    :param first_bytes: read only from so many at its beginning
    """
    # Depth 1 is what a page fault does: one synchronous read. fio takes no fractions of seconds.
    engine = ["--ioengine=psync"] if depth == 1 else ["--ioengine=libaio", f"--iodepth={depth}"]
    output = run(
        "fio", "--name=read", f"--filename={device}", "--readonly", "--rw=randread",
        *([f"--size={first_bytes}"] if first_bytes else []),
        f"--bs={block_kib}k", *engine, "--direct=1", "--time_based",
        f"--runtime={round(seconds * 1000)}ms", "--randrepeat=0", "--norandommap",
        "--percentile_list=50:99:99.9", "--eta=never", "--output-format=json",
        timeout_s=seconds + _GRACE_S,
    )  # fmt: skip
    return parse_fio(output, block_kib << 10)


class Writer:
    """Writes pages of our choice, which fio cannot: it writes one pattern or its own bytes."""

    def __init__(self, directory: Path) -> None:
        self._program = compile_c(WRITER_SOURCE, directory)

    def random_writes(
        self, device: Path, data: Path, *, block_kib: int, depth: int, seconds: float
    ) -> Measured:
        """Write runs of pages of the file *data* to random blocks of *device*."""
        block_bytes = block_kib << 10
        output = run(
            self._program, device, data, block_bytes, depth, round(seconds * 1000),
            timeout_s=seconds + _GRACE_S,
        )  # fmt: skip
        return parse_writer(output, block_bytes)


def parse_fio(output: str, block_bytes: int) -> Measured:
    """Read fio's JSON of one job that only reads; warnings may stand before it."""
    try:
        job = _object(output)["jobs"][0]
        read = job["read"]
        if job["error"] != 0 or read["total_ios"] == 0:
            raise FioError(f"fio: error {job['error']}, {read['total_ios']} reads")
        centiles = read["clat_ns"]["percentile"]
        return Measured(
            operations=read["total_ios"],
            seconds=read["runtime"] / 1000,
            block_bytes=block_bytes,
            p50_us=centiles["50.000000"] / 1000,
            p99_us=centiles["99.000000"] / 1000,
            p999_us=centiles["99.900000"] / 1000,
        )
    except (LookupError, TypeError) as error:
        raise FioError(f"fio: output without {error}") from error


def parse_writer(output: str, block_bytes: int) -> Measured:
    """Read the line that mix_writer.c prints."""
    try:
        said = _object(output)
        return Measured(
            operations=said["writes"],
            seconds=said["took_ns"] / 1e9,
            block_bytes=block_bytes,
            p50_us=said["p50_ns"] / 1000,
            p99_us=said["p99_ns"] / 1000,
        )
    except (LookupError, TypeError) as error:
        raise FioError(f"mix_writer: output without {error}") from error


def _object(output: str) -> dict[str, Any]:
    start = output.find("{")
    try:
        said = json.loads(output[max(start, 0) :])
    except ValueError as error:
        raise FioError(f"no measurement in {output[:200]!r}") from error
    if not isinstance(said, dict):
        raise FioError(f"no measurement in {output[:200]!r}")
    return said

"""What the benchmarks read from fio and from mix_writer, without running either."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest

from tests.bench.fio import FioError, Measured, parse_fio, parse_writer

# What fio 3.33 prints, as far as it matters; times are in ns, the runtime is in ms.
FIO: dict[str, Any] = {
    "fio version": "fio-3.33",
    "jobs": [
        {
            "jobname": "read",
            "error": 0,
            "read": {
                "io_bytes": 163840000,
                "total_ios": 40000,
                "runtime": 2000,
                "slat_ns": {"mean": 0.0},
                "clat_ns": {
                    "mean": 25000.0,
                    "percentile": {"50.000000": 24960, "99.000000": 46336, "99.900000": 90624},
                },
            },
            "write": {"total_ios": 0, "runtime": 0, "clat_ns": {}},
        }
    ],
}
WRITER = '{"writes": 3000, "took_ns": 1500000000, "p50_ns": 75461, "p99_ns": 2980373}\n'


def fio_output(**changes: Any) -> str:
    """Return fio's output with members of the job or of its reads changed."""
    content = copy.deepcopy(FIO)
    job = content["jobs"][0]
    for name, value in changes.items():
        (job if name in job else job["read"])[name] = value
    return json.dumps(content)


def test_fio_output_becomes_microseconds_and_seconds() -> None:
    assert parse_fio(fio_output(), 4096) == Measured(
        operations=40000,
        seconds=2.0,
        block_bytes=4096,
        p50_us=24.96,
        p99_us=46.336,
        p999_us=90.624,
    )


def test_warnings_may_stand_before_the_json_of_fio() -> None:
    output = "fio: this platform does not support process shared mutexes\n" + fio_output()
    assert parse_fio(output, 4096) == parse_fio(fio_output(), 4096)


def test_throughput_counts_whole_blocks() -> None:
    assert parse_fio(fio_output(total_ios=4096), 32768).mib_per_s == 64.0


@pytest.mark.parametrize(
    "output",
    [
        fio_output(error=5),
        fio_output(total_ios=0),
        fio_output(clat_ns={}),
        fio_output(clat_ns={"percentile": {"50.000000": 1}}),
        fio_output(runtime=None),
        json.dumps({"jobs": []}),
        json.dumps(FIO)[:-5],
        "[1, 2]",
        "fio: nothing",
        "",
    ],
)
def test_what_is_no_measurement_of_fio_is_refused(output: str) -> None:
    with pytest.raises(FioError):
        parse_fio(output, 4096)


def test_output_of_the_writer_becomes_microseconds_and_seconds() -> None:
    assert parse_writer(WRITER, 131072) == Measured(
        operations=3000, seconds=1.5, block_bytes=131072, p50_us=75.461, p99_us=2980.373
    )
    assert parse_writer(WRITER, 131072).mib_per_s == 250.0


@pytest.mark.parametrize("output", ["", "{}", '{"writes": 1, "took_ns": 5}', WRITER[:-9], "7"])
def test_what_is_no_measurement_of_the_writer_is_refused(output: str) -> None:
    with pytest.raises(FioError):
        parse_writer(output, 4096)

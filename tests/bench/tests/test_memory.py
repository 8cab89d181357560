"""Part "memory" of the benchmarks: sizes, ratios and what it refuses to call a result."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from tests.bench import memory
from tests.bench.process_memory import ProcessMemory, together
from tests.bench.record import Recorder, Results

MIB = 1 << 20
CORPUS: Any = SimpleNamespace(pages=1000, mix=SimpleNamespace(lz4_bytes=1_500_000))


def test_a_pool_has_room_for_what_the_pages_compress_to() -> None:
    pool = memory.pool_bytes(CORPUS, 100_000)
    assert pool % MIB == 0
    assert 100_000 * 1500 + memory.POOL_MARGIN_BYTES < pool < 2 * 100_000 * 1500


def test_what_does_not_fit_into_memory_is_skipped_and_said() -> None:
    results = Results()
    recorder = Recorder(results, memory.NAME)
    assert memory.fits(CORPUS, 1000, recorder)
    assert not memory.fits(CORPUS, 1 << 40, recorder)
    assert [skipped.subject for skipped in results.skipped] == [f"{1 << 40} pages"]


def test_files_of_two_processes_of_one_program_count_once() -> None:
    one = ProcessMemory(100 * MIB, 20 * MIB, 30 * MIB, 16 * MIB, MIB)
    other = ProcessMemory(120 * MIB, 50 * MIB, 34 * MIB, 17 * MIB, MIB)
    both = together(one, other)
    assert both.total_bytes == (20 + 50 + 30 + 34 + 17 + 1 + 1) * MIB


def test_what_is_held_leaves_out_the_free_part_of_the_pool(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    processes = ProcessMemory(0, 60 * MIB, 64 * MIB, 20 * MIB, 0)
    monkeypatch.setattr(memory, "memory_of", lambda _pid: processes)
    monkeypatch.setattr(memory, "together", lambda one, _other: one)
    status = {
        "pid": 1,
        "server_pid": 2,
        "slots": {"empty": 90, "same": 2, "compressed": 8},
        "pool": {"limit_bytes": 64 * MIB, "used_bytes": 10 * MIB},
        "compr_bytes": 16384,
        "metadata_bytes": 4096,
        "fixed_bytes": 100,
    }
    mounted: Any = SimpleNamespace(status=lambda: status)
    held = memory.held_by(mounted, 10, 0)
    assert held.stored_bytes == 10 * MIB
    assert held.constant_bytes == (60 + 64 + 20 - 54 - 10) * MIB
    assert held.metadata_bytes == 4196
    assert held.ratio == 2.0, "8 pages that are no repeated word, in 16 KiB"
    with pytest.raises(RuntimeError, match="11 pages were written"):
        memory.held_by(mounted, 11, 0)

"""The region's layout and its header."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest

from swapfs.core._core import NO_CLASS
from swapfs.errors import RegionError
from swapfs.region.counters import COUNTERS, Counters
from swapfs.region.layout import ZSPAGE_BYTES, Geometry, Region
from swapfs.region.stack_rows import DRAINING, StackRow, read_rows, set_state, write_rows
from swapfs.units import CLUSTER_BYTES, PAGE_SIZE, GiB, MiB, TiB


@pytest.mark.parametrize(
    "geometry",
    [
        Geometry(PAGE_SIZE, ZSPAGE_BYTES),
        Geometry(CLUSTER_BYTES + PAGE_SIZE, 4 * MiB),
        Geometry(TiB, GiB),
    ],
)
def test_parts_do_not_overlap_and_are_aligned(geometry: Geometry) -> None:
    assert geometry.directory_offset % PAGE_SIZE == 0
    assert geometry.directory_offset + 4 * geometry.clusters <= geometry.classes_offset
    assert geometry.classes_offset + geometry.zspages <= geometry.arena_offset
    assert geometry.arena_offset % ZSPAGE_BYTES == 0
    assert geometry.total_bytes == geometry.arena_offset + geometry.pool_bytes
    assert geometry.clusters * CLUSTER_BYTES >= geometry.size_bytes


def test_a_second_mapping_sees_what_the_first_wrote() -> None:
    region = Region.create(Geometry(8 * MiB, MiB))
    Counters(region.counter_words).add("written_bytes", 1 << 40)
    region.arena_words[5] = 0xDEAD
    region.directory[1] = 7
    again = Region.attach(os.dup(region.fd))
    assert again.geometry == region.geometry
    assert again.arena_words[5] == 0xDEAD
    assert list(again.directory) == [0, 7, 0, 0]
    assert set(again.classes) == {NO_CLASS}
    assert Counters(again.counter_words).snapshot() == {
        **dict.fromkeys(COUNTERS, 0),
        "written_bytes": 1 << 40,
    }
    again.close()
    region.close()


def _damaged(edit: str) -> int:
    region = Region.create(Geometry(8 * MiB, MiB))
    fd = os.dup(region.fd)
    region.close()
    if edit == "magic":
        os.pwrite(fd, b"x", 0)
    elif edit == "version":
        os.pwrite(fd, (99).to_bytes(4, "little"), 8)
    elif edit == "counters":
        os.pwrite(fd, (len(COUNTERS) + 1).to_bytes(4, "little"), 12)
    elif edit == "length":
        os.ftruncate(fd, 2 * MiB)
    elif edit == "empty":
        os.ftruncate(fd, 0)
    return fd


@pytest.mark.parametrize("edit", ["magic", "version", "counters", "length", "empty"])
def test_a_foreign_region_is_refused(edit: str) -> None:
    fd = _damaged(edit)
    with pytest.raises(RegionError):
        Region.attach(fd)
    os.close(fd)


def test_no_memory_is_one_clear_error_and_leaves_no_descriptor() -> None:
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(RegionError, match="cannot reserve"):
        Region.create(Geometry(TiB, 1 << 60))
    assert len(os.listdir("/proc/self/fd")) == before


def test_rows_of_the_stack_survive_and_lie_beside_the_counters() -> None:
    region = Region.create(Geometry(8 * MiB, MiB))
    rows = [StackRow(1, "file", "file", 0, b"d" * 32), StackRow(7, "file", "x" * 48, -3, b"e" * 32)]
    assert read_rows(region.stack) == []
    write_rows(region.stack, rows)
    set_state(region.stack, 7, DRAINING)
    again = Region.attach(os.dup(region.fd))
    assert read_rows(again.stack) == [rows[0], replace(rows[1], state=DRAINING)]
    assert not any(again.counter_words)
    write_rows(again.stack, rows[:1])
    assert read_rows(region.stack) == rows[:1]
    again.close()
    region.close()

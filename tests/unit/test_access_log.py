"""The access log: what is noted, what a late reader misses, and that it survives the server."""

from __future__ import annotations

import mmap
import os

import pytest

from swapfs.core._core import NO_SIZE, Log, log_read
from swapfs.region.access_log import EVENT_BYTES, Event, EventKind, LogReader, decode, encode
from swapfs.region.layout import Region
from swapfs.testing.harness import Harness
from swapfs.testing.memory import MemoryTier
from swapfs.testing.pages import page
from swapfs.tiers.pool.size_classes import CLASS_OF_GRAINS, RAW_CLASS
from swapfs.units import CLUSTER_SLOTS, PAGE_SIZE, KiB, MiB

SLOTS = 3 * CLUSTER_SLOTS
TEXT = [page("text", seed) for seed in range(20)]
RAW = page("random", 1)


@pytest.fixture
def harness() -> Harness:
    return Harness(SLOTS, 2 * MiB, MemoryTier(4), promote=True, log_bytes=64 * KiB)


def follow(harness: Harness) -> LogReader:
    return LogReader(harness.region.log_head, harness.region.log_events)


def kinds(events: list[Event]) -> list[tuple[EventKind, int, int, int]]:
    return [(event.kind, event.slot, event.was, event.tier) for event in events]


def test_each_thing_that_happens_to_a_slot_is_noted_once_and_in_order(harness: Harness) -> None:
    reader = follow(harness)
    harness.store(5, TEXT[0], RAW)
    harness.store(CLUSTER_SLOTS, page("zero", 0))
    harness.load(5, 2)
    harness.down.demote(2)  # cools them
    assert harness.down.demote(2) or harness.backing(5).name == "BELOW"
    harness.load(5)
    harness.layer.discard_run(0, 100)
    K = EventKind
    assert kinds(reader.events()) == [
        (K.STORE, 5, 0, 0),
        (K.STORE, 6, 0, 0),
        (K.STORE, CLUSTER_SLOTS, 0, 0),
        (K.LOAD, 5, 0, 0),
        (K.LOAD, 6, 0, 0),
        (K.DEMOTE, 5, 0, 1),
        (K.DEMOTE, 6, 0, 1),
        (K.LOAD, 5, 1, 1),
        (K.REFAULT, 5, 1, 1),
        (K.PROMOTE, 5, 1, 0),
        (K.DISCARD, 5, 0, 0),
        (K.DISCARD, 6, 1, 0),
    ]
    assert not reader.dropped


def test_sizes_and_times(harness: Harness) -> None:
    reader = follow(harness)
    harness.store(0, RAW, TEXT[0], page("zero", 0), page("same", 3))
    harness.write_direct(9, RAW)
    raw, text, zero, same, direct = reader.events()
    assert raw.size_class == direct.size_class == RAW_CLASS
    assert text.size_class < RAW_CLASS
    assert zero.size_class == same.size_class == NO_SIZE
    assert (direct.kind, direct.tier) == (EventKind.STORE, 1)
    assert raw.time_ns <= text.time_ns <= direct.time_ns


def test_reads_of_the_session_loop_are_noted_too(harness: Harness) -> None:
    harness.store(7, *TEXT[:3])
    reader = follow(harness)
    out = bytearray(3 * PAGE_SIZE)
    done = harness.layer.reader(SLOTS * PAGE_SIZE).read(7 * PAGE_SIZE, 3 * PAGE_SIZE, out)
    assert done == 3 * PAGE_SIZE
    assert kinds(reader.events()) == [(EventKind.LOAD, slot, 0, 0) for slot in (7, 8, 9)]


def test_what_comes_between_clusters_has_ages() -> None:
    touched, head = bytearray(8), bytearray(8)
    ring = bytearray(EVENT_BYTES * 256)
    log = Log(head=head, touched=touched, events=ring, class_of_grains=CLASS_OF_GRAINS)
    reader = LogReader(head, ring)
    log.add(EventKind.STORE, 0, 0, 0, 0)
    log.add(EventKind.STORE, 1, 0, 0, 0)
    log.add(EventKind.STORE, CLUSTER_SLOTS, 0, 0, 0)
    ages = [event.age for event in reader.events()]
    assert ages[1] <= 1, "the same cluster, just before"
    assert ages[2] > 1, "never touched since the machine started"


def test_a_late_reader_misses_the_oldest_and_knows_how_many(harness: Harness) -> None:
    reader = follow(harness)
    capacity = 64 * KiB // EVENT_BYTES
    harness.store(0, *TEXT)
    for _ in range(capacity // 20 + 3):
        harness.load(0, 20)
    seen: list[Event] = []
    while events := reader.events():
        seen += events
    written = 20 + (capacity // 20 + 3) * 20
    assert reader.dropped == written - len(seen)
    assert len(seen) == capacity - 1, "the oldest one may be under way to be overwritten"
    assert all(event.kind == EventKind.LOAD for event in seen)


def test_a_foreign_process_reads_the_ring_through_a_read_only_mapping(harness: Harness) -> None:
    geometry = harness.region.geometry
    with mmap.mmap(
        harness.region.fd,
        geometry.events_offset + geometry.log_bytes - geometry.log_offset,
        prot=mmap.PROT_READ,
        offset=geometry.log_offset,
    ) as mapping:
        whole = memoryview(mapping)
        events = whole[geometry.events_offset - geometry.log_offset :]
        reader = LogReader(whole[:8], events)
        harness.store(3, RAW)
        assert kinds(reader.events()) == [(EventKind.STORE, 3, 0, 0)]
        del reader
        events.release()
        whole.release()


def test_the_next_server_goes_on_in_the_same_ring(harness: Harness) -> None:
    reader = follow(harness)
    harness.store(3, RAW)
    region = Region.attach(os.dup(harness.region.fd))
    after = Harness(SLOTS, 2 * MiB, MemoryTier(4), region=region)
    after.load(3)
    assert [event.kind for event in reader.events()] == [EventKind.STORE, EventKind.LOAD]


def test_without_a_ring_nothing_is_noted() -> None:
    harness = Harness(SLOTS, 2 * MiB, MemoryTier(4))
    assert harness.layer.log is None
    harness.store(3, RAW)
    assert harness.load(3) == RAW


def test_an_event_reads_back_as_it_was_written() -> None:
    event = Event(EventKind.MOVE, (1 << 40) - 1, 254, 15, 7, 5, 1 << 63)
    assert decode(*encode(event)) == event


@pytest.mark.parametrize("size", [0, 8, 24, 48])
def test_a_ring_that_is_none_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match="ring"):
        log_read(bytes(8), bytes(size), bytearray(32), 0)
    with pytest.raises(ValueError, match="fit together"):
        Log(
            head=bytearray(8),
            touched=bytearray(4),
            events=bytearray(size),
            class_of_grains=CLASS_OF_GRAINS,
        )


def test_a_slot_outside_the_file_is_refused() -> None:
    ring = bytearray(EVENT_BYTES * 256)
    log = Log(head=bytearray(8), touched=bytearray(4), events=ring, class_of_grains=CLASS_OF_GRAINS)
    with pytest.raises(ValueError, match="slot"):
        log.add(EventKind.STORE, CLUSTER_SLOTS, 0, 0, 0)
